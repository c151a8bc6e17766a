"""``proposals.format: module:Name``: checked as other formats, never loaded by a checkpoint's config."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from detector.commands import propose
from detector.config.load import parse_config, parse_stored
from detector.core.errors import InputError
from detector.core.structures import ImageRecord, Targets
from detector.proposals.convert import convert
from detector.proposals.inspection import inspect
from detector.proposals.readers import read_images

MODULE = """
from pathlib import Path
import numpy as np
Path({mark!r}).touch()

def plain(path):
    for line in path.read_text().splitlines():
        name, *corners = line.split()
        yield name, [[float(corner) for corner in corners]]

def scored(path):
    for name, boxes in plain(path):
        yield name, boxes, [0.5]

def masked(path):
    for name, boxes in plain(path):
        mask = np.zeros((1, 20, 30), bool)
        x1, y1, x2, y2 = map(int, boxes[0])
        mask[0, y1:y2, x1:x2] = True
        yield name, boxes, None, mask

def failing(path):
    yield "a.png", [[0, 0, 1, 1]]
    raise KeyError("no such column")

def nameless(path):
    yield [[0, 0, 1, 1]], [0.5]

def flat(path):
    yield "a.png", [0, 0, 1, 1]

def five(path):
    yield "a.png", [[0, 0, 1, 1, 0.5]]

def short(path):
    yield "a.png", [[0, 0, 1, 1]], [0.5, 0.6]

def one_mask(path):
    yield "a.png", [[0, 0, 1, 1], [0, 0, 2, 2]], None, np.ones((1, 20, 30))

def outside(path):
    yield "a.png", [[0, 0, 90, 90]]

nothing = 3
"""
NAME = "own_box_reader"


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / f"{NAME}.py").write_text(MODULE.format(mark=str(tmp_path / "mark")))
    (tmp_path / "boxes.txt").write_text("a.png 1 2 11 12\nb.png 3 4 20 15\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "mark"
    sys.modules.pop(NAME, None)


def records() -> list[ImageRecord]:
    return [
        ImageRecord(
            image_id=name,
            key=f"images/{name}.png",
            path=Path(f"images/{name}.png"),
            height=20,
            width=30,
            targets=Targets.empty(),
        )
        for name in ("a", "b")
    ]


@pytest.mark.parametrize("function", ["plain", "scored", "masked"])
def test_boxes_scores_and_masks_reach_the_store(mark: Path, function: str) -> None:
    store = convert("boxes.txt", f"{NAME}:{function}", "store", records=records())
    found = store["images/b.png"]
    assert found.boxes.tolist() == [[3, 4, 20, 15]]
    scores = None if found.scores is None else found.scores.tolist()
    assert scores == ([0.5] if function == "scored" else None)
    if function == "masked":
        expected = np.zeros((20, 30), bool)
        expected[4:15, 3:20] = True
        assert found.masks is not None
        np.testing.assert_array_equal(coco_mask.decode(found.masks.rles()[0]), expected)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("failing", r"own_box_reader:failing' failed: KeyError: 'no such column'"),
        ("nameless", r"yielded .* expected \(name, boxes\)"),
        ("flat", r"image 'a.png'.*own_box_reader:flat'.*shape \(4,\)"),
        ("five", "5 columns; expected 4"),
        ("short", "expected 1 numbers"),
        ("one_mask", "there are 1 masks"),
        ("outside", "leave the image of 30 x 20 pixels"),
        ("nothing", "is not a function"),
        ("absent", "cannot be loaded: AttributeError"),
    ],
)
def test_what_is_wrong_is_one_clear_error_and_no_store(mark: Path, function: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        convert("boxes.txt", f"{NAME}:{function}", "store", records=records())
    assert not Path("store").exists()


def test_an_absent_file(mark: Path) -> None:
    with pytest.raises(InputError, match="absent"):
        read_images(Path("absent"), f"{NAME}:plain")
    assert not mark.exists()


def test_the_command_line_takes_the_function(mark: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["propose", "--from", "boxes.txt", "--format", f"{NAME}:scored", "--output", "made"]
    monkeypatch.setattr(sys, "argv", options)
    assert propose.main() == 0
    assert inspect("made")["boxes"] == inspect("boxes.txt", f"{NAME}:scored")["boxes"] == 2
    monkeypatch.setattr(sys, "argv", [*options[:4], "coc", *options[5:]])
    with pytest.raises(InputError, match=r"--format coc.*did you mean 'coco'"):
        propose.main()


def test_checkpoint_cannot_choose_the_reader(mark: Path) -> None:
    values = {
        "data": {"root": "data"},
        "proposals": {"file": "boxes.txt", "format": f"{NAME}:plain"},
        "model": {"backbone": {"name": "small"}},
        "train": {"steps": 1},
    }
    with pytest.raises(InputError, match=r"proposals\.format"):
        parse_stored(values, [], "best.pt")
    parse_stored(values, [], "best.pt", allow_code=[f"{NAME}:plain"])
    parse_stored(values, [f"proposals.format={NAME}:plain"], "best.pt")
    with pytest.raises(InputError, match=r"proposals\.format = 'coc'.*did you mean 'coco'"):
        parse_config({**values, "proposals": {"file": "boxes.txt", "format": "coc"}}, "mine.yaml")
    assert not mark.exists()
