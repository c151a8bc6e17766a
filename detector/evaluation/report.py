"""Metrics as tables for people and as JSON for programs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import OverflowMethod
from rich.table import Column, Table
from rich.text import Text

from detector.core.errors import UNPRINTABLE, printable
from detector.core.files import write_text

COCO_METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
"""The names of COCO's metrics, in the order of pycocotools' summary."""
NOTHING_SCORED = "no annotations: nothing scored"

_right = partial(Column, justify="right")


def metrics_shown(metrics: Mapping[str, Any]) -> Table | str:
    """Return the table of an evaluation, or a line that reports that the split has no annotations.

    The ``metrics`` of such a split have ``annotated: False`` and no score.
    """
    if not metrics.get("annotated", True):
        return f"{metrics['split']}: {NOTHING_SCORED}"
    return coco_table(metrics) if "AP" in metrics else voc_table(metrics)


def plain(text: str, overflow: OverflowMethod | None = None) -> Text:
    """Return a name for a table's cell, header or title: as `printable` shows it, without rich's markup."""
    return Text(printable(text), overflow=overflow)


def voc_table(metrics: Mapping[str, Any], title: str = "VOC average precision") -> Table:
    """Return the metrics of `VocEvaluator` or `ClassificationEvaluator`: a row per class, then the means."""
    rows = metrics["per_class"].values()
    known = ("objects", "images", "difficult", "detections")
    counts = [count for count in known if all(count in row for row in rows)]
    table = Table(
        Column("class", "mean"),
        _right("11-point AP", _decimals(metrics["voc07_mAP"])),
        _right("area AP", _decimals(metrics["voc_mAP"])),
        *(_right(count, str(sum(row[count] for row in rows))) for count in counts),
        title=title,
        show_footer=True,
    )
    _add_rows(table, metrics["per_class"], ("voc07_AP", "voc_AP"), counts)
    return table


def coco_table(metrics: Mapping[str, Any], title: str = "COCO average precision and recall") -> Table:
    """Return the metrics of `CocoEvaluator`: a row per class, then one per metric."""
    counts = ("objects", "ignored", "detections")
    table = Table("class or metric", *map(_right, ("AP", "AP50", *counts)), title=title)
    _add_rows(table, metrics["per_class"], ("AP", "AP50"), counts)
    table.add_section()
    for name in COCO_METRICS:
        table.add_row(name, _decimals(metrics[name]))
    return table


def _add_rows(
    table: Table, per_class: Mapping[str, Any], scores: Sequence[str], counts: Sequence[str]
) -> None:
    for name, row in per_class.items():
        cells = [*(_decimals(row[score]) for score in scores), *(str(row[count]) for count in counts)]
        table.add_row(plain(name), *cells)


def recall_tables(report: Mapping[str, Any], name: str) -> list[Table]:
    """Return two tables of `detector.proposals.recall.recall_report`: by number of proposals, by group."""
    average = f"{report['proposals_per_image']:.0f} proposals per image, {report['images']} images"
    columns = ("proposals", "recall 0.5", "recall 0.7", "recall 0.9", "average recall", "MABO")
    by_number = Table(*map(_right, columns), title=plain(f"{name}: {average}"))
    for place, count in enumerate(report["counts"]):
        recall = [_at(report["recall"], place, threshold) for threshold in ("0.5", "0.7", "0.9")]
        averages = [_at(report[key], place) for key in ("average_recall", "MABO")]
        by_number.add_row(str(count), *recall, *averages)
    groups = ("objects", "recall 0.5", "recall 0.7", "average recall", "mean best overlap")
    by_group = Table("class or size", *map(_right, groups), title=plain(f"{name}: all proposals"))
    for kind in ("per_class", "per_size"):
        for group, row in report[kind].items():
            recall = [_at(row["recall"], -1, threshold) for threshold in ("0.5", "0.7")]
            averages = [_at(row[key], -1) for key in ("average_recall", "mean_best_overlap")]
            by_group.add_row(plain(group), str(row["objects"]), *recall, *averages)
        by_group.add_section()
    return [by_number, by_group]


def write_json(path: Path | str, metrics: Mapping[str, Any]) -> None:
    """Write ``metrics`` as JSON with sorted keys; a number that is not finite becomes null.

    Characters that `printable` would escape are written as JSON escapes; all others are written as they are.

    Raises:
        InputError: the file cannot be written. An older file of that name then stays as it was.
    """
    text = json.dumps(_finite(metrics), indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    lines = (UNPRINTABLE.sub(lambda one: f"\\u{ord(one[0]):04x}", line) for line in text.split("\n"))
    write_text(Path(path), "\n".join(lines) + "\n")


def _decimals(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _at(values: Any, place: int, key: str | None = None) -> str:
    """Return one of a list of metrics as text; "-" where there are no objects."""
    if values is None:
        return "-"
    return _decimals((values if key is None else values[key])[place])


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
