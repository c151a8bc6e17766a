"""The journal of a running job: what is written is read back, a torn end is left out."""

from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path

import pytest
import torch

from detector.core.errors import InputError
from detector.core.structures import Proposals
from detector.proposals.journal import NAME, Journal, decode_entry, encode_entry, entries, journals
from detector.proposals.store import Entry

ENTRIES = {
    "a": Entry(Proposals(boxes=torch.tensor([[0.0, 1, 2, 3]]), scores=torch.tensor([0.5])), "cafe", (4, 5)),
    "b/ü \u202f": Entry(Proposals(boxes=torch.rand(3, 4)), None, (0, 0)),
    "none": Entry(Proposals(boxes=torch.zeros(0, 4)), "00", (7, 8)),
    "none scored": Entry(Proposals(boxes=torch.zeros(0, 4), scores=torch.zeros(0)), "00", (7, 8)),
}


def assert_same(found: Entry, wanted: Entry) -> None:
    assert found[1:] == wanted[1:]
    assert torch.equal(found.proposals.boxes, wanted.proposals.boxes)
    assert (found.proposals.scores is None) == (wanted.proposals.scores is None)
    if wanted.proposals.scores is not None and found.proposals.scores is not None:
        assert torch.equal(found.proposals.scores, wanted.proposals.scores)


@pytest.mark.parametrize("image_id", ENTRIES)
def test_a_record_is_read_as_written(image_id: str) -> None:
    found_id, found = decode_entry(encode_entry(image_id, ENTRIES[image_id]))
    assert found_id == image_id
    assert_same(found, ENTRIES[image_id])


def test_wherever_it_is_torn_the_whole_records_are_there(tmp_path: Path) -> None:
    records = [encode_entry(image_id, entry) for image_id, entry in ENTRIES.items()]
    with Journal(tmp_path) as journal:
        for record in records:
            journal.add(record)
    data = (tmp_path / NAME).read_bytes()
    assert data == b"".join(records)
    ends = [sum(map(len, records[:count])) for count in range(len(records) + 1)]
    for length in range(len(data) + 1):
        (tmp_path / NAME).write_bytes(data[:length])
        found = dict(entries(tmp_path / NAME))
        assert list(found) == list(ENTRIES)[: sum(end <= length for end in ends) - 1]
    for image_id, entry in found.items():
        assert_same(entry, ENTRIES[image_id])


def test_a_changed_byte_costs_its_own_record_alone(tmp_path: Path) -> None:
    first, second = (encode_entry(key, ENTRIES[key]) for key in ("a", "none"))
    for place in range(4, len(first)):
        (tmp_path / NAME).write_bytes(first[:place] + bytes([first[place] ^ 1]) + first[place + 1 :] + second)
        assert list(dict(entries(tmp_path / NAME))) == ["none"]


def raw_record(payload: bytes) -> bytes:
    return struct.pack("<II", len(payload), zlib.crc32(payload)) + payload


GOOD = {"id": "x", "hash": None, "size": [4, 5], "boxes": 1, "scored": False}


@pytest.mark.parametrize(
    "record",
    [
        encode_entry("bad\nname", ENTRIES["a"]),
        encode_entry("../out", ENTRIES["a"]),
        encode_entry("nan", Entry(Proposals(boxes=torch.full((1, 4), float("nan"))), None, (4, 5))),
        raw_record(b"no json"),
        raw_record(b"[" * 100_000),
        raw_record(b"[]\n" + bytes(16)),
        *(
            raw_record(json.dumps(GOOD | change).encode() + b"\n" + bytes(16))
            for change in (
                {"id": 3},
                {"id": None},
                {"hash": 3},
                {"hash": "x" * 129},
                {"size": 3},
                {"size": [1]},
                {"size": [-1, 5]},
                {"size": [2**32, 5]},
                {"size": ["4", "5"]},
                {"boxes": -1},
                {"boxes": 2},
                {"boxes": 1.0},
                {"boxes": "1"},
                {"scored": 0},
                {"scored": True},
            )
        ),
        raw_record(json.dumps(GOOD).encode() + b"\n" + bytes(15)),
    ],
)
def test_a_record_that_no_store_can_hold_is_dropped(tmp_path: Path, record: bytes) -> None:
    first, last = encode_entry("a", ENTRIES["a"]), encode_entry("none", ENTRIES["none"])
    (tmp_path / NAME).write_bytes(first + record + last)
    assert list(dict(entries(tmp_path / NAME))) == ["a", "none"]


def test_blank_pages_at_the_end_are_no_records(tmp_path: Path) -> None:
    """As a crash of the machine leaves them."""
    (tmp_path / NAME).write_bytes(encode_entry("a", ENTRIES["a"]) + bytes(10_000))
    assert list(dict(entries(tmp_path / NAME))) == ["a"]


def test_a_pipe_is_never_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / NAME)
    with pytest.raises(InputError, match=NAME):
        Journal(tmp_path)
    with pytest.raises(InputError, match=NAME):
        list(entries(tmp_path / NAME))


def test_an_emptied_one_leaves_no_file(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.add(encode_entry("a", ENTRIES["a"]))
        journal.clear()
        assert not list(entries(tmp_path / NAME))
    assert not (tmp_path / NAME).exists()


def test_each_process_has_a_journal_of_its_own(tmp_path: Path) -> None:
    with Journal(tmp_path) as first, Journal(tmp_path, 12) as other:
        first.add(encode_entry("a", ENTRIES["a"]))
        other.add(encode_entry("none", ENTRIES["none"]))
    (tmp_path / "unfinished_mine.journal").write_text("of somebody else")
    assert journals(tmp_path) == [tmp_path / NAME, tmp_path / "unfinished_12.journal"]
    assert [list(dict(entries(path))) for path in journals(tmp_path)] == [["a"], ["none"]]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_is_named_and_what_was_written_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Journal(tmp_path) as journal:
        journal.add(encode_entry("a", ENTRIES["a"]))
        with Path("/dev/full").open("ab", buffering=0) as full, monkeypatch.context() as patch:
            patch.setattr(journal, "_file", full)
            with pytest.raises(InputError, match=r"unfinished\.journal: No space left on device; free"):
                journal.add(encode_entry("none", ENTRIES["none"]))
        assert list(dict(entries(tmp_path / NAME))) == ["a"]
