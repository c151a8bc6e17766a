"""A network as one function of standard operators, for export: from pixels and regions to scores and boxes.

`PortableDetector` computes for one image what ``RegionPredictor.regions`` computes with its single view, and
with `PortablePostprocess` what ``Postprocess`` selects from it; `PortableClassifier` is the same for whole
images. They share the layers of a `RegionDetector`. Only its native operators are replaced: normalisation and
pooling, and the choice of levels, which ``RegionDetector.place`` makes on the CPU.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torchvision.ops  # noqa: F401  # registers torch.ops.torchvision
from torch import Tensor, nn

from detector.core.errors import InputError
from detector.core.structures import Embedded, HeadOutput, Normalization
from detector.models.crops import CropPooling
from detector.models.detector import RegionDetector
from detector.models.feature_pyramid import REFERENCE_SIDE
from detector.models.region_pools import PyramidPooling, RoIAlignPooling, RoIPooling
from detector.models.whole_map import WholeMapPool
from detector.ops.portable_nms import kept_by_class, suppress
from detector.ops.portable_pooling import PortablePool

_REFERENCE_LEVEL = 4
_ROUNDING = 1e-6
"""Those of ``feature_pyramid.pyramid_level``."""


class PortableFeatures(nn.Module):
    """Turns the pixels of one image (H, W, 3), uint8 RGB, into the feature levels of ``model``."""

    def __init__(self, model: RegionDetector, normalization: Normalization) -> None:
        super().__init__()
        self.backbone, self.neck = model.backbone, model.neck
        self.normalization = normalization
        shape = (3, 1, 1)
        mean, deviation = torch.tensor(normalization.mean), torch.tensor(normalization.deviation)
        self.register_buffer("mean", mean.view(shape), persistent=False)
        self.register_buffer("deviation", deviation.view(shape), persistent=False)

    def forward(self, image: Tensor) -> list[Tensor]:
        pixels = image.permute(2, 0, 1).float()
        if self.normalization.bgr:
            pixels = pixels.flip(0)
        if self.normalization.maximum != 1:
            pixels = pixels / self.normalization.maximum
        images = ((pixels - self.get_buffer("mean")) / self.get_buffer("deviation"))[None]
        if self.neck is None:
            return [self.backbone(images)]
        levels: list[Tensor] = self.neck(self.backbone.pyramid(images))
        return levels


class PortableAlign(nn.Module):
    """`RoIAlignPooling` by torchvision's operator, which exporters translate to ONNX's RoiAlign."""

    def __init__(self, pool: RoIAlignPooling, levels: int) -> None:
        super().__init__()
        self.size, self.ratio = pool.output_size, pool.sampling_ratio
        self.places = [pool.geometry(level) for level in range(levels)]

    def forward(self, levels: Sequence[Tensor], rois: Tensor, roi_levels: Tensor | None) -> Tensor:
        """Return (R, C * n * n) for corners ``rois`` (R, 4) in pixels of the network's input.

        Every RoI is pooled from every level, from the wrong ones as a RoI without extent, which costs little.
        """
        pooled = None
        for number, (level, (stride, center)) in enumerate(zip(levels, self.places, strict=True)):
            shift = center - stride / 2
            corners = rois - shift if shift else rois
            corners = torch.cat((corners[:, :2], corners[:, 2:].maximum(corners[:, :2])), dim=1)
            own = None if roi_levels is None else (roi_levels == number)[:, None]
            if own is not None:
                corners = torch.where(own, corners, torch.zeros_like(corners))
            rows = torch.cat((torch.zeros_like(corners[:, :1]), corners), dim=1)
            settings = (1.0 / stride, self.size, self.size, self.ratio, True)
            found = torch.ops.torchvision.roi_align(level, rows, *settings).flatten(1)
            pooled = found if pooled is None or own is None else torch.where(own, found, pooled)
        assert pooled is not None  # a network has at least one level
        return pooled


class LevelChoice(nn.Module):
    """``FeaturePyramid.place`` without logarithms, whose last digit differs between runtimes."""

    def __init__(self, strides: Sequence[int]) -> None:
        super().__init__()
        levels = [math.ceil(math.log2(stride)) for stride in strides[1:]]
        sides = [REFERENCE_SIDE * 2.0 ** (level - _REFERENCE_LEVEL - _ROUNDING) for level in levels]
        self.register_buffer("sides", torch.tensor(sides), persistent=False)

    def forward(self, rois: Tensor) -> Tensor:
        """Return the level (R,) int64 of corners ``rois`` (R, 4) in pixels of the network's input."""
        width, height = rois[:, 2] - rois[:, 0], rois[:, 3] - rois[:, 1]
        side = (width * height).clamp(min=0).sqrt()
        return (side[:, None] >= self.get_buffer("sides")).long().sum(dim=1)


