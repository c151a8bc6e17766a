"""Scoring result files against annotations on disk, from the files to the metrics."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import torch

from detector.commands.file_scoring import Metric, score_detections
from detector.core.errors import InputError
from detector.core.structures import Detections
from detector.data.source import Dataset
from detector.data.voc.source import VOC_CLASSES, VocSource
from detector.evaluation.report import write_json
from detector.evaluation.result_files import score_result_files, write_result_files
from detector.evaluation.voc import VocEvaluator

ROOT = Path(__file__).parents[2]
VOC_EVAL = ROOT / "data" / "voc_eval"
SAMPLE = VOC_EVAL / "object_detection_metrics_sample_2"
needs_voc_eval = pytest.mark.skipif(not VOC_EVAL.is_dir(), reason="data/voc_eval is not there")

Objects = list[tuple[str, tuple[int, int, int, int]]]


def write_layout(root: Path, images: dict[str, Objects]) -> None:
    """Write annotations (no images) and the split "test"; corners are 1-based and inclusive."""
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets" / "Main" / "test.txt").write_text("\n".join(images))
    for image_id, objects in images.items():
        things = "".join(
            f"<object><name>{name}</name><bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax>"
            f"<ymax>{y2}</ymax></bndbox></object>"
            for name, (x1, y1, x2, y2) in objects
        )
        (root / "Annotations" / f"{image_id}.xml").write_text(f"<annotation>{things}</annotation>")


def load(root: Path) -> Dataset:
    classes = VocSource(root).class_names("train")
    return VocSource(root).load("test", classes=classes, training=False, require_images=False)


@pytest.fixture
def data(tmp_path: Path) -> Dataset:
    """Two images, two cats and a dog."""
    cats: Objects = [("cat", (1, 1, 10, 10)), ("cat", (21, 1, 30, 10))]
    write_layout(tmp_path / "set", {"a": cats, "b": [("dog", (1, 1, 10, 10))]})
    return load(tmp_path / "set")


@needs_voc_eval
def test_the_sample_of_object_detection_metrics(tmp_path: Path) -> None:
    """Its text files have x y w h, and that project measures IoU on corners (x, y) and (x + w, y + h) with
    "+1" on both sides: its boxes are inclusive pixels x..x+w, w + 1 wide. That is how VOC's files read, up
    to where counting starts (there 0, here 1), so both files get x+1, y+1, x+w+1, y+h+1."""

    def corners(fields: list[str]) -> tuple[int, int, int, int]:
        x, y, width, height = map(int, fields)
        return x + 1, y + 1, x + width + 1, y + height + 1

    def rows(path: Path) -> list[list[str]]:
        return [line.split() for line in path.read_text().splitlines() if line.strip()]

    truth = {path.stem: rows(path) for path in sorted((SAMPLE / "groundtruths").glob("*.txt"))}
    write_layout(tmp_path, {i: [(row[0], corners(row[1:])) for row in found] for i, found in truth.items()})
    lines = [
        f"{path.stem} {row[1]} {' '.join(map(str, corners(row[2:])))}\n"
        for path in sorted((SAMPLE / "detections").glob("*.txt"))
        for row in rows(path)
    ]
    (tmp_path / "comp4_det_test_object.txt").write_text("".join(lines))
    loaded = load(tmp_path)
    assert sum(len(record.targets) for record in loaded.records) == 15
    assert len(lines) == 24
    evaluator = score_result_files(tmp_path, loaded.records, loaded.classes, "test", iou_threshold=0.3)
    metrics = evaluator.compute()
    assert metrics["voc_mAP"] == pytest.approx(0.245687, abs=5e-7)
    assert metrics["voc07_mAP"] == pytest.approx(0.268398, abs=5e-7)


@needs_voc_eval
def test_the_annotations_of_voc_2007_score_one_against_themselves(tmp_path: Path) -> None:
    with tarfile.open(VOC_EVAL / "voc2007_test_annotations.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    loaded = load(tmp_path / "VOC2007")
    assert loaded.classes == VOC_CLASSES
    assert len(loaded.records) == 4952
    assert sum(len(record.targets) for record in loaded.records) == 14_976
    assert sum(int(record.targets.difficult.sum()) for record in loaded.records) == 2_944
    found = {
        record.image_id: Detections(
            boxes=record.targets.boxes,
            scores=torch.ones(len(record.targets)),
            labels=record.targets.labels,
        )
        for record in loaded.records
    }
    write_result_files(tmp_path / "results", found, loaded.classes)
    metrics = score_result_files(tmp_path / "results", loaded.records, loaded.classes).compute()
    assert metrics["voc07_mAP"] == pytest.approx(1, abs=1e-12)
    assert metrics["voc_mAP"] == pytest.approx(1, abs=1e-12)
    assert sum(row["objects"] for row in metrics["per_class"].values()) == 14_976


def test_scoring_files_equals_scoring_tensors(tmp_path: Path, data: Dataset) -> None:
    generator = torch.Generator().manual_seed(0)
    found = {}
    for record in data.records:
        near = record.targets.boxes.repeat(30, 1)
        boxes = near + 3 * torch.randn(near.shape, generator=generator)
        scores = (torch.rand(len(near), generator=generator) * 20).round().sort(descending=True).values / 20
        labels = torch.randint(1, 3, (len(near),), generator=generator)
        found[record.image_id] = Detections(boxes=boxes, scores=scores, labels=labels)
    direct = VocEvaluator(data.records, data.classes)
    direct.update(list(found), list(found.values()))
    write_result_files(tmp_path, found, data.classes)
    by_file = score_result_files(tmp_path, data.records, data.classes)
    assert by_file.compute() == direct.compute()
    assert 0 < direct.compute()["voc_mAP"] < 1


def test_equal_scores_keep_the_order_of_the_file(tmp_path: Path, data: Dataset) -> None:
    hit, miss = "b 0.5 1 1 10 10\n", "a 0.5 1 1 10 10\n"
    for text, expected in ((hit + miss, 1.0), (miss + hit, 0.5)):
        (tmp_path / "comp4_det_test_dog.txt").write_text(text)
        metrics = score_result_files(tmp_path, data.records, data.classes).compute()
        assert metrics["per_class"]["dog"]["voc_AP"] == expected


def test_scores_that_float32_cannot_tell_apart_are_told_apart(tmp_path: Path, data: Dataset) -> None:
    lines = "a 0.99999999991 1 1 10 10\nb 0.99999999992 1 1 10 10\n"
    (tmp_path / "comp4_det_test_dog.txt").write_text(lines)
    metrics = score_result_files(tmp_path, data.records, data.classes).compute()
    assert metrics["per_class"]["dog"]["voc_AP"] == 1


def test_a_class_without_a_file_scores_zero_and_unknown_files_are_named(
    tmp_path: Path, data: Dataset, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "comp4_det_test_dog.txt").write_text("b 0.5 1 1 10 10\n")
    (tmp_path / "comp4_det_test_horse.txt").write_text("b 0.5 1 1 10 10\n")
    with caplog.at_level(logging.WARNING):
        metrics = score_result_files(tmp_path, data.records, data.classes).compute()
    assert metrics["voc_mAP"] == 0.5
    assert metrics["per_class"]["cat"]["voc07_AP"] == 0
    assert "no such class in the annotations: comp4_det_test_horse.txt" in caplog.text
    assert "the AP is 0: cat" in caplog.text
    write_json(tmp_path / "metrics.json", metrics)
    assert json.loads((tmp_path / "metrics.json").read_text()) == metrics


def test_no_result_file_at_all_is_an_error(tmp_path: Path, data: Dataset) -> None:
    (tmp_path / "comp4_det_val_dog.txt").write_text("")
    expected = (
        r"no result file for split 'test': expected comp4_det_test_cat\.txt, comp4_det_test_dog\.txt; "
        r"the folder has comp4_det_val_dog\.txt"
    )
    with pytest.raises(InputError, match=expected):
        score_result_files(tmp_path, data.records, data.classes)
    with pytest.raises(InputError, match="does not exist"):
        score_result_files(tmp_path / "nowhere", data.records, data.classes)


def test_no_network_image_or_compiled_library_is_loaded() -> None:
    code = (
        "import sys, detector.data.voc.source, detector.evaluation.result_files, detector.evaluation.report\n"
        "heavy = {'torchvision', 'cv2', 'detector._C', 'detector.ops', "
        "'detector.models', 'detector.factory', 'detector.tasks'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert output.stdout.strip() == "[]"


@pytest.mark.parametrize("flag", ["ignore", "difficult"])
@pytest.mark.parametrize("metric", ["voc07", "voc", "coco"])
@pytest.mark.parametrize("found_on_it", [False, True])
def test_an_object_that_a_coco_file_ignores_counts_in_no_metric(
    tmp_path: Path, flag: str, metric: Metric, found_on_it: bool
) -> None:
    boxes = [(1, [10, 10, 30, 30], 0), (1, [60, 60, 30, 30], 1), (2, [10, 10, 30, 30], 0)]
    truth = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "width": 100, "height": 100} for n in (1, 2)],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [
            {"id": n, "image_id": image, "category_id": 1, "bbox": box, "area": 900, "iscrowd": 0, flag: on}
            for n, (image, box, on) in enumerate(boxes)
        ],
    }
    detections = [
        {"image_id": image, "category_id": 1, "bbox": box, "score": 0.8 + on / 10 + image / 100}
        for image, box, on in boxes
        if found_on_it or not on
    ]
    (tmp_path / "gt.JSON").write_text(json.dumps(truth))
    (tmp_path / "det.Json").write_text(json.dumps(detections))
    metrics = score_detections(tmp_path / "det.Json", tmp_path / "gt.JSON", metric, "test", 0.5)
    assert metrics["AP" if metric == "coco" else f"{metric}_mAP"] == 1.0
