"""The page docs/annotations.md: its configs read data sets in these layouts; its commands convert them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from detector.config import load_config
from detector.data.convert import voc_to_coco
from detector.data.generated.dataset import generate_voc
from detector.factory.data import class_names, load_split
from tests.conftest import PROJECT
from tests.data.layouts import WRITERS
from tests.pages import blocks, commands, run_tool, write_named

PAGE = PROJECT / "docs" / "annotations.md"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the project's configs and a data set in every layout."""
    shutil.copytree(PROJECT / "configs", tmp_path / "configs")
    voc = tmp_path / "my_voc"
    generate_voc(voc, train_images=4, test_images=2, image_size=(64, 80), seed=1)
    for kind, write in WRITERS.items():
        write(voc, tmp_path / f"my_{kind}")
    (tmp_path / "my_coco").mkdir()
    (tmp_path / "my_coco/photos").symlink_to(voc / "JPEGImages")
    for split, theirs in (("train", "trainval"), ("test", "test")):
        path = tmp_path / f"my_coco/annotations/instances_{split}.json"
        data = voc_to_coco(voc, theirs, path)
        data["annotations"][0]["attributes"] = {"colour": "red", "occluded": True}
        path.write_text(json.dumps(data))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_config_and_every_command(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configs, given = [], []
    for block in blocks(PAGE):
        if block.language == "sh":
            given += commands(block)
        elif block.language == "yaml":
            write_named(block, place)
            configs.append(block.text.split()[1])
    found = {}
    for path in configs:
        config = load_config(path)
        found[path] = classes = class_names(config)
        records = load_split(config, config.data.train_split, classes, training=True).records
        assert len(records) == 4
        assert len(load_split(config, "test", classes, training=False).records) == 2
    *plain, with_attributes = found.values()
    assert len(plain) == 5
    assert len(set(plain)) == 1
    assert with_attributes == (*plain[0], "colour=red", "occluded")
    for words in given:
        run_tool(words, monkeypatch)
    assert {path.name for path in (place / "converted").iterdir()} == {
        *("voc.json", "coco", "yolo.json", "labelme", "labelstudio")
    }