@dataclass(frozen=True)
class Limits:
    """The inputs that an exported network takes: the sides of an image in pixels, and regions per image."""

    smallest: int
    """The shortest side that gives at least one cell of every map."""
    largest: tuple[int, int]
    """The largest (height, width); the tables of the pools are made for it."""
    regions: int = 100_000


def smallest_side(model: RegionDetector) -> int:
    """Return the least number of pixels that give at least one cell on each axis of every map."""
    return next(side for side in range(2, 1 << 16) if min(map(min, map_sizes(model, (side, side)))) >= 1)


def map_sizes(model: RegionDetector, size: tuple[int, int]) -> list[tuple[int, int]]:
    """Return the (height, width) in cells of each level for an input of ``size`` pixels."""
    if model.neck is None:
        return [model.backbone.map_size(size)]
    return [place.size(size) for place in model.backbone.maps]


def portable_pool(model: RegionDetector, largest: tuple[int, int]) -> nn.Module:
    """Return the pool of ``model`` in standard operators, for inputs of up to ``largest`` pixels.

    Raises:
        InputError: masks, crops, a pool of the user, or sliding windows over whole maps; says why.
    """
    pool, sizes = model.region_pool, map_sizes(model, largest)
    cells, numbers = max(map(max, sizes)), range(len(sizes))
    if getattr(pool, "mask", "none") != "none":
        raise InputError(
            "model.pool.mask: an exported network takes regions as boxes, and no standard operator pools the "
            "cells of a mask; export a network with model.pool.mask: none"
        )
    match pool:
        case RoIAlignPooling():
            return PortableAlign(pool, len(sizes))
        case WholeMapPool(rule="adaptive"):
            return PortablePool("cells", pool.grids, [(1, 0, 0)], cells, average=pool.reduction == "avg")
        case WholeMapPool():
            raise InputError(
                "model.pool.rule sliding: the sizes of its windows follow from the size of the image, which "
                "standard operators take as constants; export a network with model.pool.rule: adaptive"
            )
        case CropPooling():
            raise InputError(
                "model.pool.kind: R-CNN cuts each region out of the image and runs the convolutions on all "
                "these crops, which no standard operator does; export a network that pools regions from a "
                "feature map (roi, roi_align or spp)"
            )
        case RoIPooling():
            places = [(*pool.geometry(level), 0.0) for level in numbers]
            return PortablePool("caffe", [pool.output_size], places, cells)
        case PyramidPooling():
            places = [_spp_place(pool, level) for level in numbers]
            rule = "exact" if pool.window == "roi" else "spp"
            average = pool.reduction == "avg"
            return PortablePool(rule, pool.grids, places, cells, average=average)
    raise InputError(
        "model.pool.kind: the pool is a class of yours, whose operators this program does not know; export a "
        "network with a pool of this project (roi, roi_align or spp)"
    )


