"""Run a suite of ablations of one config and print its table beside the paper's.

A suite is a list of short configs, each a change to the config that is studied. Finished runs are not
repeated, and a run that was stopped is resumed.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError
from rich.table import Table

from detector.commands import cli
from detector.config import load_config
from detector.config.files import SHIPPED, find_config, read_yaml
from detector.config.schema import Count, Section
from detector.core.errors import InputError
from detector.core.files import read_json, write_text
from detector.core.progress import note, show
from detector.engine.checkpoint import numbered_checkpoints

PACKAGES = Path(__file__).resolve().parents[2]
"""The folder that holds this package: the repository's, or that of the installed packages."""
FRAGMENTS = SHIPPED / "ablation"

Name = Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]


class AblationRun(Section):
    """One row of the table: the studied config, changed by ``NAME.yaml`` in the suites' parent folder."""

    name: Name
    question: str
    paper: dict[str, float] = Field(default_factory=dict)
    """The paper's mAP in percent, by its name of the model."""
    checkpoint_of: Name | None = None
    """Test the network of this run instead of training another one."""


class Suite(Section):
    """The runs of a table; their scales are meant for a config that tests at ``reference_scale`` pixels."""

    title: str
    reference_scale: Count
    runs: Annotated[list[AblationRun], Field(min_length=1)]


def main() -> int:
    arguments = parse()
    suites = {path.stem: path for path in sorted((FRAGMENTS / "suites").glob("*.yaml"))}
    if arguments.suite not in suites:
        raise InputError(f"--suite {arguments.suite}: no such suite; the suites are {', '.join(suites)}")
    suite = read_suite(suites[arguments.suite])
    studied = find_config(arguments.data)
    folder = Path(arguments.output or f"runs/{arguments.suite}_{studied.stem}")
    chosen = choose(suite, arguments.only)
    check_studied(suite, folder, studied, arguments.overrides)
    configs = {
        run.name: write_run_config(suite, run, FRAGMENTS, studied, folder / "configs" / f"{run.name}.yaml")
        for run in suite.runs
    }
    for number, run in enumerate(chosen, start=1):
        if (folder / run.name / "metrics.json").is_file():
            note(f"{run.name}: already done")
            continue
        note(f"run {number} of {len(chosen)}: {run.name}")
        line = command(run, configs[run.name], folder, arguments)
        status = subprocess.run(line, env=environment(), check=False).returncode
        if status:
            note(f"{run.name} ended with status {status}; the same command resumes the suite from here")
            return status
        write_results(suite, folder)
    show(ablation_table(write_results(suite, folder)))
    show(str(folder / "ablation.json"))
    return 0


def parse() -> argparse.Namespace:
    parser = cli.make_parser(
        __doc__ or "",
        "python tools/ablate.py --suite fast_rcnn_paper --data quickstart train.steps=500",
    )
    parser.add_argument(
        "--suite", required=True, help="a file of configs/ablation/suites, such as fast_rcnn_paper"
    )
    parser.add_argument(
        "--data", required=True, metavar="CONFIG", help="the config that is studied: a file or a shipped name"
    )
    parser.add_argument("--output", metavar="DIR", help="folder of the runs (default: runs/SUITE_CONFIG)")
    parser.add_argument("--only", action="append", metavar="RUN", help="only this run; may be repeated")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="config values to replace in every run"
    )
    cli.add_device_argument(parser)
    return parser.parse_intermixed_args()


