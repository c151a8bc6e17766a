"""Detection with proposals, ``task: detection``: what differs from other tasks in training and scoring."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from detector.config import Config
from detector.config.schema import TrainedHead
from detector.core.errors import InputError
from detector.core.files import file_name_of
from detector.core.progress import note
from detector.core.records import Records
from detector.core.structures import Batch, Detections, HeadOutput, ImageRecord, ProposalSource, SampledRoIs
from detector.data.images import read_image
from detector.data.samples import DrawRegions
from detector.data.source import Dataset
from detector.engine.inference import MaskCount, RegionPredictor
from detector.evaluation.operating_point import OperatingPoint, best_f1
from detector.evaluation.result_files import write_result_files
from detector.evaluation.voc import VocEvaluator
from detector.factory import data as data_parts
from detector.factory import loaders
from detector.factory import model as model_parts
from detector.factory import proposals as proposal_parts
from detector.models.box_coder import BoxCoder, measured_coder
from detector.models.compiled import CompiledDetector
from detector.models.detector import RegionDetector
from detector.tasks.base import AnyBatch, BaseTask
from detector.tasks.region_scores import saving_regions
from detector.tasks.scoring import Evaluation, Evaluator, Scorer, TestSet

if TYPE_CHECKING:
    from detector.evaluation.coco import CocoEvaluator

EXAMPLES = 8
"""Images on ``run.png``, each with its detections and its ground truth."""


class DetectionScorer(Scorer[Detections]):
    """Scores detections by the VOC rules at IoU 0.5, and by COCO's where ``test.metric`` asks for that."""

    pictures_folder = "detections"

    def choose_point(self, validation: Evaluation[Detections] | None) -> OperatingPoint | None:
        """Return the operating point with the best F1 on the validation images; None where there is none."""
        if validation is None:
            return None
        return best_f1(validation.evaluator.precision_recall().values(), validation.metrics["images"])

    def note_point(self, point: OperatingPoint | None, validation: Evaluation[Detections] | None) -> None:
        if validation is None:
            note(
                "no score threshold is stored: there are no validation images to choose one on; "
                "data.val_split names a split of them, and train.validation_fraction sets training images "
                "aside"
            )
        elif not validation.metrics.get("annotated", True):
            note("no score threshold is stored: the validation images have no annotations to choose one by")
        elif point is None:
            note("no score threshold is stored: no object of the validation images was detected")
        else:
            note(
                f"score threshold {point.score_threshold:.3f}, with the best F1 on {point.images} validation "
                f"images of {validation.metrics['split']}: precision {point.precision:.3f}, recall "
                f"{point.recall:.3f}, {point.false_positives_per_image:.2f} false positives per image"
            )

    def _threshold_shown(self, score_threshold: float | None) -> str:
        if score_threshold is None:
            return ", without a score threshold"
        return f", score threshold {score_threshold:.3f}"

    def _predicting(
        self, predictor: Callable[[Any], Detections], test_set: TestSet, save_scores: Path | None
    ) -> AbstractContextManager[Callable[[Any], Detections]]:
        if save_scores is None:
            return nullcontext(predictor)
        assert isinstance(predictor, RegionPredictor)  # as `build_predictor` makes for every detector
        return saving_regions(predictor, test_set.records, test_set.classes, save_scores)

    def _proposals(self, split: str, records: Sequence[ImageRecord], *, annotated: bool) -> ProposalSource:
        config = self.config
        store = proposal_parts.open_proposals(config, records, split)
        if annotated:
            with_some = proposal_parts.with_proposals(config, records, store)
            proposal_parts.report_recall(with_some, store, config, split)
        return proposal_parts.stored_proposals(config, store, training=False)

    def _coco_evaluator(self, split: str, dataset: Dataset) -> CocoEvaluator | None:
        return coco_evaluator(self.config, split, dataset) if self.config.test.metric == "coco" else None

    def _packed(self, results: Sequence[Detections]) -> tuple[Tensor, Tensor]:
        counts = torch.tensor([len(result) for result in results], dtype=torch.int64)
        every = [Detections.empty(), *results]
        # Labels are small enough to be exact in float32.
        columns = [torch.cat([one.boxes for one in every]), torch.cat([one.scores for one in every])[:, None]]
        columns.append(torch.cat([one.labels for one in every])[:, None].float())
        return counts, torch.cat(columns, dim=1)

    def _unpacked(self, counts: Tensor, rows: Tensor) -> list[Detections]:
        return [
            Detections(boxes=part[:, :4].clone(), scores=part[:, 4].clone(), labels=part[:, 5].long())
            for part in rows.split(counts.tolist())
        ]

    def _compare(self, test_set: TestSet, results: dict[str, Detections]) -> VocEvaluator:
        evaluator = VocEvaluator(test_set.records, test_set.classes)
        evaluator.update(list(results), list(results.values()))
        if test_set.coco is not None:  # one evaluator serves all evaluations of a run, and writes the results
            test_set.coco.reset()
            test_set.coco.update(list(results), list(results.values()))
        return evaluator

    def _metrics(self, evaluator: Evaluator, test_set: TestSet) -> dict[str, Any]:
        """Return VOC's metrics and, if asked for, COCO's too, for all classes and for each."""
        metrics = evaluator.compute()
        if test_set.coco is None:
            return metrics
        more: dict[str, Any] = test_set.coco.compute()
        rows = {name: {**more["per_class"][name], **row} for name, row in metrics["per_class"].items()}
        return {**more, **metrics, "per_class": rows}

    def _draw(
        self, record: ImageRecord, result: Detections, score_threshold: float | None = None
    ) -> np.ndarray:
        from detector.visualize import draw_detections  # matplotlib takes a third of a second to import

        image = read_image(record.path, (record.height, record.width))
        return draw_detections(image, result, self.classes, score_threshold)

    def _write_files(self, folder: Path, evaluation: Evaluation[Detections]) -> None:
        """Write VOC result files and, for COCO's metrics, ``coco_SPLIT.json`` as COCO's server takes it."""
        test_set, first_pixel = self.test_set, self.config.data.first_pixel
        write_result_files(folder, evaluation.results, self.classes, test_set.split, first_pixel)
        if test_set.coco is not None:
            test_set.coco.write_results(folder / file_name_of(f"coco_{test_set.split}.json"))

    def _draw_examples(self, evaluation: Evaluation[Detections], width: int) -> np.ndarray:
        """Draw evenly spaced images that have objects, or any images where none has one."""
        from detector.visualize import example_grid

        all_records = self.test_set.records
        records = [record for record in all_records if len(record.targets)] or all_records
        count = min(EXAMPLES, len(records))
        chosen = [records[number * len(records) // count] for number in range(count)]
        examples = [
            (read_image(one.path, (one.height, one.width)), evaluation.results[one.image_id], one.targets)
            for one in chosen
        ]
        threshold = evaluation.metrics.get("score_threshold")
        return example_grid(examples, self.classes, width, threshold)


class ProposalTask(BaseTask[AnyBatch]):
    """Images with proposals."""

    role = "training"
    proposals: proposal_parts.StoredProposals

    def _trained_records(self, dataset: Dataset) -> Records:
        """Open the proposals, and return the images that have any."""
        config, split, validation = self.config, self.config.data.train_split, self.scorer.validation
        if validation is not None and not any(len(record.targets) for record in validation.records):
            note("warning: no validation image has an object: best.pt will be the last checkpoint")
        every = dataset.records
        store = proposal_parts.open_proposals(config, every, split)
        records = proposal_parts.with_proposals(config, every, store)
        data_parts.require_objects(
            (record.targets for record in records),
            config,
            f"; of {len(every)} images {len(records)} have proposals in {store.path}",
        )
        data_parts.check_batch_size(config, len(records), " with proposals")
        proposal_parts.report_recall(records, store, config, split)
        self.proposals = proposal_parts.stored_proposals(config, store, training=True)
        return records


class RegionTask(ProposalTask[AnyBatch]):
    """Images with proposals, a ``RegionDetector``, and the multi-task loss of sampled regions."""

    scorer_class = DetectionScorer
    uses_boxes = True
    draw_regions: DrawRegions

    def __init__(self, config: Config, device: str, state: dict[str, Any] | None = None) -> None:
        if not isinstance(config.model.head, TrainedHead):
            raise InputError(
                f"model.head.kind: {config.model.head.kind} is fitted on stored features and not trained on "
                "images; set train.head_only to true, or add a stage of kind head, and take softmax in the "
                "settings of the other stages"
            )
        super().__init__(config, device, state)
        self.draw_regions = model_parts.build_roi_sampler(config, self.model.box_coder)
        self.loss = model_parts.build_loss(config)
        self.hard_examples = model_parts.build_hard_examples(config)
        self.masks = MaskCount()

    def facts(self) -> dict[str, Any]:
        return {**super().facts(), "dropped_boxes": self.dropped}

    def counted(self) -> dict[str, int]:
        """Return ``masked_rois``, the RoIs with masks in the steps of this process, and ``mask_fallbacks``,
        those of them whose mask covers no cell centre; nothing where there are no masks.
        """
        counted, self.masks = self.masks, MaskCount()
        regions, fallbacks = counted.regions, counted.fallbacks
        return {"masked_rois": regions, "mask_fallbacks": fallbacks} if regions else {}

    def count(self, batch: AnyBatch) -> int:
        return self._count(self._sampled(batch))

    def step(self, batch: AnyBatch, count: float | None = None) -> dict[str, Tensor]:
        with self.autocast():
            output, sampled = self._output(
                self.model, self.network, self._levels(batch), self._sampled(batch)
            )
        if sampled.masks is not None:
            self.masks.add(sampled.masks)
        return self.loss(output, sampled, count)

    def image_losses(self, model: RegionDetector, batch: Batch) -> tuple[dict[str, Tensor], int]:
        sampled = sampled_of(batch)
        images = model.inputs(batch.images, batch.sizes)
        with self.autocast(), loaders.naming(batch.metas):
            output, sampled = self._output(model, model, model.features(images), sampled)
        return self.loss(output, sampled, 1.0), len(sampled.labels)

    @abstractmethod
    def _sampled(self, batch: AnyBatch) -> SampledRoIs:
        """Return the sampled regions of a batch."""

    @abstractmethod
    def _levels(self, batch: AnyBatch) -> Sequence[Tensor]:
        """Return the feature levels of a batch; called under autocast."""

    def _count(self, sampled: SampledRoIs) -> int:
        """Return how many of the regions are trained on."""
        if self.hard_examples is None:
            return len(sampled.labels)
        return sum(self.hard_examples.counts(sampled))

    def _output(
        self,
        model: RegionDetector,
        network: RegionDetector | CompiledDetector,
        levels: Sequence[Tensor],
        sampled: SampledRoIs,
    ) -> tuple[HeadOutput, SampledRoIs]:
        """Return the output of ``network``, perhaps ``model`` compiled, and the regions that it is for."""
        if self.hard_examples is not None:
            sampled = self.hard_examples(model, levels, sampled)
        return network.predict(levels, sampled.rois, sampled.roi_levels, sampled.masks), sampled

    def _describe(self, dataset: Dataset) -> None:
        faults = ", ".join(f"{count} {reason}" for reason, count in sorted(dataset.dropped.items())) or "none"
        note(
            f"{self.config.data.train_split}: {len(dataset.records)} images, "
            f"{len(dataset.records.objects)} objects of {len(dataset.classes)} classes; boxes dropped or "
            f"clipped: {faults}"
        )
        data_parts.report_several_labels(self.config, dataset)
        targets = (record.targets for record in dataset.records)
        data_parts.require_objects(targets, self.config, f"; boxes dropped: {faults}")

    def _measured_coder(self) -> BoxCoder | None:
        if not model_parts.measures_targets(self.config):
            return None
        sums = proposal_parts.target_sums(
            self.records,
            self.proposals,
            len(self.classes),
            self.config.train.sampling.foreground_iou,
            use_difficult=self.config.data.difficult == "train",
            multi_label=self.config.model.head.scores == "sigmoid",
        )
        return measured_coder(sums, class_agnostic=self.config.model.agnostic_boxes)


class DetectionTask(RegionTask[Batch]):
    """Detection that is trained on images."""

    def batches(self, start: int) -> Generator[Batch, None, None]:
        return loaders.training_batches(
            self.config,
            self.records,
            self.proposals,
            start,
            self.device,
            draw_regions=self.draw_regions,
            network=self.model,
        )

    def _sampled(self, batch: Batch) -> SampledRoIs:
        return sampled_of(batch)

    def _levels(self, batch: Batch) -> Sequence[Tensor]:
        images = self.model.inputs(batch.images, batch.sizes)
        with loaders.naming(batch.metas):
            return self.network.features(images)


def sampled_of(batch: Batch) -> SampledRoIs:
    """Return the regions of a batch for training."""
    assert batch.sampled is not None  # the loader draws the regions
    return batch.sampled


def coco_evaluator(config: Config, split: str, dataset: Dataset) -> CocoEvaluator:
    """Return COCO's evaluator for a split; if its annotations are in COCO's format, it uses their ids."""
    from detector.evaluation.coco import CocoEvaluator, ground_truth_of

    own = data_parts.build_source(config).coco_annotations(split, dataset.classes, config.data.train_split)
    truth = own or ground_truth_of(dataset.records, dataset.classes)
    return CocoEvaluator(truth, dataset.classes, dataset.coco_ids)
