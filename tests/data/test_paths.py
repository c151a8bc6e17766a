"""Finding files by name with a suffix in any case, and keys: paths below the data root."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from detector.core.files import IMAGE_SUFFIXES
from detector.data.paths import FileFinder, image_key
from detector.proposals.index import check_image_id


@pytest.mark.parametrize("name", ["a.jpg", "a.JPG", "a.Jpg", "a.jPeG", "a.TIFF", "a.WebP"])
@pytest.mark.parametrize("listed", [False, True])
def test_a_suffix_in_any_case(tmp_path: Path, name: str, listed: bool) -> None:
    (tmp_path / name).touch()
    lookup = FileFinder()
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
        lookup = FileFinder()
        if listed:
            assert lookup.find(tmp_path / "b", IMAGE_SUFFIXES) is None
        assert lookup.find(tmp_path / "a", IMAGE_SUFFIXES) == tmp_path / expected
        (tmp_path / expected).unlink()


def test_many_files_and_many_missing_ones_cost_one_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every mixture of cases was tried for every missing image, 174 calls of stat each."""
    asked: list[object] = []
    scandir = os.scandir
    for number in range(0, 1000, 2):
        (tmp_path / f"{number}.png").touch()

    def missing(path: object) -> bool:
        asked.append(path)
        return False

    def listing(path: Path) -> Iterator[os.DirEntry[str]]:
        asked.append(path)
        return scandir(path)

    monkeypatch.setattr(os.path, "isfile", missing)
    monkeypatch.setattr(os, "scandir", listing)
    lookup = FileFinder()
    for number in range(1000):
        assert (lookup.find(tmp_path / str(number), IMAGE_SUFFIXES) is None) == (number % 2 == 1)
    assert asked == [str(tmp_path)]


def test_files_in_a_folder_that_cannot_be_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.JPG").touch()

    def refused(path: Path) -> Iterator[os.DirEntry[str]]:
        raise PermissionError(path)

    monkeypatch.setattr(os, "scandir", refused)
    assert FileFinder().find(tmp_path / "a", IMAGE_SUFFIXES) == tmp_path / "a.JPG"
    assert FileFinder().find(tmp_path / "b", IMAGE_SUFFIXES) is None


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("set/JPEGImages/a/1.jpg", "JPEGImages/a/1.jpg"),
        ("set/./train//1.jpg", "train/1.jpg"),
        ("set/../photos/1.jpg", "@parent/photos/1.jpg"),
        ("/elsewhere/1.jpg", None),
    ],
)
def test_a_key_is_the_path_below_the_root_and_can_be_stored(
    path: str, key: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = image_key(Path(path), Path("set"))
    above = "@parent/" * (len(tmp_path.parts))
    assert found == (key or f"{above}elsewhere/1.jpg")
    check_image_id(found, "store")
    assert image_key(Path(path), tmp_path / "set") == found


def test_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "far").mkdir()
    (tmp_path / "set" / "images").symlink_to(tmp_path / "far")
    assert image_key(tmp_path / "set/images/1.jpg", tmp_path / "set") == "images/1.jpg"
