"""The charts of a training run, and what all pages of charts share: resolution, style, and their pixels."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from numpy.typing import NDArray

from detector.core.errors import printable_lines
from detector.visualize.drawing import class_colour

Series = Sequence[tuple[float, float]]  # (step, value) by increasing step

DPI = 120
GREY = "0.45"
"""Resolution of whole pages, and the colour of their axes and captions."""
_WIDTH = 1800  # pixels of the page
_LEGEND_CLASSES = 20  # of more classes, all but the best and the worst are drawn in grey
_LONGEST_NAME = 16  # letters
_SIDE_LEGEND: dict[str, Any] = {"alignment": "left", "frameon": False, "fontsize": 8.5, "labelspacing": 0.35}


class Curve(Protocol):
    """The precision-recall curve of a class: two arrays (D,) by decreasing score."""

    @property
    def recall(self) -> NDArray[np.float64]: ...
    @property
    def precision(self) -> NDArray[np.float64]: ...


def run_charts(
    *,
    losses: Mapping[str, Series],
    pr_curves: Mapping[str, Curve],
    metrics: Mapping[str, Any],
    classes: Sequence[str],
    title: str,
    evaluations: Mapping[str, Series] | None = None,
) -> np.ndarray:
    """Return the charts of a training run, (h, w, 3) uint8 RGB: losses, metrics over the steps, curves.

    ``losses`` and ``evaluations`` map a name ("loss_cls", "voc07_mAP") to its history over the steps.
    ``pr_curves`` has one curve per class. ``metrics`` are those of the evaluator, ``voc07_AP`` in
    ``per_class`` included, and may have ``seconds`` and ``peak_rss_mib``. Any of them may be empty.
    """
    evaluated = {name: series for name, series in (evaluations or {}).items() if len(series)}
    figure = Figure(figsize=(_WIDTH / DPI, 5.6), dpi=DPI, facecolor="white")
    figure.text(0.012, 0.955, title, fontsize=17, weight="bold", va="center")
    figure.text(0.012, 0.90, _summary(metrics), fontsize=11, color=GREY, va="center")
    panels = figure.add_gridspec(
        1, 3 if evaluated else 2, left=0.045, right=0.85, bottom=0.1, top=0.8, wspace=0.2
    )
    _plot_losses(figure.add_subplot(panels[0]), losses)
    if evaluated:
        _plot_evaluations(figure.add_subplot(panels[1]), evaluated)
    ap = {name: _number(row.get("voc07_AP")) for name, row in metrics.get("per_class", {}).items()}
    _plot_precision_recall(figure.add_subplot(panels[-1]), pr_curves, ap, classes)
    return pixels_of(figure)


def _summary(metrics: Mapping[str, Any]) -> str:
    named = (
        ("voc07_mAP", "11-point mAP {:.3f}"),
        ("voc_mAP", "area mAP {:.3f}"),
        ("seconds", "{:.0f} s"),
        ("peak_rss_mib", "peak {:.0f} MiB"),
    )
    known = ((text, _number(metrics.get(key))) for key, text in named)
    return "   ·   ".join(text.format(value) for text, value in known if not math.isnan(value))


def _number(value: Any) -> float:
    """Return ``value`` as a float; None, which is null in JSON, becomes NaN."""
    return math.nan if value is None else float(value)


def pixels_of(figure: Figure) -> np.ndarray:
    """Draw a finished ``figure`` and return its pixels (H, W, 3) uint8 RGB.

    All texts are drawn as plain text: a class named "$x$" is not read as a formula, and control characters
    are escaped. A character that the font lacks is drawn as an empty box, without a warning.
    """
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_parse_math(False)
        text.set_text(printable_lines(text.get_text()))
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font")
        canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def style_axes(axes: Axes, title: str, x: str) -> None:
    axes.set_title(title, loc="left", fontsize=12)
    axes.set_xlabel(x, fontsize=10, color=GREY)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25, linewidth=0.8)
    axes.tick_params(labelsize=9, colors=GREY)


def _write_empty(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY)
    axes.set(xticks=[], yticks=[])


def line_colour(label: int) -> tuple[float, float, float]:
    """Return the colour of the class, darker than on images because the page is white."""
    red, green, blue = (0.85 * channel / 255 for channel in class_colour(label))
    return red, green, blue


def _plot_losses(axes: Axes, losses: Mapping[str, Series]) -> None:
    style_axes(axes, "loss", "step")
    highest = 0.0
    for place, name in enumerate(name for name in losses if not name.startswith("val_")):
        steps, values = _finite(losses[name])
        if len(steps):
            # The sum is a broad line below its parts: it stays visible where one part is nearly all of it.
            is_sum = name == "loss"
            colour, width = ("0.7", 5.0) if is_sum else (line_colour(place + 1), 1.6)
            smooth = _moving_average(values)
            axes.plot(steps, values, color=colour, alpha=0.25, linewidth=0.9, zorder=1 if is_sum else 2)
            axes.plot(steps, smooth, color=colour, linewidth=width, label=name, zorder=2 if is_sum else 3)
            highest = max(highest, float(smooth.max()))
            checked, values = _finite(losses.get(f"val_{name}", []))
            if len(checked):  # of the evaluations, which are few, so nothing is smoothed
                dark = "0.4" if is_sum else colour
                axes.plot(checked, values, "o--", color=dark, markersize=3, label=f"val_{name}", zorder=4)
                highest = max(highest, float(values.max()))
    if highest:
        axes.set(xlim=(0, None), ylim=(0, 1.1 * highest))
        axes.legend(frameon=False, fontsize=9)
    else:
        _write_empty(axes, "no losses recorded")


def _plot_evaluations(axes: Axes, evaluations: Mapping[str, Series]) -> None:
    style_axes(axes, "evaluation", "step")
    for place, (name, series) in enumerate(evaluations.items()):
        steps, values = _finite(series)
        dashed = name.startswith("raw_")  # the raw weights, beside the averaged ones
        style = "--" if dashed else "-"
        colour = line_colour(7 - place % 7)
        axes.plot(steps, values, style, color=colour, marker="o", markersize=4, label=name)
    axes.set(xlim=(0, None), ylim=(0, 1.02))
    axes.legend(frameon=False, fontsize=9, loc="best")


def _plot_precision_recall(
    axes: Axes, curves: Mapping[str, Curve], ap: Mapping[str, float], classes: Sequence[str]
) -> None:
    """Draw precision against recall; the legend gives each class's 11-point AP, the best class first."""
    style_axes(axes, "precision against recall", "recall")
    known = {name: ap.get(name, math.nan) for name in curves}
    ranked = sorted(known, key=lambda name: 1.0 if math.isnan(known[name]) else -known[name])
    half = _LEGEND_CLASSES // 2
    named = ranked if len(ranked) <= _LEGEND_CLASSES else ranked[:half] + ranked[-half:]
    for name in ranked:
        is_named = name in named
        colour = line_colour(classes.index(name) + 1) if is_named else "0.8"
        axes.plot(
            *_from_zero(curves[name]),
            color=colour,
            linewidth=1.6 if is_named else 0.7,
            zorder=2 if is_named else 1,
            label=_legend_entry(name, known[name]) if is_named else None,
        )
    axes.set(xlim=(0, 1.01), ylim=(0, 1.03))
    if not named:
        _write_empty(axes, "no classes evaluated")
        return
    heading = "11-point AP" if named is ranked else f"11-point AP,\n{half} best and {half} worst"
    legend = axes.legend(title=heading, loc="upper left", bbox_to_anchor=(1.01, 1.05), **_SIDE_LEGEND)
    legend.get_title().set_fontsize(9)


def _legend_entry(name: str, value: float) -> str:
    short = name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
    return f"{'-' if math.isnan(value) else format(value, '.3f')}  {short}"


def _from_zero(curve: Curve) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the curve extended to recall 0 with its first precision; empty without detections."""
    recall, precision = np.asarray(curve.recall), np.asarray(curve.precision)
    return np.concatenate((np.zeros(len(recall[:1])), recall)), np.concatenate((precision[:1], precision))


def _finite(series: Series) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rows = np.array([row for row in series if math.isfinite(row[1])], dtype=np.float64).reshape(-1, 2)
    return rows[:, 0], rows[:, 1]


def _moving_average(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the moving mean of ``values`` over a window of a fifteenth of the run, shorter at both ends."""
    window = np.ones(min(len(values), 2 * (len(values) // 30) + 1))
    sums, counts = (np.convolve(one, window, mode="same") for one in (values, np.ones(len(values))))
    return sums / counts
