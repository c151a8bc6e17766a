"""Pictures of how a region is pooled: its bins on the image and on the map and their values, or its crops."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from detector.core.errors import InputError
from detector.core.files import atomic_write
from detector.visualize.page import pixels_of

Span = tuple[int, int]  # cells: begin (in) to end (out)
Box = tuple[float, float, float, float]  # x1, y1, x2, y2
_DPI = 100
_MARGIN = 2  # cells of the map shown around the windows
_MOST_VALUES = 220  # cells whose values are written; on larger maps they could not be read
_PALETTE = 128  # colours of a frame
_FRAME = 600  # milliseconds
_COLOURS = colormaps["tab10"]
_CROP_COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red")


@dataclass(frozen=True, kw_only=True)
class PooledRegion:
    """A region pooled by one rule: the rule's name, the rows and columns of bins in cells, and the values."""

    name: str
    rows: Sequence[Span]
    columns: Sequence[Span]
    values: np.ndarray

    def bins(self) -> Iterable[tuple[int, Span, Span]]:
        """Yield (number, cells down, cells across) of every bin with a cell, numbered row by row."""
        for number, (down, across) in enumerate(product(self.rows, self.columns)):
            if down[0] < down[1] and across[0] < across[1]:
                yield number, down, across


@dataclass(frozen=True, kw_only=True)
class PoolingScene:
    """What is pooled: the image (H, W, 3), one channel of its map (h, w), the region and the geometry.

    ``box`` is (x1, y1, x2, y2) in pixels of ``image``. ``stride`` is the size of a cell and
    ``center`` the centre of the first cell, (vertical, horizontal) in the same pixels.
    """

    image: np.ndarray
    plane: np.ndarray
    box: Box
    stride: tuple[float, float]
    center: tuple[float, float]

    def pixels(self, down: Span, across: Span) -> Box:
        """Return the box (x1, y1, x2, y2) in pixels of the cells in rows ``down``, columns ``across``."""
        top, bottom = (self.center[0] + self.stride[0] * (cell - 0.5) for cell in down)
        left, right = (self.center[1] + self.stride[1] * (cell - 0.5) for cell in across)
        return left, top, right, bottom


def draw_pooling(
    scene: PoolingScene, regions: Sequence[PooledRegion], shown: int | None = None, caption: str = ""
) -> np.ndarray:
    """Draw each of ``regions`` in its own column, below ``caption``; returns an image (H, W, 3) uint8.

    A column shows, from top to bottom, the image with the region (white, dashed) and the bins, the map with
    the bins, and the pooled values. ``shown`` draws only that many bins, row by row, for an animation.
    """
    figure = Figure(figsize=(3.6 * len(regions), 9.6), dpi=_DPI, layout="constrained")
    if caption:
        figure.suptitle(caption, fontsize=10, color="0.35", x=0.01, ha="left")
    axes = figure.subplots(3, len(regions), squeeze=False, height_ratios=(1.0, 1.15, 0.85))
    for region, (on_image, on_map, values) in zip(regions, axes.T, strict=True):
        last = len(region.rows) * len(region.columns) if shown is None else shown
        _draw_image(on_image, scene, region, last)
        _draw_map(on_map, scene, _crop(scene, regions), region, last)
        _draw_values(values, scene, region, last)
    return pixels_of(figure)


def save_animation(
    path: Path, scene: PoolingScene, regions: Sequence[PooledRegion], caption: str = ""
) -> None:
    """Write a GIF that fills one bin after another. An interrupted write leaves no file.

    Raises InputError for a suffix other than .gif, or if the file cannot be written.
    """
    if path.suffix.lower() != ".gif":
        raise InputError(f"{path}: animations are written as .gif, not {path.suffix!r}")
    bins = max(len(region.rows) * len(region.columns) for region in regions)
    pictures = [draw_pooling(scene, regions, shown, caption) for shown in range(1, bins + 1)]
    first, *others = animation_frames(pictures)
    times = [_FRAME] * len(others) + [3 * _FRAME]
    with atomic_write(path, durable=False) as file:
        first.save(file, "GIF", save_all=True, append_images=others, duration=times, loop=0)


def animation_frames(pictures: Sequence[np.ndarray]) -> list[Image.Image]:
    """Return frames of half the size in few colours, undithered: a tenth of the bytes, and as legible.

    All frames use the palette of the last one, which shows every bin. Pixels that do not change between two
    frames therefore have the same number in both, and the file stores them once. The octree keeps the colours
    of the bins even if few pixels have them; a median cut would use its colours up on a photograph.
    """
    halves = [Image.fromarray(picture).reduce(2) for picture in pictures]
    palette = halves[-1].quantize(_PALETTE, method=Image.Quantize.FASTOCTREE)
    return [half.quantize(palette=palette, dither=Image.Dither.NONE) for half in halves]


def _crop(scene: PoolingScene, regions: Sequence[PooledRegion]) -> tuple[int, int, int, int]:
    """Return the part (top, bottom, left, right) of the map that contains every bin."""
    rows = [edge for region in regions for edges in region.rows for edge in edges]
    columns = [edge for region in regions for edges in region.columns for edge in edges]
    height, width = scene.plane.shape
    return (
        max(min(rows) - _MARGIN, 0),
        min(max(rows) + _MARGIN, height),
        max(min(columns) - _MARGIN, 0),
        min(max(columns) + _MARGIN, width),
    )


