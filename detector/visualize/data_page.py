"""A page about a data set: classes, sizes and shapes of the objects, objects per image, example images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from detector.core.errors import printable
from detector.core.structures import Targets
from detector.visualize.drawing import save_image
from detector.visualize.grid import photograph_row
from detector.visualize.page import GREY, line_colour, pixels_of, style_axes

_BLUE = "#4477aa"
_MOST_CLASSES = 30


def data_picture(
    path: Path,
    *,
    classes: Mapping[str, int],
    sides: np.ndarray,
    objects_per_image: np.ndarray,
    title: str,
    summary: str,
    examples: Sequence[tuple[np.ndarray, Targets]] = (),
) -> None:
    """Write the page to ``path`` (.png or .jpg).

    ``classes`` maps each class to its number of objects; ``sides`` (G, 2) holds widths and heights in pixels
    of the original images; ``objects_per_image`` has shape (N,); ``examples`` are images (H, W, 3) uint8 RGB
    with their objects, whose label k is the k-th of ``classes``. Any of them may be empty.

    Raises:
        InputError: ``path`` cannot be written.
    """
    figure = Figure(figsize=(13, 7.5), dpi=110, facecolor="white")
    figure.text(0.03, 0.955, title, fontsize=16, weight="bold", va="center")
    figure.text(0.03, 0.91, summary, fontsize=10.5, color=GREY, va="center")
    figure.subplots_adjust(left=0.12, right=0.97, bottom=0.08, top=0.83, hspace=0.42, wspace=0.22)
    panels = figure.subplots(2, 2)
    _plot_classes(panels[0, 0], classes)
    sides = np.maximum(sides.reshape(-1, 2), 1e-3)
    sizes = np.sqrt(sides.prod(axis=1))
    _histogram(panels[0, 1], sizes, "size of objects", "square root of the area, pixels")
    _histogram(panels[1, 0], sides[:, 0] / sides[:, 1], "shape of objects", "width / height")
    _plot_counts(panels[1, 1], objects_per_image)
    charts = pixels_of(figure)
    save_image(path, np.vstack((charts, photograph_row(examples, list(classes), charts.shape[1]))))


def _style(axes: Axes, title: str, x: str, y: str) -> None:
    style_axes(axes, title, x)
    axes.set_ylabel(y, fontsize=10, color=GREY)
    axes.set_axisbelow(True)


def _plot_classes(axes: Axes, classes: Mapping[str, int]) -> None:
    most = sorted(classes.items(), key=lambda item: item[1])[-_MOST_CLASSES:]
    left_out = len(classes) - len(most)
    omission = f" (the {left_out} rarest not shown)" if left_out else ""
    _style(axes, f"objects per class{omission}", "objects", "")
    shown = [printable(name) for name, _ in most]
    names = [name if len(name) <= 18 else f"{name[:17]}…" for name in shown]
    labels = {name: label for label, name in enumerate(classes, start=1)}
    colours = [line_colour(labels[name]) for name, _ in most]  # as the boxes on the images below
    axes.barh(range(len(most)), [count for _, count in most], color=colours)
    axes.set_yticks(range(len(most)), names, fontsize=9 if len(most) <= 12 else 6)
    axes.grid(axis="y", visible=False)


def _histogram(axes: Axes, values: np.ndarray, title: str, x: str) -> None:
    """Draw a histogram over a logarithmic axis with its median."""
    _style(axes, title, x, "objects")
    if not len(values):
        return
    low, high = values.min(), max(values.max(), values.min() * 1.01)
    axes.hist(values, bins=np.geomspace(low, high, 41).tolist(), color=_BLUE)
    axes.set_xscale("log")
    median = float(np.median(values))
    axes.axvline(median, color="0.15", linewidth=1.2, linestyle="--", label=f"median {median:.3g}")
    axes.legend(frameon=False, fontsize=9)
    axes.xaxis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _plot_counts(axes: Axes, counts: np.ndarray) -> None:
    _style(axes, "objects per image", "objects", "images")
    if len(counts):
        highest = int(counts.max())
        step = max(1, -(-(highest + 1) // 60))
        axes.hist(counts, bins=np.arange(-0.5, highest + step + 0.5, step).tolist(), color=_BLUE)
