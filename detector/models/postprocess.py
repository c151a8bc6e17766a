"""From the network's output to scores and detections: decode, clip, threshold, suppress, keep the best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from detector.core import boxes as box_ops
from detector.core.structures import Detections, HeadOutput, ImageMeta, View
from detector.models.box_coder import BoxCoder
from detector.models.suppression import best_detections

CANDIDATE_NMS = 0.5
"""IoU threshold for candidates that the network sees a second time: loose, since their boxes still move."""


def softmax_scores(output: HeadOutput) -> Tensor:
    """Return class probabilities (R, K+1), float32."""
    return torch.softmax(output.class_logits.float(), dim=1)


def margin_scores(output: HeadOutput) -> Tensor:
    """Return the margins (R, K+1) of linear SVMs as they are, float32."""
    return output.class_logits.float()


def class_scores(output: HeadOutput) -> Tensor:
    """Return the probability of each class, (N, K), for the logits of N whole images."""
    return output.class_logits[:, 1:].float().sigmoid()


@dataclass(frozen=True, eq=False)
class Postprocess:
    """Turns the output for one image into its detections, in original-image pixels.

    Per class, boxes are clipped to the image, and those with a score at or below ``score_threshold`` are
    dropped. Greedy non-maximum suppression then drops a box whose IoU with a better one is above
    ``nms_threshold``, and with ``nested_threshold`` also one of two boxes that share more than this part of
    the smaller one's area. Finally the best ``max_detections`` of all classes together are kept. (The release
    also suppressed at an IoU equal to the threshold, and limited the number before suppression.)

    The network's output may be on any device. It is decoded and thresholded there, and detections are on the
    CPU. Usually this waits for a GPU twice per image: for the number of boxes above the threshold, and for
    the boxes.

    Several views of an image, mirrored or at other scales, are merged before suppression. Without
    ``box_regression`` the boxes of detections are proposals, unchanged.

    For iterative localisation (Gidaris and Komodakis, "Object detection via a multi-region and semantic
    segmentation-aware CNN model", 2015) ``candidates`` returns boxes that the network then takes as
    proposals, ``refine`` gives them their new boxes and scores, and ``finish`` selects the detections.
    """

    coder: BoxCoder
    _: KW_ONLY
    score_threshold: float = 0.05
    nms_threshold: float = 0.3
    nested_threshold: float | None = None
    max_detections: int = 100
    box_regression: bool = True
    scores: Callable[[HeadOutput], Tensor] = softmax_scores

    def __call__(self, views: Sequence[View], proposals: Tensor) -> Detections:
        """Return the detections of one image for its ``proposals`` (P, 4) in original-image pixels.

        Each view is the network's output for all proposals, with the meta data of the view.
        """
        return self.select(self._decode(views, proposals), views[0][1].original_size)

    def candidates(self, views: Sequence[View], proposals: Tensor) -> Detections:
        """Return up to twice ``max_detections`` detections after a loose suppression, to be refined."""
        size = views[0][1].original_size
        decoded = self._decode(views, proposals)
        return self.select(decoded, size, (CANDIDATE_NMS, None), 2 * self.max_detections)

    def refine(self, views: Sequence[View], candidates: Detections) -> Detections:
        """Return ``candidates`` with the new box and score of their class.

        Each view is the network's output for the boxes of the candidates as RoIs; the mean over the views is
        taken. Nothing is suppressed.
        """
        decoded = self._decode(views, candidates.boxes)
        device = decoded[0][1].device
        labels = candidates.labels.to(device, non_blocking=True)
        rows = torch.arange(len(labels), device=device)
        of_class = [
            (boxes[rows, labels.clamp(max=boxes.shape[1] - 1)], scores[rows, labels])
            for boxes, scores in decoded
        ]
        boxes, scores = (torch.stack(parts).mean(dim=0) for parts in zip(*of_class, strict=True))
        clipped = box_ops.clip(boxes, views[0][1].original_size)
        refined = torch.cat((clipped, scores[:, None]), dim=1).cpu()  # one transfer
        return Detections(boxes=refined[:, :4], scores=refined[:, 4], labels=candidates.labels)

    def regions(self, views: Sequence[View], proposals: Tensor) -> tuple[Tensor, Tensor]:
        """Return boxes (P, K+1, 4) and scores (P, K+1) of ``proposals`` (P, 4), the mean over the views.

        Boxes are clipped to the image; row 0, the background, is the proposal itself. Nothing is dropped.
        """
        boxes, scores = (
            torch.stack(parts).mean(dim=0) for parts in zip(*self._decode(views, proposals), strict=True)
        )
        boxes = boxes.expand(-1, scores.shape[1], -1).clone()
        boxes[:, 0] = proposals.to(boxes.device)
        return box_ops.clip(boxes, views[0][1].original_size), scores

    def _decode(self, views: Sequence[View], proposals: Tensor) -> list[tuple[Tensor, Tensor]]:
        return [self.decode(output, proposals, meta) for output, meta in views]

    def finish(self, refined: Detections) -> Detections:
        """Return the detections among refined candidates, by the same rules as ``select``."""
        valid = (refined.scores > self.score_threshold) & _can_be_detected(refined.boxes)
        # Class after class, so that equal scores come in the same order as in ``select``.
        rows = torch.sort(refined.labels, stable=True).indices
        rows = rows[valid[rows]]
        return best_detections(
            refined.boxes[rows],
            refined.scores[rows],
            refined.labels[rows],
            self.nms_threshold,
            self.max_detections,
            self.nested_threshold,
        )

    def decode(self, output: HeadOutput, proposals: Tensor, meta: ImageMeta) -> tuple[Tensor, Tensor]:
        """Return boxes (P, K+1, 4) or (P, 1, 4) and scores (P, K+1), on the output's device.

        Boxes are in pixels of the original image. Box deltas do not depend on the scale, so they are applied
        to the proposals in original-image pixels; only a mirrored view has to be mirrored back.
        """
        scores = self.scores(output).float()
        proposals = proposals.to(scores.device, non_blocking=True)
        if output.box_deltas is None or not self.box_regression:
            return proposals[:, None, :], scores
        mirrored = meta.mirror(proposals, meta.original_size)
        boxes = self.coder.decode(output.box_deltas.float(), mirrored)
        return meta.mirror(boxes, meta.original_size), scores

    def select(
        self,
        views: Sequence[tuple[Tensor, Tensor]],
        size: tuple[int, int],
        thresholds: tuple[float, float | None] | None = None,
        max_detections: int | None = None,
    ) -> Detections:
        """Return the detections from one or several decoded views of an image of ``size`` (height, width).

        ``thresholds``, those of IoU and of nested boxes, replace this object's own.
        """
        nms_threshold, nested_threshold = thresholds or (self.nms_threshold, self.nested_threshold)
        boxes = box_ops.clip(torch.cat([view[0] for view in views]), size)
        scores = torch.cat([view[1] for view in views])
        foreground = slice(1, None) if boxes.shape[1] > 1 else slice(None)
        valid = (scores[:, 1:] > self.score_threshold) & _can_be_detected(boxes[:, foreground])
        # Class after class: among equal scores the lower label wins, then the earlier proposal.
        classes, rows = torch.nonzero(valid.T, as_tuple=True)
        labels = classes + 1
        return best_detections(
            boxes[rows, labels.clamp(max=boxes.shape[1] - 1)],
            scores[rows, labels],
            labels,
            nms_threshold,
            max_detections or self.max_detections,
            nested_threshold,
        )


def _can_be_detected(boxes: Tensor) -> Tensor:
    """Return whether each of ``boxes`` (..., 4), already clipped to the image, is finite and not empty."""
    return torch.isfinite(boxes).all(dim=-1) & (box_ops.area(boxes) > 0)
