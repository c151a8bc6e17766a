"""The picture of the recall of proposals, for several stores side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from detector.core.errors import printable
from detector.visualize.page import DPI, line_colour, style_axes

_MOST_CLASSES = 20
_LEGEND_LETTERS = 26  # per line
_STYLES = ("-", "--", ":", "-.")  # one per IoU threshold
_SHOWN_THRESHOLDS = ("0.5", "0.7", "0.9")

Reports = Mapping[str, Mapping[str, Any]]


def recall_figure(reports: Reports, title: str) -> Figure:
    """Return a figure of the recall reports of the named stores.

    Its four panels show recall and average recall against the number of proposals, recall against IoU with
    all proposals, and the mean best overlap per class and per object size.
    """
    figure = Figure(figsize=(16.5, 9.2), dpi=DPI, facecolor="white")
    figure.text(0.04, 0.965, title, fontsize=16, weight="bold", va="center")
    panels = figure.add_gridspec(2, 2, left=0.04, right=0.86, bottom=0.1, top=0.9, wspace=0.5, hspace=0.32)
    _plot_recall(figure.add_subplot(panels[0, 0]), reports)
    _plot_average_recall(figure.add_subplot(panels[0, 1]), reports)
    _plot_thresholds(figure.add_subplot(panels[1, 0]), reports)
    _plot_groups(figure.add_subplot(panels[1, 1]), reports)
    return figure


def _plot_recall(axes: Axes, reports: Reports) -> None:
    style_axes(axes, "recall", "proposals per image")
    for number, (name, report) in enumerate(reports.items(), 1):
        for threshold, line in zip(_SHOWN_THRESHOLDS, _STYLES, strict=False):
            values = _values(report, "recall", threshold)
            label = f"{name}, IoU {threshold}"
            axes.plot(report["counts"], values, line, color=line_colour(number), label=label, marker=".")
    _count_axis(axes)


def _plot_average_recall(axes: Axes, reports: Reports) -> None:
    style_axes(axes, "average recall (IoU 0.5 to 0.95) and MABO", "proposals per image")
    for number, (name, report) in enumerate(reports.items(), 1):
        colour = line_colour(number)
        axes.plot(report["counts"], _values(report, "average_recall"), color=colour, label=name, marker=".")
        axes.plot(report["counts"], _values(report, "MABO"), "--", color=colour, label=f"{name}, MABO")
    _count_axis(axes)


def _plot_thresholds(axes: Axes, reports: Reports) -> None:
    style_axes(axes, "recall against IoU, all proposals", "IoU")
    for number, (name, report) in enumerate(reports.items(), 1):
        thresholds = [f"{threshold:g}" for threshold in report["iou_thresholds"]]
        values = [_values(report, "recall", threshold)[-1] for threshold in thresholds]
        label = f"{name}: {report['proposals_per_image']:.0f} per image"
        axes.plot(report["iou_thresholds"], values, color=line_colour(number), label=label, marker=".")
    axes.set(ylim=(0, 1.02))
    _legend(axes)


def _plot_groups(axes: Axes, reports: Reports) -> None:
    """Draw bars of the mean best overlap with all proposals, for the most frequent classes and each size."""
    style_axes(axes, "mean best overlap, all proposals", "")
    first = next(iter(reports.values()))
    classes = sorted(first["per_class"], key=lambda name: -first["per_class"][name]["objects"])
    rows = [("per_class", name) for name in classes[:_MOST_CLASSES]]
    rows += [("per_size", name) for name in first["per_size"]]
    width = 0.8 / len(reports)
    for number, (name, report) in enumerate(reports.items()):
        heights = [_values(report, kind, row, "mean_best_overlap")[-1] for kind, row in rows]
        left = np.arange(len(rows)) + (number - (len(reports) - 1) / 2) * width
        axes.bar(left, heights, width * 0.92, color=line_colour(number + 1), label=name)
    slanted = len(rows) > 8
    axes.set_xticks(
        range(len(rows)),
        [printable(row) for _, row in rows],
        rotation=45 if slanted else 0,
        ha="right" if slanted else "center",
    )
    axes.set(ylim=(0, 1.02))
    _legend(axes)


def _values(report: Mapping[str, Any], *keys: str) -> Sequence[float]:
    values: Any = report
    for key in keys:
        values = None if values is None else values[key]
    return [np.nan] * len(report["counts"]) if values is None else values


def _count_axis(axes: Axes) -> None:
    axes.set(ylim=(0, 1.02), xscale="log")
    axes.xaxis.set_major_formatter("{x:g}")
    _legend(axes)


def _legend(axes: Axes) -> None:
    """Put the legend beside the axes, where it covers no curves or bars."""
    handles, names = axes.get_legend_handles_labels()
    labels = ["\n".join(wrap(name, _LEGEND_LETTERS)) for name in names]
    axes.legend(handles, labels, frameon=False, fontsize=8.5, loc="upper left", bbox_to_anchor=(1.01, 1.03))
