"""Run a suite of ablations of one config and print its table beside the paper's.

Runs that are finished are not done again, and one that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from detector.commands import cli
from detector.commands.ablation import (
    AblationRun,
    Suite,
    ablation_table,
    keep_studied,
    read_suite,
    results,
    write_results,
    write_run_config,
)
from detector.core.errors import InputError
from detector.core.progress import note, show
from detector.engine.checkpoint import numbered_checkpoints

TOOLS = Path(__file__).resolve().parents[2] / "tools"
FRAGMENTS = TOOLS.parent / "configs" / "ablation"


def main() -> int:
    arguments = parse()
    suite = read_suite(FRAGMENTS / "suites" / f"{arguments.suite}.yaml")
    studied = Path(arguments.data)
    folder = Path(arguments.output or f"runs/{arguments.suite}_{studied.stem}")
    chosen = choose(suite, arguments.only)
    keep_studied(suite, folder, studied, arguments.overrides)
    configs = {
        run.name: write_run_config(suite, run, FRAGMENTS, studied, folder / "configs" / f"{run.name}.yaml")
        for run in suite.runs
    }
    for number, run in enumerate(chosen, start=1):
        if (folder / run.name / "metrics.json").is_file():
            note(f"{run.name}: done before")
            continue
        note(f"run {number} of {len(chosen)}: {run.name}")
        line = command(run, configs[run.name], folder, arguments)
        done = subprocess.run(line, env=environment(), check=False).returncode
        if done:
            note(f"{run.name} ended with status {done}; the same command goes on from here")
            return done
        write_results(folder / "ablation.json", results(suite, folder))
    found = results(suite, folder)
    write_results(folder / "ablation.json", found)
    show(ablation_table(found))
    show(str(folder / "ablation.json"))
    return 0


def environment() -> dict[str, str]:
    """Return this process's environment, with this project on the path wherever the command is given."""
    known = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(TOOLS.parent), known]))}


def choose(suite: Suite, names: list[str] | None) -> list[AblationRun]:
    """Return the runs that ``names`` asks for, with those whose networks they test."""
    if names is None:
        return list(suite.runs)
    known = {run.name: run for run in suite.runs}
    for name in names:
        if name not in known:
            raise InputError(f"--only {name}: the suite's runs are {', '.join(known)}")
    wanted = set(names) | {known[name].checkpoint_of for name in names}
    return [run for run in suite.runs if run.name in wanted]


def command(run: AblationRun, config: Path, folder: Path, arguments: argparse.Namespace) -> list[str]:
    """Return the command line that makes ``metrics.json`` of one run."""
    place = folder / run.name
    if run.checkpoint_of is None:
        script, tool = "train.py", ["--output", place, "--resume"]
    else:
        place_of = folder / run.checkpoint_of / "checkpoints"
        found = numbered_checkpoints(place_of)
        if not found:
            raise InputError(f"{place_of}: holds no step_N.pt, which {run.name} tests; train it again")
        trained = found[-1]
        script, tool = "evaluate.py", ["--checkpoint", trained, "--output", place / "metrics.json"]
    parts = [sys.executable, TOOLS / script, "--config", config, *tool, "--device", arguments.device]
    return [str(part) for part in (*parts, *arguments.overrides)]


def parse() -> argparse.Namespace:
    parser = cli.make_parser(
        __doc__ or "",
        "python tools/ablate.py --suite fast_rcnn_paper --data configs/quickstart.yaml train.steps=500",
    )
    parser.add_argument("--suite", required=True, help="a file of configs/ablation/suites, without .yaml")
    parser.add_argument("--data", required=True, metavar="CONFIG", help="the config that is studied")
    parser.add_argument("--output", metavar="DIR", help="folder of the runs (default: runs/SUITE_CONFIG)")
    parser.add_argument("--only", action="append", metavar="RUN", help="this run alone; may be repeated")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="config values to replace in every run"
    )
    cli.add_device_argument(parser)
    return parser.parse_intermixed_args()
