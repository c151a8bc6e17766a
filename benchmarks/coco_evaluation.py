"""Time and memory of an evaluation of COCO's size: this project, pycocotools and faster-coco-eval.

    python benchmarks/coco_evaluation.py                 5,000 images, 80 classes, 100 detections per image
    python benchmarks/coco_evaluation.py --images 500    a quick run

Ground truth as in COCO's val2017 is drawn at random: about 36,000 objects with its range of sizes, its
uneven frequencies of classes and its share of crowd regions. The detections are objects with shifted edges
and random boxes; their scores have three decimals, so that many are equal. Each evaluator gets the same
ground truth, as the dictionary of an annotation file, and the same `Detections`, and returns the twelve
metrics and the metrics of each class. The numbers of this project must equal those of pycocotools in every
digit; otherwise the benchmark fails.

The evaluators run alternately in one process, in both orders; the table shows the medians and the medians of
the ratios within a round. The memory is the growth of the peak of a fresh process. faster-coco-eval is no
dependency of this project; without it, its rows are left out.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import io
import math
import multiprocessing
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.paired import seconds
from detector.core.records import Objects, Records, Texts
from detector.core.structures import Detections
from detector.evaluation.coco import CocoEvaluator, GroundTruth, ground_truth_of
from detector.evaluation.coco_results import to_results
from detector.evaluation.operating_point import best_f1
from detector.evaluation.report import COCO_METRICS
from detector.evaluation.result_files import read_result_files, write_result_files
from detector.evaluation.voc import VocEvaluator

HEIGHT, WIDTH = 480, 640
OBJECTS_PER_IMAGE = 7.3  # val2017: 36,781 objects in 5,000 images
CROWDS = 0.012  # val2017: 446 of the objects
MASK = 0.6  # the annotated area is that of a polygon, which is smaller than the box
Metrics = dict[str, Any]


class Case(NamedTuple):
    """A data set and its detections, image after image; the classes' names in the order of the labels."""

    records: Records
    truth: GroundTruth
    classes: tuple[str, ...]
    image_ids: dict[str, int]
    detections: list[Detections]


