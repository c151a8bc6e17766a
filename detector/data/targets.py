"""From the annotated objects of an image to `Targets`, with rules for invalid boxes and other classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from detector.core import boxes as box_ops
from detector.core.errors import InputError, nearest
from detector.core.records import Objects, image_numbers, kept_offsets, rows_of_images
from detector.core.structures import Targets

OTHER_CLASS_ADVICE = (
    "correct the name, add the class, or leave such objects out with data.other_classes=ignore"
)
OTHER_CLASS = "of other classes"
"""Key of `TargetBuilder.counts` for objects whose class is not asked for."""
Box = tuple[float, float, float, float]
Attribute = tuple[str, str]
"""The name of an attribute and the label that it gives an object, see `detector.data.attributes`."""

MAX_COORDINATE = 2.0**24
"""Pixels; up to here float32 holds every whole pixel."""

_AT_ONCE = 2**16
"""Objects whose boxes are compared with their images at once; more would only take more memory."""

# A box that reaches this far out of its image is a rounding error or from a 0-based file, not a wrong object.
_TOLERANCE = 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class AnnotatedObject:
    """An object as annotated: ``box`` is half-open in image pixels; ``area`` None means the area of the box.

    ``ignore`` is COCO's flag of that name: the object is not trained on and cannot be missed. ``file`` and
    ``place`` in it say where the object is written; ``written`` is its box in that file's own convention.
    An object with several names is one of these for each; the last of them has the ``attributes``.
    """

    name: str
    box: Box
    difficult: bool = False
    crowd: bool = False
    ignore: bool = False
    area: float | None = None
    file: Path
    place: str
    written: Sequence[float]
    attributes: tuple[Attribute, ...] = ()

    @property
    def where(self) -> str:
        return f"{self.file}: {self.place}"

    @property
    def size(self) -> tuple[float, float]:
        """(width, height) of the box in pixels."""
        return self.box[2] - self.box[0], self.box[3] - self.box[1]


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class ObjectColumns:
    """The G objects of N images as annotated, image after image: `AnnotatedObject`s as columns.

    Those of image i are the rows ``offsets[i]`` to ``offsets[i + 1]``; ``offsets`` (N + 1,) is int64.
    ``boxes`` (G, 4) float64 are half-open, ``classes`` (G,) are numbers of ``names``, ``area`` (G,) is NaN
    for the area of the box, and the flags (G,) are bool. ``numbers`` (G,) are what ``describe`` takes to
    return an object as it is needed for an error message.
    """

    names: Sequence[str]
    offsets: NDArray[np.int64]
    classes: NDArray[np.int32]
    boxes: NDArray[np.float64]
    difficult: NDArray[np.bool_]
    crowd: NDArray[np.bool_]
    ignore: NDArray[np.bool_]
    area: NDArray[np.float64]
    numbers: NDArray[np.int64]
    describe: Callable[[int], AnnotatedObject]

    def image_numbers(self) -> NDArray[np.int64]:
        """Return (G,) the number of each object's image."""
        return image_numbers(self.offsets)

    def take(self, images: NDArray[np.int64]) -> ObjectColumns:
        """Return the objects of ``images`` (n,), in that order."""
        offsets, at = rows_of_images(self.offsets, images)
        columns = ("classes", "boxes", "difficult", "crowd", "ignore", "area", "numbers")
        return replace(self, offsets=offsets, **{name: getattr(self, name)[at] for name in columns})


