"""The folder of an export: whole or not there, and nothing else is ever replaced."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from detector.core.boxes import iou
from detector.core.errors import InputError
from detector.export.folder import FORMAT, check_free, whole_folder
from detector.export.programs import run_program, selective_search_program

Run = Callable[..., dict[str, Any]]


def earlier(folder: Path) -> Path:
    folder.mkdir()
    (folder / "model.json").write_text(json.dumps({"format": FORMAT}))
    (folder / "run.py").write_text("old")
    return folder


def test_the_folder_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    with whole_folder(target, overwrite=False) as folder:
        (folder / "run.py").write_text("new")
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["run.py"]
    assert [path.name for path in target.parent.iterdir()] == ["b"]


def test_a_failure_leaves_an_earlier_export_as_it_was(tmp_path: Path) -> None:
    target = earlier(tmp_path / "a")

    def fail() -> None:
        with whole_folder(target, overwrite=True) as folder:
            (folder / "run.py").write_text("new")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (target / "run.py").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_earlier_export_is_replaced_only_with_overwrite(tmp_path: Path) -> None:
    target = earlier(tmp_path / "a")
    with pytest.raises(InputError, match="not empty; give another one, or --overwrite"):
        check_free(target, overwrite=False)
    with whole_folder(target, overwrite=True) as folder:
        (folder / "model.json").write_text("{}")
    assert [path.name for path in target.iterdir()] == ["model.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_other_folders_and_files_are_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "photo.jpg").touch()
    with pytest.raises(InputError, match="this folder has none"):
        check_free(tmp_path, overwrite=True)
    with pytest.raises(InputError, match="is not a folder"):
        check_free(tmp_path / "photo.jpg", overwrite=True)
    target = earlier(tmp_path / "a")
    (target / "notes.txt").touch()
    with pytest.raises(InputError, match=r"'notes\.txt' is not a file of an export and would be lost"):
        check_free(target, overwrite=True)


@pytest.mark.parametrize("form", ["onnx", "openvino", "torch_export"])
@pytest.mark.parametrize("search", [False, True])
def test_the_programs_are_short_and_valid(form: str, search: bool) -> None:
    for classifies in (False, True):
        text = run_program(form, classifies=classifies, torchvision=True, search=search and not classifies)
        compile(text, "run.py", "exec")
        assert len(text.splitlines()) <= 40
        assert max(map(len, text.splitlines())) <= 110
    compile(selective_search_program(), "selective_search.py", "exec")


class Runtime:
    """Stands for ONNX Runtime: a network with 2 classes that scores whatever it is given."""

    @staticmethod
    def InferenceSession(model: str, providers: list[str]) -> Any:
        names = [SimpleNamespace(name=name) for name in ("image", "regions", "size", "scale")]
        return SimpleNamespace(run=Runtime.run, get_inputs=lambda: names)

    @staticmethod
    def run(outputs: None, given: dict[str, np.ndarray]) -> list[np.ndarray]:
        if "regions" not in given:
            return [np.array([0.25, 0.75], np.float32)]
        regions = given["regions"]
        scores = np.tile(np.array([0.5, 0.125, 0.375], np.float32), (len(regions), 1))
        return [scores, np.repeat(regions[:, None], 3, axis=1)]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run ``run.py`` in this process, with `Runtime`, and return what it prints."""
    monkeypatch.setitem(sys.modules, "onnxruntime", Runtime)
    view = {"resize": "shorter", "scale": 30, "max_size": 60, "smallest_side": 7}
    (tmp_path / "model.json").write_text(json.dumps({"image": view, "classes": ["a", "b"]}))

    def call(*words: object, classifies: bool = False) -> dict[str, Any]:
        text = run_program("onnx", classifies=classifies, torchvision=False, search=False)
        (tmp_path / "run.py").write_text(text)
        monkeypatch.setattr(sys, "argv", ["run.py", *map(str, words)])
        runpy.run_path(str(tmp_path / "run.py"))
        printed: dict[str, Any] = json.loads(capsys.readouterr().out)
        return printed

    return call


