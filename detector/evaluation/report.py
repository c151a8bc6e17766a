"""Metrics as tables for people and as JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import OverflowMethod
from rich.table import Table
from rich.text import Text

from detector.core.errors import UNPRINTABLE, printable
from detector.core.files import write_text

# In the order of pycocotools' summary.
COCO_FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")

NOTHING_SCORED = "no annotations: nothing scored"


def figures_shown(figures: Mapping[str, Any]) -> Table | str:
    """Return the table of an evaluation, or a line that says that the split has no annotations.

    The ``figures`` of such a split have ``annotated: False`` and no metric.
    """
    if not figures.get("annotated", True):
        return f"{figures['split']}: {NOTHING_SCORED}"
    return coco_table(figures) if "AP" in figures else voc_table(figures)


def plain(text: str, overflow: OverflowMethod | None = None) -> Text:
    """Return a name for a table's cell, header or title: as `printable` shows it, without rich's markup."""
    return Text(printable(text), overflow=overflow)


def voc_table(figures: Mapping[str, Any], title: str = "VOC average precision") -> Table:
    """Return the table of what `VocEvaluator.compute` or `ClassificationEvaluator.compute` returns: one row
    per class, then the means."""
    table = Table(title=title, show_footer=True)
    table.add_column("class", footer="mean")
    table.add_column("11-point AP", footer=_figure(figures["voc07_mAP"]), justify="right")
    table.add_column("area AP", footer=_figure(figures["voc_mAP"]), justify="right")
    rows = figures["per_class"].values()
    known = ("objects", "images", "difficult", "detections")
    counts = [count for count in known if all(count in row for row in rows)]
    for count in counts:
        total = sum(row[count] for row in rows)
        table.add_column(count, footer=str(total), justify="right")
    for name, row in figures["per_class"].items():
        cells = [_figure(row["voc07_AP"]), _figure(row["voc_AP"]), *(str(row[count]) for count in counts)]
        table.add_row(plain(name), *cells)
    return table


def coco_table(figures: Mapping[str, Any], title: str = "COCO average precision and recall") -> Table:
    """Return the table of what `CocoEvaluator.compute` returns: one row per class, then one per metric."""
    counts = ("objects", "ignored", "detections")
    table = Table(title=title)
    table.add_column("class or metric")
    for column in ("AP", "AP50", *counts):
        table.add_column(column, justify="right")
    for name, row in figures["per_class"].items():
        cells = [_figure(row["AP"]), _figure(row["AP50"]), *(str(row[count]) for count in counts)]
        table.add_row(plain(name), *cells)
    table.add_section()
    for name in COCO_FIGURES:
        table.add_row(name, _figure(figures[name]))
    return table


def recall_tables(report: Mapping[str, Any], name: str) -> list[Table]:
    """Return two tables of `detector.proposals.recall.recall_report`: by number of proposals, by group."""
    average = f"{report['proposals_per_image']:.0f} proposals per image, {report['images']} images"
    by_number = Table(title=plain(f"{name}: {average}"))
    for column in ("proposals", "recall 0.5", "recall 0.7", "recall 0.9", "average recall", "MABO"):
        by_number.add_column(column, justify="right")
    for place, count in enumerate(report["counts"]):
        recall = [_at(report["recall"], place, threshold) for threshold in ("0.5", "0.7", "0.9")]
        by_number.add_row(
            str(count), *recall, _at(report["average_recall"], place), _at(report["MABO"], place)
        )
    by_group = Table(title=plain(f"{name}: all proposals"))
    by_group.add_column("class or size")
    for column in ("objects", "recall 0.5", "recall 0.7", "average recall", "mean best overlap"):
        by_group.add_column(column, justify="right")
    for kind in ("per_class", "per_size"):
        for group, row in report[kind].items():
            recall = [_at(row["recall"], -1, threshold) for threshold in ("0.5", "0.7")]
            rest = (_at(row[key], -1) for key in ("average_recall", "mean_best_overlap"))
            by_group.add_row(plain(group), str(row["objects"]), *recall, *rest)
        by_group.add_section()
    return [by_number, by_group]


def write_json(path: Path | str, figures: Mapping[str, Any]) -> None:
    """Write ``figures`` as JSON with sorted keys; a number that is not finite becomes null.

    Characters that `printable` would escape are written as JSON escapes; all others are written as they are.

    Raises:
        InputError: the file cannot be written. An older file of that name then stays as it was.
    """
    text = json.dumps(_finite(figures), indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    lines = (UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", line) for line in text.split("\n"))
    write_text(Path(path), "\n".join(lines) + "\n")


def _figure(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _at(values: Any, place: int, key: str | None = None) -> str:
    """Return one of a list of metrics as text; "-" where there are no objects."""
    if values is None:
        return "-"
    return _figure((values if key is None else values[key])[place])


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
