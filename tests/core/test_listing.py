"""Questions about many files have the answers that the system gives for each."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from detector.core import listing
from detector.core.errors import InputError
from detector.core.listing import Listing, asked, existing, file_sizes, real_paths


@pytest.fixture
def tree(tmp_path: Path) -> list[str]:
    """Files, folders and links of every kind; the paths of all of them, and of some that do not exist."""
    base = tmp_path / "base"
    (base / "sub").mkdir(parents=True)
    (base / "far").mkdir()
    for number, name in enumerate(("a.jpg", "sub/b.jpg", "far/c.jpg", "sub/ü x.jpg")):
        (base / name).write_bytes(b"x" * number)
    links = {
        "file": "a.jpg",
        "other": "sub/b.jpg",
        "chain": "other",
        "dangling": "nowhere",
        "loop": "loop",
        "folder": "sub",
        "sub/up": "../far/c.jpg",
        "absolute": str(base / "far" / "c.jpg"),
        "through": "folder/b.jpg",
    }
    for name, target in links.items():
        (base / name).symlink_to(target)
    names = [
        *("a.jpg", "sub/b.jpg", "far/c.jpg", "sub/ü x.jpg", *links, "missing", "none/x", "sub", "A.JPG"),
        *("folder/b.jpg", "folder/up", "sub/../a.jpg", "a.jpg/x"),
    ]
    return [str(base / name) for name in names]


@pytest.mark.parametrize("at_once", [1, 3, 64])
def test_the_answers_are_those_of_the_system(
    tree: list[str], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_AT_ONCE", at_once)
    files = [path for path in tree if Path(path).is_file()]
    assert existing(tree).tolist() == [Path(path).is_file() for path in tree]
    assert real_paths(tree) == [os.path.realpath(path) for path in tree]
    assert file_sizes(files).tolist() == [Path(path).stat().st_size for path in files]
    assert [len(answer(list[str]())) for answer in (existing, real_paths, file_sizes)] == [0, 0, 0]
    with pytest.raises(InputError, match=r"dangling: cannot read the image: No such file"):
        file_sizes(tree)


def test_regular_files_are_known_from_their_folder(tree: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: object) -> bool:
        raise AssertionError(f"asked about {path}")

    monkeypatch.setattr(os.path, "isfile", refused)
    assert existing(tree[:4]).all()
    assert tree[0] in Listing()


def test_paths_below_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jpg").touch()
    monkeypatch.chdir(tmp_path)
    assert existing(["a.jpg", "./a.jpg", "b.jpg", "a\0.jpg"]).tolist() == [True, True, False, False]


def test_many_are_asked_at_once_and_answered_in_order() -> None:
    threads = set()

    def ask(path: str) -> int:
        threads.add(threading.get_ident())
        time.sleep(0.0005)
        return int(path)

    assert asked([str(number) for number in range(1000)], ask) == list(range(1000))
    assert len(threads) > 1
