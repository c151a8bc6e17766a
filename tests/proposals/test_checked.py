"""A later start reads no image and no box where nothing has changed, and notices what has."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from detector.core.structures import ImageRecord
from detector.proposals import checked
from detector.proposals import generate as generate_module
from detector.proposals.checked import Checked
from detector.proposals.segments import DamagedStore
from detector.proposals.store import ProposalStore
from tests.proposals.test_generate import CORNERS, generate, write_images
from tests.typed import present

Reads = Callable[[], tuple[int, int]]


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that have just been written count as settled."""
    monkeypatch.setattr(checked, "_SETTLED_SECONDS", -5.0)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    """Return how many images, and how many whole stores, have been read since the last call."""
    images: list[Path] = []
    stores: list[Path] = []
    hash_of, damaged = generate_module.file_hash, ProposalStore.damaged

    def counted_hash(path: Path) -> str:
        images.append(path)
        return hash_of(path)

    def counted_damaged(store: ProposalStore) -> Any:
        stores.append(store.path)
        return damaged(store)

    def since() -> tuple[int, int]:
        counts = len(images), len(stores)
        images.clear()
        stores.clear()
        return counts

    monkeypatch.setattr(generate_module, "file_hash", counted_hash)
    monkeypatch.setattr(ProposalStore, "damaged", counted_damaged)
    return since


def paint(record: ImageRecord, value: int) -> None:
    """Replace an image by one of 400 bytes, and give it the same time."""
    before = record.path.stat()
    image = np.full((record.height, record.width, 3), value, np.uint8)
    record.path.write_bytes(cv2.imencode(".png", image)[1].tobytes().ljust(400, b"\0"))
    os.utime(record.path, ns=(before.st_atime_ns, before.st_mtime_ns))


def score(store: ProposalStore, record: ImageRecord) -> float:
    return float(present(store[record.key].scores)[0])


def test_a_start_without_changes_reads_nothing(tmp_path: Path, reads: Reads) -> None:
    records, path = write_images(tmp_path / "images", 70), tmp_path / "store"
    store = generate(records, path, method=CORNERS)
    assert reads()[0] == 70  # each was hashed when its proposals were made
    again = generate(records, path, method=CORNERS)
    assert reads() == (0, 0)
    assert [score(again, record) for record in records] == [score(store, record) for record in records]
    (path / checked.NAME).unlink()
    generate(records, path, method=CORNERS)
    assert reads() == (70, 1)
    generate(records, path, method=CORNERS)
    assert reads() == (0, 0)


def test_a_changed_image_of_the_same_size_and_time_is_noticed(tmp_path: Path, reads: Reads) -> None:
    records, path = write_images(tmp_path / "images", 6), tmp_path / "store"
    paint(records[2], 50)
    generate(records, path, method=CORNERS)
    reads()
    paint(records[2], 77)
    store = generate(records, path, method=CORNERS)
    assert score(store, records[2]) == 77
    assert reads()[0] == 3  # compared, compared again with the lock held, and made
    generate(records, path, method=CORNERS)
    assert reads() == (0, 0)


def test_an_image_that_has_just_changed_is_compared_again(
    tmp_path: Path, reads: Reads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checked, "_SETTLED_SECONDS", 3600.0)
    records, path = write_images(tmp_path / "images", 3), tmp_path / "store"
    generate(records, path, method=CORNERS)
    reads()
    for _ in range(2):
        generate(records, path, method=CORNERS)
        assert reads() == (3, 0)


def test_an_image_that_is_only_touched_is_compared_and_not_made_again(tmp_path: Path, reads: Reads) -> None:
    records, path = write_images(tmp_path / "images", 3), tmp_path / "store"
    generate(records, path, method=CORNERS)
    reads()
    os.utime(records[1].path, (time.time() - 99, time.time() - 99))
    generate(records, path, method=CORNERS, progress=lambda *_: pytest.fail("nothing has changed"))
    assert reads() == (1, 0)
    generate(records, path, method=CORNERS)
    assert reads() == (0, 0)


