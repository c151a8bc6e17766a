"""How good proposals are as far as that can be said before training: recall and overlap of the objects."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from detector.core import boxes as box_ops
from detector.core.structures import ImageRecord, Proposals
from detector.proposals.prepare import filter_proposals
from detector.proposals.store import ProposalStore

THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""COCO's IoU thresholds, 0.5 to 0.95."""
COUNTS = (1, 3, 10, 30, 100, 200, 300, 500, 700, 1000, 1500, 2000, 3000, 5000, 10000)
SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, float("inf"))}
"""COCO's areas in square pixels, [least, most)."""


@dataclass(frozen=True, kw_only=True)
class Overlaps:
    """For each of O objects, what the best n proposals of its image reach.

    best (O, len(counts)) float32: the highest IoU among the first ``counts[i]``; labels (O,) 1..K; areas
    (O,) as annotated. ``proposals`` (N,) is how many each image has; ``missing`` images have no entry.
    """

    counts: tuple[int, ...]
    best: NDArray[np.float32]
    labels: NDArray[np.int64]
    areas: NDArray[np.float32]
    proposals: NDArray[np.int64]
    missing: int

    def figures(self, objects: NDArray[np.bool_] | None = None) -> dict[str, Any]:
        """Return the figures over some ``objects`` (O,), by default all; lists go with ``counts``.

        ``recall`` has a list for each IoU threshold, ``average_recall`` is its mean over the thresholds
        (COCO's rule), ``mean_best_overlap`` the mean of the highest IoU. Without objects they are None.
        """
        best = self.best if objects is None else self.best[objects]
        if len(best) == 0:
            return {"objects": 0, "recall": None, "average_recall": None, "mean_best_overlap": None}
        recall = {f"{threshold:g}": (best >= np.float32(threshold)).mean(axis=0) for threshold in THRESHOLDS}
        return {
            "objects": len(best),
            "recall": {name: values.tolist() for name, values in recall.items()},
            "average_recall": np.mean(list(recall.values()), axis=0).tolist(),
            "mean_best_overlap": best.mean(axis=0, dtype=np.float64).tolist(),
        }


def measure_overlaps(
    records: Sequence[ImageRecord],
    store: ProposalStore,
    *,
    counts: Sequence[int] | None = None,
    include_difficult: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> Overlaps:
    """Return what the proposals of ``store`` reach of the objects of ``records``; crowds do not count.

    Proposals are taken as training takes them: clipped, duplicates removed, best first. An image without
    an entry has none. ``counts`` None is `COUNTS` as far as there are proposals, then all of them.
    """
    known = [record for record in records if record.key in store]
    most = max((store.count(record.key) for record in known), default=0)
    chosen = tuple(sorted(set(counts))) if counts else (*(n for n in COUNTS if n < most), max(most, 1))
    best, labels, areas, held = [np.zeros((0, len(chosen)), np.float32)], [], [], []
    for done, record in enumerate(records, 1):
        found = _prepared(record, store)
        targets = record.targets
        wanted = targets.select(~targets.crowd if include_difficult else ~(targets.crowd | targets.difficult))
        best.append(_best_of_first(box_ops.iou(wanted.boxes, found.boxes).numpy(), chosen))
        labels.append(wanted.labels.numpy())
        areas.append(wanted.area.numpy())
        held.append(len(found))
        if progress is not None:
            progress(done, len(records))
    return Overlaps(
        counts=chosen,
        best=np.concatenate(best),
        labels=np.concatenate(labels) if labels else np.zeros(0, np.int64),
        areas=np.concatenate(areas) if areas else np.zeros(0, np.float32),
        proposals=np.array(held, np.int64),
        missing=len(records) - len(known),
    )


def recall_report(overlaps: Overlaps, classes: Sequence[str]) -> dict[str, Any]:
    """Return all figures as JSON: over all objects, ``per_class`` and ``per_size`` (`SIZES`), and ``MABO``.

    ``MABO`` is the mean over the classes of their mean best overlap (Uijlings et al., IJCV 2013, section
    5.1); a class without objects has no part in it.
    """
    per_class = {
        name: overlaps.figures(overlaps.labels == label) for label, name in enumerate(classes, start=1)
    }
    per_size = {
        name: overlaps.figures((overlaps.areas >= least) & (overlaps.areas < most))
        for name, (least, most) in SIZES.items()
    }
    means = [row["mean_best_overlap"] for row in per_class.values() if row["objects"]]
    return {
        "counts": list(overlaps.counts),
        "iou_thresholds": list(THRESHOLDS),
        "images": len(overlaps.proposals),
        "images_without_proposals": overlaps.missing,
        "proposals_per_image": float(overlaps.proposals.mean()) if len(overlaps.proposals) else 0.0,
        **overlaps.figures(),
        "MABO": np.mean(means, axis=0).tolist() if means else None,
        "per_class": per_class,
        "per_size": per_size,
    }


def _prepared(record: ImageRecord, store: ProposalStore) -> Proposals:
    if record.key not in store:
        return Proposals(boxes=torch.zeros(0, 4))
    return filter_proposals(store[record.key], (record.height, record.width))


def _best_of_first(iou: NDArray[np.float32], counts: Sequence[int]) -> NDArray[np.float32]:
    """Return for IoU (G, P) the greatest of the first n columns, (G, len(counts)), 0 without any."""
    if iou.shape[1] == 0:
        return np.zeros((len(iou), len(counts)), np.float32)
    running = np.maximum.accumulate(iou, axis=1)
    return running[:, np.minimum(counts, iou.shape[1]) - 1]
