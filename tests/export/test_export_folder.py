"""The folder of an export: whole or not there, and nothing else is ever replaced."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from detector.core.boxes import iou
from detector.core.errors import InputError
from detector.export.folder import FORMAT, check_free, whole_folder
from detector.export.programs import run_program, selective_search_program


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
