"""Data sets through a config: split files, a ratio, all images, COCO's format, lists to leave out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from detector.config import Config
from detector.core.errors import InputError
from detector.data.convert import voc_to_coco
from detector.engine.checkpoint import load_checkpoint
from detector.evaluation.report import COCO_METRICS
from detector.factory.data import all_names, class_names, load_split
from detector.tasks.detection import DetectionTask
from detector.tasks.start import start_run
from tests.data.splits import COCO, numbered_coco
from tests.evaluation.test_coco import evaluator_of

Load = Callable[..., Config]


def ids(config: Config, split: str) -> list[str]:
    records = load_split(config, split, class_names(config), training=False).records
    return [record.image_id for record in records]


@pytest.fixture
def coco_root(tiny_root: Path, tmp_path: Path) -> Path:
    """The tiny data set in COCO's format."""
    root = tmp_path / "coco"
    for split in ("trainval", "test"):
        voc_to_coco(tiny_root, split, root / "annotations" / f"instances_{split}.json")
    (root / "pictures").symlink_to(tiny_root / "JPEGImages")
    return root


def as_coco(root: Path, *more: str) -> list[str]:
    return ["data.format=coco", f"data.root={root}", "data.images=pictures", *more]


def test_a_ratio_takes_the_place_of_split_files(tiny: Load) -> None:
    ratio = "data.split_ratio={train: 0.75, test: 0.25}"
    config = tiny(ratio, "data.train_split=train", "data.splits=no_such_folder")
    train, test = ids(config, "train"), ids(config, "test")
    assert (len(train), len(test)) == (9, 3)
    assert not set(train) & set(test)
    assert ids(tiny(ratio, "data.train_split=train", "data.split_seed=1"), "test") != test


def test_without_splits_every_annotated_image_is_taken(tiny: Load) -> None:
    everything = ids(tiny("data.splits=null"), "anything")
    assert len(everything) == 12
    assert set(everything) == set(ids(tiny(), "trainval")) | set(ids(tiny(), "test"))


def test_a_list_of_images_to_leave_out(tiny: Load, tmp_path: Path) -> None:
    first, *others = ids(tiny(), "test")
    (tmp_path / "out.txt").write_text(f"# cut off\n{first}\n")
    assert ids(tiny("data.leave_out=out.txt"), "test") == others
    (tmp_path / "out.txt").write_text("\n".join([first, *others]))
    with pytest.raises(InputError, match="all 4 images of 'test' are left out"):
        ids(tiny("data.leave_out=out.txt"), "test")


def test_an_id_to_leave_out_that_an_image_of_the_implied_validation_split_has_too(
    tiny: Load, tmp_path: Path
) -> None:
    """The split valid is read because of its name; all names of images come twice, in train and in valid."""
    root = numbered_coco(tmp_path / "set", {"train": 4, "valid": 4, "test": 2})
    (tmp_path / "out.txt").write_text("3\n")
    given = [f"data.{key}='{value}'" for key, value in COCO.items() if key != "test_split"]
    config = tiny(f"data.root={root}", *given, "data.test_split=test", "data.leave_out=out.txt")
    assert {name.key.split("/")[0] for name in all_names(config)} == {"train", "valid", "test"}
    for split in ("train", "valid"):
        with pytest.raises(InputError, match=r"'3' is the id of '.*' and of '.*'; write instead the path"):
            ids(config, split)


def test_coco_files_a_split_and_one_file_by_ratio(tiny: Load, coco_root: Path) -> None:
    assert ids(tiny(*as_coco(coco_root)), "trainval") == ids(tiny(), "trainval")
    one = ["data.annotations=annotations/instances_trainval.json", "data.train_split=train"]
    config = tiny(*as_coco(coco_root, *one, "data.split_ratio={train: 0.5, test: 0.5}"))
    assert sorted(ids(config, "train") + ids(config, "test")) == sorted(ids(tiny(), "trainval"))