def read_suite(path: Path) -> Suite:
    """Read a suite.

    Raises:
        InputError: no such file, not a suite, or a run that tests the network of a later one.
    """
    try:
        suite = Suite.model_validate(read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise InputError(f"{path}: {key}: {first['msg']}") from None
    known: set[str] = set()
    for run in suite.runs:
        if run.name in known:
            raise InputError(f"{path}: two runs are called {run.name}; rename one")
        if run.checkpoint_of is not None and run.checkpoint_of not in known:
            raise InputError(f"{path}: {run.name}: checkpoint_of names no run before it: {run.checkpoint_of}")
        known.add(run.name)
    return suite


def choose(suite: Suite, names: list[str] | None) -> list[AblationRun]:
    """Return the runs that ``names`` asks for, and the runs whose networks these test; None asks for all."""
    if names is None:
        return list(suite.runs)
    known = {run.name: run for run in suite.runs}
    for name in names:
        if name not in known:
            raise InputError(f"--only {name}: the suite's runs are {', '.join(known)}")
    wanted = set(names) | {known[name].checkpoint_of for name in names}
    return [run for run in suite.runs if run.name in wanted]


def check_studied(suite: Suite, folder: Path, studied: Path, overrides: Sequence[str]) -> None:
    """Store in ``folder`` the config that its runs study, so that runs of two configs are never mixed.

    Raises:
        InputError: the runs in the folder were made with another config or other overrides; names the keys.
    """
    path = folder / "studied.json"
    now = load_config(studied, overrides).model_dump(mode="json", exclude={"data": {"workers"}})
    begun = any((folder / run.name).is_dir() for run in suite.runs)
    if begun and path.is_file() and (before := read_json(path)) != now:
        known = before if isinstance(before, dict) else {}
        differing = sorted(key for key in now if known.get(key) != now[key])
        raise InputError(
            f"{path}: the runs here were made with other values of {', '.join(differing)}; give another "
            "--output"
        )
    write_text(path, json.dumps(now, indent=1) + "\n")


def write_run_config(suite: Suite, run: AblationRun, fragments: Path, studied: Path, target: Path) -> Path:
    """Write the config of ``run`` to ``target``: the studied config, changed by the run's own file.

    Sizes in that file are multiplied by the studied config's test scale over the suite's reference scale.
    """
    fragment = fragments / f"{run.name}.yaml"
    changes = read_yaml(fragment)
    scale_factor = load_config(studied).test.scales[0] / suite.reference_scale
    adapted: dict[str, Any] = {
        section: {
            key: [round(size * scale_factor) for size in given]
            if key == "scales"
            else round(given * scale_factor)
            for key, given in changes[section].items()
            if key in ("scales", "max_size")
        }
        for section in ("train", "test")
        if section in changes
    }
    bases = [str(studied.resolve()), str(fragment.resolve())]
    write_text(target, yaml.safe_dump({"_base_": bases, **adapted}, sort_keys=False))
    load_config(target)  # so that a mistake is reported before any run begins
    return target


def command(run: AblationRun, config: Path, folder: Path, arguments: argparse.Namespace) -> list[str]:
    """Return the command line that makes ``metrics.json`` of one run."""
    place = folder / run.name
    if run.checkpoint_of is None:
        name, options = "train", ["--output", place, "--resume"]
    else:
        checkpoints = folder / run.checkpoint_of / "checkpoints"
        numbered = numbered_checkpoints(checkpoints)
        if not numbered:
            raise InputError(f"{checkpoints}: holds no step_N.pt, which {run.name} tests; train it again")
        name, options = "evaluate", ["--checkpoint", numbered[-1], "--output", place / "metrics.json"]
    parts = [name, "--config", config, *options, "--device", arguments.device, *arguments.overrides]
    # -P: a folder "detector" in the working directory is not taken for this package.
    return [sys.executable, "-P", "-m", "detector", *map(str, parts)]


def environment() -> dict[str, str]:
    """Return this process's environment, with this package on Python's path from any working directory."""
    known = os.environ.get("PYTHONPATH")
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(PACKAGES), known]))}


def write_results(suite: Suite, folder: Path) -> dict[str, Any]:
    """Write the metrics of the runs in ``folder`` so far, beside the paper's, and return them."""
    rows = []
    for run in suite.runs:
        path = folder / run.name / "metrics.json"
        metrics = read_json(path) if path.is_file() else {}
        if not isinstance(metrics, dict):
            raise InputError(
                f"{path}: does not hold the metrics of a run; remove it, and the run is repeated"
            )
        scored = {key: metrics.get(key) for key in ("voc07_mAP", "voc_mAP", "seconds")}
        rows.append({"name": run.name, "question": run.question, **scored, "paper": run.paper})
    results = {"title": suite.title, "runs": rows}
    write_text(folder / "ablation.json", json.dumps(results, indent=1) + "\n")
    return results


def ablation_table(results: dict[str, Any]) -> Table:
    """Return the table of ``write_results``: mAP in percent, as the paper prints it."""
    models = list(dict.fromkeys(model for row in results["runs"] for model in row["paper"]))
    caption = f"{', '.join(models)}: the paper's models on its data" if models else None
    table = Table(title=f"{results['title']}: mAP in percent", caption=caption)
    table.add_column("run")
    for column in ("11-point", "area", "seconds", *models):
        table.add_column(column, justify="right", no_wrap=True)
    question = None
    for row in results["runs"]:
        ours = [_cell(row["voc07_mAP"], 1, 100), _cell(row["voc_mAP"], 1, 100), _cell(row["seconds"], 0)]
        theirs = [_cell(row["paper"].get(model), 1) for model in models]
        if row["question"] != question:
            question = row["question"]
            table.add_section()
            table.add_row(f"[italic]{question}")
        table.add_row(row["name"], *ours, *theirs)
    return table


def _cell(value: float | None, digits: int, factor: float = 1) -> str:
    return "" if value is None else f"{factor * value:.{digits}f}"
