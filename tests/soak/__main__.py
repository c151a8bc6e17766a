"""Kill runs at random moments, resume them, and compare the outcome with that of uninterrupted runs.

Each round starts a run in an empty folder, kills it with SIGKILL once per phase, resumes it every time and
lets it end. Checkpoints, metrics, logs, TensorBoard's values, result files, pictures and proposals must be
those of the run that was never killed, bit for bit apart from times, and no other file may be left. Exit
status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.soak.compare import differences
from tests.soak.life import LONGEST_SECONDS, Life, Report
from tests.soak.scenarios import Scenario, scenarios
from tests.soak.victim import Plan

TORN = ("before an operation on a file", "while writing a checkpoint", "at a random time")
"""The kinds of kills."""


@dataclass
class Summary:
    """What has happened so far."""

    kills: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    rounds: int = 0
    differences: list[str] = field(default_factory=list)

    def table(self, seconds: float) -> Table:
        table = Table(
            "phase", "kills", title=f"{self.kills.total()} kills in {self.rounds} rounds, {seconds:.0f} s"
        )
        for phase, count in sorted(self.kills.items()):
            table.add_row(phase, str(count))
        return table


class Soak:
    """Rounds of kills of one scenario after another; ``place`` is an empty folder for everything."""

    def __init__(self, place: Path, seed: int, processes: int) -> None:
        self.place = place
        self.draw = random.Random(seed)
        self.processes = processes
        self.scenarios = scenarios(place)
        self.reports: dict[str, Report] = {}
        self.summary = Summary()

    def run(self, kills: int) -> None:
        """Kill ``kills`` times in all; each round ends with a comparison."""
        while self.summary.kills.total() < kills and self.summary.rounds < kills:
            scenario = self.scenarios[self.summary.rounds % len(self.scenarios)]
            self._round(scenario, kills - self.summary.kills.total())

    def _uninterrupted(self, scenario: Scenario) -> Path:
        """Return the folder of the scenario's run that nobody kills."""
        folder = self.place / scenario.name / "whole"
        if scenario.name not in self.reports:
            self.reports[scenario.name] = self._finish(scenario, folder)
        return folder

    def _round(self, scenario: Scenario, most: int) -> None:
        whole = self._uninterrupted(scenario)
        folder = self.place / scenario.name / f"round_{self.summary.rounds}"
        phases = list(scenario.phases)
        while len(phases) > most:
            phases.remove(self.draw.choice(phases))
        for phase in phases:
            if not self._kill(scenario, folder, phase):
                break  # it ended before it could be killed
        self._finish(scenario, folder)
        found = [f"{scenario.name}, round {self.summary.rounds}: {one}" for one in differences(whole, folder)]
        print("\n".join(found) or f"{scenario.name}, round {self.summary.rounds}: equal", flush=True)
        self.summary.differences += found
        self.summary.rounds += 1
        if not found:
            shutil.rmtree(folder)

    def _start(self, scenario: Scenario, folder: Path, plan: Plan) -> Life:
        folder.mkdir(parents=True, exist_ok=True)
        report = folder.with_suffix(".report")
        report.unlink(missing_ok=True)
        return Life(scenario.arguments(self.place), folder, report, plan, self.processes)

    def _finish(self, scenario: Scenario, folder: Path) -> Report:
        """Let a run go on to its end."""
        life = self._start(scenario, folder, Plan())
        status = life.wait(LONGEST_SECONDS)
        if status != 0:
            raise SystemExit(f"{scenario.name}: a run that was not killed ended with {status}: {life.output}")
        return life.report()

    def _kill(self, scenario: Scenario, folder: Path, phase: str) -> bool:
        """Start or resume a run and kill it in ``phase``; return whether it was killed before its end."""
        kind = self.draw.choice(TORN if phase == "checkpoint" else (TORN[0], TORN[2]))
        of_whole = self.reports[scenario.name]
        count = of_whole.begun[phase] if kind == TORN[1] else of_whole.operations[phase]
        plan = Plan(
            phase, self.draw.randint(1, max(count // 2, 1)), self.draw.random() if kind == TORN[1] else None
        )
        life = self._start(scenario, folder, plan if kind != TORN[2] else Plan())
        if kind == TORN[2] or not count:
            life.kill_in(phase, self.draw.uniform(0, of_whole.seconds[phase] / max(of_whole.begun[phase], 1)))
        status = life.wait(LONGEST_SECONDS)
        if status == 0:
            return False
        if not life.killed(status):
            raise SystemExit(f"{scenario.name}: the run ended with {status} by itself: {life.output}")
        self.summary.kills[life.report().phase] += 1
        self.summary.kinds[kind] += 1
        return True


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  python -m tests.soak --kills 50 --seed 0 --out /tmp/soak",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=50, help="how many times a run is killed (default 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills (default 0)")
    parser.add_argument(
        "--out", type=Path, required=True, help="an empty or new folder, for all runs and soak.json"
    )
    parser.add_argument(
        "--processes", type=int, default=1, help="processes per run, started by torchrun (default 1)"
    )
    arguments = parser.parse_args()
    if arguments.out.exists() and any(arguments.out.iterdir()):
        parser.error(f"{arguments.out} is not empty")
    arguments.out.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    soak = Soak(arguments.out.resolve(), arguments.seed, arguments.processes)
    soak.run(arguments.kills)
    seconds, summary = time.monotonic() - began, soak.summary
    Console().print(summary.table(seconds))
    print(f"{len(summary.differences)} differences")
    result = {
        "kills": summary.kills.total(),
        "kills_by_phase": dict(sorted(summary.kills.items())),
        "kills_by_kind": dict(sorted(summary.kinds.items())),
        "rounds": summary.rounds,
        "processes": arguments.processes,
        "seed": arguments.seed,
        "seconds": round(seconds, 1),
        "differences": summary.differences,
    }
    (arguments.out / "soak.json").write_text(json.dumps(result, indent=1) + "\n")
    return 1 if summary.differences else 0


if __name__ == "__main__":
    sys.exit(main())
