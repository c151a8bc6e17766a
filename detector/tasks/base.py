"""What all tasks share in training: reading the data, building or restoring the network, scoring it."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, closing
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from detector.config import Config
from detector.core import distributed
from detector.core.distributed import main_first
from detector.core.progress import note, said_once
from detector.core.structures import Batch, ImageRecord
from detector.data.samples import DrawRegions
from detector.data.source import Dataset
from detector.engine.determinism import cuda_algorithms
from detector.engine.inference import autocast, number_type
from detector.factory import data as data_parts
from detector.factory import loaders
from detector.factory import model as model_parts
from detector.factory.data import check_apart, load_training
from detector.models.box_coder import BoxCoder
from detector.models.compiled import CompiledDetector, check_compiler
from detector.models.detector import RegionDetector
from detector.tasks.resume import checked_fingerprint, evaluation_fingerprint
from detector.tasks.scoring import Scorer, known_classes

AnyBatch = TypeVar("AnyBatch")


class BaseTask(ABC, Generic[AnyBatch]):
    """The data, the network and the scorer of a config: a `detector.engine.run.Task`."""

    scorer_class: ClassVar[type[Scorer[Any]]]
    role: ClassVar[str]
    """The name of the training images in the fingerprints."""
    draw_regions: DrawRegions | None = None
    """What draws the regions of a training step; None where whole images are trained on."""
    uses_boxes: ClassVar[bool]
    """Whether training needs valid boxes; otherwise objects with faulty boxes count too."""

    def __init__(self, config: Config, device: str, state: dict[str, Any] | None = None) -> None:
        """Read the data and build the network, or restore it from ``state``, a checkpoint.

        Raises:
            InputError: data or weights are missing or faulty, or are not those of the checkpoint.
        """
        self.config = config
        self.device = device
        self.number_type = number_type(config.train.precision, device, "train.precision")
        if config.train.compile:
            check_compiler(device)
        with main_first():
            data_parts.ensure_data(config)
            self.classes = known_classes(config, state["classes"] if state else None)
            dataset = self._read_training(state)  # its faults end the run before any proposals are made
        self.scorer = self.scorer_class(config, device, self.classes)
        test, validation = self.scorer.test_set, self.scorer.validation
        self.data_fingerprint |= evaluation_fingerprint(config, test.split, test.records, state)
        if validation is not None:
            name = f"{validation.split}, validation images"  # they may be a part of the training split
            self.data_fingerprint |= evaluation_fingerprint(config, name, validation.records, state)
            check_apart(config, dataset.records, validation.records)
        self.records: Sequence[ImageRecord] = self._trained_records(dataset)
        coder = self._measured_coder() if state is None else None
        torch.manual_seed(config.seed)
        self.model = (
            model_parts.initial_model(config, self.classes, coder)
            if state is None
            else model_parts.restore_model(config, state, state["file"], raw=True)
        ).to(device)
        self.network: RegionDetector | CompiledDetector = (
            model_parts.compiled(self.model) if config.train.compile else self.model
        )

    def _read_training(self, state: dict[str, Any] | None) -> Dataset:
        config, split = self.config, self.config.data.train_split
        dataset = load_training(config, self.classes, training=self.uses_boxes)
        self.data_fingerprint = checked_fingerprint(self.role, split, dataset.records, state)
        data_parts.check_batch_size(config, len(dataset.records))
        self.dropped = dataset.dropped
        self._describe(dataset)
        return dataset

    @abstractmethod
    def _describe(self, dataset: Dataset) -> None:
        """Print a summary of the training data; raise InputError if it has no object to learn from."""

    def _trained_records(self, dataset: Dataset) -> Sequence[ImageRecord]:
        """Return the training images that can be trained on."""
        return dataset.records

    def _measured_coder(self) -> BoxCoder | None:
        """Return the coder of box targets whose constants are measured on the data, where the config asks."""
        return None

    @property
    def trained(self) -> nn.Module:
        """The part of the network whose parameters `step` uses."""
        return self.model

    def facts(self) -> dict[str, Any]:
        return {"images": len(self.records)}

    def counted(self) -> dict[str, int]:
        return {}

    def computing(self) -> AbstractContextManager[None]:
        return cuda_algorithms(self.device, deterministic=self.config.train.deterministic)

    @abstractmethod
    def batches(self, start: int) -> Generator[AnyBatch, None, None]:
        """Yield training batches endlessly, beginning with that of step ``start``."""

    @abstractmethod
    def count(self, batch: AnyBatch) -> int:
        """Return over how many losses a batch is to be averaged: its RoIs, or its images."""

    @abstractmethod
    def step(self, batch: AnyBatch, count: float | None = None) -> dict[str, Tensor]:
        """Return the losses of one batch, whose sum is minimised.

        ``count`` is that of the whole step, if the batch is a part of it.
        """

    @abstractmethod
    def image_losses(self, model: RegionDetector, batch: Batch) -> tuple[dict[str, Tensor], int]:
        """Return the losses of one image as sums, and how many losses, of RoIs or images, were added."""

    @torch.no_grad()
    def validation_losses(self, model: RegionDetector) -> dict[str, float]:
        """Return ``val_loss_cls`` and so on, for the images that choose best.pt, and their sum ``val_loss``.

        ``model`` is in evaluation mode. Each image is seen as in the first view of an evaluation, with the
        regions that a step would draw from it by a seed of its own. So the result does not change with the
        step, and every process computes its share of the images. Nothing is returned unless
        ``train.validation_loss`` asks for it, or if the images have no annotations. Nor is it, with a
        warning, if a loss is not finite.
        """
        images = self.scorer.validation or self.scorer.test_set
        if not self.config.train.validation_loss or not images.annotated:
            return {}
        model.eval()
        numbers = distributed.share(range(len(images.records)))
        batches = loaders.loss_batches(
            self.config,
            images.records,
            images.proposals,
            numbers,
            self.device,
            self.draw_regions,
            model,
        )
        names = ("loss_cls", "loss_box")
        rows = torch.zeros(len(numbers), 5, dtype=torch.float64)  # the count; both losses; which there are
        with closing(batches):
            for row, batch in zip(rows, batches, strict=True):
                losses, count = self.image_losses(model, batch)
                row[0] = count
                for place, name in enumerate(names):
                    if name in losses:
                        row[1 + place], row[3 + place] = losses[name], 1
        distributed.barrier()  # one process may take much longer than another
        parts = [list(part) for part in distributed.gather_rows(rows)]
        total = torch.stack(distributed.interleaved(parts)).sum(dim=0)
        means = zip(names, (total[1:3] / total[0].clamp(min=1)).tolist(), total[3:].tolist(), strict=True)
        known = {f"val_{name}": value for name, value, present in means if present}
        if not all(map(math.isfinite, known.values())):
            with said_once():
                note(f"warning: the validation loss is not finite, and is not logged: {known}")
            return {}
        return {"val_loss": sum(known.values()), **known}

    def autocast(self) -> torch.autocast:
        """Return the context that computes in ``train.precision``."""
        return autocast(self.device, self.number_type)
