"""Files found by a name and an ending in any case."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from detector.core.files import IMAGE_SUFFIXES
from detector.data.suffixes import Lookup


@pytest.mark.parametrize("name", ["a.jpg", "a.JPG", "a.Jpg", "a.jPeG", "a.TIFF", "a.WebP"])
@pytest.mark.parametrize("listed", [False, True])
def test_any_case_is_found(tmp_path: Path, name: str, listed: bool) -> None:
    (tmp_path / name).touch()
    lookup = Lookup()
    if listed:
        assert lookup.find(tmp_path / "b", IMAGE_SUFFIXES) is None
    assert lookup.find(tmp_path / "a", IMAGE_SUFFIXES) == tmp_path / name
    assert lookup.find(tmp_path / "A", IMAGE_SUFFIXES) is None
    assert lookup.find(tmp_path / "a", (".xml",)) is None
    assert lookup.find(tmp_path / "none" / "a", IMAGE_SUFFIXES) is None


@pytest.mark.parametrize("listed", [False, True])
def test_usual_spellings_come_first_and_folders_are_no_files(tmp_path: Path, listed: bool) -> None:
    for name in ("a.Jpg", "a.PNG", "a.tif", "a.jPg", "a.txt", "a"):
        (tmp_path / name).touch()
    (tmp_path / "a.jpg").mkdir()
    for expected in ("a.tif", "a.PNG", "a.jPg", "a.Jpg"):
        lookup = Lookup()
        if listed:
            assert lookup.find(tmp_path / "b", IMAGE_SUFFIXES) is None
        assert lookup.find(tmp_path / "a", IMAGE_SUFFIXES) == tmp_path / expected
        (tmp_path / expected).unlink()


def test_many_missing_files_cost_one_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every mixture of cases was tried for every missing image, 174 calls of stat each."""
    asked: list[object] = []
    monkeypatch.setattr(os.path, "isfile", lambda path: bool(asked.append(path)))
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: asked.append(path) or scandir(path))
    lookup = Lookup()
    for number in range(1000):
        assert lookup.find(tmp_path / str(number), IMAGE_SUFFIXES) is None
    assert len(asked) == 2 * len(IMAGE_SUFFIXES) + 1
