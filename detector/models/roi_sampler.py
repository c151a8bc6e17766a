"""The RoIs of a training step, with their labels and box targets (Fast R-CNN, section 2.3)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from detector.core import boxes as box_ops
from detector.core.structures import DrawnRegions, Targets
from detector.models.box_coder import BoxCoder
from detector.ops.proposals import match_boxes

CROWD_OVERLAP = 0.7
"""Proposals with more than this part of their area in a crowd region are not used (release)."""


def match_proposals(proposals: Tensor, targets: Targets) -> tuple[Tensor, Tensor]:
    """Return the best IoU (P,) of each proposal (P, 4) with any object, and the index (P,) of that object.

    Among equal IoUs the first object is taken. Without objects the IoU is 0 and the index 0.
    """
    if not len(targets):
        return proposals.new_zeros(len(proposals)), torch.zeros(len(proposals), dtype=torch.int64)
    return match_boxes(proposals, targets.boxes)


def trained_objects(targets: Targets, *, use_difficult: bool) -> Targets:
    """Return the objects that are used in training: no crowd regions, ``difficult`` objects if wanted."""
    left_out = targets.crowd if use_difficult else targets.crowd | targets.difficult
    return targets.select(~left_out) if left_out.numpy().any() else targets


def joined_labels(objects: Targets, num_classes: int) -> tuple[Targets, Tensor]:
    """Return the objects whose box no earlier one has, and the label sets (G, K+1) bool of these G.

    An object's set holds the labels of all objects with exactly its box: an object with several labels is
    annotated as several objects. Column 0 is False. The order is kept.
    """
    boxes, place = torch.unique(objects.boxes, dim=0, return_inverse=True)
    sets = torch.zeros(len(boxes), num_classes + 1, dtype=torch.bool)
    sets[place, objects.labels] = True
    rows = torch.arange(len(objects))
    first = torch.full((len(boxes),), len(objects)).scatter_reduce(0, place, rows, "amin").sort()
    return objects.select(first.values), sets[first.indices]


class RoISampler:
    """Draws ``rois_per_image`` RoIs per image, at most ``foreground_fraction`` of them foreground.

    A RoI is foreground if its best IoU is ``foreground_iou`` or more, and background if its best IoU is in
    ``background_iou`` = [low, high). Missing foreground is replaced by background; if there is too little
    background too, the batch is smaller.

    On an image without objects that are used (crowds never are, ``difficult`` ones only with
    ``use_difficult``), every proposal is background: the lower bound is meant to find hard negatives near
    objects. The release left such images out.

    ``far_background_fraction`` of the background is drawn from RoIs with a best IoU below ``low``, which are
    otherwise not used. If one part of the background has too few RoIs, the other part replaces them.

    Boxes without an area are never drawn, since nothing can be regressed from them.

    With ``multi_label`` a region has the labels of all objects with exactly the box of its object; such
    objects are added once by ``add_targets``.

    The sampler has no state: what it draws depends on its arguments only, and several threads may share it.
    """

    def __init__(
        self,
        coder: BoxCoder,
        *,
        rois_per_image: int = 64,
        foreground_fraction: float = 0.25,
        foreground_iou: float = 0.5,
        background_iou: tuple[float, float] = (0.1, 0.5),
        far_background_fraction: float = 0.0,
        add_targets: bool = True,
        use_difficult: bool = True,
        multi_label: bool = False,
    ) -> None:
        self.coder = on_cpu(coder)
        self.rois_per_image = rois_per_image
        self.foreground_count = round(rois_per_image * foreground_fraction)
        self.foreground_iou = foreground_iou
        self.background_iou = background_iou
        self.far_background_fraction = far_background_fraction
        self.add_targets = add_targets
        self.use_difficult = use_difficult
        self.multi_label = multi_label

    def __call__(self, rois: Tensor, targets: Targets, rng: np.random.Generator) -> DrawnRegions:
        """Return the regions of one image; ``rng`` draws them.

        ``rois`` (P, 4) and the boxes of ``targets`` are in the same pixels, and so are the drawn boxes.
        """
        objects, label_sets = trained_objects(targets, use_difficult=self.use_difficult), None
        if self.multi_label:
            objects, label_sets = joined_labels(objects, self.coder.num_classes)
        rows = torch.arange(len(rois))
        if self.add_targets:
            rois, rows = with_objects(rois, rows, objects)
        overlap, match = match_proposals(rois, objects)
        usable = box_ops.area(rois) > 0
        foreground = _draw(usable & (overlap >= self.foreground_iou), self.foreground_count, rng)
        background = self._draw_background(
            usable & self._is_background(rois, overlap, targets.boxes[targets.crowd]),
            (overlap < self.background_iou[0]) & bool(len(objects)),
            self.rois_per_image - len(foreground),
            rng,
        )
        chosen = torch.cat((foreground, background))
        is_foreground = torch.arange(len(chosen)) < len(foreground)
        places = rois[chosen], rows[chosen]
        return drawn_regions(*places, is_foreground, match[chosen], objects, self.coder, label_sets)

    def _draw_background(
        self, background: Tensor, is_far: Tensor, count: int, rng: np.random.Generator
    ) -> Tensor:
        """Draw up to ``count`` rows of the mask ``background``, the wanted part of them from ``is_far``."""
        near = _draw(background & ~is_far, count, rng)
        if not self.far_background_fraction:
            return near
        far = _draw(background & is_far, count, rng)
        wanted = round(count * self.far_background_fraction)
        far_count = min(len(far), max(wanted, count - len(near)))
        return torch.cat((near[: count - far_count], far[:far_count]))

    def _is_background(self, rois: Tensor, overlap: Tensor, crowds: Tensor) -> Tensor:
        return (overlap < self.background_iou[1]) & ~in_crowds(rois, crowds)


def on_cpu(coder: BoxCoder) -> BoxCoder:
    """Return a copy of ``coder`` for RoIs, which are drawn on the CPU: a GPU would be waited for."""
    return BoxCoder(coder.means.cpu(), coder.deviations.cpu())


def in_crowds(rois: Tensor, crowds: Tensor) -> Tensor:
    """Return whether each of ``rois`` (P, 4) lies in one of ``crowds`` (G, 4) by over `CROWD_OVERLAP`."""
    if not len(crowds):
        return torch.zeros(len(rois), dtype=torch.bool)
    share = box_ops.intersection(rois, crowds) / box_ops.area(rois)[:, None].clamp(min=1e-6)
    return share.amax(dim=1) > CROWD_OVERLAP


def with_objects(rois: Tensor, rows: Tensor, objects: Targets) -> tuple[Tensor, Tensor]:
    """Return the boxes of ``objects``, whose rows are -1, followed by ``rois`` (P, 4) and ``rows`` (P,)."""
    return torch.cat((objects.boxes, rois)), torch.cat((rows.new_full((len(objects),), -1), rows))


def drawn_regions(
    rois: Tensor,
    rows: Tensor,
    foreground: Tensor,
    match: Tensor,
    objects: Targets,
    coder: BoxCoder,
    label_sets: Tensor | None = None,
) -> DrawnRegions:
    """Return ``rois`` (r, 4) and ``rows`` (r,) with labels and box targets; where ``foreground`` (r,), those
    of the object that ``match`` (r,) gives, elsewhere the background's. ``label_sets`` (G, K+1) are those of
    the objects, None for objects of one label each.
    """
    labels = torch.zeros(len(rois), dtype=torch.int64)
    labels[foreground] = objects.labels[match[foreground]]
    matched = objects.boxes[match] if len(objects) else torch.zeros(len(rois), 4)
    if label_sets is None:
        return DrawnRegions(rois, labels, coder.encode(rois, matched, labels), rows)
    sets = torch.zeros(len(rois), label_sets.shape[1], dtype=torch.bool)
    sets[foreground] = label_sets[match[foreground]]
    return DrawnRegions(rois, labels, coder.encode_sets(rois, matched, sets), rows, sets)


def _draw(wanted: Tensor, count: int, rng: np.random.Generator) -> Tensor:
    """Draw up to ``count`` of the rows that the mask ``wanted`` (P,) selects, without repetition."""
    rows = np.flatnonzero(wanted.numpy())
    return torch.from_numpy(rows[rng.permutation(len(rows))[:count]])
