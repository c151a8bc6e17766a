"""Files found by a name and an ending in any case."""

from __future__ import annotations

from pathlib import Path

import pytest

from detector.data.suffixes import with_suffix_of
from detector.files import IMAGE_SUFFIXES


@pytest.mark.parametrize("name", ["a.jpg", "a.JPG", "a.Jpg", "a.jPeG", "a.TIFF", "a.WebP"])
def test_any_case_is_found(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    assert with_suffix_of(tmp_path / "a", IMAGE_SUFFIXES) == tmp_path / name
    assert with_suffix_of(tmp_path / "b", IMAGE_SUFFIXES) is None


def test_usual_spellings_come_first_and_folders_are_no_files(tmp_path: Path) -> None:
    for name in ("a.Jpg", "a.PNG", "a.tif"):
        (tmp_path / name).touch()
    (tmp_path / "a.jpg").mkdir()
    assert with_suffix_of(tmp_path / "a", IMAGE_SUFFIXES) == tmp_path / "a.tif"
    (tmp_path / "a.tif").unlink()
    assert with_suffix_of(tmp_path / "a", IMAGE_SUFFIXES) == tmp_path / "a.PNG"
