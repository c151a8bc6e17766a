"""YOLO, LabelMe and Label Studio through a config: splits, classes, the check, metrics and conversion."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from detector.commands import convert
from detector.commands.check import check_data
from detector.config import Config
from detector.core.errors import InputError
from detector.core.structures import Detections
from detector.data.coco.source import CocoSource
from detector.data.generated.dataset import generate_voc
from detector.data.voc.source import VocSource
from detector.evaluation.voc import VocEvaluator
from detector.factory.data import class_names, find_validation, load_split, read_splits
from detector.tasks.detection import coco_evaluator
from tests.data.layouts import SETTINGS, WRITERS
from tests.data.layouts import class_names as names_of
from tests.data.test_image_set import assert_same

Load = Callable[..., Config]
FORMATS = pytest.mark.parametrize("kind", sorted(WRITERS))


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("formats")
    generate_voc(root / "voc", train_images=5, test_images=3, image_size=(64, 80), seed=1)
    for kind, write in WRITERS.items():
        write(root / "voc", root / kind)
    return root


@pytest.fixture
def root(oracle: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(oracle, tmp_path / "copy"))


def settings(kind: str, root: Path, *more: str) -> list[str]:
    own = [f"data.{key}={json.dumps(value)}" for key, value in SETTINGS[kind].items()]
    splits = ["data.train_split=train", "data.test_split=test"]
    return [f"data.format={kind}", f"data.root={root / kind}", *splits, *own, *more]


@FORMATS
def test_ratio_leave_out_and_classes(kind: str, tiny: Load, oracle: Path, tmp_path: Path) -> None:
    config = tiny(*settings(kind, oracle))
    classes = class_names(config)
    assert classes == names_of(oracle / "voc")
    whole = load_split(config, "train", classes, training=True).records
    (tmp_path / "out.txt").write_text(f"{whole.keys[1]}\n{whole.image_ids[2]}\n")
    left = load_split(
        tiny(*settings(kind, oracle, "data.leave_out=out.txt")), "train", classes, training=True
    )
    assert list(left.records.keys) == [key for row, key in enumerate(whole.keys) if row not in (1, 2)]

    one = {
        "labelme": ["data.annotations=train", "data.images=train"],
        "labelstudio": ["data.annotations=train.json"],
    }
    ratio = ["data.split_ratio={train: 0.6, test: 0.4}", *one.get(kind, [])]
    divided = tiny(*settings(kind, oracle, *ratio))
    parts = [load_split(divided, split, classes, training=False).records.keys for split in ("train", "test")]
    assert (len(parts[0]), len(parts[1])) == ((5, 3) if kind == "yolo" else (3, 2))
    assert not set(parts[0]) & set(parts[1])

    few = tiny(*settings(kind, oracle, f"data.classes=[{classes[0]}]"))
    with pytest.raises(InputError, match="is not among the classes"):
        load_split(few, "train", class_names(few), training=True)
    few = tiny(*settings(kind, oracle, f"data.classes=[{classes[0]}]", "data.other_classes=ignore"))
    objects = load_split(few, "train", class_names(few), training=True).records.objects
    assert set(objects.labels.tolist()) == {1}
    assert len(objects) == (whole.objects.labels == 1).sum()


def plant(kind: str, root: Path) -> tuple[Path, set[tuple[str, str | None]]]:
    """Write an object twice and a faulty one into a training annotation; return what is to be found."""
    if kind == "yolo":
        path = min((root / "labels/train").iterdir())
        line = path.read_text().splitlines()[0]
        path.write_text(f"{line}\n{line}\n99 .5 .5 .5 .5\n0 5 5 5 5\n")
        return path, {("duplicate object", "line 2"), ("annotation", "line 3"), ("annotation", "line 4")}
    path = min((root / "train").iterdir()) if kind == "labelme" else root / "train.json"
    path = path.with_suffix(".json")
    data = json.loads(path.read_text())
    things = data["shapes"] if kind == "labelme" else data[0]["annotations"][0]["result"]
    things[1:] = [{**things[0], "id": "twin"}, {"type": "rectangle", "points": []}]
    path.write_text(json.dumps(data))
    if kind == "labelme":
        places = f"shapes[1] ({things[0]['label']})", "shapes[2]"
    else:
        label = things[0]["value"]["rectanglelabels"][0]
        places = f"tasks[0], region 2 ({label})", "tasks[0], region 3"
    return path, {("duplicate object", places[0]), ("annotation", places[1])}


@FORMATS
def test_the_check_finds_faults_and_twins(kind: str, tiny: Load, root: Path) -> None:
    config = tiny(*settings(kind, root))
    report = check_data(config, read_splits(config))
    assert report.problems == []
    assert report.would_start
    counts = report.as_json()["splits"]
    assert {split: counts[split]["images"] for split in counts} == {"train": 5, "test": 3}
    for split in counts:
        records = load_split(config, split, class_names(config), training=False).records
        assert counts[split]["objects"] == len(records.objects)
    classes = class_names(config)
    path, expected = plant(kind, root / kind)
    report = check_data(config, read_splits(config))
    assert not report.would_start
    assert {(one.kind, one.object) for one in report.problems} == expected
    assert {Path(one.file).resolve() for one in report.problems} == {path.resolve()}
    with pytest.raises(InputError, match=path.name):
        load_split(config, "train", classes, training=True)


@FORMATS
def test_metrics_of_perfect_detections(kind: str, tiny: Load, oracle: Path) -> None:
    config = tiny(*settings(kind, oracle))
    dataset = load_split(config, "test", class_names(config), training=False)
    voc = VocEvaluator(dataset.records, dataset.classes)
    coco = coco_evaluator(config, "test", dataset)
    for record in dataset.records:
        targets = record.targets
        detections = Detections(boxes=targets.boxes, scores=torch.ones(len(targets)), labels=targets.labels)
        for evaluator in (voc, coco):
            evaluator.update([record.image_id], [detections])
    assert voc.compute()["voc_mAP"] == pytest.approx(1.0)
    assert coco.compute()["AP"] == pytest.approx(1.0)


@FORMATS
def test_conversion_to_both(kind: str, oracle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    common = [str(oracle / kind), "--split", "train"]
    for key, value in SETTINGS[kind].items():
        common += [f"--{key}", value] if value is not None else []
    for target, output in (("coco", tmp_path / "train.json"), ("voc", tmp_path / "voc")):
        call = ["convert_data.py", f"{kind}-to-{target}", *common, "--output", str(output)]
        monkeypatch.setattr("sys.argv", call)
        convert.main()
    expected = VocSource(oracle / "voc").load("trainval", names_of(oracle / "voc"))
    coco = CocoSource(tmp_path, annotations="{split}.json", images=str(oracle / kind)).load("train")
    assert_same(coco, expected)
    assert_same(VocSource(tmp_path / "voc").load("train"), expected)


def test_the_validation_split_of_a_data_yaml(tiny: Load, root: Path) -> None:
    config = tiny(*settings("yolo", root))
    assert not find_validation(config)
    path = root / "yolo/data.yaml"
    path.write_text(path.read_text() + "val: images/test\n")
    with_val = tiny(*settings("yolo", root, "train.evaluate_every=2"))
    assert find_validation(with_val).split == "val"
