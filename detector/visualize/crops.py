"""A picture of R-CNN's crops of a region, beside the image that they are cut out of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from detector.visualize.figures import pixels_of

_DPI = 100
_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red")


@dataclass(frozen=True, kw_only=True)
class RegionCrop:
    """A region cut out by one rule: the rule's name, the crop (S, S, 3) uint8 and its window in the image.

    ``window`` is (x1, y1, x2, y2) in pixels of the image; ``context`` is the number of pixels of the crop
    around the region, on each side.
    """

    name: str
    crop: np.ndarray
    window: tuple[float, float, float, float]
    context: int


def draw_crops(
    image: np.ndarray, box: tuple[float, float, float, float], crops: Sequence[RegionCrop]
) -> np.ndarray:
    """Draw ``image`` (H, W, 3) with region ``box`` and all windows, then each crop; returns (h, w, 3) uint8.

    On each crop a dashed line separates the region from the context around it.
    """
    figure = Figure(figsize=(3.2 * (len(crops) + 1), 3.5), dpi=_DPI, layout="constrained")
    first, *others = figure.subplots(1, len(crops) + 1)
    first.imshow(image)
    first.set_title("the region and what each shows")
    edges = [box]
    for axes, crop, colour in zip(others, crops, _COLOURS, strict=False):
        _outline(first, crop.window, colour, "-")
        edges.append(crop.window)
        axes.imshow(crop.crop)
        axes.set_title(crop.name, color=colour)
        size = len(crop.crop)
        _outline(axes, (crop.context, crop.context, size - crop.context, size - crop.context), "white", "--")
        axes.axis("off")
    _outline(first, box, "white", "--")
    x1, y1, x2, y2 = np.array(edges).T
    first.set_xlim(min(x1.min(), 0) - 2, max(x2.max(), image.shape[1]) + 2)
    first.set_ylim(max(y2.max(), image.shape[0]) + 2, min(y1.min(), 0) - 2)
    first.axis("off")
    return pixels_of(figure)


def _outline(axes: Axes, box: tuple[float, float, float, float], colour: str, style: str) -> None:
    x1, y1, x2, y2 = (edge - 0.5 for edge in box)  # matplotlib centres pixel k on k
    axes.add_patch(
        Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=colour, linestyle=style, linewidth=2)
    )
