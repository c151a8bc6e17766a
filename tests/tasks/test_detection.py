"""COCO's categories when the scored split's file does not name all classes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from detector.config import Config
from detector.core.errors import InputError
from detector.data.convert import voc_to_coco
from detector.factory.data import load_split
from detector.tasks.detection import coco_evaluator

Load = Callable[..., Config]


@pytest.fixture
def config(tiny: Load, tiny_root: Path, tmp_path: Path) -> Config:
    """The tiny data set as COCO's format in a folder of the test's own."""
    for split in ("trainval", "test"):
        voc_to_coco(tiny_root, split, tmp_path / f"{split}.json")
    return tiny(
        "data.format=coco",
        f"data.root={tmp_path}",
        "data.annotations='{split}.json'",
        f"data.images={tiny_root / 'JPEGImages'}",
    )


def without_first_category(path: Path) -> dict[str, list[dict[str, object]]]:
    data: dict[str, list[dict[str, object]]] = json.loads(path.read_text())
    first = data["categories"].pop(0)["id"]
    data["annotations"] = [one for one in data["annotations"] if one["category_id"] != first]
    path.write_text(json.dumps(data))
    return data


def test_a_category_that_the_split_lacks_has_the_id_of_the_training_split(
    config: Config, tmp_path: Path
) -> None:
    classes = tuple(one["name"] for one in json.loads((tmp_path / "trainval.json").read_text())["categories"])
    expected = coco_evaluator(config, "test", load_split(config, "test", classes, training=False))
    without_first_category(tmp_path / "test.json")
    evaluator = coco_evaluator(config, "test", load_split(config, "test", classes, training=False))
    assert evaluator.classes == classes
    assert evaluator.category_ids == expected.category_ids


def test_missing_and_contradictory_categories_are_named(config: Config, tmp_path: Path) -> None:
    data = without_first_category(tmp_path / "test.json")
    names = [str(one["name"]) for one in data["categories"]]
    dataset = load_split(config, "test", [*names, "zebra"], training=False)
    with pytest.raises(InputError, match=r"test\.json: no category is named 'zebra'"):
        coco_evaluator(config, "test", dataset)
    training = json.loads((tmp_path / "trainval.json").read_text())["categories"]
    data["categories"].append({"id": training[0]["id"], "name": "zebra"})
    (tmp_path / "test.json").write_text(json.dumps(data))
    dataset = load_split(config, "test", [training[0]["name"], *names, "zebra"], training=False)
    with pytest.raises(InputError, match="give both files the same categories"):
        coco_evaluator(config, "test", dataset)
