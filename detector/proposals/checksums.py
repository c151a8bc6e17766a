"""Whether the files of a segment still hold what was written, by the CRC-32 of each image in the index."""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, NamedTuple

from detector.proposals.index import Row
from detector.proposals.segments import ROW_BYTES, open_part, segment_path

_BLOCK = 1 << 20


class Damage(NamedTuple):
    """What is wrong with the file ``path`` of a segment, and the images whose boxes are lost with it."""

    path: Path
    reason: str
    image_ids: list[str]


def find_damage(folder: Path, number: int, rows: list[Row]) -> Damage | None:
    """Read what ``rows``, in order of their offsets, have in segment ``number``; None where all is sound.

    The files are read once, a block at a time. Raises FileNotFoundError where one is missing.
    """
    path = segment_path(folder, number, "boxes")
    try:
        with open_part(folder, number, "boxes") as boxes:
            if not any(row.scored for row in rows):
                damaged = list(_damaged(rows, boxes.file, boxes.start, boxes.rows, None, 0))
            else:
                path = segment_path(folder, number, "scores")
                with open_part(folder, number, "scores") as scores:
                    length = min(boxes.rows, scores.rows)
                    damaged = list(_damaged(rows, boxes.file, boxes.start, length, scores.file, scores.start))
    except FileNotFoundError:
        raise
    except (ValueError, OSError) as error:
        return Damage(path, str(error), [row.image_id for row in rows])
    if not damaged:
        return None
    reason = f"{len(damaged)} of its {len(rows)} images, first {damaged[0]!r}, are not as they were written"
    return Damage(segment_path(folder, number, "boxes"), reason, damaged)


def _damaged(
    rows: Iterable[Row],
    boxes: BinaryIO,
    boxes_start: int,
    length: int,
    scores: BinaryIO | None,
    scores_start: int,
) -> Iterable[str]:
    """Yield the images whose bytes have another checksum, or that overlap others or leave the file."""
    block = memoryview(bytearray(_BLOCK))
    end = 0
    for row in rows:
        inside = (end <= row.offset or row.boxes == 0) and row.offset + row.boxes <= length
        if inside:
            size = ROW_BYTES["boxes"]
            found = _checksum(boxes, boxes_start + row.offset * size, row.boxes * size, 0, block)
            if row.scored and scores is not None:
                size = ROW_BYTES["scores"]
                found = _checksum(scores, scores_start + row.offset * size, row.boxes * size, found, block)
            end = max(end, row.offset + row.boxes)
        if not inside or found != row.checksum:
            yield row.image_id


def _checksum(file: BinaryIO, start: int, length: int, checksum: int, block: memoryview) -> int:
    file.seek(start)
    while length > 0:
        part = block[: file.readinto(block[: min(length, len(block))])]  # type: ignore[attr-defined]
        if not part:
            raise OSError("the file ends too early")
        checksum = zlib.crc32(part, checksum)
        length -= len(part)
    return checksum
