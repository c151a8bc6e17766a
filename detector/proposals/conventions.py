"""The box conventions of other people's files, and how to determine which one a file has."""

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

    ``inclusive``: the last corner names the last pixel inside, as in MATLAB and in Caffe's detectors, and
    not the edge behind it.
    """

    axes: str
    inclusive: bool = False
    first_pixel: int = 0

    def to_half_open(self, boxes: NDArray[Any]) -> BoxArray:
        """Return ``boxes`` (P, 4) as float64 (x1, y1, x2, y2), continuous and half-open."""
        exact = np.asarray(boxes, np.float64)  # before any subtraction: 0 - 1 in uint16 is 65535
        first, last = exact[:, :2] - self.first_pixel, exact[:, 2:] - self.first_pixel + self.inclusive
        if self.axes == "xywh":
            last = first + exact[:, 2:]
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
}
# MATLAB code and what was made from it always names the last pixel inside.
MATLAB_CONVENTIONS = ("xyxy_inclusive", "xyxy_inclusive_1", "yxyx_inclusive", "yxyx_inclusive_1")


class WrittenBoxes(NamedTuple):
    """The boxes (P, 4) of an image as the file has them, in an unknown convention, and its record."""

    record: ImageRecord
    boxes: NDArray[Any]


class Evidence(NamedTuple):
    """What speaks for a convention, compared in this order: the smaller, the better.

    The share of boxes that would leave their image, the image borders of the four that no box would touch
    exactly, and one minus the mean best IoU of the annotated objects.
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
    """Return the name of the convention of ``samples`` and a sentence that says why.

    Boxes must lie in their images. The first pixel, and whether the last is inside, are determined from
    those that touch the border. The annotated objects must be found in the order of axes that this gives.

    Raises InputError, naming ``source``, where the samples do not decide it.
    """
    if not samples:
        raise InputError(
            f"{source}: its box convention cannot be determined without annotated images of the same ids; "
            f"give it: {', '.join(candidates)}"
        )
    evidence = {name: weigh(samples, find_convention(name)) for name in candidates}
    best = min(evidence, key=lambda name: evidence[name])
    swapped = best.replace("xyxy", "yxyx") if best.startswith("xyxy") else best.replace("yxyx", "xyxy")
    found, other = evidence[best], evidence[swapped]
    same_fit = found.outside == other.outside and abs(found.missed - other.missed) < 0.02
    objects = any((~record.targets.crowd).any() for record, _ in samples)
    if same_fit or other.missed < found.missed - 0.02:
        compared = (
            f"mean best IoU with the objects {1 - found.missed:.3f} and {1 - other.missed:.3f}"
            if objects
            else f"the {len(samples)} images looked at have no objects to compare with"
        )
        raise InputError(f"{source}: its boxes fit {best} and {swapped} alike ({compared}); say which it is")
    compared = (
        f"mean best IoU with the objects {1 - found.missed:.3f} ({swapped}: {1 - other.missed:.3f})"
        if objects
        else "there are no objects to compare with"
    )
    return best, (
        f"box convention {best}, determined from {len(samples)} images: {found.outside:.1%} of the boxes "
        f"leave their image ({swapped}: {other.outside:.1%}), {compared}"
    )


def weigh(samples: Sequence[WrittenBoxes], convention: BoxConvention) -> Evidence:
    """Return what ``samples`` say about ``convention``."""
    outside, boxes = 0, 0
    reached = np.zeros(4, bool)
    overlaps = [torch.zeros(0)]
    for record, raw in samples:
        found = convention.to_half_open(raw)
        limits = np.array((0, 0, record.width, record.height))
        outside += int(((found[:, :2] < 0) | (found[:, 2:] > limits[2:])).any(axis=1).sum())
        boxes += len(found)
        if len(found):
            ends = np.append(found[:, :2].min(axis=0), found[:, 2:].max(axis=0))
            reached |= ends == limits
        proposals = Proposals(boxes=torch.from_numpy(found.astype(np.float32)))
        overlaps.append(best_overlaps(record.targets.boxes[~record.targets.crowd], proposals))
    best = torch.cat(overlaps)
    missed = 1 - float(best.mean()) if len(best) else 1.0
    return Evidence(round(outside / max(boxes, 1), 3), 4 - int(reached.sum()), missed)