@dataclass(frozen=True, kw_only=True, slots=True)
class ObjectRules:
    """What happens to objects with invalid boxes and to objects of other classes.

    A box is invalid if it is swapped (x2 < x1 or y2 < y1), reaches more than one pixel out of its image, or
    has a side under ``min_box_size`` pixels. ``invalid_boxes`` says what happens to its object: "drop" leaves
    it out, "clip" cuts off what is outside and drops the object only if the rest is too small, "error"
    raises. A box that reaches out by one pixel or less is always clipped. None, for evaluation, keeps every
    object exactly as annotated.

    ``other_classes`` says what happens to an object of a class that is not asked for: "error" raises,
    "ignore" leaves it out.
    """

    invalid_boxes: Literal["drop", "clip", "error"] | None = "drop"
    min_box_size: float = 2.0
    other_classes: Literal["error", "ignore"] = "error"

    def __post_init__(self) -> None:
        if self.invalid_boxes not in ("drop", "clip", "error", None):
            raise ValueError(
                f"invalid_boxes must be 'drop', 'clip', 'error' or None, not {self.invalid_boxes!r}"
            )

    def when(self, *, training: bool) -> ObjectRules:
        """Return the same rules for training; for evaluation, rules that keep every box as annotated."""
        return self if training else replace(self, invalid_boxes=None)

    def box_fault(self, box: Box, size: tuple[int, int]) -> str | None:
        """Return what is wrong with ``box`` on an image of ``size`` (height, width), None if it can be used.

        "swapped", "outside" (by more than one pixel, or entirely where boxes are clipped) or "under 2 px",
        where the number is ``min_box_size``.
        """
        if box[2] < box[0] or box[3] < box[1]:
            return "swapped"
        clipped = _clip(box, size)
        empty = clipped[2] <= clipped[0] or clipped[3] <= clipped[1]
        far = max(abs(before - after) for before, after in zip(box, clipped, strict=True)) > _TOLERANCE
        if (empty and clipped != box) or (far and self.invalid_boxes != "clip"):
            return "outside"
        if min(clipped[2] - clipped[0], clipped[3] - clipped[1]) < self.min_box_size:
            return self._too_small
        return None

    @property
    def _too_small(self) -> str:
        return f"under {self.min_box_size:g} px"

    def box_faults(
        self, boxes: NDArray[np.float64], clipped: NDArray[np.float64]
    ) -> dict[str, NDArray[np.bool_]]:
        """Return the `box_fault` of each of ``boxes`` (G, 4): for each kind of fault, a mask (G,).

        ``clipped`` (G, 4) are the boxes cut off at their images' borders.
        """
        swapped = (boxes[:, 2] < boxes[:, 0]) | (boxes[:, 3] < boxes[:, 1])
        empty = (clipped[:, 2] <= clipped[:, 0]) | (clipped[:, 3] <= clipped[:, 1])
        outside = empty & (clipped != boxes).any(1)
        if self.invalid_boxes != "clip":
            outside |= (np.abs(boxes - clipped) > _TOLERANCE).any(1)
        outside &= ~swapped
        small = (clipped[:, 2:] - clipped[:, :2] < self.min_box_size).any(1) & ~swapped & ~outside
        return {"swapped": swapped, "outside": outside, self._too_small: small}


AS_ANNOTATED = ObjectRules(invalid_boxes=None)


