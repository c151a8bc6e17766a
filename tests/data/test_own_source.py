"""``data.format: module:Name`` against the VOC reader, with faults that a function of a user may have."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from detector.commands.check import check_data
from detector.config import Config
from detector.config.load import parse_config, parse_stored
from detector.core.errors import InputError
from detector.data.own_source import OwnSource
from detector.data.targets import ObjectRules
from detector.data.voc.source import VocSource
from detector.factory.data import all_names, build_source, load_split, split_records
from tests.data.test_image_set import assert_same

NAME = "own_voc_reader"
MODULE = """
from pathlib import Path
from xml.etree import ElementTree
Path({mark!r}).touch()

def load(root, split):
    lists = (root / "ImageSets/Main").glob(f"{{split or 't*[!n]'}}.txt")
    for name in [name for one in sorted(lists) for name in one.read_text().split()]:
        objects = []
        for thing in ElementTree.parse(root / f"Annotations/{{name}}.xml").iter("object"):
            box = [float(thing.find(f"bndbox/{{side}}").text) for side in ("xmin", "ymin", "xmax", "ymax")]
            objects.append((thing.findtext("name"), (box[0] - 1, box[1] - 1, box[2], box[3])))
        yield f"JPEGImages/{{name}}.jpg", objects

def failing(root, split):
    raise OSError("no such table")

def yielding(item):
    return lambda root, split: [item]

IMAGE = "JPEGImages/000001.jpg"
outside = yielding(("../a.jpg", []))
single = yielding("a.jpg")
strange = yielding((IMAGE, [("cat", 1, 2, 3, 4)]))
unnamed = yielding((IMAGE, [("", (1, 2, 3, 4))]))
three = yielding((IMAGE, [("cat", (1, 2, 3))]))
infinite = yielding((IMAGE, [("cat", (1, 2, 3, float("nan")))]))
swapped = yielding((IMAGE, [("cat", (30, 2, 3, 40))]))
absent = yielding(("JPEGImages/absent.jpg", []))
nothing = lambda root, split: []
twice = lambda root, split: [(IMAGE, []), (IMAGE, [])]
"""


@pytest.fixture
def root(tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / f"{NAME}.py").write_text(MODULE.format(mark=str(tmp_path / "mark")))
    monkeypatch.syspath_prepend(tmp_path)
    yield tiny_root
    sys.modules.pop(NAME, None)


@pytest.fixture
def config(tiny: Callable[..., Config], root: Path) -> Callable[..., Config]:
    return lambda *more: tiny(f"data.root={root}", f"data.format={NAME}:load", *more)


@pytest.mark.parametrize("training", [True, False])
def test_the_same_records_as_in_voc_layout(root: Path, training: bool) -> None:
    source, voc = OwnSource(root, function=f"{NAME}:load"), VocSource(root)
    classes = source.class_names("trainval", "test")
    assert classes == voc.class_names("trainval", "test")
    for split in ("trainval", "test"):
        found = source.load(split, classes, training=training)
        assert_same(found, voc.load(split, classes, training=training))
        assert next(iter(found.records.image_ids)).startswith("JPEGImages/")


def test_splits_ratio_and_left_out_images(config: Callable[..., Config], root: Path, tmp_path: Path) -> None:
    records = split_records(config())
    assert {split: len(found) for split, found in records.items()} == {"trainval": 8, "test": 4}
    ratio = config("data.split_ratio={trainval: 0.5, test: 0.5}")
    divided = split_records(ratio)
    assert sorted(key for found in divided.values() for key in found.keys) == sorted(
        name.key for name in all_names(config())
    )
    (tmp_path / "leave_out.txt").write_text(records["test"].keys[0])
    fewer = config(f"data.leave_out={tmp_path / 'leave_out.txt'}")
    assert list(split_records(fewer)["test"].keys) == list(records["test"].keys)[1:]


def test_check_data_passes_and_names_each_fault(config: Callable[..., Config]) -> None:
    assert check_data(config(), ["trainval", "test"]).would_start
    report = check_data(config(f"data.format={NAME}:three"), ["trainval"])
    assert not report.would_start
    (fault,) = {(one.file[-10:], one.object) for one in report.problems if "four numbers" in one.message}
    assert fault == ("000001.jpg", "objects[0]")
    failed = check_data(config(f"data.format={NAME}:failing"), ["trainval"])
    assert any("no such table" in one.message for one in failed.problems)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("failing", r"data\.format 'own_voc_reader:failing' failed: OSError: no such table"),
        ("outside", r"image 0: '\.\./a\.jpg' leads out of the data root"),
        ("single", r"image 0: 'a\.jpg'; expected \(path below the root"),
        ("strange", r"000001\.jpg: objects\[0\]: .*expected \(class name"),
        ("unnamed", r"objects\[0\]: the label is ''"),
        ("three", r"objects\[0\]: the box \(1, 2, 3\); expected four numbers"),
        ("infinite", r"objects\[0\]: the box .* is not in pixels"),
        ("swapped", r"objects\[0\]: box 30, 2, 3, 40 is swapped"),
        ("absent", r"absent\.jpg' is missing"),
        ("nothing", "'trainval' has no images"),
        ("twice", "twice"),
        ("gone", "cannot be loaded: AttributeError"),
    ],
)
def test_what_is_wrong_is_one_clear_error(root: Path, function: str, message: str) -> None:
    source = OwnSource(root, function=f"{NAME}:{function}", rules=ObjectRules(invalid_boxes="error"))
    with pytest.raises(InputError, match=message):
        source.load("trainval", ("cat",))


def test_policies_are_those_of_the_other_formats(config: Callable[..., Config]) -> None:
    swapped = config(f"data.format={NAME}:swapped")
    assert load_split(swapped, "trainval", ("cat",), training=True).dropped == {"swapped": 1}
    other = load_split(
        config(f"data.format={NAME}:swapped", "data.classes=[dog]", "data.other_classes=ignore"),
        "trainval",
        ("dog",),
        training=False,
    )
    assert len(other.records[0].targets) == 0


def test_checkpoint_cannot_choose_the_reader(root: Path, tmp_path: Path) -> None:
    values = {
        "data": {"root": str(root), "format": f"{NAME}:load"},
        "proposals": {"method": "dense"},
        "model": {"backbone": {"name": "small"}},
        "train": {"steps": 1},
    }
    with pytest.raises(InputError, match=r"data\.format"):
        parse_stored(values, [], "best.pt")
    parse_stored(values, [], "best.pt", allow_code=[f"{NAME}:load"])
    config = parse_stored(values, [f"data.format={NAME}:load"], "best.pt")
    assert not (tmp_path / "mark").exists()
    assert isinstance(build_source(config), OwnSource)
    for data, message in (
        ({"format": "yoli"}, "did you mean 'yolo'"),
        ({"format": f"{NAME}:load", "images": "photos"}, r"data\.images is not for"),
        ({"format": f"{NAME}:load", "first_pixel": 0}, "count from 0"),
    ):
        with pytest.raises(InputError, match=message):
            parse_config({**values, "data": {"root": "x", **data}}, "mine.yaml")
