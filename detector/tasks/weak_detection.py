"""Detection from the labels of whole images, ``task: weak_detection``: what differs from other tasks.

The network is WSDDN's (`detector.models.wsddn`). Data, proposals, predictor and evaluation are those of
detection, and the labels are those of classification.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from detector.config import Config
from detector.core.devices import sent
from detector.core.distributed import main_first
from detector.core.errors import listed
from detector.core.progress import note
from detector.core.records import Records
from detector.core.structures import Batch, Detections, stack_rois
from detector.data.samples import covered
from detector.data.source import Dataset
from detector.engine.inference import RegionPredictor
from detector.engine.run import Assessment
from detector.evaluation.corloc import corloc
from detector.factory import data as data_parts
from detector.factory import loaders
from detector.factory.model import build_predictor
from detector.models.compiled import CompiledDetector
from detector.models.detector import RegionDetector
from detector.models.wsddn import image_label_loss
from detector.tasks.classification import describe_labels
from detector.tasks.detection import DetectionScorer, ProposalTask
from detector.tasks.scoring import Evaluation, TestSet


class WeakDetectionScorer(DetectionScorer):
    """Scores detections as `DetectionScorer`, and the training images by CorLoc."""

    def __init__(
        self,
        config: Config,
        device: str,
        classes: tuple[str, ...],
        split: str | None = None,
        *,
        only_validation: bool = False,
    ) -> None:
        super().__init__(config, device, classes, split, only_validation=only_validation)
        self.training = self._training_images() if split is None and not only_validation else None

    def _training_images(self) -> TestSet:
        """Return the images that are trained on, without those set aside, as annotated."""
        split = self.config.data.train_split
        with main_first():
            dataset = data_parts.load_training(self.config, self.classes, training=False)
        records = dataset.records[: self.config.test.max_images]
        proposals = self._proposals(split, records, annotated=False)  # the task prints their recall
        return TestSet(split=split, records=records, classes=self.classes, proposals=proposals)

    def evaluate(
        self, model: RegionDetector, test_set: TestSet | None = None, save_scores: Path | None = None
    ) -> Evaluation[Detections]:
        """As `Scorer.evaluate`; for the training split, if it was asked for, with CorLoc."""
        evaluation = super().evaluate(model, test_set, save_scores)
        scored, wanted = test_set or self.test_set, self.config.data.train_split
        if self.training is None and scored.annotated and scored.split == wanted:
            return self._with_corloc(evaluation, model, scored)
        return evaluation

    def assess(
        self, model: RegionDetector, *, last: bool, raw: RegionDetector | None = None
    ) -> Assessment[Evaluation[Detections]]:
        """As `Scorer.assess`; the last evaluation also has CorLoc on the training images."""
        assessment = super().assess(model, last=last, raw=raw)
        if not last or self.training is None or assessment.test is None:
            return assessment
        test = self._with_corloc(assessment.test, model, self.training)
        chosen_by = test if assessment.chosen_by is assessment.test else assessment.chosen_by
        return replace(assessment, chosen_by=chosen_by, test=test)

    def _with_corloc(
        self, evaluation: Evaluation[Detections], model: RegionDetector, test_set: TestSet
    ) -> Evaluation[Detections]:
        predictor = build_predictor(self.config, model.eval(), self.device)
        assert isinstance(predictor, RegionPredictor)  # of every task with regions
        result = corloc(test_set.records, self.classes, self.predicted(predictor.best, test_set))
        each = listed(f"{name} {row['CorLoc']:.3f}" for name, row in result["per_class"].items())
        note(f"CorLoc {result['CorLoc']:.4f} on {result['images']} images of {test_set.split}: {each}")
        metrics = {**evaluation.metrics, "CorLoc": {"split": test_set.split, **result}}
        return replace(evaluation, metrics=metrics)


class WeakDetectionTask(ProposalTask[Batch]):
    """Images with proposals and the classes on them, and a ``RegionDetector`` with two streams.

    The classes of an image are those of its annotated objects. The boxes of the objects are replaced when the
    data have been read, so that nothing in training can depend on them; they may be faulty.
    """

    scorer_class = WeakDetectionScorer
    uses_boxes = False

    def batches(self, start: int) -> Generator[Batch, None, None]:
        return loaders.training_batches(self.config, self.records, self.proposals, start, self.device)

    def count(self, batch: Batch) -> int:
        return len(batch)

    def step(self, batch: Batch, count: float | None = None) -> dict[str, Tensor]:
        return self._losses(self.network, batch, count)

    def image_losses(self, model: RegionDetector, batch: Batch) -> tuple[dict[str, Tensor], int]:
        return self._losses(model, batch, 1.0), len(batch)

    def _losses(
        self, network: RegionDetector | CompiledDetector, batch: Batch, count: float | None
    ) -> dict[str, Tensor]:
        presence = torch.stack([targets.presence(len(self.classes)) for targets in batch.targets])
        rows, counts = stack_rois(batch.rois_per_image), list(map(len, batch.rois_per_image))
        rois, roi_levels = sent(rows, self.device), self.model.place(rows, None)
        masks = covered(
            [proposals.masks for proposals in batch.proposals], batch.metas, counts, roi_levels, self.model
        )
        images = self.model.inputs(batch.images, batch.sizes)
        with self.autocast(), loaders.naming(batch.metas):
            output = network(images, rois, roi_levels, None if masks is None else masks.to(self.device))
        return image_label_loss(output, counts, sent(presence, self.device), count)

    def _describe(self, dataset: Dataset) -> None:
        data_parts.report_suspicions(dataset)
        describe_labels(self.config, dataset)

    def _trained_records(self, dataset: Dataset) -> Records:
        return without_boxes(super()._trained_records(dataset))


def without_boxes(records: Records) -> Records:
    """Return the images with the same labels and flags, where every object has the box of its whole image."""
    objects = records.objects
    sizes = records.sizes[objects.image_numbers()].astype(np.float32)
    boxes = np.concatenate((np.zeros_like(sizes), sizes[:, ::-1]), axis=1)
    return replace(records, objects=replace(objects, boxes=boxes, area=sizes.prod(axis=1)))