def test_folders_named_after_the_split(tiny: Load, tiny_root: Path, tmp_path: Path) -> None:
    for split in ("train", "valid"):
        for kind in ("Annotations", "JPEGImages"):
            (tmp_path / "mine" / split).mkdir(parents=True, exist_ok=True)
            (tmp_path / "mine" / split / kind).symlink_to(tiny_root / kind)
    config = tiny(
        "data.root=mine", "data.annotations='{split}/Annotations'",
        "data.images='{split}/JPEGImages'",
        "data.splits=null", "data.train_split=train", "data.test_split=valid",
    )  # fmt: skip
    assert len(ids(config, "train")) == len(ids(config, "valid")) == 12


def test_the_same_training_from_voc_and_from_its_coco_conversion(
    tiny: Load, coco_root: Path, tmp_path: Path
) -> None:
    """Identical weights, and identical metrics by both metrics."""
    settings = ["test.metric=coco", "model.box.normalize=dataset", "test.score_threshold=0.0"]
    found = {}
    for name, sources in (("from_voc", []), ("from_coco", as_coco(coco_root))):
        (tmp_path / name).mkdir()
        run = start_run(tiny(*settings, *sources), tmp_path / name, "cpu")
        found[name] = run.run()
        assert isinstance(run.task, DetectionTask)
        run.task.scorer.write_results(tmp_path / name, found[name])
    first, second = (
        load_checkpoint(tmp_path / name / "checkpoints" / "step_12.pt")["model"] for name in found
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    timeless = [
        {key: value for key, value in one.metrics.items() if key != "seconds_per_image"}
        for one in found.values()
    ]
    assert json.dumps(timeless[0]) == json.dumps(timeless[1]), "as text, in which NaN equals NaN"
    assert {*COCO_METRICS, "voc07_mAP", "voc_mAP", "per_class"} <= timeless[0].keys()
    results = [json.loads((tmp_path / name / "results" / "coco_test.json").read_text()) for name in found]
    assert results[0] == results[1]
    assert results[0]


def test_the_headline_is_what_an_evaluator_of_its_own_says(
    tiny: Load, coco_root: Path, tmp_path: Path
) -> None:
    config = tiny(*as_coco(coco_root), "test.metric=coco", "test.score_threshold=0.0", "train.steps=2")
    (tmp_path / "run").mkdir()
    run = start_run(config, tmp_path / "run", "cpu")
    evaluation = run.run()
    assert isinstance(run.task, DetectionTask)
    evaluator = evaluator_of(run.task.scorer.test_set.records, run.task.classes)
    evaluator.update(list(evaluation.results), list(evaluation.results.values()))
    again = evaluator.compute()
    for name in COCO_METRICS:
        assert evaluation.metrics[name] == pytest.approx(again[name], abs=1e-6, nan_ok=True)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.split_ratio={train: 0.8, test: 0.3}"], "must not add up to more than 1"),
        (["data.split_ratio={train: 0.8, test: 0.2}"], "train_split: trainval is not in data.split_ratio"),
        (["data.split_ratio={a: 0}"], "greater than 0"),
        (["data.format=coco", "data.splits=lists"], "names folders of data.format: voc"),
        (
            ["data.format=coco", "data.split_ratio={trainval: 0.5, test: 0.5}"],
            "data.annotations has one file per {split}",
        ),
        (["data.format=csv"], "'voc', 'coco', 'yolo', 'labelme' or 'labelstudio'"),
        (["data.format=yolo", "data.images=photos"], "data.yaml names the images"),
        (["data.format=yolo", "data.splits=lists"], "data.yaml names the splits"),
        (["data.format=yolo", "data.attributes=[colour]"], "whose labels have none"),
        (["data.format=labelme", "data.first_pixel=0"], "the others always count from 0"),
        (["data.format=labelstudio", "data.splits=lists"], "name the JSON of each split"),
        (["data.attributes=[]"], "data.attributes"),
        (["test.metric=coco", "task=classification", "model.pool.kind=spp"], "scores boxes"),
    ],
)
def test_contradictions_are_named(tiny: Load, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError) as caught:
        tiny(*overrides)
    assert message in str(caught.value)
