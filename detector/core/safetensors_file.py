"""Files of safetensors: read without the package, within bounds.

The format (https://huggingface.co/docs/safetensors): 8 bytes with the length of the header, little-endian;
the header, JSON that gives each tensor's type, shape and place; then the values, without gaps.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from detector.core.tensor_files import DamagedFile, ForeignContent

MAX_HEADER = 1 << 26
"""Bytes of the header; the format itself allows 100 MB."""
MAX_DIMENSIONS = 16
_TYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U8": torch.uint8, "BOOL": torch.bool},
}


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of ``path`` on the CPU, by name.

    Raises:
        DamagedFile: the file is cut off, or its header does not describe the bytes that follow.
        ForeignContent: a tensor of a type that torch does not have.
        OSError: the file cannot be read.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(size - 8, MAX_HEADER):
            raise DamagedFile("its header is longer than the file")
        header = _header(file.read(length))
        places = _places(header, size - 8 - length)
        values = bytearray(file.read())
    if len(values) != size - 8 - length:
        raise DamagedFile("it was cut off while it was read")
    tensors = {}
    for name, (kind, shape, start) in places.items():
        count = math.prod(shape)
        flat = torch.frombuffer(values, dtype=kind, count=count, offset=start) if count else torch.empty(0)
        tensors[name] = flat.to(kind).reshape(shape)
    return tensors


def _header(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_repeats)
    except (ValueError, RecursionError):
        raise DamagedFile("its header is not readable") from None
    if not isinstance(header, dict):
        raise DamagedFile("its header is not a table of tensors")
    header.pop("__metadata__", None)
    return header


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        raise ValueError("a name occurs twice")
    return table


def _places(header: dict[str, Any], available: int) -> dict[str, tuple[torch.dtype, list[int], int]]:
    """Return type, shape and first byte of each tensor; together they fill the ``available`` bytes."""
    found: dict[str, tuple[torch.dtype, list[int], int]] = {}
    spans: list[tuple[int, int]] = []
    for name, entry in header.items():
        match entry:
            case {"dtype": str(kind), "shape": list(shape), "data_offsets": [int(start), int(end)]}:
                pass
            case _:
                raise DamagedFile(f"its entry {name!a:.80} is not a tensor's")
        if kind not in _TYPES:
            raise ForeignContent(f"{name!a:.80} has values of the type {kind!a:.20}, which torch cannot hold")
        whole = (
            all(type(side) is int and 0 <= side < 2**40 for side in shape) and len(shape) <= MAX_DIMENSIONS
        )
        if not whole or end - start != math.prod(shape) * _TYPES[kind].itemsize:
            raise DamagedFile(f"its entry {name!a:.80} does not fit the size of its values")
        found[name] = (_TYPES[kind], shape, start)
        spans.append((start, end))
    reached = 0
    for start, end in sorted(spans):
        if start != reached:
            raise DamagedFile("its tensors overlap, or leave gaps")
        reached = end
    if reached != available:
        raise DamagedFile("it is longer or shorter than the tensors that it describes")
    return found
