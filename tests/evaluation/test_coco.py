"""The COCO evaluator against pycocotools called directly, and against the published metrics."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from rich.console import Console

from detector.core.errors import InputError
from detector.core.structures import Detections, ImageRecord, Targets
from detector.evaluation.coco import CocoEvaluator, ground_truth_of, score_coco_results
from detector.evaluation.coco_results import to_results
from detector.evaluation.report import COCO_METRICS, coco_table

FOLDER = Path(__file__).parents[2] / "data" / "coco_eval"
TRUTH = FOLDER / "instances_val2014_100.json"
RESULTS = FOLDER / "instances_val2014_fakebbox100_results.json"
needs_demo = pytest.mark.skipif(not FOLDER.is_dir(), reason="data/coco_eval is not there")

PUBLISHED = {
    "AP": 0.504580698725,
    "AP50": 0.696972724730,
    "AP75": 0.572981666990,
    "APs": 0.585625720941,
    "APm": 0.519399694804,
    "APl": 0.501397898635,
    "AR1": 0.386812779646,
    "AR10": 0.593679576284,
    "AR100": 0.595352982878,
    "ARs": 0.639810962611,
    "ARm": 0.566420597899,
    "ARl": 0.564290598291,
}


def evaluator_of(records: Sequence[ImageRecord], classes: Sequence[str]) -> CocoEvaluator:
    """Return an evaluator for records of any data set; COCO's image ids are then 1, 2, ..."""
    image_ids = {record.image_id: number for number, record in enumerate(records, start=1)}
    return CocoEvaluator(ground_truth_of(records, classes), classes, image_ids)


def evaluation_of(
    truth: dict[str, Any], results: list[dict[str, Any]], image_ids: Sequence[int] | None = None
) -> COCOeval:
    """Call pycocotools as its own demo does, for some images or for all."""
    with contextlib.redirect_stdout(io.StringIO()):
        index = COCO()
        index.dataset = copy.deepcopy(truth)
        index.createIndex()
        evaluation = COCOeval(index, index.loadRes(copy.deepcopy(results)), "bbox")
        if image_ids is not None:
            evaluation.params.imgIds = sorted(image_ids)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


def direct(truth: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, float]:
    return dict(zip(COCO_METRICS, evaluation_of(truth, results).stats.tolist(), strict=True))


def random_records(seed: int, images: int = 12) -> tuple[list[ImageRecord], list[Detections]]:
    """Records with difficult objects and crowds, and detections near them."""
    generator = torch.Generator().manual_seed(seed)
    records, detections = [], []
    for number in range(images):
        count = int(torch.randint(0, 6, (1,), generator=generator))
        corners = torch.rand(count, 2, generator=generator) * 100
        boxes = torch.cat((corners, corners + torch.rand(count, 2, generator=generator) * 150 + 5), dim=1)
        labels = torch.randint(1, 3, (count,), generator=generator)
        flags = torch.rand(2, count, generator=generator) < 0.2
        targets = Targets.make(boxes, labels, flags[0], flags[1])
        records.append(
            ImageRecord(image_id=f"{number:03d}", path=Path("x"), height=300, width=300, targets=targets)
        )
        near = boxes.repeat(4, 1) + torch.randn(4 * count, 4, generator=generator) * 6
        detections.append(
            Detections(
                boxes=near,
                scores=torch.rand(4 * count, generator=generator).sort(descending=True).values,
                labels=labels.repeat(4),
            )
        )
    return records, detections


