"""From samples to detections: the one path that evaluation, demo and export checks share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from detector.structures import Batch, Detections, HeadOutput, ImageMeta, Proposals

REFERENCE_AREA = 224.0**2
"""With several scales a proposal is scored where its area comes closest to this (release)."""


class Decoder(Protocol):
    """What turns the network's output into detections; see ``models.postprocess.Postprocess``."""

    def __call__(self, output: HeadOutput, proposals: Tensor, meta: ImageMeta) -> Detections: ...
    def candidates(self, output: HeadOutput, proposals: Tensor, meta: ImageMeta) -> Detections: ...
    def refine(self, output: HeadOutput, candidates: Detections, meta: ImageMeta) -> Detections: ...
    def finish(self, refined: Detections) -> Detections: ...


class Network(Protocol):
    def features(self, images: Tensor) -> list[Tensor]: ...
    def predict(
        self, levels: Sequence[Tensor], rois: Tensor, roi_levels: Tensor | None = None
    ) -> HeadOutput: ...


@torch.inference_mode()
def detect(
    model: Network,
    views: Sequence[Batch],
    postprocess: Decoder,
    device: torch.device | str = "cpu",
    precision: torch.dtype = torch.float32,
    refinements: int = 0,
) -> Detections:
    """Return the detections of one image, given as one batch of one sample for each test scale.

    One image a forward pass, so that the result does not depend on what else is in a batch. The model
    has to be in evaluation mode already. With ``refinements`` the detections are pooled and classified
    again that many times, each time from the boxes of the last (iterative localisation); the features
    are computed once.
    """
    proposals: Proposals = views[0].proposals[0]
    metas = [view.metas[0] for view in views]
    if not len(proposals):
        return Detections.empty()
    with torch.autocast(torch.device(device).type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
        levels = [level for view in views for level in model.features(view.images.to(device))]
        output = _predict(model, levels, [view.rois_per_image[0] for view in views], device)
        if not refinements:
            return postprocess(output, proposals.boxes, metas[0])
        found = postprocess.candidates(output, proposals.boxes, metas[0])
        for _ in range(refinements):
            output = _predict(model, levels, [meta.to_input(found.boxes) for meta in metas], device)
            found = postprocess.refine(output, found, metas[0])
    return postprocess.finish(found)


def _predict(
    model: Network, levels: Sequence[Tensor], rois_by_scale: Sequence[Tensor], device: torch.device | str
) -> HeadOutput:
    rois, roi_levels = choose_scales(rois_by_scale)
    rows = torch.cat((rois.new_zeros(len(rois), 1), rois), dim=1).to(device)
    return model.predict(levels, rows, None if roi_levels is None else roi_levels.to(device))


def choose_scales(rois_by_scale: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Return each proposal's box (P, 4) at its own scale, and that scale's number (P,), or None for one.

    ``rois_by_scale`` holds the same P proposals in input pixels of each scale. The scale whose box has
    the area closest to 224 x 224 wins, the first of equals.
    """
    if len(rois_by_scale) == 1:
        return rois_by_scale[0], None
    stacked = torch.stack(list(rois_by_scale))
    size = stacked[..., 2:] - stacked[..., :2]
    chosen = (size.prod(dim=-1) - REFERENCE_AREA).abs().argmin(dim=0)
    return stacked[chosen, torch.arange(stacked.shape[1])], chosen
