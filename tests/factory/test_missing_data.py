"""A config whose data or weights are missing names the command that downloads them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from detector.commands import cli
from detector.config import load_config
from detector.core.errors import InputError
from detector.factory.data import class_names, load_split
from detector.factory.proposals import open_proposals
from detector.factory.weights import check_weights
from tests.conftest import PROJECT


@pytest.mark.parametrize(
    ("name", "data_set"),
    [
        ("fast_rcnn_vgg16_voc07_selective_search", "voc2007"),
        ("fast_rcnn_resnet50_voc0712", "voc0712"),
        ("bccd_squeezenet", "bccd"),
        ("coco256_mobilenet", "coco2017"),
    ],
)
def test_of_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, data_set: str) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(PROJECT / "configs" / f"{name}.yaml")
    if data_set == "coco2017":
        config = load_config(PROJECT / "configs" / f"{name}.yaml", ["data.root=data/coco"])
    command = f"; tools/download.py {data_set} --root data downloads it"
    with pytest.raises(InputError, match=command):
        load_split(config, config.data.train_split, ("a",), training=True)
    if config.data.classes is None:
        with pytest.raises(InputError, match=command):
            class_names(config)
    Path(config.data.root).mkdir(parents=True)
    with pytest.raises(InputError, match=command):  # an empty folder is no data set
        load_split(config, config.data.train_split, ("a",), training=True)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("fast_rcnn_vgg16_voc07_selective_search", "weights:vgg16"),
        ("fast_rcnn_vgg16_voc07", "weights:vgg16_caffe"),
        ("rcnn_voc07", "weights:alexnet"),
        ("cards_mobilenet", "weights:mobilenet_v2"),
    ],
)
def test_of_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, weights: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=f"tools/download.py {weights} --root data downloads"):
        check_weights(load_config(PROJECT / "configs" / f"{name}.yaml"))


def test_of_proposals_the_setting_that_makes_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = PROJECT / "configs" / "fast_rcnn_vgg16_voc07.yaml"
    with pytest.raises(InputError, match=r"proposals\.method=selective_search makes them instead"):
        open_proposals(load_config(path), [], "trainval")
    changed = load_config(path, ["proposals.method=selective_search"])
    assert (changed.proposals.method, changed.proposals.file) == ("selective_search", None)


@pytest.mark.parametrize("name", ["cards_mobilenet", "coco256_mobilenet"])
def test_what_has_no_command_names_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(PROJECT / "configs" / f"{name}.yaml")
    with pytest.raises(InputError, match=r"; docs/data_and_weights\.md says where it can be had"):
        load_split(config, config.data.train_split, ("a",), training=True)
    assert (PROJECT / "docs" / "data_and_weights.md").is_file()


def test_an_installation_sees_its_own_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/region-detector train"])
    config = load_config(PROJECT / "configs" / "bccd_squeezenet.yaml")

    def main() -> int:
        return len(class_names(config))

    with pytest.raises(SystemExit):
        cli.run(main)
    assert "region-detector download bccd --root data downloads it" in capsys.readouterr().err
