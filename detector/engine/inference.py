"""From the views of an image to its detections, in evaluation and in every other use of a checkpoint.

A view is one transformed version of the image, a scale, mirrored or not, as a batch of one sample. A call
changes nothing in the predictor or the network, so several threads may share one.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn

from detector.core import boxes as box_ops
from detector.core.cell_masks import CellMasks
from detector.core.devices import sent
from detector.core.errors import InputError
from detector.core.masks import Masks
from detector.core.structures import (
    Batch,
    Detections,
    Embedded,
    HeadOutput,
    ImageMeta,
    Proposals,
    View,
)

REFERENCE_AREA = 224.0**2
"""Rule "area": a region is scored at the scale where its area is closest to this (Fast R-CNN's release)."""
REFERENCE_SIDE = 13 * 16.0
"""Rule "side": a region is scored at the scale where the square root of its area is closest to this
(SPP-net's release: 13 cells of a map of stride 16)."""

Model = TypeVar("Model", bound=nn.Module)


class Decoder(Protocol):
    """What turns the network's output into detections; see ``models.postprocess.Postprocess``."""

    def __call__(self, views: Sequence[View], proposals: Tensor) -> Detections: ...
    def candidates(self, views: Sequence[View], proposals: Tensor) -> Detections: ...
    def refine(self, views: Sequence[View], candidates: Detections) -> Detections: ...
    def finish(self, refined: Detections) -> Detections: ...
    def regions(self, views: Sequence[View], proposals: Tensor) -> tuple[Tensor, Tensor]: ...


class Network(Protocol):
    """What a predictor needs of ``models.detector.RegionDetector``, which has to be in evaluation mode."""

    def inputs(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor: ...
    def features(self, images: Tensor) -> list[Tensor]: ...
    def place(self, rois: Tensor, roi_levels: Tensor | None) -> Tensor | None: ...
    def cover(
        self, masks: Masks, metas: Sequence[ImageMeta], roi_levels: Tensor | None
    ) -> CellMasks | None: ...
    def predict(
        self,
        levels: Sequence[Tensor],
        rois: Tensor,
        roi_levels: Tensor | None = None,
        masks: CellMasks | None = None,
    ) -> HeadOutput: ...
    def describe(
        self,
        levels: Sequence[Tensor],
        rois: Tensor,
        roi_levels: Tensor | None = None,
        masks: CellMasks | None = None,
    ) -> tuple[Embedded, HeadOutput]: ...


class Classifier(Protocol):
    """What `ImagePredictor` needs of ``models.detector.RegionDetector``."""

    def inputs(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor: ...
    def __call__(self, images: Tensor, rois: Tensor) -> HeadOutput: ...


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Regions:
    """The network's output for P regions, one row per region in the order given, float32 on the CPU.

    ``scores`` (P, K+1) are what ``model.head.scores`` asks for. softmax: probabilities that add up to 1, with
    column 0 for the background. sigmoid: an independent probability per class, and 1 minus the highest of
    them in column 0. svm: the margins of SVMs, and 0 in column 0. ``boxes``
    (P, K+1, 4) are the region as each class moves it, in original-image pixels, clipped to the image. Row 0
    is the region itself; so are the other rows if the network moves no boxes. ``pooled`` (P, D) and
    ``hidden`` (P, F) are the outputs of the region pool and of the last hidden layer, None if they were not
    asked for.
    """

    scores: Tensor
    boxes: Tensor
    pooled: Tensor | None = None
    hidden: Tensor | None = None


class PlacedRoIs(NamedTuple):
    """P regions of an image in one orientation, as `Network.predict` takes them after the levels.

    ``rois`` (P, 5) are RoI rows on the network's device, ``roi_levels`` (P,) the level of each, None for a
    single one. ``masks`` are the masks of the regions at these levels, None for boxes.
    """

    rois: Tensor
    roi_levels: Tensor | None
    masks: CellMasks | None


class MaskCount:
    """Counts the regions that have masks, and those of them whose mask covers no cell centre.

    Several threads may count at the same time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.regions = self.fallbacks = 0

    def add(self, masks: CellMasks) -> None:
        with self._lock:
            self.regions += masks.present
            self.fallbacks += masks.fallbacks


@dataclass(frozen=True)
class Orientation:
    """An image in one orientation, straight or mirrored: the feature levels of each scale, one after another,
    and an ``ImageMeta`` per scale.
    """

    levels: list[Tensor]
    metas: list[ImageMeta]

    def rois(
        self, proposals: Proposals, rule: str, device: torch.device | str, network: Network
    ) -> PlacedRoIs:
        """Return the RoIs of ``proposals``, each at the scale that ``rule`` chooses, for ``network``."""
        boxes, scales = choose_scales([meta.to_input(proposals.boxes) for meta in self.metas], rule)
        rows = torch.cat((boxes.new_zeros(len(boxes), 1), boxes), dim=1)
        roi_levels, masks = network.place(rows, scales), None
        if proposals.masks is not None:
            masks = network.cover(proposals.masks, self.metas, roi_levels)
        # Another copy would wait until the GPU has computed the features.
        return PlacedRoIs(sent(rows, device), roi_levels, None if masks is None else masks.to(device))


@dataclass(frozen=True, kw_only=True)
class RegionPredictor:
    """Detects objects in one image, given as its views, or scores regions of it.

    Views of the same orientation (straight or mirrored) belong together: ``scale_rule`` "area" or "side"
    chooses for each region the scale at which it is scored. With "all" every region is scored in every view.
    With ``refinements`` the detections are pooled and classified again that many times, each time from their
    latest boxes (iterative localisation); the features are computed once. Masks belong to the first pass.
    ``masks`` counts the regions that were pooled by their masks.

    One image per forward pass, so that the result does not depend on what else is in a batch.
    """

    model: Network
    postprocess: Decoder
    device: torch.device | str = "cpu"
    precision: torch.dtype = torch.float32
    refinements: int = 0
    scale_rule: str = "area"
    masks: MaskCount = field(default_factory=MaskCount)

    @torch.inference_mode()
    def __call__(self, views: Sequence[Batch]) -> Detections:
        """Return the detections; the results of several orientations are merged before suppression."""
        proposals = views[0].proposals[0]
        if not len(proposals):
            return Detections.empty()
        with autocast(self.device, self.precision):
            orientations = self._orientations(views)
            return self._detections(orientations, self._outputs(orientations, proposals), proposals)

    @torch.inference_mode()
    def with_regions(self, views: Sequence[Batch]) -> tuple[Detections, Regions]:
        """Return what a call and `regions` return for the same views; the network runs once for both."""
        proposals = views[0].proposals[0]
        if not len(proposals):
            return Detections.empty(), self.regions(views)
        with autocast(self.device, self.precision):
            orientations = self._orientations(views)
            outputs = self._outputs(orientations, proposals)
            boxes, scores = self.postprocess.regions(outputs, proposals.boxes)
            detections = self._detections(orientations, outputs, proposals)
        return detections, Regions(scores=scores.cpu(), boxes=boxes.cpu())

    @torch.inference_mode()
    def regions(self, views: Sequence[Batch], *, features: bool = False) -> Regions:
        """Return scores and refined boxes of the proposals, without suppression or threshold.

        Scores and boxes are the mean over the orientations, or over all views with scale rule "all".
        ``features`` asks for ``pooled`` and ``hidden``. They are those of the first orientation, the straight
        one (rule "all": the first view), since pooling a mirrored region gives the cells in another order.
        ``refinements`` are not applied.
        """
        proposals, embedded = views[0].proposals[0], None
        with autocast(self.device, self.precision):
            first, *others = self._orientations(views)
            if features:
                rois = self._rois(first, proposals)
                embedded, output = self.model.describe(first.levels, *rois)
                outputs = [(output, first.metas[0]), *self._outputs(others, proposals)]
            else:
                outputs = self._outputs([first, *others], proposals)
            boxes, scores = self.postprocess.regions(outputs, proposals.boxes)
        pooled, hidden = (None, None) if embedded is None else (part.float().cpu() for part in embedded)
        return Regions(scores=scores.cpu(), boxes=boxes.cpu(), pooled=pooled, hidden=hidden)

    @torch.inference_mode()
    def features(self, views: Sequence[Batch], pool: Callable[..., Tensor]) -> Tensor:
        """Return the features (P, D) of the proposals as `regions` gives them, float32; nothing is scored.

        ``pool`` is ``pooled`` or ``hidden`` of the predictor's own model. ``views`` are those of the straight
        image (rule "all": the first view); others would be wasted.
        """
        with autocast(self.device, self.precision):
            first = self._orientations(views)[0]
            return pool(first.levels, *self._rois(first, views[0].proposals[0])).float()

    def best(self, views: Sequence[Batch]) -> Detections:
        """Return the region that scores highest of each class, one detection per class, by falling score.

        Scores and boxes are those of `regions`, so that no threshold or suppression is applied. Among equal
        scores the first region is taken. Boxes without an area are not; a class with no other has none.
        """
        if not len(views[0].proposals[0]):
            return Detections.empty()
        found = self.regions(views)
        boxes = found.boxes[:, 1:]
        usable = torch.isfinite(boxes).all(dim=-1) & (box_ops.area(boxes) > 0)
        scores = found.scores[:, 1:].masked_fill(~usable, -torch.inf)
        rows, labels = scores.argmax(dim=0), torch.arange(scores.shape[1])
        labels = labels[torch.sort(scores[rows, labels], descending=True, stable=True).indices]
        labels = labels[usable[rows[labels], labels]]
        rows = rows[labels]
        return Detections(boxes=boxes[rows, labels], scores=scores[rows, labels], labels=labels + 1)

    def _detections(
        self, orientations: Sequence[Orientation], outputs: Sequence[View], proposals: Proposals
    ) -> Detections:
        """Return the detections, after ``refinements`` of their boxes; ``outputs`` are of the proposals."""
        if not self.refinements:
            return self.postprocess(outputs, proposals.boxes)
        candidates = self.postprocess.candidates(outputs, proposals.boxes)
        for _ in range(self.refinements):
            outputs = self._outputs(orientations, Proposals(boxes=candidates.boxes))
            candidates = self.postprocess.refine(outputs, candidates)
        return self.postprocess.finish(candidates)

    def _outputs(self, orientations: Sequence[Orientation], proposals: Proposals) -> list[View]:
        return [
            (self.model.predict(one.levels, *self._rois(one, proposals)), one.metas[0])
            for one in orientations
        ]

    def _rois(self, orientation: Orientation, proposals: Proposals) -> PlacedRoIs:
        placed = orientation.rois(proposals, self.scale_rule, self.device, self.model)
        if placed.masks is not None:
            self.masks.add(placed.masks)
        return placed

    def _orientations(self, views: Sequence[Batch]) -> list[Orientation]:
        """Compute the features of each view once; the scales of one orientation belong together."""
        groups: dict[object, Orientation] = {}
        for number, view in enumerate(views):
            meta = view.metas[0]
            key = number if self.scale_rule == "all" else (meta.flipped, meta.flipped_vertically)
            group = groups.setdefault(key, Orientation([], []))
            images = self.model.inputs(view.to(self.device).images, view.sizes)
            group.levels.extend(self.model.features(images))
            group.metas.append(meta)
        return list(groups.values())


@dataclass(frozen=True, kw_only=True)
class ImagePredictor:
    """Scores the K classes of one whole image, given as its views.

    ``rois`` returns the RoIs (1, 5) that cover the image of a view; ``scores`` turns the network's output for
    them into scores (1, K).
    """

    model: Classifier
    rois: Callable[[Sequence[ImageMeta]], Tensor]
    scores: Callable[[HeadOutput], Tensor]
    device: torch.device | str = "cpu"
    precision: torch.dtype = torch.float32

    @torch.inference_mode()
    def __call__(self, views: Sequence[Batch]) -> Tensor:
        """Return the scores (K,) on the CPU, the mean over the views.

        One view per forward pass, so that nothing is padded.
        """
        rows = []
        with autocast(self.device, self.precision):
            for view in views:
                images = self.model.inputs(view.to(self.device).images, view.sizes)
                rois = sent(self.rois(view.metas), self.device)
                rows.append(self.scores(self.model(images, rois))[0])
        return torch.stack(rows).mean(dim=0).cpu()


NUMBER_TYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.float32,  # of everything but the layers that `models.quantized` replaces
}


def check_precision(precision: str, name: str) -> str:
    """Return ``precision``, given as ``name``; InputError unless it is a key of `NUMBER_TYPES`."""
    if precision not in NUMBER_TYPES:
        raise InputError(f"{name}: {precision!r:.40} is unknown; known: {', '.join(NUMBER_TYPES)}")
    return precision


def number_type(precision: str, device: torch.device | str, key: str) -> torch.dtype:
    """Return the type of numbers in which ``device`` computes with ``precision``, the value of ``key``.

    Raises:
        InputError: float16 on a CPU, int8 on a GPU.
    """
    if precision == "int8" and torch.device(device).type != "cpu":
        raise InputError(
            f"{key}: int8 is for CPUs, and this runs on {device}; a GPU multiplies numbers of 16 bits fast "
            f"enough: set {key} to bfloat16 or float16, or --device to cpu"
        )
    if precision == "float16" and torch.device(device).type == "cpu":
        raise InputError(
            f"{key}: float16 is for GPUs, and this run computes on the CPU; set {key} to bfloat16, or to "
            "float32"
        )
    return NUMBER_TYPES[precision]


def autocast(device: torch.device | str, precision: torch.dtype) -> torch.autocast:
    """Return the context that computes in ``precision``, bfloat16 or float16; for float32 it does nothing."""
    half = precision != torch.float32
    return torch.autocast(
        torch.device(device).type, dtype=precision if half else torch.bfloat16, enabled=half
    )


def with_weights_in(model: Model, precision: torch.dtype) -> Model:
    """Return ``model`` for inference under autocast to ``precision``, with its large weights already cast.

    Without gradients, autocast casts the weights of convolutions and linear layers again in every call. In
    the returned copy they are cast once; the results are the same, bit for bit. All other parameters and all
    buffers are shared with ``model``. For float32, ``model`` itself is returned.

    The cast weights do not follow later changes of ``model``: make a copy for each evaluation.
    """
    if precision == torch.float32:
        return model
    replaced: dict[int, object] = {}
    for module in model.modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        replaced.update((id(tensor), tensor) for tensor in own if id(tensor) not in replaced)
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
            for weight in module.parameters(recurse=False):
                replaced[id(weight)] = nn.Parameter(weight.detach().to(precision), requires_grad=False)
    return copy.deepcopy(model, replaced)  # takes from ``replaced`` what is there and copies the rest


def choose_scales(rois_by_scale: Sequence[Tensor], rule: str = "area") -> tuple[Tensor, Tensor | None]:
    """Return each region's box (P, 4) at its own scale, and that scale's index (P,), or None for one scale.

    ``rois_by_scale`` holds the same P regions in input pixels of each scale. ``rule`` "area" chooses the
    scale at which the area of the box is closest to 224 x 224; "side" (SPP-net) the one at which the square
    root of its area is closest to 208. Among equally good scales the first is chosen.
    """
    if len(rois_by_scale) == 1:
        return rois_by_scale[0], None
    stacked = torch.stack(list(rois_by_scale))
    area = (stacked[..., 2:] - stacked[..., :2]).prod(dim=-1)
    difference = area.sqrt() - REFERENCE_SIDE if rule == "side" else area - REFERENCE_AREA
    chosen = difference.abs().argmin(dim=0)
    return stacked[chosen, torch.arange(stacked.shape[1])], chosen