def _spp_place(pool: PyramidPooling, level: int) -> tuple[float, float, float]:
    """Return stride, center and shrink of a level as ``spp_pool`` uses them."""
    stride, center = pool.geometry(level)
    if pool.window == "roi":
        return stride, 0.0, 0.0
    scale = 1.0 / stride
    return 1.0 / scale, center, 0.5 / scale if pool.shrink is None else pool.shrink


class PortableDetector(nn.Module):
    """Scores regions of one image; with ``postprocess`` it selects detections from them.

    ``scores`` turns the output of the layers into (R, K+1). Without ``box_regression`` the boxes are the
    regions.
    """

    def __init__(
        self,
        model: RegionDetector,
        normalization: Normalization,
        limits: Limits,
        scores: Callable[[HeadOutput], Tensor],
        *,
        box_regression: bool = True,
        postprocess: PortablePostprocess | None = None,
    ) -> None:
        super().__init__()
        self.features = PortableFeatures(model, normalization)
        self.pool = portable_pool(model, limits.largest)
        self.level_choice = None if model.neck is None else LevelChoice(model.neck.strides)
        self.box_head, self.predictor, self.box_coder = model.box_head, model.predictor, model.box_coder
        self.limits, self.scores, self.box_regression = limits, scores, box_regression
        self.postprocess = postprocess

    def forward(self, image: Tensor, regions: Tensor, size: Tensor, scale: Tensor) -> tuple[Tensor, ...]:
        """Return scores (R, K+1) and boxes (R, K+1, 4).

        With ``postprocess``, boxes (D, 4), scores (D,) and labels (D,) of the detections come before them.

        Args:
            image: (H, W, 3) uint8 RGB, resized to the size of the network's input.
            regions: (R, 4) float32, x1, y1, x2, y2, half-open, in pixels of the original image.
            size: (2,) float32, height and width of the original image.
            scale: (2,) float32, input pixels per original pixel, vertical and horizontal. It is an input
                since some runtimes do not divide exactly, and a last digit can move a region by a cell.

        Boxes are in pixels of the original image, clipped to it; row 0 is the region itself. A region that is
        not finite or leaves the image has the scores NaN, and so have all regions of an image that is smaller
        or larger than ``limits``.
        """
        levels = self.features(image)
        rois = regions * torch.stack((scale[1], scale[0], scale[1], scale[0]))
        pooled = self.pool(levels, rois, None if self.level_choice is None else self.level_choice(rois))
        output = self.predictor(Embedded(pooled, self.box_head(pooled)))
        scores = torch.where(self._valid(image, regions, size), self.scores(output).float(), torch.nan)
        boxes = _clipped(self._boxes(output, regions, scores), size)
        return (
            (scores, boxes) if self.postprocess is None else (*self.postprocess(scores, boxes), scores, boxes)
        )

    def _boxes(self, output: HeadOutput, regions: Tensor, scores: Tensor) -> Tensor:
        if output.box_deltas is None or not self.box_regression:
            return regions[:, None].expand(-1, scores.shape[1], -1)
        boxes = self.box_coder.decode(output.box_deltas.float(), regions)
        boxes = boxes.expand(-1, scores.shape[1], -1)
        return torch.cat((regions[:, None], boxes[:, 1:]), dim=1)

    def _valid(self, image: Tensor, regions: Tensor, size: Tensor) -> Tensor:
        """Return (R, 1): whether the results for each region can be relied on."""
        corners = torch.stack((size[1], size[0], size[1], size[0]))
        inside = ((regions >= 0) & (regions <= corners)).all(dim=1, keepdim=True)
        return inside & _fits(_lengths(image.shape[:2]), self.limits)


