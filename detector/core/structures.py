"""The containers that pass through the system, and the conventions that the whole package follows.

- Boxes are (x1, y1, x2, y2), float32, in pixels, continuous and half-open: width = x2 - x1. VOC's form
  (1-based, last pixel included) is converted where files are read and written; the "+ 1" of RoI pooling is
  only in the op.
- Sizes are (height, width). A scale factor is the ratio of the sizes after rounding, not the nominal one.
- Labels: 0 is background, 1..K are the classes. Only readers and writers know a data set's own
  category ids.
- A RoI is a row (batch index, x1, y1, x2, y2) in network-input pixels, always float32, also under autocast:
  bfloat16 turns 1333 into 1336. (The ops accept float64 with float64 features.)
- A RoI that covers a whole feature map is in cells, (0, 0, W, H), half-open, without the padding of the
  batch.
- Pixels are uint8, RGB, channels last, until `RegionDetector.inputs`, which applies the normalisation
  constants and the channel order that belong to a backbone's weights.
- A step is a completed step of the optimizer.
- A view is one transformed version of a test image, a scale is a shorter side in pixels, and a level is one
  feature map that regions are pooled from.
- Letters in shapes: N images, P proposals per image, R RoIs per batch, G objects per image, K classes,
  C channels, D detections per image.

Every container is frozen and checks its shapes and dtypes once, when it is made: TypeError for another dtype,
ValueError for another shape. An image without objects, proposals or detections has tensors of length 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from detector.core import boxes as box_ops
from detector.core.masks import Masks

if TYPE_CHECKING:
    from detector.core.cell_masks import CellMasks


def _check(name: str, tensor: Tensor, shape: tuple[int | None, ...], dtype: torch.dtype) -> None:
    if tensor.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, not {tensor.dtype}")
    sides = tuple(tensor.shape)
    if len(sides) == len(shape):  # without a generator, since every sample is checked a dozen times
        for expected, side in zip(shape, sides, strict=True):
            if expected is not None and expected != side:
                break
        else:
            return
    raise ValueError(f"{name} must have shape {shape}, not {sides}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Targets:
    """The G objects of an image: boxes (G, 4), labels (G,) int64 in 1..K, flags (G,) bool and areas (G,).

    ``difficult`` is VOC's flag, ``crowd`` COCO's. ``area`` is the annotated area in square pixels of the
    original image. The boxes are in original-image pixels in an `ImageRecord` and in network-input pixels in
    a `Sample`.
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
        """Make targets of boxes and labels. Missing flags are False; the areas are those of the boxes."""
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
        """Return the objects that ``keep`` selects, a mask (G,) or indices (n,)."""
        return Targets(**{field.name: getattr(self, field.name)[keep] for field in fields(self)})

    def with_boxes(self, boxes: Tensor) -> Targets:
        """Return the same objects with other ``boxes`` (G, 4); ``area`` stays the annotated area."""
        return replace(self, boxes=boxes)

    def presence(self, num_classes: int) -> Tensor:
        """Return (K,) int64: 1 for each class in the image, -1 for each other class, 0 for ignored classes.

        A class is ignored if all its objects in the image are difficult or crowd regions. These are the
        numbers of VOC's lists per class (ImageSets/Main/CLASS_SPLIT.txt), in which 0 counts neither as
        present nor as absent.
        """
        presence = torch.full((num_classes + 1,), -1, dtype=torch.int64)
        presence[self.labels] = 0
        presence[self.labels[~(self.difficult | self.crowd)]] = 1
        return presence[1:]


