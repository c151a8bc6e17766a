"""The journal of a running job: what is written is read back, a torn end is left out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from detector.proposals.entries import Entry
from detector.proposals.journal import NAME, Journal, decode_entry, encode_entry
from detector.structures import Proposals

ENTRIES = {
    "a": Entry(Proposals(boxes=torch.tensor([[0.0, 1, 2, 3]]), scores=torch.tensor([0.5])), "cafe", (4, 5)),
    "b/ü\n": Entry(Proposals(boxes=torch.rand(3, 4)), None, (0, 0)),
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
        with Journal(tmp_path) as journal:
            found = journal.entries()
        assert list(found) == list(ENTRIES)[: sum(end <= length for end in ends) - 1]
    for image_id, entry in found.items():
        assert_same(entry, ENTRIES[image_id])


def test_a_changed_byte_ends_it(tmp_path: Path) -> None:
    first, second = (encode_entry(key, ENTRIES[key]) for key in ("a", "none"))
    for place in range(4, len(first)):
        (tmp_path / NAME).write_bytes(first[:place] + bytes([first[place] ^ 1]) + first[place + 1 :] + second)
        with Journal(tmp_path) as journal:
            assert journal.entries() == {}


def test_an_emptied_one_leaves_no_file(tmp_path: Path) -> None:
    with Journal(tmp_path) as journal:
        journal.add(encode_entry("a", ENTRIES["a"]))
        journal.clear()
        assert journal.entries() == {}
    assert not (tmp_path / NAME).exists()
