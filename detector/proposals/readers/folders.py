"""Folders with one file an image: ``.npy`` arrays, or text."""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from detector.core.errors import InputError
from detector.core.files import is_hidden
from detector.proposals.readers.arrays import (
    MAX_ARRAY_BYTES,
    MAX_BOXES,
    RawImage,
    RawImages,
    raw_image,
    read_array,
)

_MAX_TEXT_BYTES = 64 * MAX_BOXES
_MAX_LINES = 2 * MAX_BOXES  # comments and empty lines included
_LONGEST_LINE = 1000


def files_of(folder: Path, suffix: str) -> list[tuple[str, Path]]:
    """Return (id, path) of the files with ``suffix`` in ``folder`` and below, in order of their names.

    The suffix's case is no matter; hidden files are skipped. The id is the path inside the folder without
    the suffix.

    Raises InputError if there is none.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; one with a {suffix} file for each image is wanted")
    named = (path for path in folder.rglob("*") if path.suffix.lower() == suffix)
    paths = sorted(path for path in named if not is_hidden(path, folder) and path.is_file())
    if not paths:
        raise InputError(f"{folder} has no {suffix} files")
    return [(path.relative_to(folder).with_suffix("").as_posix(), path) for path in paths]


def read_npy_folder(folder: Path) -> RawImages:
    """Return the images of a folder of ``<id>.npy``: (P, 4) boxes or (P, 5) with the score last."""
    files = files_of(folder, ".npy")
    return RawImages([key for key, _ in files], _npy_images(files))


def _npy_images(files: Iterable[tuple[str, Path]]) -> Iterator[RawImage]:
    for key, path in files:
        try:
            if (size := path.stat().st_size) > MAX_ARRAY_BYTES:
                raise InputError(f"{path} has {size} bytes; one image holds at most {MAX_BOXES} boxes")
            with path.open("rb") as file:
                array = read_array(file, size, str(path))
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        yield raw_image(key, array, "xyxy", str(path))


def read_text_folder(folder: Path) -> RawImages:
    """Return the images of a folder of ``<id>.txt``, a box a line: four numbers, perhaps a score.

    Blanks or commas separate the numbers; empty lines and what follows a ``#`` do not count.
    """
    files = files_of(folder, ".txt")
    images = (raw_image(key, _read_text(path), "xyxy", str(path)) for key, path in files)
    return RawImages([key for key, _ in files], images)


def _read_text(path: Path) -> np.ndarray:
    """Return the boxes (P, 4) or (P, 5) of a text file, which takes 8 bytes of memory a number."""
    numbers, width = array("d"), 0
    try:
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
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path} as text: {error}") from error
    return np.frombuffer(numbers, np.float64).reshape(-1, width or 4)


def _read_line(line: str, where: str) -> list[float]:
    """Return the numbers of a line, none for an empty one."""
    if len(line) > _LONGEST_LINE:
        raise InputError(f"{where}: a line of over {_LONGEST_LINE} letters is refused")
    words = line.partition("#")[0].replace(",", " ").split()
    if len(words) not in (0, 4, 5):
        raise InputError(f"{where}: {len(words)} numbers; each line holds 4, or each holds 5")
    try:
        return [float(word) for word in words]
    except ValueError as error:
        raise InputError(f"{where}: {str(error)[:80]}") from error
