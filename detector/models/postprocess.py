"""From the network's output to detections: decode, clip, threshold, suppress, keep the best."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.ops import nms

from detector import boxes as box_ops
from detector.models.box_coder import BoxCoder
from detector.structures import Detections, HeadOutput, ImageMeta


def softmax_scores(class_logits: Tensor) -> Tensor:
    """Return class probabilities (R, K+1), float32."""
    return torch.softmax(class_logits.float(), dim=1)


class Postprocess:
    """Turns the output for one image into its detections, in original-image pixels.

    Per class: boxes are clipped to the image, those at or below ``score_threshold`` dropped, the rest
    thinned by greedy non-maximum suppression at IoU above ``nms_threshold``; then the best
    ``max_detections`` of all classes together stay. (The release suppressed at IoU equal to the
    threshold too, and capped before suppression.)
    """

    def __init__(
        self,
        coder: BoxCoder,
        *,
        score_threshold: float = 0.05,
        nms_threshold: float = 0.3,
        max_detections: int = 100,
        scores: Callable[[Tensor], Tensor] = softmax_scores,
    ) -> None:
        self.coder = coder
        self.score_threshold = score_threshold
        self.nms_threshold = nms_threshold
        self.max_detections = max_detections
        self.scores = scores

    def __call__(self, output: HeadOutput, proposals: Tensor, meta: ImageMeta) -> Detections:
        """Return the detections of one image for its P ``proposals`` (P, 4), original-image pixels."""
        return self.select([self.decode(output, proposals, meta)], meta.original_size)

    def decode(self, output: HeadOutput, proposals: Tensor, meta: ImageMeta) -> tuple[Tensor, Tensor]:
        """Return boxes (P, K+1, 4) or (P, 1, 4) and scores (P, K+1), on the CPU, unflipped.

        Box deltas are free of scale, so they apply to the proposals in original-image pixels as they
        are; only a mirrored view has to be mirrored back.
        """
        scores = self.scores(output.class_logits).float().cpu()
        if output.box_deltas is None:
            return proposals[:, None, :], scores
        seen = meta.mirror(proposals, meta.original_size)
        boxes = self.coder.decode(output.box_deltas.float().cpu(), seen)
        return meta.mirror(boxes, meta.original_size), scores

    def select(self, views: Sequence[tuple[Tensor, Tensor]], size: tuple[int, int]) -> Detections:
        """Return the detections from one or several decoded views of an image of ``size``."""
        boxes = torch.cat([view[0] for view in views])
        scores = torch.cat([view[1] for view in views])
        boxes = box_ops.clip(boxes, size)
        found = [
            self._one_class(boxes[:, min(label, boxes.shape[1] - 1)], scores[:, label], label)
            for label in range(1, scores.shape[1])
        ]
        kept_boxes, kept_scores, labels = (torch.cat(parts) for parts in zip(*found, strict=True))
        order = torch.sort(kept_scores, descending=True, stable=True).indices[: self.max_detections]
        return Detections(boxes=kept_boxes[order], scores=kept_scores[order], labels=labels[order])

    def _one_class(self, boxes: Tensor, scores: Tensor, label: int) -> tuple[Tensor, Tensor, Tensor]:
        # A class of its own suppression, not one call with shifted boxes: the shift costs float32 digits.
        valid = (scores > self.score_threshold) & torch.isfinite(boxes).all(dim=1)
        valid &= box_ops.area(boxes) > 0
        boxes, scores = boxes[valid], scores[valid]
        keep = nms(boxes, scores, self.nms_threshold)
        return boxes[keep], scores[keep], torch.full((len(keep),), label, dtype=torch.int64)
