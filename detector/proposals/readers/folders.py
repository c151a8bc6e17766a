"""Folders with one file an image: ``.npy`` arrays, or text."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from detector.errors import InputError
from detector.proposals.readers.arrays import MAX_BOXES, RawImage, raw_image, read_array

_MAX_TEXT_BYTES = 64 * MAX_BOXES


def files_of(folder: Path, suffix: str) -> Iterator[tuple[str, Path]]:
    """Yield (id, path) of the files with ``suffix`` in ``folder`` and below, in order of their names.

    The id is the path inside the folder without the suffix. Raises InputError if there is none.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; one with a {suffix} file for each image is wanted")
    paths = sorted(path for path in folder.rglob(f"*{suffix}") if path.is_file())
    if not paths:
        raise InputError(f"{folder} has no {suffix} files")
    for path in paths:
        yield path.relative_to(folder).as_posix().removesuffix(suffix), path


def read_npy_folder(folder: Path) -> Iterator[RawImage]:
    """Yield the images of a folder of ``<id>.npy``: (P, 4) boxes or (P, 5) with the score last."""
    for key, path in files_of(folder, ".npy"):
        try:
            with path.open("rb") as file:
                array = read_array(file, path.stat().st_size, str(path))
        except OSError as error:
            raise InputError(f"cannot read {path}: {error.strerror}") from error
        yield raw_image(key, array, "xyxy", str(path))


def read_text_folder(folder: Path) -> Iterator[RawImage]:
    """Yield the images of a folder of ``<id>.txt``, a box a line: four numbers, perhaps a score.

    Blanks or commas separate the numbers; empty lines and what follows a ``#`` do not count.
    """
    for key, path in files_of(folder, ".txt"):
        yield raw_image(key, _read_text(path), "xyxy", str(path))


def _read_text(path: Path) -> np.ndarray:
    try:
        if path.stat().st_size > _MAX_TEXT_BYTES:
            raise InputError(
                f"{path} has over {_MAX_TEXT_BYTES} bytes; one image holds at most {MAX_BOXES} boxes"
            )
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path} as text: {error}") from error
    rows: list[list[float]] = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].replace(",", " ").split()
        if not words:
            continue
        try:
            rows.append([float(word) for word in words])
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {error}") from error
        if len(words) != len(rows[0]) or len(words) not in (4, 5):
            raise InputError(
                f"{path}, line {number}: {len(words)} numbers; each line holds 4, or each holds 5"
            )
    return np.array(rows, np.float64)