def test_splits_that_share_a_store_do_not_disturb_each_other(tmp_path: Path, reads: Reads) -> None:
    records, path = write_images(tmp_path / "images", 9), tmp_path / "store"
    for _ in range(3):
        for split in (records[:6], records[6:]):
            generate(split, path, method=CORNERS)
    reads()
    for split in (records[:6], records[6:], records):
        generate(split, path, method=CORNERS)
    assert reads() == (0, 0)


def test_marks_of_changed_images_do_not_pile_up(tmp_path: Path) -> None:
    records, path = write_images(tmp_path / "images", 4), tmp_path / "store"
    for value in range(20):
        paint(records[0], value)
        generate(records, path, method=CORNERS)
        assert 4 <= len(Checked.load(path).images) <= 8


def test_an_image_that_got_no_proposals_is_never_taken_for_unchanged(tmp_path: Path, reads: Reads) -> None:
    records, path = write_images(tmp_path / "images", 3), tmp_path / "store"
    generate(records, path, method=CORNERS)
    records[1].path.write_bytes(b"no image")
    for _ in range(2):
        failures: dict[str, str] = {}
        store = generate(records, path, method=CORNERS, on_failure=failures.__setitem__)
        assert list(failures) == [records[1].key]
        assert records[1].key not in store


@pytest.mark.parametrize("cut", [False, True])
def test_a_store_that_has_changed_is_checked(tmp_path: Path, reads: Reads, cut: bool) -> None:
    records, path = write_images(tmp_path / "images", 3), tmp_path / "store"
    generate(records, path, method=CORNERS)
    segment = path / "segment_000001.boxes.npy"
    before, content = segment.stat(), bytearray(segment.read_bytes())
    content[-2] ^= 1
    segment.write_bytes(content[:-9] if cut else content)
    os.utime(segment, ns=(before.st_atime_ns, before.st_mtime_ns))
    said: list[str] = []
    store = generate(records, path, method=CORNERS, on_damage=said.append)
    assert len(said) == 1
    assert segment.name in said[0]
    assert [score(store, record) for record in records] == [0, 1, 2]
    reads()
    generate(records, path, method=CORNERS)
    assert reads() == (0, 0)


def test_damage_that_a_reader_finds_is_looked_for_at_the_next_start(tmp_path: Path) -> None:
    """As on a disk that loses bits, which changes no time of the file."""
    records, path = write_images(tmp_path / "images", 3), tmp_path / "store"
    generate(records, path, method=CORNERS)
    segment = path / "segment_000001.boxes.npy"
    content = bytearray(segment.read_bytes())
    content[-2] ^= 1
    segment.write_bytes(content)
    Checked(checked.store_mark(path), Checked.load(path).images).save(path)
    generate(records, path, method=CORNERS, on_damage=pytest.fail)
    with pytest.raises(DamagedStore, match="make the proposals again"):
        ProposalStore.open(path)[records[2].key]
    said: list[str] = []
    store = generate(records, path, method=CORNERS, on_damage=said.append)
    assert len(said) == 1
    assert score(store, records[2]) == 2


@pytest.mark.parametrize("change", [b"", b"x" * 200, None])
def test_a_damaged_file_of_marks_is_not_used(
    tmp_path: Path, reads: Reads, change: bytes | None, capfd: pytest.CaptureFixture[str]
) -> None:
    records, path = write_images(tmp_path / "images", 3), tmp_path / "store"
    generate(records, path, method=CORNERS)
    file = path / checked.NAME
    content = bytearray(file.read_bytes())
    content[-20] ^= 1
    file.write_bytes(content if change is None else change)
    reads()
    generate(records, path, method=CORNERS)
    assert reads() == (3, 1)
    generate(records, path, method=CORNERS)
    assert reads() == (0, 0)
    assert " ".join(capfd.readouterr().err.split()).count("all images are compared again") == 1


def test_where_nothing_can_be_kept_a_note_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    records, path = write_images(tmp_path / "images", 2), tmp_path / "store"
    ProposalStore.create(path, generator=CORNERS, parameters={})
    (path / checked.NAME).mkdir()
    store = generate(records, path, method=CORNERS)
    assert [score(store, record) for record in records] == [0, 1]
    assert "each start compares all images" in capfd.readouterr().err
