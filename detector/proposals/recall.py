"""Recall and overlap: how well proposals cover the annotated objects, before any training."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detector.core import boxes as box_ops
from detector.core.progress import ReportProgress
from detector.core.records import Objects, Records
from detector.core.structures import ImageRecord, Proposals
from detector.proposals.bulk import BulkObjects, best_overlaps_of_all, content_digest
from detector.proposals.filtering import Limits
from detector.proposals.kept import kept
from detector.proposals.store import ProposalStore

THRESHOLDS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))
"""COCO's IoU thresholds, 0.5 to 0.95."""
COUNTS = (1, 3, 10, 30, 100, 200, 300, 500, 700, 1000, 1500, 2000, 3000, 5000, 10000)
SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, float("inf"))}
"""COCO's areas in square pixels, [least, most)."""
ALL_PROPOSALS = 2**31 - 1
"""No image has more."""


def recall(
    records: Iterable[ImageRecord],
    store: ProposalStore,
    iou_thresholds: Sequence[float] = (0.5, 0.7),
    *,
    limit: int | None = None,
    include_difficult: bool = True,
) -> dict[str, float]:
    """Return the share of objects that a proposal covers with at least each IoU threshold.

    Keys: ``recall_0.5`` and so on for each threshold, ``mean_best_overlap`` over all objects, ``objects``,
    ``images`` and ``proposals_per_image``. Crowd regions do not count as objects. ``limit`` takes only the
    best proposals of each image (by score, or the first where there are none), filtered by
    `filter_proposals`; None takes all as they are stored. Without any object the metrics are 0.

    The result is kept with the store (`detector.proposals.kept`). Raises InputError for a record that is not
    in the store.
    """
    columns = Records.of(records)
    store.require(columns.keys)
    names = [
        *map(_recall_at, iou_thresholds),
        "mean_best_overlap",
        "objects",
        "images",
        "proposals_per_image",
    ]

    def depends_on() -> dict[str, Any]:
        return {
            "content": content_digest(store, columns),
            "limit": limit,
            "iou_thresholds": list(iou_thresholds),
            "include_difficult": include_difficult,
        }

    return kept(
        store.path,
        "recall",
        depends_on,
        lambda: _measured_recall(columns, store, iou_thresholds, limit, include_difficult),
        partial(read_recall, names=names),
    )


def read_recall(content: Any, names: Collection[str]) -> dict[str, float]:
    """Return the metrics ``names`` of `recall` that JSON holds; ValueError for anything else."""
    known = isinstance(content, dict) and content.keys() == set(names)
    if not known or not all(type(value) is float and 0 <= value < math.inf for value in content.values()):
        raise ValueError("not the metrics of a recall")
    return dict(content)


def _recall_at(threshold: float) -> str:
    return f"recall_{threshold:g}"


def _measured_recall(
    records: Records,
    store: ProposalStore,
    iou_thresholds: Sequence[float],
    limit: int | None,
    include_difficult: bool,
) -> dict[str, float]:
    objects = BulkObjects.select(records.objects, _counted(records.objects, include_difficult))
    limits = None if limit is None else Limits(top_k=limit)
    found = best_overlaps_of_all(store, records, objects, [ALL_PROPOSALS], limits)
    best, count, images = torch.from_numpy(found.best[:, 0]), len(found.best), len(records)
    shares = {
        _recall_at(threshold): float((best >= threshold).sum()) / max(count, 1)
        for threshold in iou_thresholds
    }
    return shares | {
        "mean_best_overlap": float(best.sum()) / max(count, 1),
        "objects": float(count),
        "images": float(images),
        "proposals_per_image": int(found.held.sum()) / max(images, 1),
    }


def best_overlaps(target_boxes: Tensor, proposals: Proposals) -> Tensor:
    """Return for each of ``target_boxes`` (G, 4) its highest IoU with a proposal, (G,), 0 without any."""
    if len(proposals) == 0:
        return torch.zeros(len(target_boxes))
    return box_ops.iou(target_boxes, proposals.boxes).amax(dim=1)


