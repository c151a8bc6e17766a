"""Scoring a network on a split of the config's data set, and what is left of it on the disk."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from detector.build.data import class_names, ensure_data, inference_views, load_split
from detector.build.model import build_postprocess
from detector.build.proposals import open_proposals, report_recall, stored_proposals, with_proposals
from detector.config import Config
from detector.data.images import read_image
from detector.engine.inference import detect
from detector.engine.memory import PeakMemory
from detector.errors import InputError
from detector.evaluation.result_files import write_result_files
from detector.evaluation.voc import VocEvaluator
from detector.models.detector import RegionDetector
from detector.progress import note, track
from detector.proposals.store import ProposalStore
from detector.structures import Detections, ImageRecord
from detector.visualize import draw_detections, save_image

DRAWN = 16
"""How many of a split's images are drawn with their detections."""


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """A split ready to be scored: records as annotated, their proposals, the class names."""

    __test__ = False

    split: str
    records: list[ImageRecord]
    store: ProposalStore
    classes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The outcome: figures for metrics.json, the evaluator with its curves, detections by image id."""

    figures: dict[str, Any]
    evaluator: VocEvaluator
    detections: dict[str, Detections]


def open_test_set(config: Config, split: str, classes: Sequence[str] | None = None) -> TestSet:
    """Read a split, or its first ``test.max_images``, and the proposals; ``classes``, a checkpoint's, must
    be those of the data set.

    Raises:
        InputError: anything missing, or classes that differ.
    """
    ensure_data(config)
    found = known_classes(config, classes)
    records = load_split(config, split, found, training=False).records[: config.test.max_images]
    store = open_proposals(config, records, split)
    report_recall(with_proposals(config, records, store), store, config, split)
    return TestSet(split=split, records=records, store=store, classes=found)


def known_classes(config: Config, classes: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the data set's class names; ``classes``, a checkpoint's, must be the same (InputError)."""
    found = class_names(config)
    if classes is not None and tuple(classes) != found:
        raise InputError(
            f"{config.data.root}: its classes are {', '.join(found)}, the checkpoint's are "
            f"{', '.join(classes)}; evaluate on data with the same classes"
        )
    return found


def evaluate(
    config: Config,
    model: RegionDetector,
    test_set: TestSet,
    device: str = "cpu",
    memory: PeakMemory | None = None,
) -> Evaluation:
    """Run the network over a split and score it by the VOC rules at IoU 0.5."""
    source = stored_proposals(config, test_set.store, training=False)
    postprocess = build_postprocess(config, model.box_coder)
    evaluator = VocEvaluator(test_set.records, test_set.classes)
    precision = torch.bfloat16 if config.test.precision == "bfloat16" else torch.float32
    detections: dict[str, Detections] = {}
    model.eval()
    started = time.perf_counter()
    views = inference_views(config, test_set.records, source)
    for image in track(views, len(test_set.records), f"testing on {test_set.split}"):
        image_id = image[0].metas[0].image_id
        detections[image_id] = detect(
            model, image, postprocess, device, precision, config.test.refinements, config.test.scale_rule
        )
        evaluator.update([image_id], [detections[image_id]])
        if memory is not None and len(detections) % 20 == 1:
            memory.sample()
    seconds = time.perf_counter() - started
    figures = {
        **evaluator.compute(),
        "split": test_set.split,
        "images": len(test_set.records),
        "seconds_per_image": seconds / len(test_set.records),
    }
    return Evaluation(figures=figures, evaluator=evaluator, detections=detections)


def headline(config: Config, figures: dict[str, Any]) -> float:
    """Return the figure that chooses the best checkpoint."""
    return float(figures["voc07_mAP" if config.test.metric == "voc07" else "voc_mAP"])


def write_evaluation(folder: Path, test_set: TestSet, evaluation: Evaluation) -> None:
    """Write VOC result files to ``folder/results`` and drawn images to ``folder/detections``."""
    write_result_files(folder / "results", evaluation.detections, test_set.classes, test_set.split)
    for record in test_set.records[:DRAWN]:
        found = evaluation.detections[record.image_id]
        image = read_image(record.path, (record.height, record.width))
        name = f"{record.image_id.replace('/', '_')}.jpg"
        save_image(folder / "detections" / name, draw_detections(image, found, test_set.classes))
    note(f"wrote VOC result files to {folder / 'results'} and pictures to {folder / 'detections'}")
