"""Compares an exported network with the eager one, over images of many sizes and numbers of regions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

COUNTS = (0, 1, 7, 1000, 4000)
"""Regions per image."""
SIZES = (
    *((480, 640), (640, 480), (375, 500), (500, 333), (600, 600), (1080, 1920), (768, 1024), (227, 227)),
    *((97, 131), (64, 64), (40, 900), (900, 40), (150, 1000), (1201, 301), (333, 777), (33, 34)),
    *((2000, 1500), (719, 1279), (501, 499), (256, 2048)),
    *((600, 800), (427, 640), (1024, 1024), (300, 450), (512, 384), (720, 480)),
)
"""(height, width) of the images in pixels: usual ones, small ones, primes, and long strips. The last ones are
for networks whose map has no cell for a strip."""


class Tolerances(NamedTuple):
    """The largest differences that pass: of scores, and of boxes in pixels."""

    scores: float = 1e-4
    boxes: float = 1e-3


USUAL = Tolerances()


@dataclass
class Row:
    """The outcome for one image: its sizes, and the largest differences by number of regions."""

    size: tuple[int, int]
    input_size: tuple[int, int]
    limits: Tolerances = USUAL
    scores: dict[int, float] = field(default_factory=dict)
    boxes: dict[int, float] = field(default_factory=dict)
    detections: dict[int, bool] = field(default_factory=dict)
    """Whether the detections inside the export are those of the project's own post-processing."""

    @property
    def passed(self) -> bool:
        """Whether all differences are within the limits; NaN is not."""
        return (
            all(value <= self.limits.scores for value in self.scores.values())
            and all(value <= self.limits.boxes for value in self.boxes.values())
            and all(self.detections.values())
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON, which has no number for a difference that is not finite."""
        return {
            "size": list(self.size),
            "input_size": list(self.input_size),
            "scores": {str(count): _finite(value) for count, value in self.scores.items()},
            "boxes": {str(count): _finite(value) for count, value in self.boxes.items()},
            "detections_equal": {str(count): equal for count, equal in self.detections.items()},
            "passed": self.passed,
        }


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def largest_difference(found: np.ndarray, expected: Tensor) -> float:
    """Return the largest absolute difference; infinity for another shape, NaN where a value is NaN."""
    wanted = expected.numpy()
    if found.shape != wanted.shape:
        return float("inf")
    return float(np.abs(found.astype(np.float64) - wanted).max()) if wanted.size else 0.0


def test_image(size: tuple[int, int], number: int) -> np.ndarray:
    """Return pixels (H, W, 3) uint8 with patches of colour and noise, drawn from the number of the image."""
    rng = np.random.default_rng(number)
    height, width = size
    patches = rng.integers(0, 256, (-(-height // 16), -(-width // 16), 3))
    coarse = patches.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]
    return np.clip(coarse + rng.integers(-40, 41, (height, width, 3)), 0, 255).astype(np.uint8)


test_image.__test__ = False  # type: ignore[attr-defined]  # not a test, whatever its name


def test_regions(size: tuple[int, int], count: int, number: int) -> Tensor:
    """Return ``count`` boxes (P, 4) float32 within an image of ``size``, (height, width).

    They lie in all places and have all sizes, from a pixel to the whole image; every second one has whole
    numbers, as proposals have.
    """
    rng = np.random.default_rng((number, count))
    ends = np.array([size[1], size[0]], dtype=np.float64)
    sides = np.maximum(ends * rng.random((count, 2)) ** 2, np.minimum(1.0, ends))
    first = rng.random((count, 2)) * (ends - sides)
    boxes = np.concatenate((first, first + sides), axis=1)
    boxes[::2, :2], boxes[::2, 2:] = np.floor(boxes[::2, :2]), np.ceil(boxes[::2, 2:])
    if count:
        boxes[0] = (0, 0, *ends)
    limited = np.clip(boxes, 0, np.tile(ends, 2)).astype(np.float32)
    return torch.from_numpy(np.minimum(limited, np.tile(ends, 2).astype(np.float32)))


test_regions.__test__ = False  # type: ignore[attr-defined]


Case = tuple[tuple[int, int], np.ndarray, Tensor]
"""An image's (height, width), its pixels and its regions."""


def cases(sizes: Sequence[tuple[int, int]], counts: Sequence[int]) -> Iterator[tuple[int, int, Case]]:
    """Yield the number of the image, the number of regions, and what to compare the networks on."""
    for number, size in enumerate(sizes):
        image = test_image(size, number)
        for count in counts:
            yield number, count, (size, image, test_regions(size, count, number))


Compared = tuple[tuple[int, int], float, float, bool | None]
"""The size of the network's input, the largest differences of scores and of boxes, and whether the detections
are equal, None where the export has none."""
Compare = Callable[[Case], Compared]


def compare_all(
    compare: Compare,
    sizes: Sequence[tuple[int, int]],
    counts: Sequence[int],
    advance: Callable[[int, int], None] = lambda done, total: None,
    limits: Tolerances = USUAL,
) -> list[Row]:
    """Return a row per image of ``sizes``; ``advance`` gets the number of comparisons done and of all."""
    rows: list[Row] = []
    for done, (number, count, case) in enumerate(cases(sizes, counts), start=1):
        input_size, scores, boxes, detections = compare(case)
        if number == len(rows):
            rows.append(Row(case[0], input_size, limits))
        rows[-1].scores[count], rows[-1].boxes[count] = scores, boxes
        if detections is not None:
            rows[-1].detections[count] = detections
        advance(done, len(sizes) * len(counts))
    return rows
