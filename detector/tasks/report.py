"""What a finished run leaves for people and programs: the table, metrics.json and the one-page picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detector.config import Config
from detector.core.progress import note, show
from detector.data.images import read_image
from detector.engine.memory import PeakMemory
from detector.engine.run_log import read_log
from detector.evaluation.report import figures_shown, write_json
from detector.tasks.evaluation import COURSE, Evaluation, TestSet
from detector.visualize import run_picture

Course = list[tuple[float, float]]  # (step, value)

EXAMPLES = 8
"""Images on the picture, each with its detections and its ground truth."""


def print_figures(figures: dict[str, Any]) -> None:
    """Print the table of an evaluation, or that there was nothing to score, to standard output."""
    show(figures_shown(figures))


def finish_figures(figures: dict[str, Any], seconds: float, memory: PeakMemory) -> dict[str, Any]:
    """Return the figures of metrics.json: an evaluation's, the time taken and the memory needed."""
    return {
        **figures,
        "seconds": round(seconds, 1),
        **memory.figures(),
    }


def write_report(
    config: Config, folder: Path, test_set: TestSet, evaluation: Evaluation, figures: dict[str, Any]
) -> None:
    """Write ``metrics.json`` and ``run.png`` into a run's folder."""
    losses, evaluations = run_series(folder)
    shown = _examples(test_set, evaluation)
    run_picture(
        folder / "run.png",
        losses=losses,
        evaluations=evaluations,
        pr_curves=evaluation.evaluator.precision_recall() if test_set.annotated else {},
        figures=figures,
        examples=shown,
        classes=test_set.classes,
        title=f"{folder.name}: {config.model.backbone.name} on {Path(config.data.root).name}",
    )
    write_json(folder / "metrics.json", figures)
    note(f"wrote {folder / 'metrics.json'} and {folder / 'run.png'}")


def run_series(folder: Path) -> tuple[dict[str, Course], dict[str, Course]]:
    """Return the course of a run's losses, and of its figures where it was evaluated more than once."""
    records = read_log(folder / "log.jsonl", note)
    evaluations = _series(records, "evaluate", COURSE)
    several = {name: course for name, course in evaluations.items() if len(course) > 1}
    return _series(records, "train", ("loss",)), several


def _series(records: list[dict[str, Any]], kind: str, starts: tuple[str, ...]) -> dict[str, Course]:
    """Return each figure whose name begins with one of ``starts`` as (step, value) pairs."""
    chosen = [record for record in records if record["kind"] == kind]
    names = {name: None for record in chosen for name in record if name.startswith(starts)}
    return {
        name: [(record["step"], record[name]) for record in chosen if _is_number(record.get(name))]
        for name in names
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300


def _examples(test_set: TestSet, evaluation: Evaluation) -> list[Any]:
    """Return evenly spaced images of the split that have objects, or any where there are too few."""
    records = [record for record in test_set.records if len(record.targets)] or test_set.records
    count = min(EXAMPLES, len(records))
    chosen = [records[number * len(records) // count] for number in range(count)]
    return [
        (
            read_image(record.path, (record.height, record.width)),
            evaluation.detections[record.image_id],
            record.targets,
        )
        for record in chosen
    ]