def as_coco(
    records: list[ImageRecord], detections: list[Detections]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Write records and detections in COCO's form, one by one."""
    truth: dict[str, Any] = {"images": [], "annotations": [], "categories": [{"id": 1}, {"id": 2}]}
    results = []
    for number, (record, found) in enumerate(zip(records, detections, strict=True), start=1):
        truth["images"].append({"id": number})
        for index, (x1, y1, x2, y2) in enumerate(record.targets.boxes.tolist()):
            ignored = bool(record.targets.difficult[index] or record.targets.crowd[index])
            truth["annotations"].append(
                {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": number,
                    "category_id": int(record.targets.labels[index]),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": float(record.targets.area[index]),
                    "iscrowd": int(ignored),
                }
            )
        for (x1, y1, x2, y2), score, label in zip(
            found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
        ):
            box = [x1, y1, x2 - x1, y2 - y1]
            results.append({"image_id": number, "category_id": label, "bbox": box, "score": score})
    return truth, results


def random_case(seed: int) -> tuple[dict[str, Any], list[dict[str, Any]], list[int]]:
    """Return ground truth, results and the ids of the scored images, with all that makes matching hard.

    Few sizes of boxes and few scores make equal IoUs, IoUs at a threshold, areas at a limit and equal scores
    frequent. There are crowd regions, images without objects or detections, images that are not scored,
    classes without objects, ids below zero, and many detections of one class on one image.
    """
    draw = random.Random(seed)
    images = draw.sample(range(-50, 10**12), draw.randint(1, 12))
    categories = draw.sample(range(-5, 100), draw.randint(1, 4))
    side = draw.choice([(8, 10), (10, 12, 20), (30, 32, 34), (90, 96, 100, 9.5)])

    def box() -> list[float]:
        return [draw.randint(0, 6), draw.choice([0, 1, 2.5]), draw.choice(side), draw.choice(side)]

    annotations: list[dict[str, Any]] = []
    for image in images:
        for _ in range(draw.choice([0, 1, 3, 8])):
            x, y, width, height = box()
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image,
                    "category_id": draw.choice(categories[:3]),
                    "bbox": [x, y, width, height],
                    "area": draw.choice([width * height, 32**2, 96**2, 0]),
                    "iscrowd": int(draw.random() < 0.2),
                }
            )
    results = [
        {
            "image_id": image,
            "category_id": draw.choice(categories),
            "bbox": box(),
            "score": draw.choice([0.25, 0.5, 0.75, draw.random()]),
        }
        for image in images
        for _ in range(draw.choice([0, 3, 20, 20, 250]) or image == images[0])
    ]
    truth: dict[str, Any] = {
        "images": [{"id": image} for image in images],
        "categories": [{"id": one, "name": str(one)} for one in categories],
        "annotations": annotations,
    }
    return truth, results, [image for image in images if draw.random() < 0.9]


@pytest.mark.parametrize("seed", range(40))
def test_every_digit_is_that_of_pycocotools(seed: int) -> None:
    truth, results, image_ids = random_case(seed)
    evaluation = evaluation_of(truth, results, image_ids)
    evaluator = CocoEvaluator(truth)
    evaluator.add(image_ids, [one for one in results if one["image_id"] in image_ids])
    metrics = evaluator.compute()
    expected = [math.nan if value == -1 else value for value in evaluation.stats.tolist()]
    assert repr([metrics[name] for name in COCO_METRICS]) == repr(expected)
    for place, category_id in enumerate(evaluation.params.catIds):
        precision = evaluation.eval["precision"][:, :, place, 0, -1]
        known = [math.nan, math.nan] if -1 in precision else [precision.mean(), precision[0].mean()]
        row = metrics["per_class"][str(category_id)]
        assert repr([row["AP"], row["AP50"]]) == repr([float(value) for value in known])
        mine = [one for one in results if one["image_id"] in image_ids and one["category_id"] == category_id]
        assert row["detections"] == len(mine)


@needs_demo
def test_the_demo_of_the_coco_api() -> None:
    truth, results = json.loads(TRUTH.read_text()), json.loads(RESULTS.read_text())
    metrics = score_coco_results(RESULTS, truth).compute()
    assert {name: metrics[name] for name in COCO_METRICS} == pytest.approx(PUBLISHED, abs=1e-9)
    assert {name: metrics[name] for name in COCO_METRICS} == direct(truth, results)
    per_class = metrics["per_class"]
    assert len(per_class) == 80
    known = [row["AP"] for row in per_class.values() if not math.isnan(row["AP"])]
    assert sum(known) / len(known) == pytest.approx(metrics["AP"], abs=1e-12)
    known = [row["AP50"] for row in per_class.values() if not math.isnan(row["AP50"])]
    assert sum(known) / len(known) == pytest.approx(metrics["AP50"], abs=1e-12)
    assert sum(row["objects"] for row in per_class.values()) == 839
    assert sum(row["detections"] for row in per_class.values()) == 734


@pytest.mark.parametrize("seed", range(4))
def test_records_score_as_a_direct_call(seed: int) -> None:
    records, detections = random_records(seed)
    evaluator = evaluator_of(records, ["cat", "dog"])
    order = torch.randperm(len(records), generator=torch.Generator().manual_seed(seed)).tolist()
    for index in order:
        evaluator.update([records[index].image_id], [detections[index]])
    metrics = evaluator.compute()
    expected = direct(*as_coco(records, detections))
    assert 0.1 < expected["AP"] < 0.9
    assert {name: metrics[name] for name in COCO_METRICS} == pytest.approx(expected, abs=1e-12)


