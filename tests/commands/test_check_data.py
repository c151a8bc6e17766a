"""A check of the data and a training run that starts report the same problems."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from detector.commands.check import check_data
from detector.commands.demo import find_images
from detector.commands.proposal_jobs import folder_records
from detector.config import Config
from detector.core.errors import InputError
from detector.core.structures import Detections, ImageRecord
from detector.data.convert import voc_to_coco
from detector.data.problems import Problem
from detector.evaluation.voc import VocEvaluator
from detector.factory.data import load_split, read_splits
from detector.tasks.scoring import Evaluation
from detector.tasks.start import build_scorer, start_run
from tests.typed import read_picture

Load = Callable[..., Config]


@pytest.fixture
def root(tiny_root: Path, tmp_path: Path) -> Path:
    """A copy of the tiny data set that a test may change."""
    return Path(shutil.copytree(tiny_root, tmp_path / "voc"))


def problems(config: Config) -> list[Problem]:
    return check_data(config, read_splits(config)).problems


def kinds(config: Config) -> dict[str, bool]:
    """Return whether the problems of each kind stop training."""
    return {problem.kind: problem.stops for problem in problems(config)}


def change_coco(path: Path, **values: Any) -> None:
    data = json.loads(path.read_text())
    for thing in data["annotations"]:
        thing.pop("difficult", None)
        thing.update(values)
    path.write_text(json.dumps(data))


def as_coco(root: Path, place: Path) -> list[str]:
    for split in ("trainval", "test"):
        voc_to_coco(root, split, place / "annotations" / f"instances_{split}.json")
    (place / "pictures").symlink_to(root / "JPEGImages")
    return ["data.format=coco", f"data.root={place}", "data.images=pictures"]


def test_all_suspicions_are_lines_of_the_check_and_warnings_of_training(
    tiny: Load, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = [
        root / "Annotations" / f"{image_id}.xml"
        for image_id in (root / "ImageSets" / "Main" / "trainval.txt").read_text().split()[:2]
    ]
    first.write_text(re.sub(r"<xmin>\d+<", "<xmin>0<", first.read_text(), count=1))
    text = second.read_text().replace("<filename>", "<filename>other_")
    name = text.split("<name>")[1].split("</name>")[0]
    second.write_text(text.replace(f"<name>{name}</name>", f"<name>{name.upper()}</name>", 1))
    image = next((root / "JPEGImages").glob(f"{second.stem}.*"))
    height, width = read_picture(image).shape[:2]
    image.unlink()
    cv2.imwrite(str(image.with_suffix(".png")), np.full((height, width, 3), 3000, np.uint16))
    config = tiny(f"data.root={root}", "data.workers=0")
    expected = {"another image", "similar classes", "first pixel", "bit depth"}
    found = kinds(config)
    assert expected <= set(found)
    assert not any(found[kind] for kind in expected)
    capsys.readouterr()
    load_split(config, "trainval", sorted({"x"} | _classes(root)), training=True)
    said = capsys.readouterr().err
    assert {line.split(": ")[1] for line in said.splitlines() if line.startswith("warning: ")} == expected


def _classes(root: Path) -> set[str]:
    texts = [path.read_text() for path in (root / "Annotations").glob("*.xml")]
    return {part.split("</name>")[0] for text in texts for part in text.split("<name>")[1:]}


def test_a_sound_data_set_is_not_suspected(
    tiny: Load, tiny_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert kinds(tiny()) == {}
    load_split(tiny(), "trainval", sorted(_classes(tiny_root)), training=True)
    assert "warning" not in capsys.readouterr().err


def refused_by_both(config: Config, tmp_path: Path) -> str:
    """Return the message with which training refuses to start; the check must say the same."""
    found = [one for one in problems(config) if one.kind == "nothing to train on"]
    assert [one.stops for one in found] == [True]
    assert not check_data(config, read_splits(config)).would_start
    with pytest.raises(InputError, match="nothing to train on in trainval") as error:
        start_run(config, tmp_path / "run", "cpu")
    assert found[0].message.split(": ")[1] in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("flags", [{"iscrowd": 1}, {"ignore": 1}])
def test_only_crowds_and_ignored_objects(
    tiny: Load, root: Path, tmp_path: Path, flags: dict[str, int]
) -> None:
    overrides = as_coco(root, tmp_path / "coco")
    change_coco(tmp_path / "coco" / "annotations" / "instances_trainval.json", **flags)
    assert "but crowd regions" in refused_by_both(tiny(*overrides), tmp_path)


def test_only_difficult_objects_where_they_are_skipped(tiny: Load, root: Path, tmp_path: Path) -> None:
    for path in (root / "Annotations").iterdir():
        path.write_text(path.read_text().replace("<difficult>0<", "<difficult>1<"))
    config = tiny(f"data.root={root}", "data.difficult=skip")
    assert "data.difficult is skip" in refused_by_both(config, tmp_path)
    assert "nothing to train on" not in kinds(tiny(f"data.root={root}"))


def test_a_subset_of_the_classes(
    tiny: Load, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wanted, *others = sorted(_classes(root))
    subset = [f"data.classes=[{wanted}]", "train.steps=1", "data.workers=0"]
    assert kinds(tiny(f"data.root={root}", *subset)) == {"unknown class": True}
    coco = as_coco(root, tmp_path / "coco")
    for overrides in ([f"data.root={root}"], [*coco, "test.metric=coco"]):
        config = tiny(*overrides, *subset, "data.other_classes=ignore")
        report = check_data(config, read_splits(config))
        assert report.would_start
        left_out = report.as_json()["other_classes"]
        assert set(left_out) <= set(others)
        folder = tmp_path / f"run_{len(overrides)}"
        folder.mkdir()
        figures = start_run(config, folder, "cpu").run().metrics
        assert set(figures["per_class"]) == {wanted}
        said = capsys.readouterr().err
        counts = [int(line.split()[1]) for line in said.splitlines() if "of other classes than" in line]
        assert sum(counts) == sum(left_out.values())


def test_other_classes_need_named_classes(tiny: Load) -> None:
    with pytest.raises(InputError, match=r"other_classes: ignore needs the names of data\.classes"):
        tiny("data.other_classes=ignore")
    with pytest.raises(InputError, match=r"data\.first_pixel is for data\.format: voc"):
        tiny("data.format=coco", "data.first_pixel=0")


def test_no_training_on_a_split_without_annotations(tiny: Load, root: Path, tmp_path: Path) -> None:
    coco = as_coco(root, tmp_path / "coco")
    path = tmp_path / "coco" / "annotations" / "instances_trainval.json"
    data = json.loads(path.read_text())
    del data["annotations"]
    path.write_text(json.dumps(data))
    classes = sorted(_classes(root))
    for image_id in (root / "ImageSets" / "Main" / "trainval.txt").read_text().split():
        (root / "Annotations" / f"{image_id}.xml").unlink()
    for overrides in ([f"data.root={root}"], coco):
        config = tiny(*overrides, f"data.classes=[{','.join(classes)}]")
        assert not load_split(config, "trainval", classes, training=False).annotated
        assert load_split(config, "test", classes, training=False).annotated
        with pytest.raises(InputError, match=r"has no annotation|'annotations' is missing"):
            load_split(config, "trainval", classes, training=True)
        assert not check_data(config, read_splits(config)).would_start


def test_the_first_pixel_reaches_the_boxes_and_the_result_files(tiny: Load, tmp_path: Path) -> None:
    one, zero = (build_scorer(tiny(f"data.first_pixel={first}"), split="test") for first in (1, 0))
    for first, second in zip(one.test_set.records, zero.test_set.records, strict=True):
        assert (second.targets.boxes - first.targets.boxes == 1).all()
    for name, scorer in (("one", one), ("zero", zero)):
        found = {record.image_id: as_detections(record) for record in scorer.test_set.records}
        evaluation = Evaluation(metrics={}, evaluator=VocEvaluator([], scorer.classes), results=found)
        scorer.write_results(tmp_path / name, evaluation)
    files = sorted(path.name for path in (tmp_path / "one" / "results").iterdir())
    assert files
    for name in files:  # each in its own convention: the numbers of the annotations
        assert (tmp_path / "one/results" / name).read_text() == (tmp_path / "zero/results" / name).read_text()


def as_detections(record: ImageRecord) -> Detections:
    targets = record.targets
    return Detections(boxes=targets.boxes, scores=torch.ones(len(targets)), labels=targets.labels)


def test_hidden_files_and_pipes_beside_images(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / ".thumbnails").mkdir(parents=True)
    for name in ("a.jpg", "._a.jpg", ".thumbnails/a.jpg", ".DS_Store", "Thumbs.db"):
        (folder / name).write_bytes(b"x")
    assert find_images([folder]) == [folder / "a.jpg"]
    assert [record.key for record in folder_records(folder)] == ["a.jpg"]
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(InputError, match=r"pipe\.jpg: is a named pipe"):
        find_images([tmp_path / "pipe.jpg"])
