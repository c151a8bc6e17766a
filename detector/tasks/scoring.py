"""A checkpoint scored on a split: what ``tools/evaluate.py`` does for each task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detector.config import Config
from detector.data.loader import workers_watched
from detector.engine.determinism import cuda_algorithms
from detector.engine.memory import PeakMemory
from detector.factory.model import restore_model
from detector.tasks.classification_report import write_classes
from detector.tasks.classified import classify_images, open_images
from detector.tasks.evaluation import evaluate, open_test_set, write_evaluation
from detector.tasks.operating import at_own_threshold


@workers_watched()
def score_checkpoint(
    config: Config, checkpoint: dict[str, Any], source: str, split: str, folder: Path, device: str
) -> dict[str, Any]:
    """Return the figures of a checkpoint read from ``source``; write result files and pictures to ``folder``.

    Raises:
        InputError: a checkpoint of another network, task or classes than the config's, or missing data.
    """
    model = restore_model(config, checkpoint, source).to(device)
    memory = PeakMemory(device)
    algorithms = cuda_algorithms(device, deterministic=config.train.deterministic)  # those of training
    if config.task == "classification":
        images = open_images(config, split, checkpoint["classes"])
        with algorithms:
            classified = classify_images(config, model, images, device, memory)
        write_classes(folder, images, classified)
        figures = classified.figures
    else:
        test_set = open_test_set(config, split, checkpoint["classes"])
        with algorithms:
            evaluation = evaluate(config, model, test_set, device, memory)
        write_evaluation(folder, test_set, evaluation)
        figures = at_own_threshold(evaluation, checkpoint.get("score_threshold")).figures
    return {**figures, **memory.figures()}
