"""The lines of YOLO's files, against boxes that are worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from detector.core import yolo_file
from detector.core.errors import InputError
from detector.core.yolo_file import keypoint_numbers, read_yolo, yolo_lines


def written(tmp_path: Path, content: str) -> Path:
    path = tmp_path / "file.txt"
    path.write_text(content)
    return path


def test_yolo_boxes_polygons_and_keypoints(tmp_path: Path) -> None:
    text = "\ufeff0 0.5 0.5 0.2 0.4\r\n\n17 .1 .2 .3 .2 .3 .6 .15 .5\n2.0 0.5 0.5 1 1\n"
    box, polygon, whole = read_yolo(written(tmp_path, text))
    assert box.labels == ("0",)
    assert box.box == pytest.approx((0.4, 0.3, 0.6, 0.7))
    assert box.polygons == ()
    assert polygon.labels == ("17",)
    assert polygon.box == (0.1, 0.2, 0.3, 0.6)
    assert polygon.polygons == (((0.1, 0.2), (0.3, 0.2), (0.3, 0.6), (0.15, 0.5)),)
    assert whole.labels == ("2",)
    assert whole.place == "line 4"
    (pose,) = read_yolo(written(tmp_path, "0 0.5 0.5 0.2 0.4 0.1 0.1 2 0.9 0.9 1"), keypoints=6)
    assert pose.box == box.box
    assert read_yolo(written(tmp_path, "\n")) == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.2", "4 numbers; expected 5"),
        ("0 0.5 0.5 0.2 0.4 0.9", "6 numbers"),
        ("0 .1 .1 .2 .2 .3", "6 numbers"),
        ("0 0.5 0.5 453 0.4", "'453' is no fraction"),
        ("0 0.5 0.5 nan 0.4", "'nan' is no fraction"),
        ("0 0.5 0.5 1_0 0.4", "'1_0' is no fraction"),
        ("cat 0.5 0.5 0.2 0.4", "'cat' is no class"),
        ("-1 0.5 0.5 0.2 0.4", "'-1' is no class"),
        ("1.5 0.5 0.5 0.2 0.4", "'1.5' is no class"),
        ("1e300 0.5 0.5 0.2 0.4", "'1e300' is no class"),
        ("0 .1 .1 .2 .2 .3 2", "if the line has keypoints"),
        ("0 " * (1 << 19) + "0", "a line of over"),
    ],
)
def test_yolo_lines_that_are_refused(tmp_path: Path, line: str, message: str) -> None:
    path = written(tmp_path, f"0 0.5 0.5 0.1 0.1\n{line}\n1 0.5 0.5 0.1 0.1\n")
    with pytest.raises(InputError, match=message) as caught:
        read_yolo(path)
    assert str(caught.value).startswith(f"{path}: line 2: ")
    faults: list[InputError] = []
    assert [shape.labels for shape in read_yolo(path, on_fault=faults.append)] == [("0",), ("1",)]
    assert len(faults) == 1


@pytest.mark.parametrize(
    ("line", "keypoints", "confidence"),
    [
        ("0 .5 .5 .2 .4", 0, None),
        ("0 .5 .5 .2 .4 .9", 0, 0.9),
        ("0 .1 .2 .3 .2 .3 .6 .1 .6", 0, None),
        ("0 .1 .2 .3 .2 .3 .6 1.5", 0, 1.5),
        ("0 .5 .5 .2 .4 .1 .1 2", 3, None),
        ("0 .5 .5 .2 .4 .1 .1 2 .9", 3, 0.9),
        ("0 .5 .5 .2 .4 .1 .1", 2, None),
        ("0 .5 .5 .2 .4 .1 .1 .9", 2, 0.9),
        ("0 .5 .5 .2 .4 .9", 2, 0.9),
        ("0 .5 .5 .2 .4", 2, None),
    ],
)
def test_confidences(tmp_path: Path, line: str, keypoints: int, confidence: float | None) -> None:
    path = written(tmp_path, line)
    (found,) = yolo_lines(path, keypoints=keypoints, confidences=True)
    assert found.confidence == confidence
    if not found.polygon:
        assert found.box == (0.5, 0.5, 0.2, 0.4)
    else:
        assert found.box == pytest.approx((0.2, 0.4, 0.2, 0.4))
    if confidence is None:
        assert len(read_yolo(path, keypoints=keypoints)) == 1
    else:
        with pytest.raises(InputError, match=r"line 1: \d numbers; expected 5"):
            read_yolo(path, keypoints=keypoints)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 .5 .5 .2 .4 .1", "6 numbers; expected 5 .* and 6 of keypoints"),
        ("0 .5 .5 .2 .4 .1 .1 2", "8 numbers; expected 5"),
    ],
)
def test_lines_that_do_not_fit_kpt_shape(tmp_path: Path, line: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_yolo(written(tmp_path, line), keypoints=6)


@pytest.mark.parametrize("word", ["nan", "inf", "x", "1_0"])
def test_a_confidence_that_is_no_number(tmp_path: Path, word: str) -> None:
    with pytest.raises(InputError, match=f"line 1: the confidence '{word}' is no number"):
        list(yolo_lines(written(tmp_path, f"0 .5 .5 .2 .4 {word}"), confidences=True))


def test_too_many_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(yolo_file, "MAX_LINES", 3)
    path = written(tmp_path, "\n0 .5 .5 .2 .4" * 3)
    assert len(read_yolo(path)) == 3
    with pytest.raises(InputError, match=r"file\.txt: over 3 objects"):
        read_yolo(written(tmp_path, "0 .5 .5 .2 .4\n" * 4))


@pytest.mark.parametrize(
    ("shape", "count"), [(None, 0), ([17, 3], 51), ([1, 2], 2), ("17", None), ([17], None), ([3, 4], None)]
)
def test_kpt_shape(tmp_path: Path, shape: Any, count: int | None) -> None:
    if count is not None:
        assert keypoint_numbers({"kpt_shape": shape}, tmp_path / "data.yaml") == count
        return
    with pytest.raises(InputError, match=r"data\.yaml: kpt_shape is .*expected the number of keypoints"):
        keypoint_numbers({"kpt_shape": shape}, tmp_path / "data.yaml")
