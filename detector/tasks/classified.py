"""Scoring a classifier of whole images on a split of the config's data set."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from detector.config import Config
from detector.core.progress import note, track
from detector.core.structures import Batch, ImageRecord
from detector.data.source import Dataset
from detector.engine.memory import PeakMemory
from detector.evaluation.classification import ClassificationEvaluator
from detector.evaluation.report import NOTHING_SCORED
from detector.factory.data import ensure_data, load_split
from detector.factory.loaders import inference_views, naming, no_proposals
from detector.factory.model import build_predictor
from detector.factory.validation import load_validation
from detector.models.detector import RegionDetector
from detector.tasks.evaluation import known_classes


@dataclass(frozen=True, kw_only=True)
class LabelledImages:
    """A split ready to be scored: records as annotated, and the class names."""

    split: str
    records: list[ImageRecord]
    classes: tuple[str, ...]
    annotated: bool = True
    """False where nothing is known of what is on any image: then there are result files, and no metric."""


@dataclass(frozen=True, kw_only=True)
class Classified:
    """The outcome: figures for metrics.json, the evaluator with its curves, scores (K,) by image id."""

    figures: dict[str, Any]
    evaluator: ClassificationEvaluator
    scores: dict[str, Tensor]


def open_images(config: Config, split: str, classes: Sequence[str] | None = None) -> LabelledImages:
    """Read a split; ``classes``, a checkpoint's, must be those of the data set.

    Raises:
        InputError: anything missing, or classes that differ.
    """
    ensure_data(config)
    found = known_classes(config, classes)
    return _labelled(config, split, load_split(config, split, found, training=False))


def open_validation_images(config: Config, classes: tuple[str, ...]) -> LabelledImages | None:
    """Read the validation images, or the first ``test.max_images``; None without any.

    Raises:
        InputError: anything missing.
    """
    loaded = load_validation(config, classes)
    return None if loaded is None else _labelled(config, *loaded)


def _labelled(config: Config, split: str, dataset: Dataset) -> LabelledImages:
    if not dataset.annotated:
        note(f"{split}: {NOTHING_SCORED}; result files will be written all the same")
    records = dataset.records[: config.test.max_images]
    return LabelledImages(split=split, records=records, classes=dataset.classes, annotated=dataset.annotated)


def classify_view(config: Config, model: RegionDetector, views: Sequence[Batch], device: str) -> Tensor:
    """Return the scores (K,) of one image, given as one batch of one sample a view."""
    with naming(views[0].metas):
        scores: Tensor = build_predictor(config, model, device)(views)
    return scores


def classify_images(
    config: Config,
    model: RegionDetector,
    images: LabelledImages,
    device: str = "cpu",
    memory: PeakMemory | None = None,
) -> Classified:
    """Run the network over whole images of any size and score it by the VOC rules for classification."""
    evaluator = ClassificationEvaluator(images.records, images.classes)
    scores: dict[str, Tensor] = {}
    model.eval()
    started = time.perf_counter()
    all_views = inference_views(config, images.records, no_proposals, device)
    for views in track(all_views, len(images.records), f"testing on {images.split}"):
        image_id = views[0].metas[0].image_id
        scores[image_id] = classify_view(config, model, views, device)
        evaluator.update([image_id], scores[image_id][None])
        if memory is not None and len(scores) % 20 == 1:
            memory.sample()
    figures = {
        **(evaluator.compute() if images.annotated else {"annotated": False}),
        "split": images.split,
        "images": len(images.records),
        "seconds_per_image": (time.perf_counter() - started) / len(images.records),
    }
    return Classified(figures=figures, evaluator=evaluator, scores=scores)