class PortableClassifier(nn.Module):
    """Scores the K classes of one whole image."""

    def __init__(
        self,
        model: RegionDetector,
        normalization: Normalization,
        limits: Limits,
        scores: Callable[[HeadOutput], Tensor],
    ) -> None:
        super().__init__()
        self.features = PortableFeatures(model, normalization)
        self.pool = portable_pool(model, limits.largest)
        self.box_head, self.predictor, self.scores = model.box_head, model.predictor, scores
        self.limits = limits

    def forward(self, image: Tensor) -> tuple[Tensor]:
        """Return the scores (K,) of an image (H, W, 3), uint8 RGB, in the size of the network's input.

        They are NaN for an image that is smaller or larger than ``limits``.
        """
        (level,) = self.features(image)
        height, width = (side.float() for side in _lengths(level.shape[2:]))
        zero = torch.zeros_like(height)
        pooled = self.pool([level], torch.stack((zero, zero, width, height), dim=1))
        scores = self.scores(self.predictor(Embedded(pooled, self.box_head(pooled))))[0]
        return (torch.where(_fits(_lengths(image.shape[:2]), self.limits), scores, torch.nan),)


def _lengths(shape: Sequence[int]) -> list[Tensor]:
    """Return each length of ``shape`` as (1,) int64, which an exported graph computes from its inputs."""
    return [torch.full((1,), side, dtype=torch.int64) for side in shape]


def _fits(sides: Sequence[Tensor], limits: Limits) -> Tensor:
    """Return a bool: whether an image of these sides is one that the network takes."""
    both = torch.cat(list(sides))
    return ((both >= limits.smallest) & (both <= torch.tensor(limits.largest))).all()


def _clipped(boxes: Tensor, size: Tensor) -> Tensor:
    corners = torch.stack((size[1], size[0], size[1], size[0]))
    return boxes.clamp(min=0).minimum(corners)


class PortablePostprocess(nn.Module):
    """`Postprocess.select` in standard operators.

    ``dense`` keeps to operators of torch and torchvision whose results have known lengths, which a program of
    ``torch.export`` needs; else all classes are suppressed by one operator, which ONNX has too.
    """

    def __init__(
        self, score_threshold: float, nms_threshold: float, max_detections: int, *, dense: bool = False
    ) -> None:
        super().__init__()
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections
        self.dense = dense

    def forward(self, scores: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return boxes (D, 4), scores (D,) and labels (D,) int64 in 1..K, by falling score.

        ``scores`` are (R, K+1), ``boxes`` (R, K+1, 4), clipped to the image.
        """
        boxes, scores = boxes[:, 1:].transpose(0, 1), scores[:, 1:].transpose(0, 1)
        sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
        usable = (sides[..., 0] * sides[..., 1] > 0) & boxes.isfinite().all(dim=-1)
        usable = usable & (scores > self.score_threshold)
        scores = torch.where(usable, scores, self.score_threshold - 1)
        limits = self.nms_threshold, self.score_threshold - 0.5, self.max_detections
        order, values, classes = (self._dense if self.dense else self._listed)(boxes, scores, *limits)
        return boxes.flatten(0, 1)[order], values, classes + 1

    def _listed(self, boxes: Tensor, scores: Tensor, *limits: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return place in (K * R), score and class from 0 of each detection, (D,) each, by falling score."""
        found = suppress(boxes, scores, *limits)
        kept = found[:, 0] * scores.shape[1] + found[:, 1]
        best = torch.sort(scores.flatten()[kept], descending=True, stable=True)
        order = best.indices[: self.max_detections]
        return kept[order], best.values[: self.max_detections], found[:, 0][order]

    def _dense(self, boxes: Tensor, scores: Tensor, *limits: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Return the same as `_listed`."""
        kept = kept_by_class(boxes, scores, *limits[:2])
        best = torch.sort(torch.where(kept, scores, -torch.inf).flatten(), descending=True, stable=True)
        number = kept.sum().clamp(max=self.max_detections).item()
        torch._check(number >= 0)
        torch._check(number <= best.values.shape[0])
        order = best.indices[:number]
        classes = torch.arange(scores.shape[0])[:, None].expand(-1, scores.shape[1])
        return order, best.values[:number], classes.flatten()[order]
