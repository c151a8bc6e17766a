"""The containers that flow through the system, and the conventions they keep.

Conventions, stated once:

- Boxes are (x1, y1, x2, y2), float32, pixels, continuous, half-open: width = x2 - x1.
- Sizes are (height, width). Scale factors are what was really applied after rounding.
- Labels: 0 background, 1..K classes.
- A RoI row is (batch index, x1, y1, x2, y2) in network-input pixels, float32 always.
- Letters: N images, P proposals of an image, R RoIs of a batch, G objects, K classes, C channels,
  D detections.

Every container is frozen and checks shapes and dtypes once, when it is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from detector.core import boxes as box_ops


def _check(name: str, tensor: Tensor, shape: tuple[int | None, ...], dtype: torch.dtype) -> None:
    if tensor.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, not {tensor.dtype}")
    fits = tensor.dim() == len(shape) and all(
        wanted is None or wanted == found for wanted, found in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} must have shape {shape}, not {tuple(tensor.shape)}")


class _Parcel:
    """Travels between processes as arrays, but for images.

    Torch would hand every tensor over in shared memory, with a file descriptor for each.
    """

    __slots__ = ()

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}  # type: ignore[arg-type]
        images = {name: values.pop(name) for name in ("image", "images") if name in values}
        return _unpack, (type(self), {name: _to_arrays(value) for name, value in values.items()}, images)


def _to_arrays(value: Any) -> Any:
    if isinstance(value, list):
        return [_to_arrays(item) for item in value]
    return value.numpy() if isinstance(value, Tensor) else value


def _from_arrays(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_arrays(item) for item in value]
    return torch.from_numpy(value) if isinstance(value, np.ndarray) else value


def _unpack(kind: Callable[..., Any], values: dict[str, Any], images: dict[str, Tensor]) -> Any:
    return kind(**{name: _from_arrays(value) for name, value in values.items()}, **images)


@dataclass(frozen=True, kw_only=True, slots=True)
class Targets(_Parcel):
    """The G objects of one image: boxes (G, 4), labels (G,) 1..K, flags and areas (G,).

    ``difficult`` is VOC's flag, ``crowd`` COCO's; ``area`` is the annotated area in square pixels of the
    original image. An image without objects has G = 0.
    """

    boxes: Tensor
    labels: Tensor
    difficult: Tensor
    crowd: Tensor
    area: Tensor

    def __post_init__(self) -> None:
        count = len(self.boxes)
        _check("Targets.boxes", self.boxes, (None, 4), torch.float32)
        _check("Targets.labels", self.labels, (count,), torch.int64)
        _check("Targets.difficult", self.difficult, (count,), torch.bool)
        _check("Targets.crowd", self.crowd, (count,), torch.bool)
        _check("Targets.area", self.area, (count,), torch.float32)

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def make(
        cls, boxes: Tensor, labels: Tensor, difficult: Tensor | None = None, crowd: Tensor | None = None
    ) -> Targets:
        """Build from boxes and labels; missing flags are False, the area is the boxes' own."""
        none = torch.zeros(len(boxes), dtype=torch.bool)
        return cls(
            boxes=boxes,
            labels=labels,
            difficult=none if difficult is None else difficult,
            crowd=none.clone() if crowd is None else crowd,
            area=box_ops.area(boxes),
        )

    @classmethod
    def empty(cls) -> Targets:
        return cls.make(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))

    def select(self, keep: Tensor) -> Targets:
        """Return the objects that ``keep``, a mask or an index of shape (n,), picks."""
        return Targets(
            boxes=self.boxes[keep],
            labels=self.labels[keep],
            difficult=self.difficult[keep],
            crowd=self.crowd[keep],
            area=self.area[keep],
        )

    def with_boxes(self, boxes: Tensor) -> Targets:
        """Return the same objects at other ``boxes`` (G, 4); ``area`` stays the annotated one."""
        return replace(self, boxes=boxes)

    def clone(self) -> Targets:
        """Return the same objects in memory of their own."""
        return Targets(**{field.name: getattr(self, field.name).clone() for field in fields(self)})

    def presence(self, num_classes: int) -> Tensor:
        """Return (K,) int64, for each class 1 where it is there, -1 where not, 0 where only as difficult.

        The numbers are those of VOC's own lists of a class (ImageSets/Main/CLASS_SPLIT.txt), where 0 counts
        neither way. A crowd region counts as a difficult object.
        """
        found = torch.full((num_classes + 1,), -1, dtype=torch.int64)
        found[self.labels] = 0
        found[self.labels[~(self.difficult | self.crowd)]] = 1
        return found[1:]


