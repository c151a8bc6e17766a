"""Training and scoring a region-based detector: the task behind ``task: detection``."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detector.config import Config
from detector.core.progress import note
from detector.core.structures import Batch, ImageRecord
from detector.data.images import read_image
from detector.data.source import Dataset
from detector.engine.memory import PeakMemory
from detector.evaluation.operating_point import OperatingPoint
from detector.factory import data as data_parts
from detector.factory import model as model_parts
from detector.factory import proposals as proposal_parts
from detector.factory.loaders import naming, training_batches
from detector.factory.validation import check_apart, load_training
from detector.models.box_coder import BoxCoder, measured_coder
from detector.models.detector import RegionDetector
from detector.models.roi_sampler import trained_objects
from detector.proposals.store import ProposalStore
from detector.tasks import operating
from detector.tasks.evaluation import (
    Evaluation,
    evaluate,
    known_classes,
    open_validation,
    read_test_set,
    write_evaluation,
)
from detector.tasks.report import finish_figures, print_figures, write_report
from detector.tasks.resuming import checked_fingerprint, evaluation_fingerprint, validation_fingerprint
from detector.visualize import draw_detections


class DetectionTask:
    """Images with proposals, a ``RegionDetector``, the multi-task loss, and mAP."""

    def __init__(self, config: Config, device: str, state: dict[str, Any] | None = None) -> None:
        """Read the data and build the network, with the weights of ``state`` where a run goes on."""
        self.config = config
        self.device = device
        split = data_parts.evaluated_split(config)
        data_parts.ensure_data(config)
        self.classes = known_classes(config, state["classes"] if state else None)
        dataset = self._read_training(state)  # faults of it end the run before any proposals are made
        self.test_set = read_test_set(config, split, self.classes)
        self.data_fingerprint |= evaluation_fingerprint(config, split, self.test_set.records, state)
        self.validation = open_validation(config, self.classes)
        if self.validation is not None:
            seen = validation_fingerprint(config, self.validation.split, self.validation.records, state)
            self.data_fingerprint |= seen
        self.records, self.store = self._with_proposals(dataset)
        coder = None
        if state is None and model_parts.measures_targets(config):
            coder = self._measure_targets()
        self.model = self._build_model(coder, state).to(device)
        self.roi_sampler = model_parts.build_roi_sampler(config, self.model.box_coder)
        self.loss = model_parts.build_loss(config)
        if state is not None:
            self.roi_sampler.load_state_dict(state["sampler"])

    def facts(self) -> dict[str, Any]:
        """Return what the log should say of the data."""
        return {"images": len(self.records), "dropped_boxes": self.dropped}

    def batches(self, start: int) -> Generator[Batch, None, None]:
        """Return the endless training batches from step ``start`` on."""
        source = proposal_parts.stored_proposals(self.config, self.store, training=True)
        return training_batches(self.config, self.records, source, start, self.device)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of one batch."""
        sampled = self.roi_sampler(batch).to(self.device)
        batch = batch.to(self.device)
        half = self.config.train.precision == "bfloat16"
        autocast = torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16, enabled=half)
        with autocast, naming(batch.metas):
            output = self.model(batch.images, sampled.rois, sampled.roi_levels)
        return self.loss(output, sampled)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs besides weights and optimizer."""
        return {"sampler": self.roi_sampler.state_dict()}

    def evaluate(self, memory: PeakMemory) -> Evaluation:
        """Score the network on the split that the config names."""
        return evaluate(self.config, self.model, self.test_set, self.device, memory)

    def validate(self, memory: PeakMemory) -> Evaluation | None:
        """Score the network on the validation images, if there are any."""
        if self.validation is None:
            return None
        return evaluate(self.config, self.model, self.validation, self.device, memory)

    def choose_point(self, validation: Evaluation | None) -> OperatingPoint | None:
        """Return the operating point with the best F1 on the validation images."""
        return operating.choose_point(validation)

    def with_point(
        self, evaluation: Evaluation, validation: Evaluation | None, point: OperatingPoint | None
    ) -> Evaluation:
        """Return ``evaluation`` with the figures of validation and of the chosen operating point."""
        return operating.with_point(evaluation, validation, point)

    def say_point(self, point: OperatingPoint | None, validation: Evaluation | None) -> None:
        """Say which score threshold is stored, or why none is."""
        operating.say_point(point, validation)

    def pictures(self, evaluation: Evaluation) -> list[np.ndarray]:
        """Return a few images with what was found on them: validation images where there are any."""
        return [
            draw_detections(
                read_image(record.path, (record.height, record.width)),
                evaluation.detections[record.image_id],
                self.classes,
            )
            for record in (self.validation or self.test_set).records[: self.config.train.draw_images]
        ]

    def finish(self, folder: Path, evaluation: Evaluation, seconds: float, memory: PeakMemory) -> None:
        """Write result files, pictures, ``metrics.json`` and ``run.png``, and print the figures."""
        write_evaluation(folder, self.test_set, evaluation)
        figures = finish_figures(evaluation.figures, seconds, memory)
        write_report(self.config, folder, self.test_set, evaluation, figures)
        print_figures(figures)

    def _read_training(self, state: dict[str, Any] | None) -> Dataset:
        config, split = self.config, self.config.data.train_split
        dataset = load_training(config, self.classes, training=True)
        self.data_fingerprint = checked_fingerprint("training", split, dataset.records, state)
        data_parts.check_batch_size(config, len(dataset.records))
        self.dropped = dataset.dropped
        faults = ", ".join(f"{count} {reason}" for reason, count in sorted(dataset.dropped.items()))
        objects = sum(len(record.targets) for record in dataset.records)
        note(
            f"{split}: {len(dataset.records)} images, {objects} objects of {len(dataset.classes)} classes; "
            f"boxes dropped or clipped: {faults or 'none'}"
        )
        targets = (record.targets for record in dataset.records)
        data_parts.require_objects(targets, config, f"; boxes dropped: {faults or 'none'}")
        return dataset

    def _with_proposals(self, dataset: Dataset) -> tuple[list[ImageRecord], ProposalStore]:
        config, split = self.config, self.config.data.train_split
        if self.validation is not None:
            check_apart(config, dataset.records, self.validation.records)
            if not any(len(record.targets) for record in self.validation.records):
                note("warning: no validation image has an object: best.pt will be the last checkpoint")
        store = proposal_parts.open_proposals(config, dataset.records, split)
        records = proposal_parts.with_proposals(config, dataset.records, store)
        data_parts.require_objects(
            (record.targets for record in records),
            config,
            f"; of {len(dataset.records)} images {len(records)} have proposals in {store.path}",
        )
        data_parts.check_batch_size(config, len(records), " with proposals")
        proposal_parts.report_recall(records, store, config, split)
        return records, store

    def _build_model(self, coder: BoxCoder | None, state: dict[str, Any] | None) -> RegionDetector:
        """Return the network with the weights of the resumed run, of another checkpoint, or published."""
        torch.manual_seed(self.config.seed)
        if state is not None:
            return model_parts.restore_model(self.config, state, state["file"])
        return model_parts.initial_model(self.config, self.classes, coder)

    def _measure_targets(self) -> BoxCoder:
        source = proposal_parts.stored_proposals(self.config, self.store, training=True)
        difficult = self.config.data.difficult == "train"
        objects = (trained_objects(record.targets, use_difficult=difficult) for record in self.records)
        images = (
            (source(record).boxes, targets.boxes, targets.labels)
            for record, targets in zip(self.records, objects, strict=True)
        )
        return measured_coder(
            images,
            len(self.classes),
            self.config.train.sampling.foreground_iou,
            class_agnostic=self.config.model.head.class_agnostic,
        )