class ImageName(NamedTuple):
    """The two names of an image: ``image_id`` as in `ImageRecord`, and its ``key``."""

    image_id: str
    key: str


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRecord:
    """One image of a data set as a reader returns it: its file, its size and its objects.

    ``image_id`` is the image's name in annotations and result files. It is unique within a split only: COCO
    files may count from 1 in every split. ``key`` is unique within the data set and names the image in
    proposal stores, lists of images and caches: the path below the data root, with its suffix. The
    default is the ``image_id``.
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
class Proposals:
    """The P proposals of one image: boxes (P, 4) in original-image pixels, scores (P,) or None.

    ``masks`` are those of the P regions, None where no region has one. The box of a region with a mask is
    that of its mask.
    """

    boxes: Tensor
    scores: Tensor | None = None
    masks: Masks | None = None

    def __post_init__(self) -> None:
        _check("Proposals.boxes", self.boxes, (None, 4), torch.float32)
        if self.scores is not None:
            _check("Proposals.scores", self.scores, (len(self.boxes),), torch.float32)
        if self.masks is not None and len(self.masks) != len(self.boxes):
            raise ValueError(f"Proposals.masks must be {len(self.boxes)} masks, not {len(self.masks)}")

    def __len__(self) -> int:
        return len(self.boxes)

    def select(self, keep: Tensor) -> Proposals:
        """Return the proposals that ``keep`` selects, a mask (P,) or indices (n,)."""
        return Proposals(
            boxes=self.boxes[keep],
            scores=None if self.scores is None else self.scores[keep],
            masks=None if self.masks is None else self.masks.select(keep),
        )


ProposalSource = Callable[[ImageRecord], Proposals]
"""A function that gives the proposals of an image: from a store, computed, or the user's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Normalization:
    """What a backbone's weights expect of their input: ``(pixel / maximum - mean) / deviation``.

    ``mean`` and ``deviation`` (standard deviations) are in the weights' own channel order: BGR with ``bgr``,
    otherwise RGB. ``maximum`` is 255 for weights that expect [0, 1] and 1 for weights that expect 0..255.
    """

    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    maximum: float
    bgr: bool


