"""Whether the files of a segment still hold what was written, by the CRC-32 of each image in the index."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from detector.proposals.index import SegmentRows
from detector.proposals.segments import Part, open_part, segment_path

_BLOCK = 1 << 20


class Damage(NamedTuple):
    """What is wrong with the file ``path`` of a segment, and the images whose boxes are lost with it."""

    path: Path
    reason: str
    image_ids: list[str]


def find_damage(folder: Path, number: int, rows: SegmentRows) -> Damage | None:
    """Read what ``rows`` have in segment ``number``; None where all is sound.

    The files are read once, a block at a time. Raises FileNotFoundError where one is missing.
    """
    kinds = ("boxes", "scores") if any(rows.scored) else ("boxes",)
    parts = []
    with ExitStack() as opened:
        for kind in kinds:
            path = segment_path(folder, number, kind)
            try:
                parts.append(opened.enter_context(open_part(folder, number, kind)))
            except FileNotFoundError:
                raise
            except (ValueError, OSError) as error:
                return Damage(path, str(error), rows.ids(range(len(rows))))
        path = segment_path(folder, number, "boxes")
        try:
            damaged = rows.ids(_damaged(rows, parts))
        except OSError as error:
            return Damage(path, str(error), rows.ids(range(len(rows))))
    if not damaged:
        return None
    reason = f"{len(damaged)} of its {len(rows)} images, first {damaged[0]!r}, are not as they were written"
    return Damage(path, reason, damaged)


def _damaged(rows: SegmentRows, parts: list[Part]) -> Iterator[int]:
    """Yield the places of ``rows`` whose bytes have another checksum, or that overlap or leave the file."""
    length = min(part.rows for part in parts)
    end = 0
    columns = zip(rows.offsets, rows.boxes, rows.scored, rows.checksums, strict=True)
    for place, (offset, boxes, scored, wanted) in enumerate(columns):
        sound = (end <= offset or boxes == 0) and offset + boxes <= length
        if sound:
            found = 0
            for part in parts if scored else parts[:1]:
                found = _checksum(part, offset, boxes, found)
            sound = found == wanted
            end = max(end, offset + boxes)
        if not sound:
            yield place


def _checksum(part: Part, offset: int, count: int, checksum: int) -> int:
    start, left = part.start + offset * part.row_bytes, count * part.row_bytes
    if part.file.tell() != start:
        part.file.seek(start)
    while left > 0:
        data = part.file.read(min(left, _BLOCK))
        if not data:
            raise OSError("the file ends too early")
        checksum = zlib.crc32(data, checksum)
        left -= len(data)
    return checksum
