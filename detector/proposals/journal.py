"""What a running job has finished and not yet put into a segment: an image is never done twice.

A segment an image would be too many files, and a segment every few hundred images alone would lose them to a
kill. So each finished image is first appended here, in one write: whatever the moment, the file is a row of
whole records, perhaps with a torn one at its end.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from detector.errors import InputError
from detector.proposals.entries import Entry
from detector.structures import Proposals

NAME = "unfinished.journal"
_HEAD = struct.Struct("<II")  # length and CRC-32 of what follows


class Journal:
    """The records beside a store's segments; only the holder of the store's lock may use it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        try:
            self._file = self._path.open("ab", buffering=0)
        except OSError as error:
            raise InputError(f"cannot write {self._path}: {error.strerror}") from error

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        if self._path.stat().st_size == 0:
            self._path.unlink()

    def entries(self) -> dict[str, Entry]:
        """Return what a killed job left; a later record of an image wins."""
        return dict(_decode(payload) for payload in _whole_records(self._path.read_bytes()))

    def add(self, record: bytes) -> None:
        """Append a record of `encode_entry`; from now on a killed process does not lose it."""
        try:
            whole = self._file.write(record) == len(record)
        except OSError as error:
            raise InputError(f"cannot write {self._path}: {error.strerror}; free the disk") from error
        if not whole:
            raise InputError(f"cannot write {self._path}: the disk is full; free it")

    def clear(self) -> None:
        """Forget everything: it is in the store."""
        os.ftruncate(self._file.fileno(), 0)


def encode_entry(image_id: str, entry: Entry) -> bytes:
    """Return an image's record: length and checksum, a line of JSON, the bytes of boxes and scores."""
    boxes, scores = entry.proposals.boxes.numpy(), entry.proposals.scores
    facts: dict[str, Any] = {"id": image_id, "hash": entry.content_hash, "size": entry.size}
    facts |= {"boxes": len(boxes), "scored": scores is not None}
    payload = json.dumps(facts).encode() + b"\n" + boxes.tobytes()
    if scores is not None:
        payload += scores.numpy().tobytes()
    return _HEAD.pack(len(payload), zlib.crc32(payload)) + payload


def decode_entry(record: bytes) -> tuple[str, Entry]:
    """Return what `encode_entry` was given."""
    return _decode(record[_HEAD.size :])


def _decode(payload: bytes) -> tuple[str, Entry]:
    line, _, numbers = payload.partition(b"\n")
    facts = json.loads(line)
    values = torch.from_numpy(np.frombuffer(numbers, np.float32).copy())
    count = facts["boxes"]
    scores = values[4 * count :] if facts["scored"] else None
    proposals = Proposals(boxes=values[: 4 * count].reshape(-1, 4), scores=scores)
    return facts["id"], Entry(proposals, facts["hash"], (facts["size"][0], facts["size"][1]))


def _whole_records(data: bytes) -> Iterator[bytes]:
    place = 0
    while place + _HEAD.size <= len(data):
        length, checksum = _HEAD.unpack_from(data, place)
        payload = data[place + _HEAD.size : place + _HEAD.size + length]
        if len(payload) < length or zlib.crc32(payload) != checksum:
            return
        yield payload
        place += _HEAD.size + length