class TargetBuilder:
    """Turns annotated objects into `Targets` by `ObjectRules`, and counts what it leaves out or changes.

    An object with ``ignore`` becomes both difficult and a crowd region, which no metric counts as missed and
    which training uses neither as an object nor as background.

    ``counts`` has the numbers of boxes left out ("swapped", "outside", "under 2 px", "of other classes") and
    changed ("clipped"), ``others`` the names of the other classes.
    """

    def __init__(self, classes: Sequence[str], rules: ObjectRules) -> None:
        repeated = [name for name, count in Counter(classes).items() if count > 1]
        if repeated:
            raise InputError(f"classes: {repeated[0]!r} is named twice; name each class once")
        self.rules = rules
        self.counts: Counter[str] = Counter()
        self.others: Counter[str] = Counter()
        self._labels = {name: label for label, name in enumerate(classes, start=1)}

    def __call__(self, objects: Iterable[AnnotatedObject], size: tuple[int, int]) -> Targets:
        """Return the targets of one image of ``size`` (height, width).

        Raises InputError for an object of an unknown class, or an invalid box under "error".
        """
        kept: list[tuple[AnnotatedObject, int, Box]] = []
        for thing in objects:
            label = self._label(thing)
            box = None if label is None else self._usable_box(thing, size)
            if label is not None and box is not None:
                kept.append((thing, label, box))
        boxes = torch.tensor([box for _, _, box in kept], dtype=torch.float32).reshape(-1, 4)
        area = box_ops.area(boxes)
        for index, (thing, _, _) in enumerate(kept):
            if thing.area is not None:
                area[index] = thing.area
        return Targets(
            boxes=boxes,
            labels=torch.tensor([label for _, label, _ in kept], dtype=torch.int64),
            difficult=torch.tensor([one.difficult or one.ignore for one, _, _ in kept], dtype=torch.bool),
            crowd=torch.tensor([one.crowd or one.ignore for one, _, _ in kept], dtype=torch.bool),
            area=area,
        )

    def columns(self, things: ObjectColumns, sizes: NDArray[np.int32]) -> Objects:
        """Return the objects of N images of ``sizes`` (N, 2), (height, width), as a call for each would.

        Raises InputError for the first object for which such a call would raise it.
        """
        labels_of = np.array([self._labels.get(name, 0) for name in things.names], np.int64)
        labels = labels_of[things.classes] if len(things.classes) else np.zeros(0, np.int64)
        others = np.flatnonzero(labels == 0)
        boxes, keep, faults = self._usable_boxes(things, sizes, labels > 0)
        refused = [others] if self.rules.other_classes == "error" else []
        if self.rules.invalid_boxes == "error":
            refused += faults.values()
        for row in sorted(int(rows[0]) for rows in refused if len(rows)):
            thing, image = things.describe(int(things.numbers[row])), things.image_numbers()[row]
            if self._label(thing) is not None:
                self._usable_box(thing, (int(sizes[image, 0]), int(sizes[image, 1])))
            raise AssertionError(f"{thing.where}: refused for no reason")
        self._count(OTHER_CLASS, len(others))
        names, times = np.unique(things.classes[others], return_counts=True)
        self.others.update({things.names[name]: int(count) for name, count in zip(names, times, strict=True)})
        for fault, rows in faults.items():
            self._count(fault, len(rows))
        area = box_ops.area(torch.from_numpy(boxes)).numpy()
        area = np.where(np.isnan(things.area), area, things.area.astype(np.float32))
        return Objects(
            offsets=kept_offsets(things.offsets, keep),
            boxes=boxes[keep],
            labels=labels[keep],
            difficult=(things.difficult | things.ignore)[keep],
            crowd=(things.crowd | things.ignore)[keep],
            area=area[keep],
        )

    def _count(self, reason: str, times: int) -> None:
        if times:
            self.counts[reason] += times

    def _usable_boxes(
        self, things: ObjectColumns, sizes: NDArray[np.int32], known: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_], dict[str, NDArray[np.int64]]]:
        """Return the boxes (G, 4), which of them (G,) are kept, and the rows of each kind of fault.

        Objects whose class is not ``known`` (G,) are not kept, and their boxes have no fault. Clipped boxes
        are counted.
        """
        if self.rules.invalid_boxes is None:
            return things.boxes.astype(np.float32), known, {}
        usable, keep = np.empty((len(known), 4), np.float32), known.copy()
        faulty: dict[str, list[NDArray[np.int64]]] = {}
        images = things.image_numbers()
        for part in _parts(len(known)):
            boxes = things.boxes[part]
            clipped = _clip_all(boxes, sizes[images[part]])
            for fault, mask in self.rules.box_faults(boxes, clipped).items():
                faulty.setdefault(fault, []).append(part.start + np.flatnonzero(mask & known[part]))
                keep[part] &= ~mask
            self._count("clipped", int(((clipped != boxes).any(1) & keep[part]).sum()))
            usable[part] = clipped
        return usable, keep, {fault: np.concatenate(rows) for fault, rows in faulty.items()}

    def _label(self, thing: AnnotatedObject) -> int | None:
        """Return the label of an object, or None if it is left out because of its class."""
        label = self._labels.get(thing.name)
        if label is None and self.rules.other_classes == "error":
            raise InputError(
                f"{thing.where}: {thing.name!r} is not among the classes{nearest(thing.name, self._labels)}; "
                f"{OTHER_CLASS_ADVICE}"
            )
        if label is None:
            self.counts[OTHER_CLASS] += 1
            self.others[thing.name] += 1
        return label

    def _usable_box(self, thing: AnnotatedObject, size: tuple[int, int]) -> Box | None:
        """Return the box, clipped if necessary, or None if the object is left out."""
        if self.rules.invalid_boxes is None:
            return thing.box
        clipped = _clip(thing.box, size)
        fault = self.rules.box_fault(thing.box, size)
        if fault is None:
            self.counts.update(["clipped"] if clipped != thing.box else [])
            return clipped
        if self.rules.invalid_boxes == "error":
            written = ", ".join(f"{number:g}" for number in thing.written)
            raise InputError(
                f"{thing.where}: box {written} is {fault} (the image is {size[1]}x{size[0]}); correct it, or "
                "choose to drop or clip such boxes"
            )
        self.counts[fault] += 1
        return None


def _clip(box: Box, size: tuple[int, int]) -> Box:
    height, width = size
    x1, y1, x2, y2 = box
    return min(max(x1, 0), width), min(max(y1, 0), height), min(max(x2, 0), width), min(max(y2, 0), height)


def _clip_all(boxes: NDArray[np.float64], sizes: NDArray[np.int32]) -> NDArray[np.float64]:
    """Return ``boxes`` (G, 4) as `_clip` does, on images of ``sizes`` (G, 2); a corner at -0 stays so."""
    ends = sizes[:, [1, 0, 1, 0]].astype(np.float64)
    from_zero: NDArray[Any] = np.where(boxes < 0, 0.0, boxes)
    return np.where(ends < from_zero, ends, from_zero)


def _parts(count: int) -> Iterator[slice]:
    """Yield slices of at most `_AT_ONCE` rows that cover ``count`` rows."""
    for start in range(0, count, _AT_ONCE):
        yield slice(start, min(start + _AT_ONCE, count))
