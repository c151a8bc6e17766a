"""Classification of whole images (SPP-net), ``task: classification``: what differs from other tasks."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from detector.config import Config
from detector.core.devices import sent
from detector.core.errors import listed
from detector.core.progress import note
from detector.core.records import Objects
from detector.core.structures import Batch, ImageRecord, ProposalSource
from detector.data.images import read_image
from detector.data.source import Dataset
from detector.evaluation.classification import ClassificationEvaluator
from detector.evaluation.result_files import write_class_scores
from detector.factory import data as data_parts
from detector.factory import loaders
from detector.models.compiled import CompiledDetector
from detector.models.detector import RegionDetector
from detector.models.losses import multi_label_loss
from detector.models.whole_map import whole_image_rois
from detector.tasks.base import BaseTask
from detector.tasks.scoring import Evaluation, Scorer, TestSet

if TYPE_CHECKING:  # pictures need matplotlib, which takes a third of a second to import
    from detector.visualize import ClassifiedImage

EXTREMES = 4
"""How many images ``run.png`` shows whose scores fit best, and how many whose scores fit worst."""


class ClassificationScorer(Scorer[Tensor]):
    """Scores the classes of whole images, (K,) per image, by the VOC rules for classification.

    Each class has a threshold of its own, and none is chosen.
    """

    pictures_folder = "classified"

    def _proposals(self, split: str, records: Sequence[ImageRecord], *, annotated: bool) -> ProposalSource:
        return loaders.no_proposals

    def _packed(self, results: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        rows = torch.stack([*results]) if results else torch.zeros(0, len(self.classes))
        return torch.ones(len(rows), dtype=torch.int64), rows

    def _unpacked(self, counts: Tensor, rows: Tensor) -> list[Tensor]:
        return list(rows)

    def _compare(self, test_set: TestSet, results: dict[str, Tensor]) -> ClassificationEvaluator:
        evaluator = ClassificationEvaluator(test_set.records, test_set.classes)
        evaluator.update(list(results), torch.stack(list(results.values())))
        return evaluator

    def _draw(self, record: ImageRecord, result: Tensor, score_threshold: float | None = None) -> np.ndarray:
        from detector.visualize import draw_class_scores

        return draw_class_scores(classified_image(record, result), self.classes)

    def _write_files(self, folder: Path, evaluation: Evaluation[Tensor]) -> None:
        write_class_scores(folder, evaluation.results, self.classes, self.test_set.split)

    def _draw_examples(self, evaluation: Evaluation[Tensor], width: int) -> np.ndarray:
        from detector.visualize import score_rows

        records = self.test_set.records if self.test_set.annotated else []
        best, worst = (
            [classified_image(record, evaluation.results[record.image_id]) for record in group]
            for group in extremes(records, evaluation.results)
        )
        return score_rows(best, worst, self.classes, width)


class ClassificationTask(BaseTask[Batch]):
    """Images with the classes on them, and a ``RegionDetector`` that pools whole maps.

    The classes of an image are those of all its annotated objects. Since no box is used, boxes may be faulty.
    """

    scorer_class = ClassificationScorer
    role = "classification"
    uses_boxes = False

    def batches(self, start: int) -> Generator[Batch, None, None]:
        proposals = loaders.no_proposals
        return loaders.training_batches(self.config, self.records, proposals, start, self.device)

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
        rois = whole_image_rois(self.model.backbone, batch.metas)
        images = self.model.inputs(batch.images, batch.sizes)
        with self.autocast():
            output = network(images, rois)
        return multi_label_loss(output, sent(presence, self.device), count)

    def _describe(self, dataset: Dataset) -> None:
        data_parts.report_suspicions(dataset)
        describe_labels(self.config, dataset)


def describe_labels(config: Config, dataset: Dataset) -> None:
    """Print on how many training images each class is, with a warning for a class that is on none.

    Raises:
        InputError: no image shows any class.
    """
    split, records = config.data.train_split, dataset.records
    data_parts.require_objects((record.targets for record in records), config)
    counts = dict(zip(dataset.classes, _images_by_class(records.objects, len(dataset.classes)), strict=True))
    shown = listed(f"{name} on {count}" for name, count in counts.items())
    note(f"{split}: {len(records)} images; {shown}")
    for name, count in counts.items():
        if count == 0:
            note(f"warning: no image of {split} shows {name!r}: the network learns that it never occurs")


def _images_by_class(objects: Objects, num_classes: int) -> list[int]:
    """Return on how many images each class is present, by the rule of `Targets.presence`."""
    counted = ~(objects.difficult | objects.crowd)
    pairs = np.unique(np.stack((objects.image_numbers()[counted], objects.labels[counted])), axis=1)
    return np.bincount(pairs[1], minlength=num_classes + 1)[1:].tolist()


def classified_image(record: ImageRecord, scores: Tensor) -> ClassifiedImage:
    """Return a record's image with the classes on it and the scores (K,) of all classes."""
    from detector.visualize import ClassifiedImage

    image = read_image(record.path, (record.height, record.width))
    return ClassifiedImage(image, scores.tolist(), record.targets.presence(len(scores)).tolist())


def extremes(
    records: Sequence[ImageRecord], scores: dict[str, Tensor]
) -> tuple[list[ImageRecord], list[ImageRecord]]:
    """Return the images whose scores fit their classes best, and those that fit worst, the worst first.

    The best are chosen among images that show something: low scores of an empty image prove little.
    """
    presence = {one.image_id: one.targets.presence(len(scores[one.image_id])) for one in records}
    ranked = sorted(records, key=lambda one: _misfit(presence[one.image_id], scores[one.image_id]))
    worst = ranked[len(ranked) - min(EXTREMES, len(ranked) // 2) :][::-1]
    shows = [record for record in ranked if (presence[record.image_id] > 0).any()]
    return [record for record in shows if record not in worst][:EXTREMES], worst


def _misfit(presence: Tensor, scores: Tensor) -> float:
    """Return the mean distance of the scores (K,) from 1 and 0, over the classes that count."""
    off = (scores - (presence > 0).float()).abs()[presence != 0]
    return float(off.mean()) if len(off) else 0.0
