"""From samples to detections: the one path that evaluation, demo and export checks share."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn

from detector.core.structures import Batch, Detections, HeadOutput, ImageMeta, View

REFERENCE_AREA = 224.0**2
"""Rule "area": a proposal is scored where its area comes closest to this (Fast R-CNN's release)."""
REFERENCE_SIDE = 13 * 16.0
"""Rule "side": a proposal is scored where the root of its area comes closest to this (SPP-net's release: 13
cells of a map of stride 16)."""

Model = TypeVar("Model", bound=nn.Module)


class Decoder(Protocol):
    """What turns the network's output into detections; see ``models.postprocess.Postprocess``."""

    def __call__(self, views: Sequence[View], proposals: Tensor) -> Detections: ...
    def candidates(self, views: Sequence[View], proposals: Tensor) -> Detections: ...
    def refine(self, views: Sequence[View], candidates: Detections) -> Detections: ...
    def finish(self, refined: Detections) -> Detections: ...


class Network(Protocol):
    def features(self, images: Tensor) -> list[Tensor]: ...
    def predict(
        self, levels: Sequence[Tensor], rois: Tensor, roi_levels: Tensor | None = None
    ) -> HeadOutput: ...


def with_weights_in(model: Model, precision: torch.dtype) -> Model:
    """Return ``model`` for inference under autocast to ``precision``, with its large weights cast already.

    Autocast casts the weights of convolutions and linear layers in every call; without gradients it keeps
    none of them. The copy that is returned has them cast once, and results are the same bit for bit. All
    other parameters and all buffers are shared with ``model``, which is returned itself for float32.

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


@dataclass(frozen=True)
class Look:
    """One image seen one way round: its feature levels, one a scale, and the scales' meta data."""

    levels: list[Tensor]
    metas: list[ImageMeta]

    def predict(self, model: Network, boxes: Tensor, rule: str, device: torch.device | str) -> View:
        """Return what ``model`` says of ``boxes`` (P, 4), original-image pixels, each at its own scale."""
        rois, roi_levels = choose_scales([meta.to_input(boxes) for meta in self.metas], rule)
        # A copy that blocks would wait until the GPU has computed the features.
        rows = torch.cat((rois.new_zeros(len(rois), 1), rois), dim=1).to(device, non_blocking=True)
        return model.predict(self.levels, rows, roi_levels), self.metas[0]


@torch.inference_mode()
def detect(
    model: Network,
    views: Sequence[Batch],
    postprocess: Decoder,
    device: torch.device | str = "cpu",
    precision: torch.dtype = torch.float32,
    refinements: int = 0,
    scale_rule: str = "area",
) -> Detections:
    """Return the detections of one image, given as one batch of one sample a view.

    Views are the image at several scales and mirrored. Those that are the same way round are one look, in
    which ``scale_rule`` chooses each proposal's scale; with "all" every view is a look of its own. The
    looks' results are merged before suppression.

    One image a forward pass, so that the result does not depend on what else is in a batch. The model
    has to be in evaluation mode already. With ``refinements`` the detections are pooled and classified
    again that many times, each time from the boxes of the last (iterative localisation); the features
    are computed once.
    """
    proposals = views[0].proposals[0].boxes
    if not len(proposals):
        return Detections.empty()
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
        looks = [look_at(model, group, device) for group in _groups(views, scale_rule)]
        outputs = [look.predict(model, proposals, scale_rule, device) for look in looks]
        if not refinements:
            return postprocess(outputs, proposals)
        found = postprocess.candidates(outputs, proposals)
        for _ in range(refinements):
            outputs = [look.predict(model, found.boxes, scale_rule, device) for look in looks]
            found = postprocess.refine(outputs, found)
    return postprocess.finish(found)


def look_at(model: Network, views: Sequence[Batch], device: torch.device | str) -> Look:
    """Compute the features of an image at each of its scales, once."""
    levels = [level for view in views for level in model.features(view.to(device).images)]
    return Look(levels, [view.metas[0] for view in views])


def _groups(views: Sequence[Batch], scale_rule: str) -> list[list[Batch]]:
    """Put the views that choose scales among each other together."""
    if scale_rule == "all":
        return [[view] for view in views]
    groups: dict[tuple[bool, bool], list[Batch]] = {}
    for view in views:
        meta = view.metas[0]
        groups.setdefault((meta.flipped, meta.flipped_vertically), []).append(view)
    return list(groups.values())


def choose_scales(rois_by_scale: Sequence[Tensor], rule: str = "area") -> tuple[Tensor, Tensor | None]:
    """Return each proposal's box (P, 4) at its own scale, and that scale's number (P,), or None for one.

    ``rois_by_scale`` holds the same P proposals in input pixels of each scale. By ``rule`` "area" the scale
    wins whose box has the area closest to 224 x 224, by "side" the one whose box has the root of its area
    closest to 208, which is SPP-net's linear rule; the first of equals.
    """
    if len(rois_by_scale) == 1:
        return rois_by_scale[0], None
    stacked = torch.stack(list(rois_by_scale))
    area = (stacked[..., 2:] - stacked[..., :2]).prod(dim=-1)
    off = area.sqrt() - REFERENCE_SIDE if rule == "side" else area - REFERENCE_AREA
    chosen = off.abs().argmin(dim=0)
    return stacked[chosen, torch.arange(stacked.shape[1])], chosen
