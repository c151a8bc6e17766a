"""VOC evaluation, slow and obvious: the development kit's loops in exact fractions.

Boxes are inclusive pixels (xmin, ymin, xmax, ymax), whole numbers, with the kit's "+1".
"""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple

Box = tuple[int, int, int, int]


class Thing(NamedTuple):
    box: Box
    difficult: bool


class Found(NamedTuple):
    image: str
    score: float
    box: Box


def iou(first: Box, second: Box) -> Fraction:
    width = min(first[2], second[2]) - max(first[0], second[0]) + 1
    height = min(first[3], second[3]) - max(first[1], second[1]) + 1
    if width <= 0 or height <= 0:
        return Fraction(0)
    sizes = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (first, second)]
    return Fraction(width * height, sum(sizes) - width * height)


def verdicts(things: dict[str, list[Thing]], found: list[Found], threshold: Fraction) -> list[bool]:
    """Say of each detection of one class, by falling score (equal ones as given), if it is right;
    those that count neither way are left out."""
    taken: set[tuple[str, int]] = set()
    right = []
    for detection in sorted(found, key=lambda detection: -detection.score):
        best, best_index = Fraction(-1), -1
        for index, thing in enumerate(things[detection.image]):
            overlap = iou(detection.box, thing.box)
            if overlap > best:
                best, best_index = overlap, index
        if best < threshold:
            right.append(False)
        elif not things[detection.image][best_index].difficult:
            right.append((detection.image, best_index) not in taken)
            taken.add((detection.image, best_index))
    return right


def average_precisions(right: list[bool], objects: int) -> tuple[Fraction, Fraction] | None:
    """Return the 11-point and the area AP, None without an object that counts."""
    if objects == 0:
        return None
    recall = [Fraction(sum(right[: n + 1]), objects) for n in range(len(right))]
    precision = [Fraction(sum(right[: n + 1]), n + 1) for n in range(len(right))]

    def best_from(level: Fraction) -> Fraction:
        return max((p for p, r in zip(precision, recall, strict=True) if r >= level), default=Fraction(0))

    eleven = sum(best_from(Fraction(k, 10)) for k in range(11)) / Fraction(11)
    area, before = Fraction(0), Fraction(0)
    for level in sorted(set(recall)):
        area += (level - before) * best_from(level)
        before = level
    return eleven, area
