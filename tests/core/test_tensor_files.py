"""Files of torch.save are verified and bounded before anything is allocated."""

from __future__ import annotations

import hashlib
import io
import random
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from detector.core.tensor_files import DamagedFile, ForeignContent, _scan, read_tensor_file

REFUSED = (DamagedFile, ForeignContent)


def content() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(20, 30, generator=generator)
    return {
        "whole": base,
        "part": base[3:5, ::2],
        "channels_last": torch.rand(2, 3, 4, 5).contiguous(memory_format=torch.channels_last),
        "half": base.half(),
        "brain": base.bfloat16(),
        "whole numbers": [torch.arange(4), torch.arange(4, dtype=torch.uint8), torch.tensor(True)],
        "empty": torch.zeros(0, 4),
        "parameter": torch.nn.Parameter(base.clone()),
        "plain": {"a": 1, 2: [None, True, 0.5, "text", (1, -(2**40))]},
        "net": torch.nn.Linear(2, 2).state_dict(),
    }


def equal(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return (
            isinstance(second, torch.Tensor)
            and first.dtype == second.dtype
            and first.shape == second.shape
            and torch.equal(first, second)
        )
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(equal, first, second))
    return bool(first == second)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_plain_values_and_tensors_come_back(tmp_path: Path, zipped: bool) -> None:
    saved = content()
    torch.save(saved, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
    assert equal(read_tensor_file(tmp_path / "a.pt", legacy=True), saved)
    if not zipped:
        with pytest.raises(DamagedFile):
            read_tensor_file(tmp_path / "a.pt")


def damaged_or_equal(path: Path, damaged: bytes, whole: Any) -> bool:
    """Say whether the damage was noticed; what loads in spite of it has to be equal."""
    path.write_bytes(damaged)
    try:
        found = read_tensor_file(path)
    except REFUSED:
        return True
    assert equal(found, whole)
    return False


def test_every_flipped_bit_and_lost_page_is_noticed_or_harmless(tmp_path: Path) -> None:
    """400 bits, 300 pages, and each bit of the archive's index and of one header."""
    saved = {**content(), "large": torch.rand(100_000)}
    path = tmp_path / "a.pt"
    torch.save(saved, path)
    whole, rng = path.read_bytes(), random.Random(0)
    flips = [rng.randrange(8 * len(whole)) for _ in range(400)]
    index = whole.index(b"PK\1\2")
    flips += [rng.randrange(8 * index, 8 * len(whole)) for _ in range(400)]
    noticed = 0
    for bit in flips:
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        noticed += damaged_or_equal(path, bytes(damaged), saved)
    assert noticed > 600
    for page in [rng.randrange(len(whole) // 4096 + 1) for _ in range(300)]:
        damaged = bytearray(whole)
        end = min((page + 1) * 4096, len(whole))
        damaged[page * 4096 : end] = bytes(end - page * 4096)
        assert damaged_or_equal(path, bytes(damaged), saved)


def test_a_cut_file_and_other_files_are_damaged(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save(content(), path)
    whole = path.read_bytes()
    for other in (
        b"",
        b"text",
        whole[:10],
        whole[:-1],
        whole[: len(whole) // 2],
        whole + b"\0",
        b"\0" + whole,
    ):
        path.write_bytes(other)
        with pytest.raises(DamagedFile):
            read_tensor_file(path, legacy=True)


def test_the_legacy_form_has_the_length_of_its_tensors(tmp_path: Path) -> None:
    path = tmp_path / "a.pth"
    torch.save(content(), path, _use_new_zipfile_serialization=False)
    whole = path.read_bytes()
    for other in (whole[:-1], whole + b"\0", whole[:400]):
        path.write_bytes(other)
        with pytest.raises(DamagedFile):
            read_tensor_file(path, legacy=True)


def test_a_legacy_file_is_compared_with_the_checksum_in_its_name(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(100)}, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    whole = (tmp_path / "a.pth").read_bytes()
    path = tmp_path / f"net-{hashlib.sha256(whole).hexdigest()[:8]}.pth"
    path.write_bytes(whole)
    assert read_tensor_file(path, legacy=True)["a"].sum() == 100
    path.write_bytes(whole[:-1] + b"\1")
    with pytest.raises(DamagedFile, match="its checksum is not the one in its name"):
        read_tensor_file(path, legacy=True)


def packed_again(path: Path, change: Callable[[str, bytes], bytes], method: int = zipfile.ZIP_STORED) -> None:
    """Write the archive again with sound checksums and other members."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, found in members.items():
            archive.writestr(name, change(name, found))


def test_compressed_members_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"a": torch.zeros(10_000_000)}, path)
    packed_again(path, lambda _, found: found, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    assert torch.load(path)["a"].numel() == 10_000_000  # torch itself inflates it
    with pytest.raises(DamagedFile, match="compressed"):
        read_tensor_file(path)


def test_a_storage_is_as_large_as_its_part_of_the_file(tmp_path: Path) -> None:
    """torch would read what lies behind the storage in memory."""
    path = tmp_path / "a.pt"
    torch.save({"a": torch.zeros(70_000)}, path)
    small, large = (b"J" + struct.pack("<i", count) for count in (70_000, 80_000))
    packed_again(path, lambda name, found: found.replace(small, large) if name.endswith(".pkl") else found)
    with pytest.raises(ForeignContent, match="tensors of other sizes than it holds"):
        read_tensor_file(path)
    torch.save({"a": torch.zeros(70_000)}, path, _use_new_zipfile_serialization=False)
    huge = b"J" + struct.pack("<i", 2**31 - 1)
    path.write_bytes(path.read_bytes().replace(small, huge))
    with pytest.raises(DamagedFile, match="longer or shorter"):
        read_tensor_file(path, legacy=True)


@pytest.mark.parametrize(
    "value",
    [
        torch.zeros(1).expand(10**11),
        [torch.zeros(2).expand(3, 2)],
        {"b": [torch.zeros(100_000)] * 100},
    ],
    ids=["expanded", "twice", "shared"],
)
def test_tensors_lie_within_their_storages(tmp_path: Path, value: Any) -> None:
    torch.save({"a": value}, tmp_path / "a.pt")
    with pytest.raises(ForeignContent, match=r"'a.*' has the shape .* more than the file holds"):
        read_tensor_file(tmp_path / "a.pt")


def test_lists_that_grow_without_end_are_refused(tmp_path: Path) -> None:
    doubled: list[Any] = [1]
    for _ in range(40):
        doubled = [doubled, doubled]
    circle: list[Any] = []
    circle.append(circle)
    for value in (doubled, circle):
        torch.save({"a": value}, tmp_path / "a.pt")
        with pytest.raises(ForeignContent, match="too many values"):
            read_tensor_file(tmp_path / "a.pt")


@pytest.mark.parametrize(
    "value",
    [torch.nn.Linear(2, 2), Path("a"), bytearray(3), torch.eye(3).to_sparse(), torch.float32, {1, 2}],
    ids=["module", "path", "bytearray", "sparse", "type", "set"],
)
def test_other_content_is_refused(tmp_path: Path, value: Any) -> None:
    torch.save({"a": value}, tmp_path / "a.pt")
    with pytest.raises(ForeignContent):
        read_tensor_file(tmp_path / "a.pt")


def test_two_members_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"a": torch.zeros(3)}, path)
    for name in ("a/data/0", "a/DATA/0", "other/data/1"):
        torch.save({"a": torch.zeros(3)}, path)
        with zipfile.ZipFile(path, "a") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of zipfile, about the name
            archive.writestr(name, bytes(12))
        with pytest.raises(DamagedFile):
            read_tensor_file(path)


def test_a_second_index_behind_the_first_is_refused(tmp_path: Path) -> None:
    """Readers of zip files disagree on which of two counts."""
    path = tmp_path / "a.pt"
    torch.save({"a": torch.zeros(3)}, path)
    first = path.read_bytes()
    torch.save({"a": torch.ones(3)}, path)
    path.write_bytes(first + path.read_bytes())
    with pytest.raises(DamagedFile):
        read_tensor_file(path)


def test_the_scan_follows_the_memo_and_refuses_other_ways_of_writing() -> None:
    saved = io.BytesIO()
    torch.save([torch.zeros(3), torch.zeros(5, dtype=torch.int64), torch.zeros(2)], saved)
    with zipfile.ZipFile(saved) as archive:
        pickled = archive.read("archive/data.pkl")
    assert _scan(b"..." + pickled + b"more", 3) == ({"0": 12, "1": 40, "2": 8}, 3 + len(pickled))
    with pytest.raises(ForeignContent, match=r"it wants to run os\.system"):
        _scan(b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00id\x85R.")
    for opcodes in (b"\x80\x04\x8c\x01a\x94.", b"(lp0\n.", b"X\x01\x00\x00\x00aQ.", b"\x80\x02}2."):
        with pytest.raises(ForeignContent):
            _scan(opcodes)


def test_a_key_of_tuples_within_tuples_is_refused(tmp_path: Path) -> None:
    """torch would overflow the stack while it hashes the key, which kills the process."""
    path = tmp_path / "a.pt"
    torch.save({"a": torch.zeros(3)}, path)
    nested = b"\x80\x02}" + b")" + b"\x85" * 900_000 + b"Ns."
    packed_again(path, lambda name, found: nested if name.endswith(".pkl") else found)
    with pytest.raises(DamagedFile):
        read_tensor_file(path)


def test_an_ordered_dictionary_of_python_2(tmp_path: Path) -> None:
    """It is written as a call with a list of pairs."""
    path = tmp_path / "a.pt"
    torch.save({"a": torch.zeros(3)}, path)
    called = b"\x80\x02ccollections\nOrderedDict\n](](X\x01\x00\x00\x00aK\x05ee\x85R."
    packed_again(path, lambda name, found: called if name.endswith(".pkl") else found)
    assert read_tensor_file(path) == {"a": 5}


def test_checksums_are_those_of_the_members(tmp_path: Path) -> None:
    """What torch writes has the checksums that zip files have, so that the test above means something."""
    torch.save({"a": torch.arange(9)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        for member in archive.infolist():
            assert zlib.crc32(archive.read(member)) == member.CRC
