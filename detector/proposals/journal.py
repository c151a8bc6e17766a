"""A journal of finished images that are not yet in a segment, so that no image is processed twice.

One segment per image would be too many files, and with a segment per some hundred images, a killed process
would lose all images since the last segment. So each finished image is first appended here, in one write: at
any moment the file is a sequence of complete records, perhaps with an incomplete one at its end.

Where several processes make one store together, each has a journal of its own, ``unfinished_RANK.journal``,
and rank 0 moves their records into segments. So nobody but rank 0 writes index and segments, no lock is
handed around, and no boxes are sent; and whenever a process is killed, the next start, with any number of
processes, finds the images that each of them has finished.
"""

from __future__ import annotations

import json
import os
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import suppress
from itertools import accumulate, pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from detector.core.errors import InputError
from detector.core.files import require_regular
from detector.core.masks import Masks
from detector.core.structures import Proposals
from detector.proposals.index import is_content_hash
from detector.proposals.readers.raw_images import MAX_BOXES
from detector.proposals.store import Entry, check_entry

NAME = "unfinished.journal"
_NAMES = re.compile(r"unfinished(_\d+)?\.journal")
_HEAD = struct.Struct("<II")  # length and CRC-32 of what follows
_MAX_RECORD = MAX_BOXES * 5 * 4 + (1 << 30)  # a line of JSON and masks included
_MAX_SIDE = 1 << 32  # the index has 32 bits for a side


class Journal:
    """The records beside a store's segments that the process of a ``rank`` adds.

    The journal of rank 0 may be used only by the holder of the store's lock, that of another rank only while
    rank 0 holds the lock.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self._path = self.path_of(folder, rank)
        if self._path.exists():
            require_regular(self._path)
        try:
            self._file = self._path.open("ab", buffering=0)
        except OSError as error:
            raise InputError(f"cannot write {self._path}: {error.strerror}") from error

    @staticmethod
    def path_of(folder: Path, rank: int) -> Path:
        """Return the file of the process of a ``rank`` in the store ``folder``."""
        return folder / (f"unfinished_{rank}.journal" if rank else NAME)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._path.stat().st_size == 0:
            self._path.unlink()

    def add(self, record: bytes) -> None:
        """Append a record of `encode_entry`; from now on a killed process does not lose it."""
        try:
            complete = self._file.write(record) == len(record)
        except OSError as error:
            raise InputError(f"cannot write {self._path}: {error.strerror}; free the disk") from error
        if not complete:
            raise InputError(f"cannot write {self._path}: the disk is full; free it")

    def clear(self) -> None:
        """Remove all records: they are in the store."""
        os.ftruncate(self._file.fileno(), 0)


def journals(folder: Path) -> list[Path]:
    """Return the journals of all processes that are in the store ``folder``."""
    return sorted(path for path in folder.iterdir() if _NAMES.fullmatch(path.name))


def entries(path: Path) -> Iterator[tuple[str, Entry]]:
    """Yield the records of a journal; a later record of an image replaces an earlier one.

    A record that is damaged, or that no store can hold, is left out: its image is made again.
    """
    require_regular(path)
    with path.open("rb") as file:
        for payload in _sound_records(file):
            with suppress(InputError):
                image_id, entry = _decode(payload)
                check_entry(path, image_id, entry)
                yield image_id, entry


def encode_entry(image_id: str, entry: Entry) -> bytes:
    """Return an image's record: length and checksum, a line of JSON, the bytes of boxes, scores and masks."""
    boxes, scores = entry.proposals.boxes.numpy(), entry.proposals.scores
    facts: dict[str, Any] = {"id": image_id, "hash": entry.content_hash, "size": entry.size}
    facts |= {"boxes": len(boxes), "scored": scores is not None}
    masks = entry.proposals.masks
    if masks is not None:
        facts |= {"size": masks.size, "masks": list(map(len, masks.counts))}
    payload = json.dumps(facts).encode() + b"\n" + boxes.tobytes()
    if scores is not None:
        payload += scores.numpy().tobytes()
    if masks is not None:
        payload += b"".join(masks.counts)
    return _HEAD.pack(len(payload), zlib.crc32(payload)) + payload


def decode_entry(record: bytes) -> tuple[str, Entry]:
    """Return what `encode_entry` was given; raises InputError for anything that it does not write."""
    return _decode(record[_HEAD.size :])


def _decode(payload: bytes) -> tuple[str, Entry]:
    line, _, numbers = payload.partition(b"\n")
    try:
        facts = json.loads(line)
        image_id, content_hash, count, scored = (facts[name] for name in ("id", "hash", "boxes", "scored"))
        height, width = facts["size"]
        numbers, masks = _divided(numbers, facts, (height, width))
        values = torch.from_numpy(np.frombuffer(numbers, np.float32).copy())
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"not a record of a journal ({error})") from error
    whole = all(type(number) is int and 0 <= number < _MAX_SIDE for number in (count, height, width))
    named = isinstance(image_id, str) and (content_hash is None or is_content_hash(content_hash))
    if not whole or not named or type(scored) is not bool or len(values) != count * (5 if scored else 4):
        raise InputError("not a record of a journal (other types or another length)")
    scores = values[4 * count :] if scored else None
    if masks is not None and len(masks) != count:
        raise InputError("not a record of a journal (masks of other regions)")
    proposals = Proposals(boxes=values[: 4 * count].reshape(-1, 4), scores=scores, masks=masks)
    return image_id, Entry(proposals, content_hash, (height, width))


def _divided(content: bytes, facts: dict[str, Any], size: tuple[int, int]) -> tuple[bytes, Masks | None]:
    """Return the bytes of boxes and scores, and the masks of an image of ``size`` that follow them."""
    if "masks" not in facts:
        return content, None
    lengths = facts["masks"]
    if not all(type(length) is int and length >= 0 for length in lengths) or sum(lengths) > len(content):
        raise ValueError("other lengths of masks")
    places = [len(content) - sum(lengths), *lengths]
    ends = list(accumulate(places))
    parts = [content[first:end] for first, end in pairwise(ends)]
    rles = [{"size": list(size), "counts": part} if part else None for part in parts]
    return content[: places[0]], Masks.from_rles(rles, size, "a record of a journal")


def _sound_records(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the payload of each record whose checksum fits, up to the first incomplete record."""
    while len(head := file.read(_HEAD.size)) == _HEAD.size:
        length, checksum = _HEAD.unpack(head)
        if not 0 < length <= min(_MAX_RECORD, os.fstat(file.fileno()).st_size):
            return
        payload = file.read(length)
        if len(payload) < length:
            return
        if zlib.crc32(payload) == checksum:
            yield payload
