"""The settings of selective search, their checks, and the presets by name."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import numpy as np

from detector.core.errors import InputError, nearest
from detector.ops._library import numbers_of

#: Colour spaces by name; those with ``opencv_`` are computed as in OpenCV's selective search.
COLOR_SPACES = numbers_of("ColorSpace")
#: Similarity measures by name: each is the mean of the terms in its name.
SIMILARITIES = numbers_of("Similarity")
#: Up to this many pixels, sums over a region's histogram are exact and so the same on every processor.
MAX_PIXELS = 2**26
MAX_ITEMS = 64  # at most this many colour spaces, scales or similarities


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectiveSearchConfig:
    """The settings of a search; each combination of colour space, scale and similarity is one strategy.

    The defaults are the "fast" mode of the authors' release. Raises InputError for an invalid value.

    Args:
        color_spaces: names from ``COLOR_SPACES``.
        scales: thresholds k of the segmentation, for pixel values in 0..255; a larger k gives larger regions.
        similarities: names from ``SIMILARITIES``.
        sigma: standard deviation, in pixels, of the smoothing before the segmentation.
        min_size: the smallest region of the segmentation, in pixels; None takes each scale's k, as the
            release does.
        connectivity: 8 connects each pixel with its eight neighbours in the segmentation's graph, as the
            release does; 4 connects only pixels that share a side, as OpenCV does, which gives more and
            smaller regions.
        diagonal_neighbours: True lets two regions merge if they touch only at a corner, one below and to the
            right of the other, as OpenCV does; with False, they must share a pixel's side, as in the release.
        all_texture_channels: False takes the texture of the first channel only, as the release does; the
            paper's text says every channel.
        size_in_thirds: True measures regions in thirds of pixels in the size and fill terms, as the release
            does; this changes only the strategies with the similarity ``fill``.
        min_side: boxes with a side shorter than this, in pixels of the searched image, are dropped (20 in
            R-CNN's wrapper).
        width: resize every image to this width before the search (500 in R-CNN's demo). An image is not
            enlarged to more than ``max_pixels``.
        max_pixels: without ``width``, a larger image is searched at this many pixels and the boxes are scaled
            back; None searches at full size, up to 2^26 pixels.
    """

    color_spaces: tuple[str, ...] = ("hsv", "lab")
    scales: tuple[float, ...] = (50.0, 100.0)
    similarities: tuple[str, ...] = ("color_texture_size_fill", "texture_size_fill")
    sigma: float = 0.8
    min_size: int | None = None
    connectivity: int = 8
    diagonal_neighbours: bool = False
    all_texture_channels: bool = False
    size_in_thirds: bool = True
    min_side: int = 20
    width: int | None = None
    max_pixels: int | None = 1_000_000

    def __post_init__(self) -> None:
        _check_names("color_spaces", self.color_spaces, COLOR_SPACES)
        _check_names("similarities", self.similarities, SIMILARITIES)
        _require_list("scales", self.scales, "numbers from 0 to 1e9")
        for k in self.scales:
            _require(_is_number(k, 0, 1e9), "scales", k, "a number from 0 to 1e9")
        _require(_is_number(self.sigma, 0, 100), "sigma", self.sigma, "a number from 0 to 100")
        known = is_whole(self.connectivity, 4, 8) and self.connectivity in (4, 8)
        _require(known, "connectivity", self.connectivity, "4 or 8")
        for name, least in (("min_size", 0), ("min_side", 0), ("width", 1), ("max_pixels", 1)):
            value, optional = getattr(self, name), name != "min_side"
            wanted = f"a whole number from {least} to 2^26{', or None' if optional else ''}"
            _require((optional and value is None) or is_whole(value, least, MAX_PIXELS), name, value, wanted)
        for name in ("diagonal_neighbours", "all_texture_channels", "size_in_thirds"):
            _require(isinstance(getattr(self, name), bool), name, getattr(self, name), "True or False")

    def working_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (height, width) at which an image of ``size`` (height, width) is searched.

        Raises InputError if that is more than 2^26 pixels.
        """
        working, limit = size, None if self.max_pixels is None else int(self.max_pixels)
        if self.width is not None:
            width = int(self.width)  # numpy's small numbers would overflow
            working = (max(1, math.ceil(size[0] * width / size[1])), width)
            if width <= size[1]:
                limit = None
            elif limit is not None:
                limit = max(limit, size[0] * size[1])  # an image above the limit keeps its size
        if limit is not None and working[0] * working[1] > limit:
            working = _shrunk(working, limit)
        if working[0] * working[1] > MAX_PIXELS:
            raise InputError(
                f"An image of {size[0]} x {size[1]} pixels cannot be searched at {working[0]} x {working[1]}:"
                f" the limit is {MAX_PIXELS} pixels. Set max_pixels or a smaller width."
            )
        return working

    def strategy_arguments(self) -> dict[str, Any]:
        """Return the operators' arguments that do not depend on the image."""
        return {
            "color_spaces": [COLOR_SPACES[name] for name in self.color_spaces],
            "scales": [float(k) for k in self.scales],
            "min_sizes": [math.ceil(k) if self.min_size is None else int(self.min_size) for k in self.scales],
            "similarities": [SIMILARITIES[name] for name in self.similarities],
            "sigma": float(self.sigma),
            "connectivity": int(self.connectivity),
            "diagonal_neighbours": self.diagonal_neighbours,
            "all_texture_channels": self.all_texture_channels,
            "pixels_per_size": 3.0 if self.size_in_thirds else 1.0,
        }


def _require(holds: bool, name: str, value: object, wanted: str) -> None:
    if not holds:
        raise InputError(f"SelectiveSearchConfig.{name} is {value!r}; it must be {wanted}.")


def _shrunk(size: tuple[int, int], pixels: int) -> tuple[int, int]:
    """Return ``size`` (height, width) scaled down to at most ``pixels``, with sides of at least 1."""
    scale_factor = math.sqrt(pixels / (size[0] * size[1]))
    short = max(1, int(min(size) * scale_factor))
    long = max(1, min(int(max(size) * scale_factor), pixels // short))
    return (short, long) if size[0] <= size[1] else (long, short)


def _require_list(name: str, value: object, of_what: str) -> None:
    """Require a collection of 1 to MAX_ITEMS items; a str is refused, its letters would count as items."""
    holds = isinstance(value, Collection) and not isinstance(value, str) and len(value) > 0
    _require(holds, name, value, f"a tuple of {of_what}")
    if isinstance(value, Collection):
        _require(len(value) <= MAX_ITEMS, name, f"a tuple of {len(value)}", f"a tuple of at most {MAX_ITEMS}")


def _is_number(value: object, least: float, most: float) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        return False
    return bool(least <= value <= most)


def is_whole(value: object, least: float, most: float) -> bool:
    """Return whether ``value`` is a Python or NumPy integer from ``least`` to ``most``."""
    return isinstance(value, int | np.integer) and _is_number(value, least, most)


def _check_names(field: str, names: tuple[str, ...], valid: Mapping[str, int]) -> None:
    _require_list(field, names, f"names from {', '.join(valid)}")
    for name in names:
        wanted = f"one of {', '.join(valid)}{nearest(str(name), valid)}"
        _require(isinstance(name, str) and name in valid, field, name, wanted)


_FAST = SelectiveSearchConfig()
_QUALITY = SelectiveSearchConfig(
    color_spaces=("hsv", "lab", "rgi", "h", "intensity"),
    scales=(50.0, 100.0, 150.0, 300.0),
    similarities=tuple(SIMILARITIES),
)
_OPENCV_FAST = SelectiveSearchConfig(
    color_spaces=("opencv_hsv", "opencv_lab"),
    scales=(150.0, 300.0, 450.0),
    min_size=100,
    connectivity=4,
    diagonal_neighbours=True,
    all_texture_channels=True,
    size_in_thirds=False,
    min_side=0,
)
#: Configurations by name. ``reference_*``: table 4 of the paper with the constants of the release; ``fast``
#: and ``quality`` are short names for two of them. ``opencv_*``: OpenCV's colour spaces, scales, smallest
#: region, graph of pixels, neighbours, region sizes in pixels, texture of every channel, and no smallest box;
#: the texture's gradients, the histogram bins and the order of the boxes are those of the release.
PRESETS: Mapping[str, SelectiveSearchConfig] = MappingProxyType(
    {
        "fast": _FAST,
        "quality": _QUALITY,
        "reference_single": SelectiveSearchConfig(
            color_spaces=("hsv",), scales=(100.0,), similarities=("color_texture_size_fill",)
        ),
        "reference_fast": _FAST,
        "reference_quality": _QUALITY,
        "opencv_fast": _OPENCV_FAST,
        "opencv_quality": replace(
            _OPENCV_FAST,
            color_spaces=("opencv_hsv", "opencv_lab", "opencv_rgi", "opencv_h", "opencv_intensity"),
            scales=(150.0, 300.0, 450.0, 600.0, 750.0),
            similarities=tuple(SIMILARITIES),
        ),
    }
)


def as_config(mode: str | SelectiveSearchConfig) -> SelectiveSearchConfig:
    """Return the preset called ``mode``, or ``mode`` itself. Raises InputError for an unknown name."""
    if isinstance(mode, SelectiveSearchConfig):
        return mode
    if not isinstance(mode, str) or mode not in PRESETS:
        raise InputError(
            f"There is no selective search mode {mode!r}{nearest(str(mode), PRESETS)}; "
            f"choose one of {', '.join(PRESETS)}, or give a SelectiveSearchConfig."
        )
    return PRESETS[mode]