def main() -> None:
    arguments = parse_arguments()
    size = (arguments.images, arguments.classes, arguments.detections, arguments.seed)
    case = make_case(*size)
    objects = case.records.objects
    print(
        f"{len(case.records)} images, {len(case.classes)} classes, {len(objects)} objects, "
        f"{objects.crowd.sum()} of them crowds, {sum(map(len, case.detections))} detections"
    )
    evaluators: dict[str, Callable[[Case], Metrics]] = {"pycocotools": by_pycocotools}
    if importlib.util.find_spec("faster_coco_eval") is not None:
        evaluators["faster-coco-eval"] = by_faster_coco_eval
    evaluators["this project, COCO's rules"] = by_this_project
    evaluators["this project, VOC's rules"] = by_voc
    results = {name: evaluate(case) for name, evaluate in evaluators.items()}
    check(results)
    times = alternate({name: partial(one, case) for name, one in evaluators.items()}, arguments.rounds)
    memory = {name: peak_memory(evaluate, size) for name, evaluate in evaluators.items()}
    Console(width=110).print(as_table(times, memory))
    for name, took in parts(case).items():
        print(f"  {name}: {took:.2f} s")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--detections", type=int, default=100, help="per image")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def make_case(images: int, classes: int, detections: int, seed: int) -> Case:
    """Draw ground truth and detections. Image and category ids have gaps, as COCO's have."""
    draw = np.random.default_rng(seed)
    names = tuple(f"class {label}" for label in range(1, classes + 1))
    frequency = 1 / np.arange(1, classes + 1)
    frequency /= frequency.sum()
    counts = draw.geometric(1 / (OBJECTS_PER_IMAGE + 1), images) - 1
    total = int(counts.sum())
    boxes = random_boxes(draw, total)
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    objects = Objects(
        offsets=np.concatenate(([0], np.cumsum(counts))),
        boxes=boxes,
        labels=draw.choice(classes, total, p=frequency) + 1,
        difficult=np.zeros(total, dtype=bool),
        crowd=draw.random(total) < CROWDS,
        area=(MASK * width * height).astype(np.float32),
    )
    ids = np.sort(draw.choice(20 * images, images, replace=False)) + 1
    texts = Texts.of(str(one) for one in ids)
    sizes = np.full((images, 2), (HEIGHT, WIDTH), np.int32)
    records = Records(folder=Path(), files=texts, image_ids=texts, keys=texts, sizes=sizes, objects=objects)
    truth = with_ids(
        ground_truth_of(records, names), ids.tolist(), [label + label // 9 for label in range(classes + 1)]
    )
    found = [
        random_detections(draw, records.objects, number, detections, frequency) for number in range(images)
    ]
    return Case(records, truth, names, {str(one): int(one) for one in ids}, found)


def with_ids(truth: GroundTruth, image_ids: Sequence[int], category_ids: Sequence[int]) -> GroundTruth:
    """Return ``truth`` with image n renamed to ``image_ids[n - 1]`` and category k to ``category_ids[k]``."""
    return {
        "images": [{**one, "id": image_ids[one["id"] - 1]} for one in truth["images"]],
        "categories": [{**one, "id": category_ids[one["id"]]} for one in truth["categories"]],
        "annotations": [
            {
                **one,
                "id": number,
                "image_id": image_ids[one["image_id"] - 1],
                "category_id": category_ids[one["category_id"]],
            }
            for number, one in enumerate(truth["annotations"], start=1)
        ],
    }


def random_boxes(draw: np.random.Generator, count: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return boxes (count, 4) inside the image: about 41 % small, 34 % medium and 25 % large, as in COCO."""
    side = np.exp(draw.normal(math.log(52), 1.0, count))
    ratio = np.exp(draw.normal(0, 0.4, count))
    sides = np.stack((side * ratio, side / ratio), axis=1).clip(4, (WIDTH, HEIGHT))
    corners = draw.random((count, 2)) * ((WIDTH, HEIGHT) - sides)
    return np.concatenate((corners, corners + sides), axis=1).astype(np.float32)


def random_detections(
    draw: np.random.Generator,
    objects: Objects,
    number: int,
    count: int,
    frequency: np.ndarray[Any, np.dtype[np.float64]],
) -> Detections:
    """Return detections of image ``number``: up to half of them are its objects with shifted edges."""
    at = slice(int(objects.offsets[number]), int(objects.offsets[number + 1]))
    boxes = random_boxes(draw, count)
    labels = draw.choice(len(frequency), count, p=frequency) + 1
    scores = draw.beta(1, 6, count)
    copies = min(3 * (at.stop - at.start), count // 2)
    if copies:
        chosen = at.start + np.arange(copies) % (at.stop - at.start)
        near = objects.boxes[chosen]
        sides = np.tile(near[:, 2:] - near[:, :2], 2)
        boxes[:copies] = near + draw.normal(0, 0.08, (copies, 4)) * sides
        labels[:copies] = np.where(draw.random(copies) < 0.85, objects.labels[chosen], labels[:copies])
        scores[:copies] = draw.beta(3, 3, copies)
    scores = scores.round(3)
    order = np.argsort(-scores, kind="stable")
    return Detections(
        boxes=torch.from_numpy(boxes[order]),
        scores=torch.from_numpy(scores[order].astype(np.float32)),
        labels=torch.from_numpy(labels[order].astype(np.int64)),
    )


def by_this_project(case: Case) -> Metrics:
    evaluator = CocoEvaluator(case.truth, case.classes, case.image_ids)
    evaluator.update(list(case.image_ids), case.detections)
    return evaluator.compute()


def by_voc(case: Case) -> Metrics:
    evaluator = VocEvaluator(case.records, case.classes)
    evaluator.update(list(case.image_ids), case.detections)
    best_f1(evaluator.precision_recall().values(), len(case.records))
    return evaluator.compute()


def by_pycocotools(case: Case) -> Metrics:
    return by_coco_api(
        case, importlib.import_module("pycocotools.coco").COCO, "pycocotools.cocoeval", "COCOeval"
    )


def by_faster_coco_eval(case: Case) -> Metrics:
    package = importlib.import_module("faster_coco_eval")
    return by_coco_api(case, package.COCO, "faster_coco_eval", "COCOeval_faster")


def by_coco_api(case: Case, index: Any, module: str, name: str) -> Metrics:
    """Evaluate with pycocotools' interface: ``index`` is a class COCO, ``name`` that of the evaluator."""
    evaluator = getattr(importlib.import_module(module), name)
    by_name = {one["name"]: one["id"] for one in case.truth["categories"]}
    ids = [by_name[one] for one in case.classes]
    results = [
        one
        for image_id, found in zip(case.image_ids.values(), case.detections, strict=True)
        for one in to_results(image_id, found, ids)
    ]
    for number, one in enumerate(results, start=1):
        one.update(id=number, area=one["bbox"][2] * one["bbox"][3], iscrowd=0)
    with contextlib.redirect_stdout(io.StringIO()):
        truth, detections = index(), index()
        truth.dataset = {**case.truth, "annotations": [dict(one) for one in case.truth["annotations"]]}
        detections.dataset = {**case.truth, "annotations": results}
        truth.createIndex()
        detections.createIndex()
        evaluation = evaluator(truth, detections, "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    metrics: Metrics = dict(zip(COCO_METRICS, evaluation.stats, strict=False))
    precision = evaluation.eval["precision"][:, :, :, 0, -1]
    metrics["per_class"] = {
        name: {"AP": mean_or_nan(precision[:, :, column]), "AP50": mean_or_nan(precision[0, :, column])}
        for column, name in enumerate(case.classes)
    }
    return metrics


def mean_or_nan(precision: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    return float(precision.mean()) if (precision > -1).all() else math.nan


def differences(ours: Metrics, theirs: Metrics) -> dict[str, float]:
    """Return the numbers that are not the same in every digit, with how far apart they are."""
    pairs = {name: (ours[name], theirs[name]) for name in COCO_METRICS}
    for name, row in theirs["per_class"].items():
        pairs |= {f"{key} of {name}": (ours["per_class"][name][key], row[key]) for key in ("AP", "AP50")}
    return {
        name: abs(a - b) for name, (a, b) in pairs.items() if a != b and not (math.isnan(a) and math.isnan(b))
    }


def check(results: dict[str, Metrics]) -> None:
    """Print whether the metrics equal those of pycocotools. Exits if this project's do not."""
    expected = results["pycocotools"]
    total = len(COCO_METRICS) + 2 * len(expected["per_class"])
    for name, metrics in results.items():
        if "AP" not in metrics or name == "pycocotools":
            continue
        different = differences(metrics, expected)
        largest = f", the largest difference is {max(different.values()):.1e}" if different else ""
        print(
            f"{name}: {total - len(different)} of {total} numbers equal pycocotools' in every digit{largest}"
        )
        if different and "this project" in name:
            raise SystemExit(f"different: {different}")


def alternate(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each function in each round; every second round runs in the opposite order."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds):
        for name in list(functions)[:: -1 if number % 2 else 1]:
            times[name].append(seconds(functions[name]))
    return times


def peak_memory(evaluate: Callable[[Case], Metrics], size: tuple[int, int, int, int]) -> float:
    """Return by how many MiB the peak of a fresh process grows while it evaluates (Linux)."""
    context = multiprocessing.get_context("spawn")
    answers = context.SimpleQueue()
    process = context.Process(target=measure_memory, args=(evaluate, size, answers))
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(f"the process that measures the memory ended with {process.exitcode}")
    return answers.get()


def measure_memory(
    evaluate: Callable[[Case], Metrics], size: tuple[int, int, int, int], answers: Any
) -> None:
    evaluate(make_case(20, size[1], 10, 1))  # imports and first calls
    case = make_case(*size)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts at the present size
    before = status("VmRSS")
    evaluate(case)
    answers.put((status("VmHWM") - before) / 1024)


def status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def as_table(times: dict[str, list[float]], memory: dict[str, float]) -> Table:
    table = Table("evaluator", "seconds", "times as fast as pycocotools", "memory, MiB")
    for name, took in times.items():
        ratio = statistics.median(a / b for a, b in zip(times["pycocotools"], took, strict=True))
        table.add_row(name, f"{statistics.median(took):.2f}", f"{ratio:.1f}", f"{memory[name]:.0f}")
    return table


def parts(case: Case) -> dict[str, float]:
    """Return the seconds of each step of an evaluation by this project."""
    ids, images = list(case.image_ids), len(case.records)
    took: dict[str, float] = {}

    def timed(name: str, function: Callable[[], Any]) -> Any:
        answer: list[Any] = []
        took[name] = seconds(lambda: answer.append(function()))
        return answer[0]

    timed("ground_truth_of", lambda: ground_truth_of(case.records, case.classes))
    coco = timed("CocoEvaluator", lambda: CocoEvaluator(case.truth, case.classes, case.image_ids))
    timed("CocoEvaluator.update", lambda: coco.update(ids, case.detections))
    timed("CocoEvaluator.compute", coco.compute)
    voc = timed("VocEvaluator", lambda: VocEvaluator(case.records, case.classes))
    timed("VocEvaluator.update", lambda: voc.update(ids, case.detections))
    curves = timed("VocEvaluator.precision_recall", voc.precision_recall)
    timed("VocEvaluator.compute", voc.compute)
    timed("best_f1", lambda: best_f1(curves.values(), images))
    with tempfile.TemporaryDirectory() as name:
        folder, found = Path(name), dict(zip(ids, case.detections, strict=True))
        timed("CocoEvaluator.write_results", lambda: coco.write_results(folder / "results.json"))
        timed("write_result_files", lambda: write_result_files(folder, found, case.classes))
        timed("read_result_files", lambda: read_result_files(folder, ids, case.classes))
    timed("CocoEvaluator.reset", coco.reset)
    return took


if __name__ == "__main__":
    main()
