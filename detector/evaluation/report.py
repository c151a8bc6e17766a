"""Figures for people (a table) and for programs (JSON)."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from detector.files import write_text


def voc_table(figures: Mapping[str, Any], title: str = "VOC average precision") -> Table:
    """Return the table of what `VocEvaluator.compute` or `ClassificationEvaluator.compute` returns: a row a
    class, then the means."""
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
        table.add_row(Text(name), *cells)
    return table


def coco_table(figures: Mapping[str, Any], title: str = "COCO average precision and recall") -> Table:
    """Return the table of what `CocoEvaluator.compute` returns: a row a class, then each figure."""
    counts = ("objects", "ignored", "detections")
    table = Table(title=title)
    table.add_column("class or figure")
    for column in ("AP", "AP50", *counts):
        table.add_column(column, justify="right")
    for name, row in figures["per_class"].items():
        cells = [_figure(row["AP"]), _figure(row["AP50"]), *(str(row[count]) for count in counts)]
        table.add_row(Text(name), *cells)
    table.add_section()
    for name, value in figures.items():
        if name != "per_class":
            table.add_row(name, _figure(value))
    return table


def write_json(path: Path | str, figures: Mapping[str, Any]) -> None:
    """Write ``figures`` as JSON with sorted keys; a number that is not finite becomes null.

    Raises InputError if the file cannot be written; what was there before is then still there.
    """
    text = json.dumps(_finite(figures), indent=2, sort_keys=True, allow_nan=False, ensure_ascii=False)
    write_text(Path(path), text + "\n")


def _figure(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