@dataclass(frozen=True, kw_only=True)
class Overlaps:
    """For each of O objects, the best overlap among the first n proposals of its image.

    best (O, len(counts)) float32: the highest IoU among the first ``counts[i]``; labels (O,) 1..K; areas
    (O,) as annotated, in square pixels. ``proposals`` (N,) is how many each image has; ``missing`` is how
    many images have no entry in the store.
    """

    counts: tuple[int, ...]
    best: NDArray[np.float32]
    labels: NDArray[np.int64]
    areas: NDArray[np.float32]
    proposals: NDArray[np.int64]
    missing: int

    def metrics(self, objects: NDArray[np.bool_] | None = None) -> dict[str, Any]:
        """Return the metrics over some ``objects`` (O,), by default all; lists go with ``counts``.

        ``recall`` has a list for each IoU threshold, ``average_recall`` is its mean over the thresholds
        (COCO's rule), ``mean_best_overlap`` the mean of the highest IoU. Without objects they are None.
        """
        best = self.best if objects is None else self.best[objects]
        if len(best) == 0:
            return {"objects": 0, "recall": None, "average_recall": None, "mean_best_overlap": None}
        shares = {f"{threshold:g}": (best >= np.float32(threshold)).mean(axis=0) for threshold in THRESHOLDS}
        return {
            "objects": len(best),
            "recall": {name: values.tolist() for name, values in shares.items()},
            "average_recall": np.mean(list(shares.values()), axis=0).tolist(),
            "mean_best_overlap": best.mean(axis=0, dtype=np.float64).tolist(),
        }


def measure_overlaps(
    records: Sequence[ImageRecord],
    store: ProposalStore,
    *,
    counts: Sequence[int] | None = None,
    include_difficult: bool = True,
    progress: ReportProgress = lambda _done, _total: None,
) -> Overlaps:
    """Return how well the proposals of ``store`` cover the objects of ``records``, without crowd regions.

    Proposals are used as in training: clipped, without duplicates, best first. An image without an entry
    has none. ``counts`` None is `COUNTS` as far as there are proposals, then all of them.
    """
    columns = Records.of(records)
    held = store.counts(columns.keys)
    most = int(held.max(initial=0))
    chosen = tuple(sorted(set(counts))) if counts else (*(n for n in COUNTS if n < most), max(most, 1))
    objects = BulkObjects.select(columns.objects, _counted(columns.objects, include_difficult))
    found = best_overlaps_of_all(
        store, columns, objects, chosen, Limits(), lambda done: progress(done, len(columns))
    )
    return Overlaps(
        counts=chosen,
        best=found.best,
        labels=columns.objects.labels[objects.rows],
        areas=columns.objects.area[objects.rows],
        proposals=found.held,
        missing=int((held < 0).sum()),
    )


def recall_report(overlaps: Overlaps, classes: Sequence[str]) -> dict[str, Any]:
    """Return all metrics as JSON: over all objects, ``per_class`` and ``per_size`` (`SIZES`), and ``MABO``.

    ``MABO`` is the mean over the classes of their mean best overlap (Uijlings et al., IJCV 2013, section
    5.1); classes without objects are left out of it.
    """
    per_class = {
        name: overlaps.metrics(overlaps.labels == label) for label, name in enumerate(classes, start=1)
    }
    per_size = {
        name: overlaps.metrics((overlaps.areas >= least) & (overlaps.areas < most))
        for name, (least, most) in SIZES.items()
    }
    means = [row["mean_best_overlap"] for row in per_class.values() if row["objects"]]
    return {
        "counts": list(overlaps.counts),
        "iou_thresholds": list(THRESHOLDS),
        "images": len(overlaps.proposals),
        "images_without_proposals": overlaps.missing,
        "proposals_per_image": float(overlaps.proposals.mean()) if len(overlaps.proposals) else 0.0,
        **overlaps.metrics(),
        "MABO": np.mean(means, axis=0).tolist() if means else None,
        "per_class": per_class,
        "per_size": per_size,
    }


def _counted(objects: Objects, include_difficult: bool) -> NDArray[np.bool_]:
    """Return which objects count: crowd regions never do."""
    return ~objects.crowd if include_difficult else ~(objects.crowd | objects.difficult)
