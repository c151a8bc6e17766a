"""Scoring a network on a split of the config's data set, and what is left of it on the disk."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detector.config import Config
from detector.core.errors import InputError, listed
from detector.core.files import file_name_of
from detector.core.progress import note, track
from detector.core.structures import Detections, ImageRecord
from detector.data.images import read_image
from detector.data.source import Dataset
from detector.engine.memory import PeakMemory
from detector.engine.run_files import note_pictures
from detector.evaluation.report import NOTHING_SCORED
from detector.evaluation.result_files import write_result_files
from detector.evaluation.voc import VocEvaluator
from detector.factory.data import build_source, class_names, ensure_data, load_split
from detector.factory.loaders import inference_views, naming
from detector.factory.model import build_predictor
from detector.factory.proposals import open_proposals, report_recall, stored_proposals, with_proposals
from detector.factory.validation import load_validation
from detector.models.detector import RegionDetector
from detector.proposals.store import ProposalStore
from detector.visualize import draw_detections, save_image

if TYPE_CHECKING:
    from detector.evaluation.coco import CocoEvaluator

COURSE = ("voc07_mAP", "voc_mAP", "AP", "AP50")
"""Figures whose course over a run is logged and drawn, those of them that an evaluation has."""
UNSCORED = -1.0
"""The headline of an evaluation without a figure; of such checkpoints the newest is kept as the best."""
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
    annotated: bool = True
    """False where nothing is known of any object: then there are result files and pictures, and no metric."""
    first_pixel: int = 1
    """The number of the first pixel in VOC result files."""
    coco: CocoEvaluator | None = None
    """Scores by COCO's rules too, where ``test.metric`` asks for that."""


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The outcome: figures for metrics.json, VOC's evaluator with its curves, detections by image id."""

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
    return read_test_set(config, split, known_classes(config, classes))


def read_test_set(config: Config, split: str, classes: Sequence[str]) -> TestSet:
    """As `open_test_set`, of a data set that is there and has these ``classes``."""
    return _test_set(config, split, load_split(config, split, classes, training=False))


def open_validation(config: Config, classes: Sequence[str]) -> TestSet | None:
    """Read the validation images, or the first ``test.max_images``, and the proposals; None without any.

    Raises:
        InputError: anything missing.
    """
    loaded = load_validation(config, classes)
    return None if loaded is None else _test_set(config, *loaded)


def _test_set(config: Config, split: str, dataset: Dataset) -> TestSet:
    records = dataset.records[: config.test.max_images]
    store = open_proposals(config, records, split)
    if dataset.annotated:
        report_recall(with_proposals(config, records, store), store, config, split)
    else:
        note(f"{split}: {NOTHING_SCORED}; result files will be written all the same")
    coco = coco_evaluator(config, split, dataset) if config.test.metric == "coco" else None
    return TestSet(
        split=split,
        records=records,
        store=store,
        classes=dataset.classes,
        annotated=dataset.annotated,
        first_pixel=config.data.first_pixel,
        coco=coco,
    )


def coco_evaluator(config: Config, split: str, dataset: Dataset) -> CocoEvaluator:
    """Return COCO's evaluator for a split; if its annotations are in COCO's format, it uses their ids."""
    from detector.evaluation.coco import CocoEvaluator, ground_truth_of

    own = build_source(config).coco_annotations(split, dataset.classes, config.data.train_split)
    truth = own or ground_truth_of(dataset.records, dataset.classes)
    return CocoEvaluator(truth, dataset.classes, dataset.coco_ids)


def known_classes(config: Config, classes: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the data set's class names; ``classes``, a checkpoint's, must be the same (InputError)."""
    found = class_names(config)
    if classes is not None and tuple(classes) != found:
        raise InputError(
            f"{config.data.root}: its classes are {listed(found)}, the checkpoint's are "
            f"{listed(classes)}; evaluate on data with the same classes"
        )
    return found


def evaluate(
    config: Config,
    model: RegionDetector,
    test_set: TestSet,
    device: str = "cpu",
    memory: PeakMemory | None = None,
) -> Evaluation:
    """Run the network over a split and score it by the VOC rules at IoU 0.5, and by COCO's if asked for.

    Of a split without annotations the figures are ``annotated: False``, without any metric.
    """
    source = stored_proposals(config, test_set.store, training=False)
    evaluator = VocEvaluator(test_set.records, test_set.classes)
    detections: dict[str, Detections] = {}
    model.eval()
    detect = build_predictor(config, model, device)
    started = time.perf_counter()
    views = inference_views(config, test_set.records, source, device)
    for image in track(views, len(test_set.records), f"testing on {test_set.split}"):
        image_id = image[0].metas[0].image_id
        with naming(image[0].metas):
            detections[image_id] = detect(image)
        evaluator.update([image_id], [detections[image_id]])
        if memory is not None and len(detections) % 20 == 1:
            memory.sample()
    seconds = time.perf_counter() - started
    figures = {
        **_all_figures(evaluator, test_set, detections),
        "split": test_set.split,
        "images": len(test_set.records),
        "seconds_per_image": seconds / len(test_set.records),
    }
    return Evaluation(figures=figures, evaluator=evaluator, detections=detections)


def _all_figures(voc: VocEvaluator, test_set: TestSet, detections: dict[str, Detections]) -> dict[str, Any]:
    """Return VOC's figures and, where asked for, COCO's beside them, in each class's row as well."""
    if test_set.coco is not None:  # one evaluator serves all evaluations of a run, and writes the results
        test_set.coco.reset()
        test_set.coco.update(list(detections), list(detections.values()))
    if not test_set.annotated:
        return {"annotated": False}
    figures: dict[str, Any] = voc.compute()
    if test_set.coco is None:
        return figures
    more: dict[str, Any] = test_set.coco.compute()
    rows = {name: {**more["per_class"][name], **row} for name, row in figures["per_class"].items()}
    return {**more, **figures, "per_class": rows}


def headline(config: Config, figures: dict[str, Any]) -> float:
    """Return the figure that chooses the best checkpoint, UNSCORED where there were no objects to find."""
    name = {"voc07": "voc07_mAP", "voc": "voc_mAP", "coco": "AP"}[config.test.metric]
    figure = float(figures.get(name, UNSCORED))
    return UNSCORED if math.isnan(figure) else figure


def write_evaluation(folder: Path, test_set: TestSet, evaluation: Evaluation) -> None:
    """Write VOC result files to ``folder/results`` and drawn images to ``folder/detections``.

    With COCO's evaluator also ``results/coco_SPLIT.json``, as COCO's server takes it.
    """
    write_result_files(
        folder / "results", evaluation.detections, test_set.classes, test_set.split, test_set.first_pixel
    )
    if test_set.coco is not None:
        name = file_name_of(f"coco_{test_set.split}.json")
        test_set.coco.write_results(folder / "results" / name)
    names, threshold = [], evaluation.figures.get("score_threshold")
    for record in test_set.records[:DRAWN]:
        found = evaluation.detections[record.image_id]
        image = read_image(record.path, (record.height, record.width))
        name = f"{file_name_of(record.image_id)}.jpg"
        save_image(folder / "detections" / name, draw_detections(image, found, test_set.classes, threshold))
        names.append(name)
    note_pictures(folder / "detections", names)
    note(f"wrote result files to {folder / 'results'} and pictures to {folder / 'detections'}")
