"""What a run can train: each task is its data, its network, its losses and its score."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from detector.config import Config
from detector.core.structures import ImageRecord
from detector.engine.memory import PeakMemory
from detector.evaluation.operating_point import OperatingPoint
from detector.factory.weights import check_weights
from detector.tasks.classification import ClassificationTask
from detector.tasks.detection import DetectionTask


class Task(Protocol):
    """What ``TrainingRun`` drives; it knows loops, logs and checkpoints, and nothing of boxes.

    An evaluation has ``figures``, a dict for metrics.json; everything else about it is the task's own.
    ``validate`` scores on validation images, ``evaluate`` on the split that is kept for the end; ``pictures``
    are of the images of the first where there are any.
    """

    device: str
    classes: tuple[str, ...]
    data_fingerprint: dict[str, str]
    """What the data were, by role and split (`detector.tasks.resuming`)."""
    records: list[ImageRecord]
    """The images that are trained on."""

    @property
    def model(self) -> nn.Module: ...
    def facts(self) -> dict[str, Any]: ...
    def batches(self, start: int) -> Generator[Any, None, None]: ...
    def step(self, batch: Any) -> dict[str, Tensor]: ...
    def state(self) -> dict[str, Any]: ...
    def evaluate(self, memory: PeakMemory) -> Any: ...
    def validate(self, memory: PeakMemory) -> Any | None: ...
    def choose_point(self, validation: Any | None) -> OperatingPoint | None: ...
    def with_point(self, evaluation: Any, validation: Any | None, point: Any) -> Any: ...
    def say_point(self, point: Any, validation: Any | None) -> None: ...
    def pictures(self, evaluation: Any) -> list[np.ndarray]: ...
    def finish(self, folder: Path, evaluation: Any, seconds: float, memory: PeakMemory) -> None: ...


def build_task(config: Config, device: str, state: dict[str, Any] | None = None) -> Task:
    """Return the config's task, new or, with a checkpoint's ``state``, where that stands.

    Raises:
        InputError: weights that cannot be read, before hours are spent on proposals; anything of the data.
    """
    if state is None:
        check_weights(config)
    match config.task:
        case "detection":
            return DetectionTask(config, device, state)
        case "classification":
            return ClassificationTask(config, device, state)
