"""Online hard example mining, OHEM: a step trains on the RoIs that have the highest losses.

The rule is that of "Training Region-based Object Detectors with Online Hard Example Mining" (Shrivastava,
Gupta and Girshick, 2016), section 4. All RoIs of an image pass through the head without a gradient; they are
sorted by loss, and of RoIs that overlap much only the one with the highest loss stands for the others. The
paper takes at most B / N of those that remain. Here exactly min(``rois_per_image``, P) are taken, so that the
number of RoIs of a step is known before the network runs: where too few remain, RoIs that were suppressed
follow, the one with the highest loss first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from detector.core import boxes as box_ops
from detector.core.structures import DrawnRegions, HeadOutput, SampledRoIs, Targets
from detector.models.box_coder import BoxCoder
from detector.models.losses import DetectionLoss
from detector.models.roi_sampler import (
    drawn_regions,
    in_crowds,
    joined_labels,
    match_proposals,
    on_cpu,
    trained_objects,
    with_objects,
)

SAME_PLACE = 0.7
"""RoIs with a higher IoU than this stand for the same place (paper, section 4.2)."""


class EveryRegion:
    """Gives all RoIs of an image that can be trained on, in place of the random ones of ``RoISampler``.

    A RoI is foreground if its best IoU is ``foreground_iou`` or more, and otherwise background. Background
    that lies in a crowd region is left out, and so are boxes without an area. ``multi_label`` is that of
    ``RoISampler``. Several threads may share it.
    """

    def __init__(
        self,
        coder: BoxCoder,
        *,
        foreground_iou: float = 0.5,
        add_targets: bool = True,
        use_difficult: bool = True,
        multi_label: bool = False,
    ) -> None:
        self.coder = on_cpu(coder)
        self.foreground_iou = foreground_iou
        self.add_targets = add_targets
        self.use_difficult = use_difficult
        self.multi_label = multi_label

    def __call__(self, rois: Tensor, targets: Targets, rng: np.random.Generator) -> DrawnRegions:
        """Return the regions of one image; nothing is random.

        ``rois`` (P, 4) and the boxes of ``targets`` are in the same pixels, and so are the regions.
        """
        objects, label_sets = trained_objects(targets, use_difficult=self.use_difficult), None
        if self.multi_label:
            objects, label_sets = joined_labels(objects, self.coder.num_classes)
        rows = torch.arange(len(rois))
        if self.add_targets:
            rois, rows = with_objects(rois, rows, objects)
        overlap, match = match_proposals(rois, objects)
        foreground = (overlap >= self.foreground_iou) & bool(len(objects))
        usable = foreground | ~in_crowds(rois, targets.boxes[targets.crowd])
        kept = torch.nonzero(usable & (box_ops.area(rois) > 0))[:, 0]
        places = rois[kept], rows[kept]
        return drawn_regions(*places, foreground[kept], match[kept], objects, self.coder, label_sets)


class Head(Protocol):
    """What `HardExamples` needs of ``models.detector.RegionDetector``."""

    training: bool

    def train(self, mode: bool = True) -> nn.Module: ...
    def predict(
        self, levels: Sequence[Tensor], rois: Tensor, roi_levels: Tensor | None = None
    ) -> HeadOutput: ...


@dataclass(frozen=True)
class HardExamples:
    """Chooses from all RoIs of each image the ``rois_per_image`` that are hardest by ``loss``."""

    rois_per_image: int
    loss: DetectionLoss

    def counts(self, sampled: SampledRoIs) -> tuple[int, ...]:
        """Return how many RoIs of each image will be chosen."""
        return tuple(min(count, self.rois_per_image) for count in sampled.counts)

    @torch.no_grad()
    def __call__(self, head: Head, levels: Sequence[Tensor], sampled: SampledRoIs) -> SampledRoIs:
        """Return the hardest of ``sampled``, which are to be pooled from ``levels``.

        The RoIs are ranked by the network in evaluation mode, without dropout, and it is put back into the
        mode in which it was. All RoIs of an image have to be of one level. The host does not wait for the
        device.
        """
        training = head.training
        head.train(False)
        losses = self.loss.per_region(head.predict(levels, sampled.rois, sampled.roi_levels), sampled)
        head.train(training)
        rows = hardest(losses, sampled.rois[:, 1:], sampled.counts, self.rois_per_image)
        counts, roi_levels = self.counts(sampled), sampled.roi_levels
        if roi_levels is not None:  # on the CPU, which does not know the chosen rows, and need not
            parts = zip(roi_levels.split(list(sampled.counts)), counts, strict=True)
            roi_levels = torch.cat([part[:count] for part, count in parts])
        return SampledRoIs(
            rois=sampled.rois.index_select(0, rows),
            labels=sampled.labels.index_select(0, rows),
            box_targets=sampled.box_targets.index_select(0, rows),
            roi_levels=roi_levels,
            counts=counts,
            label_sets=None if sampled.label_sets is None else sampled.label_sets.index_select(0, rows),
        )


def hardest(losses: Tensor, boxes: Tensor, counts: Sequence[int], most: int) -> Tensor:
    """Return the rows of the min(``most``, P_i) hardest regions of each image, image after image.

    ``losses`` (R,) and ``boxes`` (R, 4) hold ``counts`` = P_i rows for each image in turn. Within an image,
    the rows come in this order: first those that greedy suppression at `SAME_PLACE` keeps, by decreasing
    loss, and then the suppressed ones, by decreasing loss. Equal losses keep their order, and NaN counts as
    the highest loss.

    There is one round for each chosen row, in which all images choose at once, and none for the others. A
    round has a fixed number of operations on the device, so the host does not have to wait for it.
    """
    padded = pad_sequence(losses.split(list(counts)), batch_first=True, padding_value=-torch.inf)
    order = padded.argsort(dim=1, descending=True, stable=True)
    rows = pad_sequence(boxes.split(list(counts)), batch_first=True)
    rows = rows.gather(1, order[..., None].expand(-1, -1, 4))
    areas, length = box_ops.area(rows), order.shape[1]
    places = torch.arange(length, device=losses.device).expand_as(order)
    # The lowest key is chosen: the place of a row that is not suppressed, plus `length` once it is, and
    # 2 * `length` or more for a row that was chosen before and for padding.
    keys = torch.where(padded.gather(1, order) == -torch.inf, places + 2 * length, places)
    chosen = []
    for _ in range(min(most, length)):
        first = keys.argmin(dim=1, keepdim=True)
        same = _overlap(rows, areas, first) > SAME_PLACE
        keys = torch.where(same & (keys < length), keys + length, keys)
        keys = keys.scatter(1, first, 2 * length)
        chosen.append(first)
    if not chosen:
        return order.new_zeros(0)
    found = order.gather(1, torch.cat(chosen, dim=1))
    offsets = [sum(counts[:number]) for number in range(len(counts))]
    parts = zip(found, offsets, counts, strict=True)
    return torch.cat([own[: min(most, count)] + offset for own, offset, count in parts])


def _overlap(boxes: Tensor, areas: Tensor, first: Tensor) -> Tensor:
    """Return the IoU (N, P) of ``boxes`` (N, P, 4) with the box that ``first`` (N, 1) gives of each image."""
    own = boxes.gather(1, first[..., None].expand(-1, -1, 4))
    sides = torch.minimum(boxes[..., 2:], own[..., 2:]) - torch.maximum(boxes[..., :2], own[..., :2])
    shared = sides.clamp(min=0).prod(dim=2)
    return shared / (areas + areas.gather(1, first) - shared).clamp(min=torch.finfo(shared.dtype).tiny)