Window = tuple[int, int, int, int]
"""A rectangle (x1, y1, x2, y2), half-open, in whole pixels of the original image. It may leave the image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageMeta:
    """How an input was made of an image: its sizes (height, width) before and after, and its flips.

    ``flipped`` is left to right, ``flipped_vertically`` top to bottom. A training sample may show another
    ``window`` than the image's own rectangle: a smaller one is a crop, and what a larger one has outside the
    image is filled with a colour. None is the whole image, as in every view of a test image.
    """

    image_id: str
    original_size: tuple[int, int]
    input_size: tuple[int, int]
    flipped: bool = False
    flipped_vertically: bool = False
    window: Window | None = None

    @property
    def scale(self) -> tuple[float, float]:
        """Input pixels per original pixel, (vertical, horizontal), from the rounded sizes."""
        height, width = window_size(self.original_size, self.window)
        return self.input_size[0] / height, self.input_size[1] / width

    @property
    def full_size(self) -> tuple[int, int]:
        """The (height, width) of the whole image at this `scale`, in input pixels, rounded up."""
        if self.window is None:
            return self.input_size
        (height, width), (vertical, horizontal) = self.original_size, self.scale
        return math.ceil(height * vertical), math.ceil(width * horizontal)

    def to_input(self, boxes: Tensor) -> Tensor:
        """Return ``boxes`` (P, 4), in original-image pixels, in network-input pixels."""
        if self.window is not None:
            boxes = boxes - boxes.new_tensor(self.window[:2] * 2)
        return self.mirror(box_ops.scale(boxes, self.scale), self.input_size)

    def mirror(self, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """Return ``boxes`` (..., 4) flipped as this view is, in an image of ``size`` (height, width).

        A second call undoes the first.
        """
        if self.flipped:
            boxes = box_ops.flip(boxes, size[1])
        return box_ops.flip_vertical(boxes, size[0]) if self.flipped_vertically else boxes


def window_size(size: tuple[int, int], window: Window | None) -> tuple[int, int]:
    """Return the (height, width) of ``window``; None stands for a whole image of ``size``."""
    return size if window is None else (window[3] - window[1], window[2] - window[0])


class DrawnRegions(NamedTuple):
    """The r regions that are drawn of one image for a training step.

    ``boxes`` (r, 4) are in the pixels of the regions that they were drawn from, ``labels`` (r,) int64 in
    0..K, and ``box_targets`` (r, 4) as in `SampledRoIs`. ``rows`` (r,) int64 are the regions' places among
    those that they were drawn from, -1 for the box of an annotated object.
    """

    boxes: Tensor
    labels: Tensor
    box_targets: Tensor
    rows: Tensor


@dataclass(frozen=True, kw_only=True, slots=True)
class SampledRoIs:
    """The RoIs of one training step and what the network should predict for each.

    ``rois`` (R, 5) are in network-input pixels; ``labels`` (R,) int64 in 0..K; ``box_targets`` (R, 4) are
    standardised by the box coder and zero for background; ``roi_levels`` (R,) int64, always on the CPU, is
    None where there is only one level. The RoIs of an image follow each other; ``counts`` has their number
    for each of the N images, and is empty where it is not known. ``masks`` are those of the R RoIs at the
    maps of their levels, None where none has a mask or the network pools boxes.
    """

    rois: Tensor
    labels: Tensor
    box_targets: Tensor
    roi_levels: Tensor | None = None
    counts: tuple[int, ...] = ()
    masks: CellMasks | None = None

    def __post_init__(self) -> None:
        count = len(self.rois)
        _check("SampledRoIs.rois", self.rois, (None, 5), torch.float32)
        _check("SampledRoIs.labels", self.labels, (count,), torch.int64)
        _check("SampledRoIs.box_targets", self.box_targets, (count, 4), torch.float32)
        if self.roi_levels is not None:
            _check("SampledRoIs.roi_levels", self.roi_levels, (count,), torch.int64)
        if self.counts and sum(self.counts) != count:
            raise ValueError(f"SampledRoIs.counts must add up to {count}, not {sum(self.counts)}")

    @classmethod
    def stack(cls, drawn: Sequence[DrawnRegions]) -> SampledRoIs:
        """Make the RoIs of a batch from the regions that are drawn of each of its images."""
        boxes_per_image = [one.boxes for one in drawn]
        return cls(
            rois=stack_rois(boxes_per_image),
            labels=torch.cat([one.labels for one in drawn]),
            box_targets=torch.cat([one.box_targets for one in drawn]),
            counts=tuple(map(len, boxes_per_image)),
        )

    def to(self, device: torch.device | str) -> SampledRoIs:
        """Return a copy on ``device``; levels stay on the CPU, where the RoIs are sorted by them."""
        return replace(
            self,
            rois=self.rois.to(device, non_blocking=True),
            labels=self.labels.to(device, non_blocking=True),
            box_targets=self.box_targets.to(device, non_blocking=True),
            masks=None if self.masks is None else self.masks.to(device),
        )

    def device_tensors(self) -> list[Tensor]:
        """Return the tensors that `to` moves."""
        masks = [] if self.masks is None else self.masks.device_tensors()
        return [self.rois, self.labels, self.box_targets, *masks]

    def pin_memory(self) -> SampledRoIs:
        """Return a copy in page-locked memory, from which a GPU copies without waiting."""
        return replace(
            self,
            rois=self.rois.pin_memory(),
            labels=self.labels.pin_memory(),
            box_targets=self.box_targets.pin_memory(),
            masks=None if self.masks is None else self.masks.pin_memory(),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One image ready for a batch.

    ``image`` (h, w, 3) uint8 is RGB, in the size of the network's input. ``proposals`` are in original-image
    pixels; ``rois`` (P, 4) are the same boxes in network-input pixels. ``targets`` are in network-input
    pixels. In a crop, all three hold only what the crop shows, clipped to it. ``drawn`` are the regions of a
    training step, in network-input pixels; None where none are drawn.
    """

    image: Tensor
    proposals: Proposals
    rois: Tensor
    targets: Targets
    meta: ImageMeta
    drawn: DrawnRegions | None = None

    def __post_init__(self) -> None:
        _check("Sample.image", self.image, (*self.meta.input_size, 3), torch.uint8)
        _check("Sample.rois", self.rois, (len(self.proposals), 4), torch.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """N samples: images (N, H, W, 3) uint8 RGB, padded at the right and bottom, and lists of length N.

    ``RegionDetector.inputs`` turns the images into the network's input; the padding becomes 0 there, the mean
    colour. ``rois_per_image`` holds the proposals (P, 4) of each image in network-input pixels. ``sampled``
    are the RoIs of a training step, None where none are drawn.
    """

    images: Tensor
    proposals: list[Proposals]
    rois_per_image: list[Tensor]
    targets: list[Targets]
    metas: list[ImageMeta]
    sampled: SampledRoIs | None = None

    def __post_init__(self) -> None:
        _check("Batch.images", self.images, (len(self.metas), None, None, 3), torch.uint8)

    def __len__(self) -> int:
        return len(self.metas)

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """The (height, width) of each image without its padding."""
        return [meta.input_size for meta in self.metas]

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch with its images and ``sampled`` on ``device``; all else stays on the CPU."""
        sampled = None if self.sampled is None else self.sampled.to(device)
        return replace(self, images=self.images.to(device, non_blocking=True), sampled=sampled)

    def device_tensors(self) -> list[Tensor]:
        """Return the tensors that `to` moves."""
        return [self.images, *([] if self.sampled is None else self.sampled.device_tensors())]


def stack_rois(boxes_per_image: Sequence[Tensor]) -> Tensor:
    """Return RoI rows (R, 5) for the boxes (P_i, 4) of each image: the index of the image, then the box."""
    rows = [
        torch.cat((boxes.new_full((len(boxes), 1), float(index)), boxes), dim=1)
        for index, boxes in enumerate(boxes_per_image)
    ]
    return torch.cat(rows) if rows else torch.zeros(0, 5)


class Embedded(NamedTuple):
    """Features of R RoIs: ``pooled`` (R, D) from the region pool, and ``hidden`` (R, F) from the box head."""

    pooled: Tensor
    hidden: Tensor


class HeadOutput(NamedTuple):
    """``class_logits`` (R, K+1); ``box_deltas`` (R, K+1, 4), (R, 1, 4) if class-agnostic, or None.

    ``region_logits`` (R, K+1) are the second stream of weakly supervised detection, and None elsewhere. A
    softmax over the regions of an image reads them, so they mean something only beside those of all regions.
    """

    class_logits: Tensor
    box_deltas: Tensor | None
    region_logits: Tensor | None = None

    def take(self, rows: Tensor) -> HeadOutput:
        """Return the output for the RoIs ``rows`` (n,), in that order."""
        return self._map(lambda part: part[0][rows], [self])

    @classmethod
    def join(cls, outputs: Sequence[HeadOutput]) -> HeadOutput:
        """Return the output for the RoIs of all ``outputs``, one after the other."""
        return outputs[0] if len(outputs) == 1 else cls._map(torch.cat, outputs)

    @classmethod
    def _map(cls, change: Callable[[list[Tensor]], Tensor], outputs: Sequence[HeadOutput]) -> HeadOutput:
        """Return an output whose parts ``change`` makes of the same parts of all ``outputs``."""
        deltas = [one.box_deltas for one in outputs if one.box_deltas is not None]
        regions = [one.region_logits for one in outputs if one.region_logits is not None]
        return cls(
            change([one.class_logits for one in outputs]),
            change(deltas) if deltas else None,
            change(regions) if regions else None,
        )


View = tuple[HeadOutput, ImageMeta]
"""The head's output for an image's P proposals in one view, and how that view was made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Detections:
    """The D detections of one image, highest score first.

    ``boxes`` (D, 4) are in original-image pixels, ``scores`` (D,) are float32, ``labels`` (D,) are int64 in
    1..K.
    """

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
