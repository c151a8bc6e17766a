"""The catalogue: its addresses and checksums are those of torchvision, its places those of the configs."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from torchvision import models
from torchvision.datasets.voc import DATASET_YEAR_DICT

from detector.config import load_config
from detector.core.catalogue import (
    DATA_SETS,
    PROJECT_WEIGHTS,
    DataSet,
    find_weights,
    how_to_get,
)
from detector.core.errors import InputError
from detector.models.weights import default_file_names
from tests.conftest import PROJECT

CONFIGS = sorted((PROJECT / "configs").glob("*.yaml"))
OWN = {"quickstart", "arrangements", "my_data"}
"""What the program makes, and what a user brings."""
PAGE = PROJECT / "docs" / "data_and_weights.md"


def test_pascal_voc_is_as_in_torchvision() -> None:
    archives = [archive for name in ("voc2007", "voc2012") for archive in DATA_SETS[name].archives]
    for archive, key in zip(archives, ("2007", "2007-test", "2012"), strict=True):
        theirs = DATASET_YEAR_DICT[key]
        assert archive.name == theirs["filename"]
        assert archive.urls[0] == theirs["url"]
        assert archive.checksum == f"md5:{theirs['md5']}"
        assert archive.places == ((f"{Path(theirs['base_dir']).as_posix()}/", ""),)


@pytest.mark.parametrize("data_set", DATA_SETS.values(), ids=DATA_SETS)
def test_every_data_set_is_checked_and_has_a_page_and_a_licence(data_set: DataSet) -> None:
    assert data_set.counts
    assert data_set.licence
    assert data_set.archives or data_set.made_from
    for archive in data_set.archives:
        assert archive.page.startswith(("http://", "https://"))
        assert archive.checksum or data_set.content
        assert archive.size or archive.about
        assert archive.unpacked >= archive.expected_bytes
        assert Path(archive.name).suffix in (".tar", ".zip")


def test_every_archive_has_a_name_of_its_own_in_the_folder_of_downloads() -> None:
    names = [archive.name for data_set in DATA_SETS.values() for archive in data_set.archives]
    assert len(set(names)) == len(names)


def test_every_network_by_which_torchvision_classifies_has_weights_with_a_checksum() -> None:
    for name in models.list_models(module=models):
        weights = find_weights(name)
        address = models.get_model_weights(name)
        assert weights.file.urls[0] in {entry.url for entry in address}
        digits = Path(weights.file.name).stem.rpartition("-")[2]
        assert weights.file.checksum == f"sha256:{digits}"
        assert weights.file.about > 1 << 20
        assert find_weights(f"torchvision:{name}") == weights
    assert "BY-NC" in find_weights("vit_h_14").licence


def test_weights_have_the_names_that_the_default_looks_for() -> None:
    for name in PROJECT_WEIGHTS:
        if name != "vgg16_caffe":
            library = "torchvision:" if name == "mobilenet_v2" else ""
            assert find_weights(name).file.name == default_file_names(f"{library}{name}")[0]


@pytest.mark.parametrize("name", ["vgg61", "fasterrcnn_resnet50_fpn", "", "timm:resnet18"])
def test_other_names_are_errors_that_name_what_there_is(name: str) -> None:
    with pytest.raises(InputError, match=f"weights:{name}: no such weights.*vgg16_caffe"):
        find_weights(name)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_what_a_shipped_config_misses_has_a_command(path: Path) -> None:
    config = load_config(path)
    named = [config.data.root, config.proposals.file, config.model.backbone.weights]
    for place in (Path(str(place)) for place in named if place not in (None, "default")):
        if place.name in OWN:
            continue
        hint = how_to_get(Path("/nowhere") / place)
        if "docs/data_and_weights.md says where it can be had" in hint:
            assert f"data/{'*' if place.suffix == '.npz' else place.relative_to('data')}" in PAGE.read_text()
        else:
            assert "tools/download.py" in hint, place
            assert "--root /nowhere/data download" in hint


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("VOC2007", "; tools/download.py voc2007 --root {root} downloads it"),
        ("VOC0712", "; tools/download.py voc0712 --root {root} downloads it"),
        (
            "coco/annotations/instances_train2017.json",
            "; tools/download.py coco2017 --root {root} downloads it",
        ),
        ("bccd/Annotations", "; tools/download.py bccd --root {root} downloads it"),
        ("weights/vgg16-397923af.pth", "; tools/download.py weights:vgg16 --root {root} downloads it"),
        ("weights/vgg16_caffe.pth", "; tools/download.py weights:vgg16_caffe --root {root} downloads it"),
        ("weights/vit_b_16-c867db91.pth", "; tools/download.py weights:vit_b_16 --root {root} downloads it"),
        ("weights/vgg16-00000000.pth", ""),
        ("weights/mine.pth", ""),
        ("vgg16-397923af.pth", ""),
        ("photographs", ""),
    ],
)
def test_the_command_puts_it_exactly_there(tmp_path: Path, path: str, hint: str) -> None:
    assert how_to_get(tmp_path / path) == hint.format(root=tmp_path)


def test_what_is_there_in_part_has_no_command(tmp_path: Path) -> None:
    (tmp_path / "coco").mkdir()
    assert "coco2017" in how_to_get(tmp_path / "coco" / "annotations" / "instances_val2017.json")
    (tmp_path / "coco" / "notes.txt").write_text("mine")
    assert how_to_get(tmp_path / "coco" / "annotations" / "instances_val2017.json") == ""


def test_files_without_an_address_have_a_replacement(tmp_path: Path) -> None:
    said = how_to_get(tmp_path / "weights" / "mobilenet_v2_features.pth")
    assert "no public address. tools/download.py weights:mobilenet_v2" in said
    assert "model.backbone.weights=default" in said
    for file in ("mobilenet_v2_features.pth", "efficientnet-lite0-57934424.pth"):
        assert "docs/data_and_weights.md says where" in how_to_get(tmp_path / "weights" / file)


def test_the_command_can_be_pasted_wherever_the_root_is() -> None:
    for path in ("VOC2007", "weights/vgg16_caffe.pth", "weights/mobilenet_v2_features.pth"):
        command = how_to_get(Path("/no where/it's") / path).partition("tools/download.py ")[2]
        words = shlex.split(command.partition(" downloads ")[0])
        assert words[1:] == ["--root", "/no where/it's"]
