"""Readers of other people's proposal files. Each yields (image id, proposals), a few images in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from detector.errors import InputError, nearest
from detector.proposals.readers.npz import read_npz
from detector.structures import Proposals

FORMATS = ("npz",)


def read_proposals(source: Path, file_format: str) -> Iterator[tuple[str, Proposals]]:
    """Yield the images of ``source`` in the order of the file, boxes in the store's convention.

    Raises InputError, naming file and image, for anything that is not what the format says.
    """
    match file_format:
        case "npz":
            return read_npz(source)
        case _:
            raise InputError(
                f"proposal format {file_format!r} is unknown{nearest(file_format, FORMATS)}; "
                f"use one of {', '.join(FORMATS)}"
            )