def test_results_written_and_read_score_the_same(tmp_path: Path) -> None:
    records, detections = random_records(7)
    truth, results = as_coco(records, detections)
    truth["categories"] = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    image_ids = {record.image_id: number for number, record in enumerate(records, start=1)}
    evaluator = CocoEvaluator(truth, ["dog", "cat"], image_ids)
    swapped = [Detections(boxes=d.boxes, scores=d.scores, labels=3 - d.labels) for d in detections]
    evaluator.update([record.image_id for record in records], swapped)
    evaluator.write_results(tmp_path / "new" / "results.json")
    assert json.loads((tmp_path / "new" / "results.json").read_text()) == results
    metrics = evaluator.compute()
    assert list(metrics["per_class"]) == ["dog", "cat"]
    from_file = score_coco_results(tmp_path / "new" / "results.json", truth).compute()
    assert from_file["per_class"] == metrics["per_class"]
    numbers = [{name: one[name] for name in COCO_METRICS} for one in (from_file, metrics)]
    assert numbers[0] == pytest.approx(numbers[1], abs=1e-15, nan_ok=True)


def test_the_results_file_is_what_json_writes(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    boxes = torch.randn(300, 4, generator=generator) * 10.0 ** torch.randint(
        -30, 30, (300, 4), generator=generator
    )
    labels = torch.randint(1, 3, (300,), generator=generator)
    found = Detections(boxes=boxes, scores=torch.rand(300, generator=generator), labels=labels)
    truth: dict[str, Any] = {
        "images": [{"id": -7}, {"id": 2**70}],
        "categories": [{"id": 9, "name": "cat"}, {"id": 3, "name": "dog"}],
        "annotations": [],
    }
    evaluator = CocoEvaluator(truth, ["cat", "dog"])
    evaluator.update([str(2**70), "-7"], [Detections.empty(), found])
    evaluator.write_results(tmp_path / "results.json")
    lines = ",\n".join(map(json.dumps, to_results(-7, found, [9, 3])))
    assert (tmp_path / "results.json").read_text() == f"[{lines}]\n"
    evaluator.reset()
    infinite = torch.tensor([[0, 0, torch.inf, 1]]).repeat(300, 1)
    evaluator.update(["-7"], [Detections(boxes=infinite, scores=found.scores, labels=labels)])
    with pytest.raises(ValueError, match="not finite"):
        evaluator.write_results(tmp_path / "none.json")
    assert not (tmp_path / "none.json").exists()


def test_annotation_id_zero_can_be_found() -> None:
    # pycocotools takes a match with annotation 0 for no match; ids are renumbered for that.
    truth: dict[str, Any] = {
        "images": [{"id": 0}],
        "categories": [{"id": 0, "name": "cat"}],
        "annotations": [{"id": 0, "image_id": 0, "category_id": 0, "bbox": [0, 0, 50, 50]}],
    }
    evaluator = CocoEvaluator(truth)
    found = Detections(
        boxes=torch.tensor([[0.0, 0, 50, 50]]), scores=torch.ones(1), labels=torch.ones(1, dtype=torch.int64)
    )
    evaluator.update(["0"], [found])
    assert evaluator.compute()["AP"] == pytest.approx(1)


def test_a_difficult_object_is_ignored() -> None:
    boxes = torch.tensor([[0.0, 0, 50, 50], [60, 0, 110, 50]])
    ones = torch.ones(2, dtype=torch.int64)
    targets = Targets.make(boxes, ones, difficult=torch.tensor([False, True]))
    record = ImageRecord(image_id="a", path=Path("a"), height=100, width=200, targets=targets)
    for scores in ([0.9, 0.8], [0.8, 0.9]):
        evaluator = evaluator_of([record], ["cat"])
        evaluator.update(["a"], [Detections(boxes=boxes, scores=torch.tensor(scores), labels=ones)])
        metrics = evaluator.compute()
        assert metrics["AP"] == pytest.approx(1)
        row = metrics["per_class"]["cat"]
        assert (row["objects"], row["ignored"], row["detections"]) == (2, 1, 2)


def test_no_objects_no_images_and_no_detections() -> None:
    records, _ = random_records(1)
    evaluator = evaluator_of(records, ["cat", "dog", "never"])
    assert math.isnan(evaluator.compute()["AP"])
    evaluator.update([record.image_id for record in records], [Detections.empty()] * len(records))
    metrics = evaluator.compute()
    assert metrics["AP"] == 0
    assert math.isnan(metrics["per_class"]["never"]["AP"])
    evaluator.reset()
    assert math.isnan(evaluator.compute()["AP"])


def test_misuse_is_an_error() -> None:
    records, detections = random_records(1)
    evaluator = evaluator_of(records, ["cat", "dog"])
    evaluator.update(["000"], [Detections.empty()])
    with pytest.raises(ValueError, match="was given before"):
        evaluator.update(["000"], [Detections.empty()])
    with pytest.raises(ValueError, match="'z' is not in the ground truth"):
        evaluator.update(["z"], [Detections.empty()])
    found = max(detections, key=len)
    wrong = Detections(boxes=found.boxes, scores=found.scores, labels=found.labels + 2)
    with pytest.raises(ValueError, match=r"labels must be 1\.\.2"):
        evaluator.update(["001"], [wrong])
    unknown = {"image_id": 3, "category_id": 5, "bbox": [1, 1, 2, 2], "score": 0.5}
    with pytest.raises(ValueError, match="category 5 is none of the classes"):
        evaluator.add([3], [unknown])
    with pytest.raises(ValueError, match="image 3 is not among those given"):
        evaluator.add([4], [unknown])


GOOD = {"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "expected a COCO results file"),
        ([GOOD, 5], "entry 1 is 5"),
        ([GOOD, {**GOOD, "image_id": 99}], "entry 1: image_id is 99, which the annotations do not have"),
        ([GOOD, {**GOOD, "category_id": "cat"}], "entry 1: category_id is 'cat'"),
        ([GOOD, {**GOOD, "bbox": [1, 2, 3]}], r"entry 1: bbox is \[1, 2, 3\]"),
        ([GOOD, {**GOOD, "bbox": [1, 2, 3, 1e300]}], "entry 1: bbox is"),
        ([GOOD, {**GOOD, "bbox": [1, 2, 3, 10**400]}], "entry 1: bbox is"),
        ([GOOD, {**GOOD, "bbox": [1, 2, 3, True]}], "entry 1: bbox is"),
        ([GOOD, {**GOOD, "bbox": "1234"}], "entry 1: bbox is '1234'"),
        ([GOOD, {**GOOD, "image_id": [1]}], r"entry 1: image_id is \[1\]"),
        ([GOOD, {**GOOD, "image_id": 1.0}], r"entry 1: image_id is 1\.0"),
        ([GOOD, {"image_id": 1, "category_id": 1, "score": 1}], "entry 1: bbox is None"),
        ([GOOD, {**GOOD, "score": 1e39}, 5], r"entry 1: score is 1e\+39"),
        ([GOOD, {**GOOD, "score": None}], "entry 1: score is None"),
        ([GOOD, {**GOOD, "score": math.nan}], "NaN is not a JSON number"),
    ],
)
def test_a_malformed_results_file_is_named(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps(content))
    truth: dict[str, Any] = {
        "images": [{"id": 1}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [],
    }
    with pytest.raises(InputError, match=message) as error:
        score_coco_results(path, truth)
    assert str(path) in str(error.value)


def test_the_table_has_a_row_a_class_and_a_figure() -> None:
    records, detections = random_records(3)
    evaluator = evaluator_of(records, ["cat", "dog"])
    evaluator.update([record.image_id for record in records], detections)
    metrics = evaluator.compute()
    output = io.StringIO()
    Console(width=100, file=output).print(coco_table(metrics))
    rows = [line.replace("│", " ").split() for line in output.getvalue().splitlines()]
    row = metrics["per_class"]["cat"]
    counts = [str(row[key]) for key in ("objects", "ignored", "detections")]
    assert ["cat", f"{row['AP']:.4f}", f"{row['AP50']:.4f}", *counts] in rows
    assert all([name, f"{metrics[name]:.4f}"] in rows for name in COCO_METRICS)


@pytest.mark.parametrize("flag", ["ignore", "difficult"])
def test_an_ignored_object_is_no_miss_and_what_is_found_on_it_no_false_positive(flag: str) -> None:
    """pycocotools overwrites ``ignore`` by ``iscrowd``; with that flag in its place it agrees."""
    boxes = [(1, [10, 10, 30, 30], 0), (1, [60, 60, 30, 30], 1), (2, [10, 10, 30, 30], 0)]
    truth: dict[str, Any] = {
        "images": [{"id": 1}, {"id": 2}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": 1,
                "bbox": box,
                "area": 900,
                "iscrowd": 0,
                flag: on,
            }
            for number, (image, box, on) in enumerate(boxes, start=1)
        ],
    }
    results = [
        {"image_id": image, "category_id": 1, "bbox": box, "score": score}
        for image, box, score in [
            (1, [60, 60, 30, 30], 0.95),
            (1, [61, 60, 30, 30], 0.94),
            (1, [10, 10, 30, 30], 0.9),
            (2, [10, 10, 30, 30], 0.8),
        ]
    ]
    evaluator = CocoEvaluator(truth)
    evaluator.add([1, 2], results)
    metrics: dict[str, Any] = evaluator.compute()
    assert metrics["AP"] == metrics["AR100"] == 1.0
    assert metrics["per_class"]["cat"]["ignored"] == 1
    assert direct(truth, results)["AP"] < 1
    for annotation in truth["annotations"]:
        annotation["iscrowd"] = annotation.pop(flag)
    assert direct(truth, results)["AP"] == 1.0
