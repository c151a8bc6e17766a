"""Folders with one text file per image."""

from __future__ import annotations

from array import array
from pathlib import Path

import numpy as np

from detector.core.errors import InputError
from detector.proposals.readers.raw_images import MAX_BOXES, RawImages, clear_errors, files_of, raw_image

_MAX_TEXT_BYTES = 64 * MAX_BOXES
_MAX_LINES = 2 * MAX_BOXES  # comments and empty lines included
_LONGEST_LINE = 1000


def read_text_folder(folder: Path) -> RawImages:
    """Return the images of a folder of ``<id>.txt`` with one box per line: four numbers, and perhaps a score.

    Blanks or commas separate the numbers. Empty lines, and everything after a ``#``, are skipped.
    """
    files = files_of(folder, ".txt")
    images = (raw_image(key, _read_text(path), "xyxy", str(path)) for key, path in files)
    return RawImages([key for key, _ in files], images)


def _read_text(path: Path) -> np.ndarray:
    """Return the boxes (P, 4) or (P, 5) of a text file, which takes 8 bytes of memory per number."""
    numbers, width = array("d"), 0
    with clear_errors(path, "text file", UnicodeDecodeError):
        if path.stat().st_size > _MAX_TEXT_BYTES:
            raise InputError(
                f"{path} has over {_MAX_TEXT_BYTES} bytes; one image holds at most {MAX_BOXES} boxes"
            )
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, 1):
                where = f"{path}, line {number}"
                row = _read_line(line, where)
                width = width or len(row)
                if row and len(row) != width:
                    raise InputError(f"{where}: {len(row)} numbers; each line holds 4, or each holds 5")
                if number > _MAX_LINES:
                    raise InputError(f"{where}: more than {_MAX_LINES} lines are refused")
                numbers.extend(row)
    return np.frombuffer(numbers, np.float64).reshape(-1, width or 4)


def _read_line(line: str, where: str) -> list[float]:
    """Return the numbers of a line, none for an empty one."""
    if len(line) > _LONGEST_LINE:
        raise InputError(f"{where}: a line of over {_LONGEST_LINE} characters is refused")
    words = line.partition("#")[0].replace(",", " ").split()
    if len(words) not in (0, 4, 5):
        raise InputError(f"{where}: {len(words)} numbers; each line holds 4, or each holds 5")
    try:
        return [float(word) for word in words]
    except ValueError as error:
        raise InputError(f"{where}: {str(error)[:80]}") from error
