"""What a store keeps of an image, and how several become a segment and its rows of the index."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from detector.core.errors import InputError
from detector.core.structures import Proposals
from detector.proposals.index import Row, check_image_id
from detector.proposals.segments import FloatArray, write_segment


class Entry(NamedTuple):
    """What is stored of one image: its proposals, the hash of its file, its (height, width).

    ``content_hash`` is None and ``size`` (0, 0) where they are not known.
    """

    proposals: Proposals
    content_hash: str | None = None
    size: tuple[int, int] = (0, 0)


def check_entry(path: Path, image_id: str, entry: Entry) -> None:
    """Raise an InputError that names the store ``path`` and the image unless ``entry`` can be stored."""
    check_image_id(image_id, path)
    finite = torch.isfinite(entry.proposals.boxes).all(dim=1)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise InputError(f"{path}: box {row} of image {image_id!r} is not finite; leave it out")


def write_entries(folder: Path, number: int, entries: list[Entry]) -> None:
    """Write ``entries`` one behind the other as segment ``number``."""
    proposals = [entry.proposals for entry in entries]
    scores = (
        torch.zeros(len(item)).numpy() if item.scores is None else item.scores.numpy() for item in proposals
    )
    any_scored = any(item.scores is not None for item in proposals)
    total = sum(len(item) for item in proposals)
    write_segment(
        folder, number, (item.boxes.numpy() for item in proposals), scores if any_scored else None, total
    )


def rows_of(number: int, entries: Mapping[str, Entry]) -> Iterator[Row]:
    """Yield the index rows of ``entries`` as `write_entries` lays them into segment ``number``."""
    offset = 0
    for image_id, (proposals, content_hash, size) in entries.items():
        scores = None if proposals.scores is None else proposals.scores.numpy()
        checksum = checksum_of(proposals.boxes.numpy(), scores)
        yield Row(
            image_id, number, offset, len(proposals), scores is not None, size, checksum, content_hash or ""
        )
        offset += len(proposals)


def checksum_of(boxes: FloatArray, scores: FloatArray | None) -> int:
    """Return the CRC-32 of the bytes of ``boxes`` (P, 4) and then of ``scores`` (P,)."""
    checksum = zlib.crc32(np.ascontiguousarray(boxes).data)
    return checksum if scores is None else zlib.crc32(np.ascontiguousarray(scores).data, checksum)
