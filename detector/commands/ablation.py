"""Suites of ablations: short configs, each a change to one config, set beside a paper's table."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError
from rich.table import Table

from detector.config import load_config
from detector.config.files import read_yaml
from detector.config.schema import Count, Section
from detector.core.errors import InputError
from detector.core.files import read_json, write_text

Name = Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]


class AblationRun(Section):
    """One line of the table: ``NAME.yaml`` in the suite's parent folder, over the config that is studied."""

    name: Name
    question: str
    paper: dict[str, float] = Field(default_factory=dict)
    """The paper's mAP in percent, by its name of the model."""
    checkpoint_of: Name | None = None
    """Test the network of this run instead of training another."""


class Suite(Section):
    """The runs of a table; their scales are meant for a config that tests at ``reference_scale`` pixels."""

    title: str
    reference_scale: Count
    runs: Annotated[list[AblationRun], Field(min_length=1)]


def read_suite(path: Path) -> Suite:
    """Read a suite.

    Raises:
        InputError: no such file, not a suite, or a run that tests the network of one that comes later.
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


def write_run_config(suite: Suite, run: AblationRun, fragments: Path, studied: Path, target: Path) -> Path:
    """Write the config of ``run`` to ``target``: the studied config, then the fragment, scales adapted."""
    fragment = fragments / f"{run.name}.yaml"
    changes = read_yaml(fragment)
    factor = load_config(studied).test.scales[0] / suite.reference_scale
    adapted: dict[str, Any] = {
        section: {
            key: [round(value * factor) for value in given] if key == "scales" else round(given * factor)
            for key, given in changes[section].items()
            if key in ("scales", "max_size")
        }
        for section in ("train", "test")
        if section in changes
    }
    bases = [str(studied.resolve()), str(fragment.resolve())]
    write_text(target, yaml.safe_dump({"_base_": bases, **adapted}, sort_keys=False))
    load_config(target)  # a mistake shows now and not after the runs before it
    return target


def keep_studied(suite: Suite, folder: Path, studied: Path, overrides: Sequence[str]) -> None:
    """Note in ``folder`` what its runs study, so that the finished ones are not taken for others.

    Raises:
        InputError: the folder's runs are of another config or other overrides; names a key.
    """
    path = folder / "studied.json"
    now = load_config(studied, overrides).model_dump(mode="json", exclude={"data": {"workers"}})
    begun = any((folder / run.name).is_dir() for run in suite.runs)
    if begun and path.is_file() and (before := read_json(path)) != now:
        differing = sorted(key for key in now if not isinstance(before, dict) or before.get(key) != now[key])
        raise InputError(
            f"{path}: the runs here were made with other values of {', '.join(differing)}; give another "
            "--output"
        )
    write_text(path, json.dumps(now, indent=1) + "\n")


def results(suite: Suite, folder: Path) -> dict[str, Any]:
    """Return what the runs in ``folder`` scored so far, beside the paper's figures."""
    rows = []
    for run in suite.runs:
        metrics = folder / run.name / "metrics.json"
        found = read_json(metrics) if metrics.is_file() else {}
        if not isinstance(found, dict):
            raise InputError(f"{metrics}: not the figures of a run")
        scored = {key: found.get(key) for key in ("voc07_mAP", "voc_mAP", "seconds")}
        rows.append({"name": run.name, "question": run.question, **scored, "paper": run.paper})
    return {"title": suite.title, "runs": rows}


def write_results(path: Path, found: dict[str, Any]) -> None:
    write_text(path, json.dumps(found, indent=1) + "\n")


def ablation_table(found: dict[str, Any]) -> Table:
    """Return the table of ``results``: ours as fractions of one in percent, as the paper prints them."""
    models = list(dict.fromkeys(model for row in found["runs"] for model in row["paper"]))
    caption = f"{', '.join(models)}: the paper's models on its data" if models else None
    table = Table(title=f"{found['title']}: mAP in percent", caption=caption)
    table.add_column("run")
    for column in ("11-point", "area", "seconds", *models):
        table.add_column(column, justify="right", no_wrap=True)
    asked = None
    for row in found["runs"]:
        ours = [_percent(row["voc07_mAP"]), _percent(row["voc_mAP"]), _shown(row["seconds"], 0)]
        theirs = [_shown(row["paper"].get(model), 1) for model in models]
        if row["question"] != asked:
            asked = row["question"]
            table.add_section()
            table.add_row(f"[italic]{asked}")
        table.add_row(row["name"], *ours, *theirs)
    return table


def _percent(value: float | None) -> str:
    return _shown(None if value is None else 100 * value, 1)


def _shown(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
