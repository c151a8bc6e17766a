"""Keys: paths below the data root."""

from __future__ import annotations

from pathlib import Path

import pytest

from detector.data.keys import image_key
from detector.proposals.index import check_image_id


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
