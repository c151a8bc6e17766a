"""What all tasks share in scoring a network: splits, evaluation, score threshold, result files, reports.

A `Scorer` runs a network over the images of a split, in training, in ``tools/evaluate.py`` and in staged
training alike. `detector.tasks.detection` and `detector.tasks.classification` have one each.
"""

from __future__ import annotations

import math
import shlex
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from detector.config import Config
from detector.core import distributed
from detector.core.errors import InputError, listed
from detector.core.files import file_name_of
from detector.core.progress import note, show, track
from detector.core.structures import ImageRecord, ProposalSource
from detector.data.source import Dataset
from detector.engine.checkpoint import load_checkpoint
from detector.engine.inference import RegionPredictor, number_type
from detector.engine.memory import peak_memory
from detector.engine.run import UNSCORED, Assessment
from detector.engine.run_folder import note_pictures
from detector.engine.run_log import read_log
from detector.evaluation.average_precision import PrecisionRecall
from detector.evaluation.operating_point import OperatingPoint, at_threshold
from detector.evaluation.report import NOTHING_SCORED, metrics_shown, write_json
from detector.factory.data import class_names, load_split, load_validation
from detector.factory.loaders import inference_views, naming
from detector.factory.model import Predictor, build_predictor
from detector.models.detector import RegionDetector

if TYPE_CHECKING:
    from detector.evaluation.coco import CocoEvaluator

HISTORY = ("voc07_mAP", "voc_mAP", "AP", "AP50")
"""Metrics whose history over a run is logged and drawn, if an evaluation has them."""
DRAWN = 16
"""How many of a split's images are drawn with their results."""
NO_VALIDATION = "there are no validation images: data.val_split and train.validation_fraction name none"
"""What is wrong with a config that has none where some are needed."""

Result = TypeVar("Result")
"""What a network predicts for one image: `Detections`, or the scores (K,) of a classifier."""
Series = list[tuple[float, float]]
"""(step, value) pairs."""


class Evaluator(Protocol):
    """The comparison of a network's results with the annotations."""

    def precision_recall(self) -> dict[str, PrecisionRecall]: ...
    def compute(self) -> dict[str, Any]: ...


@dataclass(frozen=True, kw_only=True)
class TestSet:
    """A split ready to be scored: records as annotated, their proposals, the class names."""

    __test__ = False

    split: str
    records: Sequence[ImageRecord]
    classes: tuple[str, ...]
    proposals: ProposalSource
    annotated: bool = True
    """False for a split without annotations, which has result files and pictures, and no metrics."""
    coco: CocoEvaluator | None = None
    """Scores detections by COCO's rules too, where ``test.metric`` asks for that."""


@dataclass(frozen=True, kw_only=True)
class Evaluation(Generic[Result]):
    """Metrics, as metrics.json records them; the evaluator, with its curves; and the results by image id."""

    metrics: dict[str, Any]
    evaluator: Evaluator
    results: dict[str, Result]

    def history(self) -> dict[str, float]:
        return {name: value for name, value in self.metrics.items() if name in HISTORY}

    def summary(self) -> str:
        return ", ".join(f"{name} {value:.4f}" for name, value in self.history().items()) or NOTHING_SCORED

    def at_threshold(self, score_threshold: float | None) -> Evaluation[Result]:
        """Return this evaluation with the metrics at ``score_threshold`` added, if it is not None."""
        if score_threshold is None:
            return self
        metrics = {**self.metrics, "score_threshold": score_threshold}
        curves = self.evaluator.precision_recall().values()
        point = at_threshold(curves, metrics["images"], score_threshold)
        if point is not None:
            metrics["at_score_threshold"] = asdict(point)
        return replace(self, metrics=metrics)

    def with_raw(self, raw: Evaluation[Result] | None) -> Evaluation[Result]:
        """Return this evaluation, of averaged weights, with an entry ``raw_weights`` for the raw ones."""
        if raw is None:
            return self
        return replace(self, metrics={**self.metrics, "raw_weights": raw.brief()})

    def brief(self) -> dict[str, Any]:
        """Return the metrics that an evaluation of other images, or of other weights, records of this one."""
        kept = ("split", "annotated", "voc07_mAP", "voc_mAP", "AP", "AP50", "images")
        return {name: self.metrics[name] for name in kept if name in self.metrics}

    def with_validation(
        self, validation: Evaluation[Result], point: OperatingPoint | None
    ) -> Evaluation[Result]:
        """Return this evaluation on test images with the outcome of the validation images added.

        The metrics get an entry ``validation``: the metrics on those images, and ``point``, which was chosen
        on them. Its threshold is then applied to the test images.
        """
        metrics = validation.brief() | (asdict(point) if point else {})
        chosen = replace(self, metrics={**self.metrics, "validation": metrics})
        return chosen.at_threshold(point.score_threshold if point else None)


