"""Files of safetensors, as its own package writes them, and hostile ones."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch

from detector.core.errors import InputError
from detector.core.safetensors_file import MAX_HEADER, read_safetensors
from detector.core.tensor_files import DamagedFile, ForeignContent
from detector.models.weights import read_state_dict

WEIGHT = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}


def write(path: Path, header: Any, values: bytes = bytes(24)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + values)
    return path


def test_what_the_package_writes_is_read(tmp_path: Path) -> None:
    package = pytest.importorskip("safetensors.torch", reason="the package safetensors is not installed")
    types = [
        torch.float64,
        torch.float32,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.uint8,
        torch.bool,
    ]
    state = {f"{kind}": (torch.rand(3, 4) * 5).to(kind) for kind in types}
    state |= {"empty": torch.zeros(0, 2, dtype=torch.int32), "scalar": torch.tensor(7)}
    package.save_file(state, tmp_path / "a.safetensors", metadata={"format": "pt"})
    found = read_safetensors(tmp_path / "a.safetensors")
    assert found.keys() == state.keys()
    for name, tensor in state.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)


@pytest.mark.parametrize(
    ("header", "values", "message"),
    [
        (b"{", bytes(24), "not readable"),
        (b"[" * 100_000, b"", "not readable"),
        (b'{"a": 1, "a": 2}', b"", "not readable"),
        (b"[]", b"", "not a table"),
        ({"a": {**WEIGHT, "shape": "2"}}, bytes(24), "'a' is not a tensor's"),
        ({"a": {**WEIGHT, "data_offsets": [0, 24, 30]}}, bytes(24), "'a' is not a tensor's"),
        ({"a": {**WEIGHT, "shape": [2, 4]}}, bytes(24), "does not fit"),
        ({"a": {**WEIGHT, "shape": [-2, -3]}}, bytes(24), "does not fit"),
        ({"a": {**WEIGHT, "shape": [1] * 17, "data_offsets": [0, 4]}}, bytes(4), "does not fit"),
        ({"a": WEIGHT}, bytes(23), "longer or shorter"),
        ({"a": WEIGHT}, bytes(28), "longer or shorter"),
        ({"a": WEIGHT, "b": WEIGHT}, bytes(24), "overlap"),
        ({"a": {**WEIGHT, "data_offsets": [4, 28]}}, bytes(28), "leave gaps"),
    ],
)
def test_a_header_that_does_not_describe_the_file_is_refused(
    tmp_path: Path, header: Any, values: bytes, message: str
) -> None:
    with pytest.raises(DamagedFile, match=message):
        read_safetensors(write(tmp_path / "a.safetensors", header, values))


def test_lengths_beyond_the_file_and_other_types_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for start in (b"", b"1234567", struct.pack("<Q", 2**63), struct.pack("<Q", MAX_HEADER + 1) + bytes(99)):
        path.write_bytes(start)
        with pytest.raises(DamagedFile, match="longer than the file"):
            read_safetensors(path)
    with pytest.raises(ForeignContent, match=r"'a' has values of the type 'F8_E4M3'"):
        read_safetensors(write(path, {"a": {"dtype": "F8_E4M3", "shape": [24], "data_offsets": [0, 24]}}))
    with pytest.raises(InputError, match=r"a\.safetensors: not readable as a state dict of tensors"):
        read_state_dict(path)
    write(path, {"a": WEIGHT, "__metadata__": {"format": "pt"}})
    assert read_state_dict(path)["a"].tolist() == [[0.0] * 3] * 2
