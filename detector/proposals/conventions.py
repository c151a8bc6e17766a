"""The box conventions of proposal files, and how to determine which one a file has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from detector.core.errors import InputError, nearest
from detector.core.structures import ImageRecord, Proposals
from detector.proposals.recall import best_overlaps

BoxArray = NDArray[np.float64]


@dataclass(frozen=True)
class BoxConvention:
    """``axes`` names the four columns; ``first_pixel`` is the number of the leftmost pixel.

    ``inclusive``: the last corner is the last pixel inside the box, as in MATLAB and in Caffe's detectors,
    and not the edge after it. ``whole`` is the number that stands for the whole width or height where boxes
    are parts of the image: 1 for fractions, 100 for percentages, None for pixels.
    """

    axes: str
    inclusive: bool = False
    first_pixel: int = 0
    whole: int | None = None

    def to_half_open(self, boxes: NDArray[Any], size: tuple[int, int] = (0, 0)) -> BoxArray:
        """Return ``boxes`` (P, 4) as float64 (x1, y1, x2, y2), continuous, half-open and in pixels.

        ``size`` is the image's (height, width), which only a convention with ``whole`` needs.
        """
        exact = np.asarray(boxes, np.float64)  # before any subtraction: 0 - 1 in uint16 is 65535
        if self.whole is not None:
            with np.errstate(over="ignore", invalid="ignore"):  # numbers that are refused afterwards
                exact = exact * (np.array((size[1], size[0]) * 2, np.float64) / self.whole)
                return self._corners(exact)
        return self._corners(exact)

    def _corners(self, exact: BoxArray) -> BoxArray:
        first, last = exact[:, :2] - self.first_pixel, exact[:, 2:] - self.first_pixel + self.inclusive
        if self.axes == "xywh":
            last = first + exact[:, 2:]
        elif self.axes == "cxcywh":
            first, last = first - exact[:, 2:] / 2, first + exact[:, 2:] / 2
        elif self.axes == "yxyx":
            first, last = first[:, ::-1], last[:, ::-1]
        return np.concatenate((first, last), axis=1)


CONVENTIONS = {
    "xyxy": BoxConvention("xyxy"),
    "xyxy_inclusive": BoxConvention("xyxy", True),
    "xyxy_inclusive_1": BoxConvention("xyxy", True, 1),
    "yxyx": BoxConvention("yxyx"),
    "yxyx_inclusive": BoxConvention("yxyx", True),
    "yxyx_inclusive_1": BoxConvention("yxyx", True, 1),
    "xywh": BoxConvention("xywh"),
    "xywh_normalized": BoxConvention("xywh", whole=1),
    "cxcywh_normalized": BoxConvention("cxcywh", whole=1),
    "xywh_percent": BoxConvention("xywh", whole=100),
}
CORNER_CONVENTIONS = tuple(name for name in CONVENTIONS if not name.startswith(("xywh", "cxcywh")))
FRACTION_CONVENTIONS = ("xywh_normalized", "cxcywh_normalized")
# MATLAB code, and files that were made from its results, always name the last pixel inside.
MATLAB_CONVENTIONS = ("xyxy_inclusive", "xyxy_inclusive_1", "yxyx_inclusive", "yxyx_inclusive_1")


class WrittenBoxes(NamedTuple):
    """The record of an image and its boxes (P, 4) as the file has them, in an unknown convention."""

    record: ImageRecord
    boxes: NDArray[Any]


class Evidence(NamedTuple):
    """How badly a convention fits, compared in this order; smaller is better.

    The share of boxes that would leave their image, the number of the four image borders that no box would
    touch exactly, and one minus the mean best IoU of the annotated objects.
    """

    outside: float
    untouched: int
    missed: float


def find_convention(name: str) -> BoxConvention:
    """Return the convention called ``name``; InputError with the valid names for any other."""
    if name not in CONVENTIONS:
        raise InputError(
            f"box convention {name!r} is unknown{nearest(name, CONVENTIONS)}; "
            f"use auto or one of {', '.join(CONVENTIONS)}"
        )
    return CONVENTIONS[name]


def detect_convention(
    samples: Sequence[WrittenBoxes], candidates: Sequence[str], source: str
) -> tuple[str, str]:
    """Return the name of the convention of ``samples`` and a sentence that gives the evidence.

    Boxes must lie in their images. The number of the first pixel, and whether the last pixel is inside, are
    determined from the boxes that touch the border. In the resulting order of axes the boxes must overlap
    the annotated objects better than in the other order.

    Raises InputError, naming ``source``, where the samples are not sufficient to decide.
    """
    if not samples:
        raise InputError(
            f"{source}: its box convention cannot be determined without annotated images of the same ids; "
            f"give it: {', '.join(candidates)}"
        )
    evidence = {name: weigh(samples, find_convention(name)) for name in candidates}
    best = min(evidence, key=lambda name: evidence[name])
    swapped = _other_axes(best)
    chosen, other = evidence[best], evidence[swapped]
    compared = "there are no objects to compare with"
    if any((~record.targets.crowd).any() for record, _ in samples):
        compared = (
            f"mean best IoU with the objects {1 - chosen.missed:.3f} ({swapped}: {1 - other.missed:.3f})"
        )
    same_fit = chosen.outside == other.outside and abs(chosen.missed - other.missed) < 0.02
    if same_fit or other.missed < chosen.missed - 0.02:
        raise InputError(
            f"{source}: in the {len(samples)} images examined, its boxes fit {best} and {swapped} equally "
            f"well ({compared}); give the convention"
        )
    return best, (
        f"box convention {best}, determined from {len(samples)} images: {chosen.outside:.1%} of the boxes "
        f"leave their image ({swapped}: {other.outside:.1%}), {compared}"
    )


def _other_axes(name: str) -> str:
    """Return the convention with the axes that ``name`` is most easily mistaken for."""
    pairs = (("xyxy", "yxyx"), ("yxyx", "xyxy"), ("cxcywh", "xywh"), ("xywh", "cxcywh"))
    old, new = next(pair for pair in pairs if name.startswith(pair[0]))
    return new + name.removeprefix(old)


def weigh(samples: Sequence[WrittenBoxes], convention: BoxConvention) -> Evidence:
    """Return how badly ``convention`` fits ``samples``."""
    outside, boxes = 0, 0
    reached = np.zeros(4, bool)
    overlaps = [torch.zeros(0)]
    for record, raw in samples:
        half_open = convention.to_half_open(raw, (record.height, record.width))
        limits = np.array((0, 0, record.width, record.height))
        outside += int(((half_open[:, :2] < 0) | (half_open[:, 2:] > limits[2:])).any(axis=1).sum())
        boxes += len(half_open)
        if len(half_open):
            ends = np.append(half_open[:, :2].min(axis=0), half_open[:, 2:].max(axis=0))
            reached |= ends == limits
        proposals = Proposals(boxes=torch.from_numpy(half_open.astype(np.float32)))
        overlaps.append(best_overlaps(record.targets.boxes[~record.targets.crowd], proposals))
    best = torch.cat(overlaps)
    missed = 1 - float(best.mean()) if len(best) else 1.0
    return Evidence(round(outside / max(boxes, 1), 3), 4 - int(reached.sum()), missed)