def _colour(number: int) -> Any:
    return _COLOURS(number % _COLOURS.N)


def _outline(axes: Axes, box: Sequence[float], **style: Any) -> None:
    left, top, right, bottom = box
    axes.add_patch(Rectangle((left, top), right - left, bottom - top, **style))


def _draw_image(axes: Axes, scene: PoolingScene, region: PooledRegion, last: int) -> None:
    axes.imshow(scene.image)
    for number, down, across in region.bins():
        if number < last:
            fill = (*_colour(number)[:3], 0.3)
            _outline(axes, scene.pixels(down, across), linewidth=0.8, facecolor=fill, edgecolor="black")
    _outline(axes, scene.box, fill=False, edgecolor="white", linewidth=2, linestyle="--")
    axes.set_title(region.name)
    axes.set_axis_off()


def _draw_map(
    axes: Axes, scene: PoolingScene, crop: tuple[int, int, int, int], region: PooledRegion, last: int
) -> None:
    top, bottom, left, right = crop
    part = scene.plane[top:bottom, left:right]
    axes.imshow(part, cmap="gray", extent=(left, right, bottom, top))
    if part.size <= _MOST_VALUES:
        _write_values(axes, part, top, left, size=6.5)
    count = len(region.rows) * len(region.columns)
    for number, down, across in region.bins():
        if number < last:
            inset = 0.06 + 0.24 * number / count  # keeps the outlines of overlapping bins apart
            box = (across[0] + inset, down[0] + inset, across[1] - inset, down[1] - inset)
            width = 3.5 if number == last - 1 < count - 1 else 1.8
            _outline(axes, box, fill=False, edgecolor=_colour(number), linewidth=width)
    axes.set_xlabel(f"{len(region.rows)} x {len(region.columns)} bins on the map, in cells", fontsize=8)
    axes.tick_params(labelsize=7)


def _write_values(axes: Axes, part: np.ndarray, top: int, left: int, size: float) -> None:
    middle = (float(part.max()) + float(part.min())) / 2
    for (y, x), value in np.ndenumerate(part):
        colour = "black" if value > middle else "white"
        place: dict[str, Any] = {"ha": "center", "va": "center", "color": colour, "fontsize": size}
        axes.text(left + x + 0.5, top + y + 0.5, f"{value:.2g}", **place)


def _draw_values(axes: Axes, scene: PoolingScene, region: PooledRegion, last: int) -> None:
    height, width = region.values.shape
    shown = np.where(np.arange(region.values.size).reshape(height, width) < last, region.values, np.nan)
    limits: dict[str, Any] = {"vmin": float(scene.plane.min()), "vmax": float(scene.plane.max())}
    axes.imshow(shown, cmap="gray", extent=(0, width, height, 0), **limits)
    middle = (limits["vmin"] + limits["vmax"]) / 2
    for number, ((row, column), value) in enumerate(np.ndenumerate(shown)):
        box = (column + 0.03, row + 0.03, column + 0.97, row + 0.97)
        _outline(axes, box, fill=False, edgecolor=_colour(number), linewidth=3)
        if not np.isnan(value):
            colour = "black" if value > middle else "white"
            axes.text(column + 0.5, row + 0.5, f"{value:.3g}", ha="center", va="center", color=colour)
    axes.set_axis_off()


@dataclass(frozen=True, kw_only=True)
class RegionCrop:
    """A region cut out by one rule: the rule's name, the crop (S, S, 3) uint8 and its window in the image.

    ``window`` is (x1, y1, x2, y2) in pixels of the image; ``context`` is the number of pixels of the crop
    around the region, on each side.
    """

    name: str
    crop: np.ndarray
    window: Box
    context: int


def draw_crops(image: np.ndarray, box: Box, crops: Sequence[RegionCrop]) -> np.ndarray:
    """Draw ``image`` (H, W, 3) with region ``box`` and all windows, then each crop; returns (h, w, 3) uint8.

    On each crop a dashed line separates the region from the context around it.
    """
    figure = Figure(figsize=(3.2 * (len(crops) + 1), 3.5), dpi=_DPI, layout="constrained")
    first, *others = figure.subplots(1, len(crops) + 1)
    first.imshow(image)
    first.set_title("the region and what each shows")
    edges = [box]
    for axes, crop, colour in zip(others, crops, _CROP_COLOURS, strict=False):
        _outline_pixels(first, crop.window, colour, "-")
        edges.append(crop.window)
        axes.imshow(crop.crop)
        axes.set_title(crop.name, color=colour)
        inner = len(crop.crop) - crop.context
        _outline_pixels(axes, (crop.context, crop.context, inner, inner), "white", "--")
        axes.axis("off")
    _outline_pixels(first, box, "white", "--")
    x1, y1, x2, y2 = np.array(edges).T
    first.set_xlim(min(x1.min(), 0) - 2, max(x2.max(), image.shape[1]) + 2)
    first.set_ylim(max(y2.max(), image.shape[0]) + 2, min(y1.min(), 0) - 2)
    first.axis("off")
    return pixels_of(figure)


def _outline_pixels(axes: Axes, box: Box, colour: str, style: str) -> None:
    corners = [edge - 0.5 for edge in box]  # matplotlib centres pixel k on k
    _outline(axes, corners, fill=False, edgecolor=colour, linestyle=style, linewidth=2)