class ImageName(NamedTuple):
    """The two names of an image: ``image_id`` as in `ImageRecord`, and its ``key``."""

    image_id: str
    key: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRecord:
    """One image of a data set as the reader gives it: where it lies, its size, what is on it.

    ``image_id`` is the image's name in annotations and result files; it is unique only within a split,
    since COCO files may count from 1 in every split. ``key`` is unique within the data set: the image's path
    below the data root with its suffix (`detector.data.paths.image_key`), by which proposal stores, lists of
    images and caches know the image. A record that is made without one takes ``image_id``.
    """

    image_id: str
    path: Path
    height: int
    width: int
    targets: Targets
    key: str = ""

    def __post_init__(self) -> None:
        if not self.key:
            object.__setattr__(self, "key", self.image_id)


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposals(_Parcel):
    """The P proposals of one image: boxes (P, 4) in original-image pixels, scores (P,) or None."""

    boxes: Tensor
    scores: Tensor | None = None

    def __post_init__(self) -> None:
        _check("Proposals.boxes", self.boxes, (None, 4), torch.float32)
        if self.scores is not None:
            _check("Proposals.scores", self.scores, (len(self.boxes),), torch.float32)

    def __len__(self) -> int:
        return len(self.boxes)


ProposalSource = Callable[[ImageRecord], Proposals]
"""Gives the proposals of an image: from a store or file, computed, or the user's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Normalization:
    """What a backbone's weights expect of their input: ``(pixel / maximum - mean) / deviation``.

    ``mean`` and ``deviation`` stand in the weights' own channel order, RGB or (``bgr``) BGR; ``maximum``
    is 255 for weights that expect [0, 1] and 1 for weights that expect 0..255.
    """

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    maximum: float
    bgr: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageMeta:
    """What was done to one image: ids, sizes (height, width), real scale factors, flips."""

    image_id: str
    original_size: tuple[int, int]
    input_size: tuple[int, int]
    flipped: bool = False
    flipped_vertically: bool = False

    @property
    def scale(self) -> tuple[float, float]:
        """Input pixels an original pixel, (vertical, horizontal), after rounding of the size."""
        return (
            self.input_size[0] / self.original_size[0],
            self.input_size[1] / self.original_size[1],
        )

    def to_input(self, boxes: Tensor) -> Tensor:
        """Carry ``boxes`` (P, 4) from original-image pixels to network-input pixels."""
        return self.mirror(box_ops.scale(boxes, self.scale), self.input_size)

    def mirror(self, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """Return ``boxes`` (..., 4) flipped as this view is, in a frame of ``size``; twice: as before."""
        if self.flipped:
            boxes = box_ops.flip(boxes, size[1])
        return box_ops.flip_vertical(boxes, size[0]) if self.flipped_vertically else boxes


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample(_Parcel):
    """One image ready for a batch.

    ``image`` (3, h, w) float32 is normalised; ``proposals`` stay in original-image pixels, ``rois``
    (P, 4) are the same boxes in network-input pixels; ``targets`` are in network-input pixels.
    """

    image: Tensor
    proposals: Proposals
    rois: Tensor
    targets: Targets
    meta: ImageMeta

    def __post_init__(self) -> None:
        _check("Sample.image", self.image, (3, *self.meta.input_size), torch.float32)
        _check("Sample.rois", self.rois, (len(self.proposals), 4), torch.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch(_Parcel):
    """N samples: images (N, 3, H, W) padded right and bottom with zeros, and lists of length N."""

    images: Tensor
    proposals: list[Proposals]
    rois_per_image: list[Tensor]
    targets: list[Targets]
    metas: list[ImageMeta]

    def __post_init__(self) -> None:
        _check("Batch.images", self.images, (len(self.metas), 3, None, None), torch.float32)

    def __len__(self) -> int:
        return len(self.metas)

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with its images on ``device``; boxes stay on the CPU, where they are used."""
        return replace(self, images=self.images.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        return replace(self, images=self.images.pin_memory())

    def rois(self) -> Tensor:
        """Return every proposal as a RoI row, (R, 5), image after image."""
        return stack_rois(self.rois_per_image)


def stack_rois(boxes_per_image: list[Tensor]) -> Tensor:
    """Return RoI rows (R, 5) for lists of boxes (P_i, 4): the image's place, then the box."""
    rows = [
        torch.cat((boxes.new_full((len(boxes), 1), float(index)), boxes), dim=1)
        for index, boxes in enumerate(boxes_per_image)
    ]
    return torch.cat(rows) if rows else torch.zeros(0, 5)


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledRoIs:
    """The RoIs of one training step and what each should become.

    rois (R, 5) in network-input pixels; labels (R,) 0..K; box_targets (R, 4), standardised by the
    box coder, zero for background; roi_levels (R,) int64 or None for one level, always on the CPU.
    """

    rois: Tensor
    labels: Tensor
    box_targets: Tensor
    roi_levels: Tensor | None = None

    def __post_init__(self) -> None:
        count = len(self.rois)
        _check("SampledRoIs.rois", self.rois, (None, 5), torch.float32)
        _check("SampledRoIs.labels", self.labels, (count,), torch.int64)
        _check("SampledRoIs.box_targets", self.box_targets, (count, 4), torch.float32)
        if self.roi_levels is not None:
            _check("SampledRoIs.roi_levels", self.roi_levels, (count,), torch.int64)

    def to(self, device: torch.device | str) -> SampledRoIs:
        """Return the same on ``device``; levels stay on the CPU, where RoIs are put in their order."""
        return replace(
            self,
            rois=self.rois.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            box_targets=self.box_targets.to(device, non_blocking=True),
        )


class Embedded(NamedTuple):
    """What the region pool (``pooled`` (R, D)) and the box head (``hidden`` (R, F)) make of R RoIs."""

    pooled: Tensor
    hidden: Tensor


class HeadOutput(NamedTuple):
    """class_logits (R, K+1); box_deltas (R, K+1, 4), (R, 1, 4) class-agnostic, or None."""

    class_logits: Tensor
    box_deltas: Tensor | None


View = tuple[HeadOutput, ImageMeta]
"""What the head says about an image's P proposals in one view, and which view that was."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Detections:
    """The D detections of one image, by falling score: boxes (D, 4) in original-image pixels,
    scores (D,), labels (D,) 1..K."""

    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        count = len(self.boxes)
        _check("Detections.boxes", self.boxes, (None, 4), torch.float32)
        _check("Detections.scores", self.scores, (count,), torch.float32)
        _check("Detections.labels", self.labels, (count,), torch.int64)

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def empty(cls) -> Detections:
        return cls(boxes=torch.zeros(0, 4), scores=torch.zeros(0), labels=torch.zeros(0, dtype=torch.int64))


class Evaluator(Protocol):
    """Collects detections image by image and turns them into figures in [0, 1]."""

    def update(self, image_ids: list[str], detections: list[Detections]) -> None:
        """Take the detections of some images; each image once."""
        ...

    def compute(self) -> dict[str, object]:
        """Return the figures over all images given so far."""
        ...

    def reset(self) -> None:
        """Forget all detections."""
        ...
