"""The command: ``python3 -m benchmarks.gpu_check --out DIR``, what ``make gpu-check OUT=DIR`` runs.

Exit status: 0 when every part ran and passed, 1 when one did not, 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from benchmarks.gpu_check.machine import ROOT, Machine, base_environment
from benchmarks.gpu_check.plan import ALL_TESTS, Plan
from benchmarks.gpu_check.report import Outcome, Report
from benchmarks.gpu_check.runner import Part, Runner

EXAMPLE = (
    "example:\n  make gpu-check OUT=runs/gpu_check\n  python3 -m benchmarks.gpu_check --out /tmp/x --dry-run"
)
TIME_LIMIT = 440.0


class Interrupted(Exception):
    """Raised on SIGINT or SIGTERM."""


def main() -> int:
    started = time.monotonic()
    arguments = parse()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, interrupt)
    work = Path(tempfile.mkdtemp(prefix="gpu_check_"))
    try:
        return check(arguments, work, started)
    except Interrupted:
        return 1
    finally:
        shutil.rmtree(work, ignore_errors=True)


def check(arguments: argparse.Namespace, work: Path, started: float) -> int:
    """Run the chosen parts and write the report; return the exit status."""
    machine = Machine(base_environment())
    plan = Plan(machine, work, ROOT / "data", rehearsal=arguments.dry_run, tests=arguments.tests)
    chosen = choose(plan.parts(), arguments.parts)
    if arguments.list:
        for part in chosen:
            print(f"{part.name:<22} {part.limit:>4.0f} s at most  {part.title}")
        return 0
    machine.look(arguments.wheels)
    if machine.facts.get("gpu") is None and not arguments.dry_run:
        reason = machine.facts.get("error", "torch sees no CUDA device")
        print(f"error: no GPU: {reason}; --dry-run rehearses on a CPU", file=sys.stderr)
        return 2
    if machine.facts["missing"]:
        missing = ", ".join(machine.facts["missing"])
        print(f"warning: missing modules: {missing}; put their wheels into .whl/", flush=True)
    outcomes = [Outcome(part.name, part.title) for part in chosen]
    report = Report(Path(arguments.out), machine.facts, outcomes, arguments.dry_run)

    def ended(outcome: Outcome) -> None:
        print(outcome.text(), flush=True)
        report.write(time.monotonic() - started)

    runner = Runner(work, machine.environment, started + arguments.time_limit, ended)
    try:
        report.write(time.monotonic() - started)
        runner.run(list(zip(chosen, outcomes, strict=True)))
    finally:
        ignore_signals()
        runner.stop()
        report.write(time.monotonic() - started)
        print(report.summary(), flush=True)
        print(f"{time.monotonic() - started:.0f} s; see {arguments.out}/report.md", flush=True)
    return int(any(outcome.bad for outcome in outcomes))


def interrupt(number: int, _frame: FrameType | None) -> None:
    raise Interrupted(signal.Signals(number).name)


def ignore_signals() -> None:
    """Ignore further signals, so that an interrupted check can write its report."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def choose(parts: list[Part], names: str | None) -> list[Part]:
    """Return the parts with the given ``names``, separated by commas; all parts for None."""
    if names is None:
        return parts
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    known = {part.name for part in parts}
    unknown = [name for name in wanted if name not in known]
    if unknown or not wanted:
        print(
            f"error: no such part: {', '.join(unknown)}; known: {', '.join(sorted(known))}", file=sys.stderr
        )
        raise SystemExit(2)
    return [part for part in parts if part.name in wanted]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python3 -m benchmarks.gpu_check",
        description="Build, check and time everything that needs a GPU, offline; writes three files.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", help="folder for report.json, report.md and logs.tar.gz")
    parser.add_argument("--parts", help="run only these parts, separated by commas (--list names them)")
    parser.add_argument(
        "--tests", nargs="+", default=ALL_TESTS, help="files and folders for the part tests (default: tests)"
    )
    parser.add_argument("--list", action="store_true", help="list the parts and end")
    parser.add_argument("--time-limit", type=float, default=TIME_LIMIT, help="seconds for everything")
    parser.add_argument("--wheels", type=Path, help="folder of wheels for missing modules (default: .whl)")
    parser.add_argument("--dry-run", action="store_true", help="rehearse on a CPU with tiny sizes")
    arguments = parser.parse_args()
    if not arguments.out and not arguments.list:
        parser.error("--out is needed (make gpu-check OUT=DIR)")
    return arguments


if __name__ == "__main__":
    raise SystemExit(main())