def known_classes(config: Config, classes: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the data set's class names.

    Raises:
        InputError: ``classes``, a checkpoint's, are not the same.
    """
    known = class_names(config)
    if classes is not None and tuple(classes) != known:
        raise InputError(
            f"{config.data.root}: its classes are {listed(known)}, the checkpoint's are "
            f"{listed(classes)}; evaluate on data with the same classes"
        )
    return known


class Scorer(ABC, Generic[Result]):
    """Scores networks of one task on splits of the config's data set, and writes the results."""

    pictures_folder: ClassVar[str]
    """The folder of the drawn images, in a run's."""

    def __init__(
        self,
        config: Config,
        device: str,
        classes: tuple[str, ...],
        split: str | None = None,
        *,
        only_validation: bool = False,
    ) -> None:
        """Read ``split`` only, or all that a run is scored on: its test split and its validation images.

        ``only_validation`` reads only the run's validation images, as ``test_set``. ``classes`` are the data
        set's. Of each split the first ``test.max_images`` are taken.

        Raises:
            InputError: the data are missing or faulty, or there are no validation images.
        """
        self.config = config
        self.device = device
        number_type(config.test.precision, device, "test.precision")  # its error should come before hours
        self.classes = classes
        if only_validation:
            with distributed.main_first():
                images = load_validation(config, classes)
            if images is None:
                raise InputError(NO_VALIDATION)
            self.test_set, self.validation = self._open(*images), None
            return
        scored = split or config.train.evaluate_split or config.data.test_split
        with distributed.main_first():
            dataset = load_split(config, scored, classes, training=False)
            loaded = load_validation(config, classes) if split is None else None
        self.test_set = self._open(scored, dataset)
        self.validation = None if loaded is None else self._open(*loaded)

    def _open(self, split: str, dataset: Dataset) -> TestSet:
        records = dataset.records[: self.config.test.max_images]
        proposals = self._proposals(split, records, annotated=dataset.annotated)
        if not dataset.annotated:
            note(f"{split}: {NOTHING_SCORED}; only result files and pictures are written")
        return TestSet(
            split=split,
            records=records,
            classes=dataset.classes,
            proposals=proposals,
            annotated=dataset.annotated,
            coco=self._coco_evaluator(split, dataset),
        )

    def evaluate(
        self, model: RegionDetector, test_set: TestSet | None = None, save_scores: Path | None = None
    ) -> Evaluation[Result]:
        """Run the network over ``test_set``, by default the test split, and score its results.

        For a split without annotations, the metrics hold ``annotated: False`` instead of scores.
        ``save_scores`` names a file for all scores of all regions (`detector.evaluation.region_scores`).
        """
        test_set = test_set or self.test_set
        started = time.perf_counter()
        predictor = build_predictor(self.config, model.eval(), self.device)
        results = self._predicted(self._predicting(predictor, test_set, save_scores), test_set)
        evaluator = self._compare(test_set, results)
        seconds = time.perf_counter() - started
        more = {"seconds_per_image": seconds / len(test_set.records), **_masks_of(predictor)}
        return self._evaluation(evaluator, results, test_set, more)

    def compare(self, results: dict[str, Result], test_set: TestSet | None = None) -> Evaluation[Result]:
        """Score ``results``, by image id, of ``test_set``, by default the test split."""
        test_set = test_set or self.test_set
        return self._evaluation(self._compare(test_set, results), results, test_set, {})

    def _evaluation(
        self, evaluator: Evaluator, results: dict[str, Result], test_set: TestSet, more: dict[str, Any]
    ) -> Evaluation[Result]:
        metrics = {
            **(self._metrics(evaluator, test_set) if test_set.annotated else {"annotated": False}),
            "split": test_set.split,
            "images": len(test_set.records),
            **more,
        }
        return Evaluation(metrics=metrics, evaluator=evaluator, results=results)

    def predicted(self, predict: Callable[[Any], Result], test_set: TestSet) -> dict[str, Result]:
        """Return what ``predict`` gives for the views of each image; every process does its share of them."""
        return self._predicted(nullcontext(predict), test_set)

    def _predicted(
        self, predicting: AbstractContextManager[Callable[[Any], Result]], test_set: TestSet
    ) -> dict[str, Result]:
        records = distributed.share(test_set.records)
        own: list[Result] = []
        views = inference_views(self.config, records, test_set.proposals, self.device)
        # `closing` ends the threads that load images, also after an error.
        with closing(views), predicting as predict:
            for image in track(views, len(records), f"testing on {test_set.split}"):
                with naming(image[0].metas):
                    own.append(predict(image))
        counts, rows = self._packed(own)
        distributed.barrier()  # one process may take much longer than another
        gathered = zip(distributed.gather_rows(counts), distributed.gather_rows(rows), strict=True)
        every = distributed.interleaved([self._unpacked(*part) for part in gathered])
        return {record.image_id: result for record, result in zip(test_set.records, every, strict=True)}

    def assess(
        self, model: RegionDetector, *, last: bool, raw: RegionDetector | None = None
    ) -> Assessment[Evaluation[Result]]:
        """Score the network on the validation images and, if ``last`` or without any, on the test images.

        The score threshold is chosen on the validation images, and applied to the test images. ``raw``, the
        network with the raw weights where ``model`` has averaged ones, is scored on the first of the two.
        """
        # First: the evaluator of COCO's metrics keeps the results of the last evaluation for their files.
        of_raw = None if raw is None else self.evaluate(raw, self.validation)
        validation = None if self.validation is None else self.evaluate(model, self.validation)
        point = self.choose_point(validation)
        test = None
        if last or validation is None:
            test = self.evaluate(model)
            test = test if validation is None else test.with_validation(validation, point)
            test = test.with_raw(of_raw)
        if last:
            self.note_point(point, validation)
        chosen_by = test if validation is None else validation
        assert chosen_by is not None  # without validation images the test images were scored
        return Assessment(
            chosen_by=chosen_by,
            test=test,
            headline=headline(self.config, chosen_by.metrics),
            score_threshold=point.score_threshold if point else None,
            raw=of_raw,
        )

    def pictures(self, evaluation: Evaluation[Result]) -> list[np.ndarray]:
        """Return ``train.draw_images`` images with their results: validation images where there are any."""
        records = (self.validation or self.test_set).records[: self.config.train.draw_images]
        return [self._draw(record, evaluation.results[record.image_id]) for record in records]

    def write_results(self, folder: Path, evaluation: Evaluation[Result]) -> None:
        """Write result files to ``folder/results`` and drawn images beside it."""
        from detector.visualize import save_image  # matplotlib takes a third of a second to import

        self._write_files(folder / "results", evaluation)
        names, threshold = [], evaluation.metrics.get("score_threshold")
        place = folder / self.pictures_folder
        for record in self.test_set.records[:DRAWN]:
            names.append(f"{file_name_of(record.image_id)}.jpg")
            save_image(place / names[-1], self._draw(record, evaluation.results[record.image_id], threshold))
        note_pictures(place, names)
        note(f"wrote result files to {folder / 'results'} and pictures to {place}")

    def finish(
        self,
        folder: Path,
        checkpoint: Path,
        evaluation: Evaluation[Result],
        costs: Mapping[str, float],
    ) -> None:
        """Write the results of a finished run: result files, pictures, ``metrics.json`` and ``run.png``.

        Then print the metrics, and the command that uses ``checkpoint``, the run's best one. ``costs`` are
        added to the metrics: ``seconds`` and others.
        """
        from detector.visualize import run_charts, save_image

        self.write_results(folder, evaluation)
        metrics = {**evaluation.metrics, **costs, **peak_memory(self.device)}
        losses, history = run_history(folder)
        charts = run_charts(
            losses=losses,
            evaluations=history,
            pr_curves=evaluation.evaluator.precision_recall() if self.test_set.annotated else {},
            metrics=metrics,
            classes=self.classes,
            title=f"{folder.name}: {self.config.model.backbone.name} on {Path(self.config.data.root).name}",
        )
        examples = self._draw_examples(evaluation, charts.shape[1])
        save_image(folder / "run.png", np.concatenate((charts, examples)))
        write_json(folder / "metrics.json", metrics)
        note(f"wrote {folder / 'metrics.json'} and {folder / 'run.png'}")
        show(metrics_shown(metrics))
        self.recommend(folder, checkpoint)

    def recommend(self, folder: Path, checkpoint: Path) -> None:
        """Print which device a finished run used, which checkpoint is its best, and the command that uses it.

        ``best.pt`` may be of an earlier step than the last, with a score threshold of its own.
        """
        state = load_checkpoint(checkpoint)
        held = f"of step {state['step']}{self._threshold_shown(state.get('score_threshold'))}"
        device = self.device
        if torch.device(device).type == "cuda":
            device += f" ({torch.cuda.get_device_name(device)})"
        note(f"trained on {device}; the checkpoint to use is {checkpoint}, {held}")
        command = ["python", "tools/demo.py", "--checkpoint", str(checkpoint), "photos/"]
        note(f"run it on photographs: {shlex.join([*command, '--output', str(folder / 'photos')])}")

    # What tasks differ in:

    def _predicting(
        self, predictor: Callable[[Any], Result], test_set: TestSet, save_scores: Path | None
    ) -> AbstractContextManager[Callable[[Any], Result]]:
        """Return what provides the function that predicts an image, and saves all scores if asked to.

        Raises InputError where a task has no regions whose scores could be saved.
        """
        if save_scores is not None:
            raise InputError(f"{save_scores}: this task scores whole images; there are no regions to save")
        return nullcontext(predictor)

    def choose_point(self, validation: Evaluation[Result] | None) -> OperatingPoint | None:
        """Return the operating point at which to use the network; None if the task chooses none."""
        return None

    def note_point(self, point: OperatingPoint | None, validation: Evaluation[Result] | None) -> None:
        """Print which score threshold is stored, or why none is, where the task chooses one."""

    def _threshold_shown(self, score_threshold: float | None) -> str:
        """Return a checkpoint's score threshold as a part of a sentence, where the task chooses one."""
        return ""

    def _coco_evaluator(self, split: str, dataset: Dataset) -> CocoEvaluator | None:
        return None

    @abstractmethod
    def _proposals(self, split: str, records: Sequence[ImageRecord], *, annotated: bool) -> ProposalSource:
        """Return where the proposals of a split's images come from."""

    @abstractmethod
    def _packed(self, results: Sequence[Result]) -> tuple[Tensor, Tensor]:
        """Return the results of n images as rows of one tensor, and how many rows (n,) each has."""

    @abstractmethod
    def _unpacked(self, counts: Tensor, rows: Tensor) -> list[Result]:
        """Return the results of which `_packed` made ``counts`` and ``rows``."""

    @abstractmethod
    def _compare(self, test_set: TestSet, results: dict[str, Result]) -> Evaluator:
        """Compare the results with the annotations."""

    def _metrics(self, evaluator: Evaluator, test_set: TestSet) -> dict[str, Any]:
        return evaluator.compute()

    @abstractmethod
    def _draw(self, record: ImageRecord, result: Result, score_threshold: float | None = None) -> np.ndarray:
        """Return an image (H, W, 3), uint8 RGB, with its result."""

    @abstractmethod
    def _write_files(self, folder: Path, evaluation: Evaluation[Result]) -> None:
        """Write the result files that other tools read."""

    @abstractmethod
    def _draw_examples(self, evaluation: Evaluation[Result], width: int) -> np.ndarray:
        """Return images with their results, (h, ``width``, 3) uint8 RGB, to be shown below the charts."""


def _masks_of(predict: Predictor) -> dict[str, int]:
    """Return how many regions were pooled by masks, in all views, and how many of them as their boxes.

    Nothing is returned if there were none.
    """
    if not isinstance(predict, RegionPredictor):
        return {}
    regions, fallbacks = map(int, distributed.total(predict.masks.regions, predict.masks.fallbacks))
    if fallbacks:
        note(f"{fallbacks} of {regions} regions have a mask that covers no cell centre: pooled as boxes")
    return {"masked_regions": regions, "mask_fallbacks": fallbacks} if regions else {}


def headline(config: Config, metrics: dict[str, Any]) -> float:
    """Return the metric that chooses the best checkpoint, or UNSCORED if no object counts."""
    name = {"voc07": "voc07_mAP", "voc": "voc_mAP", "coco": "AP"}[config.test.metric]
    value = float(metrics.get(name, UNSCORED))
    return UNSCORED if math.isnan(value) else value


def run_history(folder: Path) -> tuple[dict[str, Series], dict[str, Series]]:
    """Return the history of a run's losses, and of its metrics where it was evaluated more than once."""
    records = read_log(folder / "log.jsonl")
    evaluations = _series(records, "evaluate", (*HISTORY, *(f"raw_{name}" for name in HISTORY)))
    several = {name: series for name, series in evaluations.items() if len(series) > 1}
    losses = _series(records, "train", ("loss",)) | _series(records, "evaluate", ("val_loss",))
    return losses, several


def _series(records: list[dict[str, Any]], kind: str, starts: tuple[str, ...]) -> dict[str, Series]:
    """Return each value whose name begins with one of ``starts`` as (step, value) pairs."""
    chosen = [record for record in records if record["kind"] == kind]
    names = {name: None for record in chosen for name in record if name.startswith(starts)}
    return {
        name: [(record["step"], record[name]) for record in chosen if _is_number(record.get(name))]
        for name in names
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300
