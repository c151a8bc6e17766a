"""Training and scoring a classifier of whole images (SPP-net): the task behind ``task: classification``."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from detector.config import Config
from detector.core.errors import listed
from detector.core.progress import note
from detector.core.structures import Batch, ImageRecord
from detector.engine.memory import PeakMemory
from detector.factory import data as data_parts
from detector.factory import model as model_parts
from detector.factory.loaders import no_proposals, training_batches
from detector.factory.validation import check_apart, load_training
from detector.models.detector import RegionDetector
from detector.models.multi_label import multi_label_loss
from detector.models.whole_map import whole_image_rois
from detector.tasks.classification_report import scores_picture, write_classes, write_classifier_report
from detector.tasks.classified import (
    Classified,
    LabelledImages,
    classify_images,
    open_images,
    open_validation_images,
)
from detector.tasks.operating import validation_figures
from detector.tasks.report import finish_figures, print_figures
from detector.tasks.resuming import checked_fingerprint, evaluation_fingerprint, validation_fingerprint


class ClassificationTask:
    """Images with the classes on them, a ``RegionDetector`` that pools whole maps, and mAP of the classes.

    What is on an image is taken from its objects as annotated, faulty boxes included: no box is used.
    """

    def __init__(self, config: Config, device: str, state: dict[str, Any] | None = None) -> None:
        """Read the data and build the network, with the weights of ``state`` where a run goes on."""
        self.config = config
        self.device = device
        split = data_parts.evaluated_split(config)
        self.test_set: LabelledImages = open_images(config, split, state["classes"] if state else None)
        self.classes = self.test_set.classes
        self.data_fingerprint = evaluation_fingerprint(config, split, self.test_set.records, state)
        self.validation = open_validation_images(config, self.classes)
        if self.validation is not None:
            seen = validation_fingerprint(config, self.validation.split, self.validation.records, state)
            self.data_fingerprint |= seen
        self.records = self._training_data()
        self.data_fingerprint |= checked_fingerprint(
            "classification", config.data.train_split, self.records, state
        )
        self.model = self._build_model(state).to(device)

    def facts(self) -> dict[str, Any]:
        """Return what the log should say of the data."""
        return {"images": len(self.records)}

    def batches(self, start: int) -> Generator[Batch, None, None]:
        """Return the endless training batches from step ``start`` on."""
        return training_batches(self.config, self.records, no_proposals, start, self.device)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Return the losses of one batch."""
        presence = torch.stack([targets.presence(len(self.classes)) for targets in batch.targets])
        rois = whole_image_rois(self.model.backbone, batch.metas).to(self.device, non_blocking=True)
        images = batch.to(self.device).images
        half = self.config.train.precision == "bfloat16"
        with torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16, enabled=half):
            output = self.model(images, rois)
        return multi_label_loss(output, presence.to(self.device, non_blocking=True))

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs besides weights and optimizer: nothing, the step says the rest."""
        return {}

    def evaluate(self, memory: PeakMemory) -> Classified:
        """Score the network on the split that the config names."""
        return classify_images(self.config, self.model, self.test_set, self.device, memory)

    def validate(self, memory: PeakMemory) -> Classified | None:
        """Score the network on the validation images, if there are any."""
        if self.validation is None:
            return None
        return classify_images(self.config, self.model, self.validation, self.device, memory)

    def choose_point(self, validation: Classified | None) -> None:
        """Return None: each class has a threshold of its own, and none is chosen."""

    def with_point(self, evaluation: Classified, validation: Classified | None, point: None) -> Classified:
        """Return ``evaluation`` with the figures of validation."""
        if validation is None:
            return evaluation
        figures = {**evaluation.figures, "validation": validation_figures(validation.figures)}
        return replace(evaluation, figures=figures)

    def say_point(self, point: None, validation: Classified | None) -> None:
        """Say nothing: no score threshold is chosen."""

    def pictures(self, evaluation: Classified) -> list[np.ndarray]:
        """Return a few images with their classes' scores: validation images where there are any."""
        shown = (self.validation or self.test_set).records[: self.config.train.draw_images]
        return [scores_picture(record, evaluation.scores[record.image_id], self.classes) for record in shown]

    def finish(self, folder: Path, evaluation: Classified, seconds: float, memory: PeakMemory) -> None:
        """Write result files, pictures, ``metrics.json`` and ``run.png``, and print the figures."""
        write_classes(folder, self.test_set, evaluation)
        figures = finish_figures(evaluation.figures, seconds, memory)
        write_classifier_report(self.config, folder, self.test_set, evaluation, figures)
        print_figures(figures)

    def _training_data(self) -> list[ImageRecord]:
        config, split = self.config, self.config.data.train_split
        dataset = load_training(config, self.classes, training=False)
        data_parts.report_suspicions(dataset)
        records = dataset.records
        data_parts.check_batch_size(config, len(records))
        data_parts.require_objects((one.targets for one in records), config)
        if self.validation is not None:
            check_apart(config, records, self.validation.records)
        presence = torch.stack([record.targets.presence(len(self.classes)) for record in records])
        counts = dict(zip(self.classes, (presence == 1).sum(dim=0).tolist(), strict=True))
        shown = listed(f"{name} on {count}" for name, count in counts.items())
        note(f"{split}: {len(records)} images; {shown}")
        for name, count in counts.items():
            if count == 0:
                note(f"warning: no image of {split} shows {name!r}: it will be learnt as never there")
        return records

    def _build_model(self, state: dict[str, Any] | None) -> RegionDetector:
        """Return the network with the weights of the resumed run, of another checkpoint, or published."""
        torch.manual_seed(self.config.seed)
        if state is not None:
            return model_parts.restore_model(self.config, state, state["file"])
        return model_parts.initial_model(self.config, self.classes)
