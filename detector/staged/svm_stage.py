"""The stage ``svm``: per-class linear SVMs in the place of cls_score (R-CNN, section 2.3; SPP-net, 4.1)."""

from __future__ import annotations

import torch
from torch import Tensor

from detector.config.schema import SVMConfig
from detector.core import boxes as box_ops
from detector.core.errors import InputError, listed
from detector.core.progress import note, track
from detector.core.structures import ImageRecord
from detector.models.detector import RegionDetector
from detector.staged.cached import embed_regions, image_regions
from detector.staged.fitting import LayerFit
from detector.staged.hard_negatives import HardNegativeMining, MiningSettings
from detector.staged.svm import MAX_ITERATIONS, SVMSettings, fold_svms

SAVE_EVERY = 50
"""Images between two saves of a fit that is under way."""


class SVMFit(LayerFit):
    """Trains the SVMs of all classes with hard negatives, one pass over the images."""

    def fit(self, settings: SVMConfig) -> None:
        """Train the SVMs of all classes with hard negatives and put them into ``cls_score``.

        Raises:
            InputError: a class without positives, unless the settings say that it never fires.
        """
        pooled = settings.features == "pooled"
        if pooled:
            raise_unless_headless(self.model)
        factor = settings.feature_norm / self.mean_norm(pooled)
        mining = HardNegativeMining(self.classes, self._positives(pooled), factor, mining_settings(settings))
        if self.state is not None:
            mining.load_state_dict(self.state)
        for record in track(self.records[mining.images :], len(self.records) - mining.images, "SVMs"):
            last = mining.images == len(self.records) - 1
            mining.add_image(*self._negatives(record, pooled), last=last)
            if mining.images % SAVE_EVERY == 0:
                self.save(mining.state_dict())
        note_unconverged(mining)
        fold_svms(self.model.predictor.cls_score, mining.weights, mining.biases, factor)

    def _positives(self, pooled: bool) -> list[Tensor]:
        """Return the features of each class's objects, (n, F) a class."""
        width = self.model.region_pool.out_features if pooled else self.model.box_head.out_features
        found: list[list[Tensor]] = [[torch.zeros(0, width)] for _ in self.classes]
        for record in track(self.records, len(self.records), "objects' features"):
            objects = self.objects(record)
            if not len(objects):
                continue
            features = self.embed(record, objects.boxes, pooled)
            for number, rows in enumerate(found, start=1):
                rows.append(features[objects.labels == number])
        return [torch.cat(rows) for rows in found]

    def _negatives(self, record: ImageRecord, pooled: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what ``HardNegativeMining.add_image`` wants of an image.

        A region on a ``difficult`` object is no negative of its class, whether or not that is a positive.
        """
        regions = image_regions(record, self.source, torch.zeros(0, 4))
        levels, metas = self.cached(record)
        embedded = embed_regions(self.model, levels, metas, regions, self.config.test.scale_rule)
        known = record.targets
        overlaps = torch.zeros(len(regions), len(self.classes))
        for number in range(len(self.classes)):
            mine = known.boxes[known.labels == number + 1]
            if len(mine):
                overlaps[:, number] = box_ops.iou(regions, mine).amax(dim=1)
        # Regions that fall on the same cells have the same pooled features, bit for bit.
        windows = torch.tensor([hash(row.tobytes()) for row in embedded.pooled.numpy()], dtype=torch.int64)
        return embedded.pooled if pooled else embedded.hidden, overlaps, regions, windows


def raise_unless_headless(model: RegionDetector) -> None:
    """SVMs on pooled features need a cls_score that reads them: a box head without layers."""
    if model.box_head.out_features != model.region_pool.out_features:
        raise InputError("svm.features: pooled needs model.head.hidden: [], so that cls_score reads them")


def note_unconverged(mining: HardNegativeMining) -> None:
    """Say which classes' SVMs the solver did not bring to an end; they are used as they are."""
    names = [name for name, done in zip(mining.classes, mining.converged, strict=True) if not done]
    if names:
        note(
            f"warning: the SVM of {listed(names)} did not converge in {MAX_ITERATIONS} passes: it is "
            "close to the best one, not equal to it; a smaller svm.c converges sooner"
        )


def mining_settings(settings: SVMConfig) -> MiningSettings:
    return MiningSettings(
        svm=SVMSettings(
            c=settings.c,
            positive_weight=settings.positive_weight,
            bias_multiplier=settings.bias_multiplier,
        ),
        negative_iou=settings.negative_iou,
        hard_score=settings.hard_score,
        evict_score=settings.evict_score,
        retrain_after=settings.retrain_after,
        negative_overlap=settings.negative_overlap,
        missing_positives=settings.missing_positives,
    )