def picture(path: Path, height: int, width: int) -> Path:
    cv2.imwrite(str(path), np.full((height, width, 3), 40, np.uint8))
    return path


def test_what_is_printed_has_the_form_of_a_result(tmp_path: Path, run: Run) -> None:
    image, boxes = picture(tmp_path / "a.png", 40, 50), tmp_path / "boxes.txt"
    for text in ("0 0 50 40\n1,2,3.5,4\n\n", "0, 0, 50, 40\n1 2 3.5 4"):
        boxes.write_text(text)
        found = run(image, boxes)
        assert (found["image"], found["height"], found["width"]) == (str(image), 40, 50)
        assert found["detections"][1] == {"class": "b", "score": 0.375, "box": [1, 2, 3.5, 4]}
    boxes.write_text("")
    assert run(image, boxes)["detections"] == []
    assert run(image, classifies=True) == {
        "image": str(image),
        "height": 40,
        "width": 50,
        "scores": [{"class": "b", "score": 0.75}, {"class": "a", "score": 0.25}],
    }


@pytest.mark.parametrize("classifies", [False, True])
@pytest.mark.parametrize(("height", "width"), [(5, 900), (900, 5)])
def test_an_image_that_is_too_small_is_one_message(
    tmp_path: Path, run: Run, height: int, width: int, classifies: bool
) -> None:
    (tmp_path / "boxes.txt").write_text("0 0 1 1")
    with pytest.raises(SystemExit, match=r"a\.png: too small: its input would be \["):
        run(picture(tmp_path / "a.png", height, width), tmp_path / "boxes.txt", classifies=classifies)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("gone.txt", None),
        ("words.txt", "one two three four"),
        ("three.txt", "1 2 3"),
        ("five.txt", "1 2 3 4 0.9\n1 2 3 4 0.9\n1 2 3 4 0.9\n1 2 3 4 0.9"),
        ("bytes.txt", b"\xff\xfe\x00"),
        ("nan.txt", "nan 0 1 1"),
        ("far.txt", "0 0 1 1e30"),
        ("turned.txt", "9 9 3 3"),
        ("open.json", "[[1, 2"),
        ("object.json", '{"boxes": [[1, 2, 3, 4]]}'),
        ("number.json", "7"),
        ("ragged.json", "[[1, 2, 3, 4], [1, 2]]"),
        ("pairs.json", "[[1, 2], [3, 4]]"),
        ("none.json", "[null]"),
        ("empty.npy", ""),
        ("text.npy", "1 2 3 4"),
    ],
)
def test_regions_that_are_no_boxes_are_one_message(
    tmp_path: Path, run: Run, name: str, content: str | bytes | None
) -> None:
    image = picture(tmp_path / "a.png", 40, 50)
    if content is not None:
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SystemExit, match=f"{name}: (not rows of x1, y1, x2, y2|a box is not x1)"):
        run(image, tmp_path / name)


def test_selective_search_finds_the_objects_of_a_simple_image(tmp_path: Path) -> None:
    image = np.full((60, 80, 3), 40, np.uint8)
    image[10:30, 12:40], image[35:55, 45:75] = (200, 60, 60), (60, 60, 220)
    cv2.imwrite(str(tmp_path / "a.png"), image)
    (tmp_path / "search.py").write_text(selective_search_program())
    boxes = torch.from_numpy(runpy.run_path(str(tmp_path / "search.py"))["propose"](str(tmp_path / "a.png")))
    objects = torch.tensor([[12.0, 10, 40, 30], [45, 35, 75, 55]])
    assert iou(objects, boxes).amax(dim=1).min() > 0.8
    assert boxes.dtype == torch.float32
    assert ((boxes >= 0) & (boxes <= torch.tensor([80.0, 60, 80, 60]))).all()
