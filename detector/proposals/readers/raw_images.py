"""What all readers of proposal files share: the images as a file has them, limits, checks and errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from detector.core.errors import InputError
from detector.core.files import is_hidden
from detector.core.structures import Proposals

# A hundred times what the largest published sets hold; more is a mistake or an attack.
MAX_BOXES = 1_000_000
_MAX_COORDINATE = float(1 << 24)  # float32 holds every whole number up to here
MAX_RATIO, ALWAYS_ALLOWED = 100, 64 << 20
"""A file may unpack to this many times its size, or to this many bytes. Boxes compress to a tenth of their
size at best; a file that is made to fill the memory, to a thousandth."""


class Position(NamedTuple):
    """The place of an image in a file without names: its ``total`` images are in the data set's order."""

    place: int
    total: int


class RawImage(NamedTuple):
    """One image as the file has it: ``boxes`` (P, 4) of any number type, ``scores`` (P,) or None.

    ``key`` is the image's name in the file, or its place; ``convention`` is the name of the format's box
    convention (`detector.proposals.conventions`), or "auto".
    """

    key: str | Position
    boxes: NDArray[Any]
    scores: NDArray[Any] | None
    convention: str


class RawImages:
    """The images of a file, which can be iterated over once, and their ``names`` in the file.

    The names are known before any boxes are read; they are empty for a file without names.
    """

    def __init__(self, names: Sequence[str], images: Iterator[RawImage]) -> None:
        self.names = names
        self._images = images

    def __iter__(self) -> Iterator[RawImage]:
        return self._images


@contextmanager
def clear_errors(source: Path, what: str, *errors: type[Exception]) -> Iterator[None]:
    """Turn ``errors`` inside the block, and those of the system, into an InputError that names ``source``."""
    caught: tuple[type[Exception], ...] = (OSError, *errors)
    try:
        yield
    except InputError:
        raise
    except caught as error:
        raise InputError(f"{source} is not a readable {what} ({error})") from error


def image_place(source: Path, key: str | Position) -> str:
    """Return how a message names an image of ``source``."""
    name = repr(key) if isinstance(key, str) else f"number {key.place + 1} of {key.total}"
    return f"{source}, image {name}"


def files_of(folder: Path, *suffixes: str) -> list[tuple[str, Path]]:
    """Return (id, path) for each file with one of ``suffixes`` in ``folder`` and below, sorted by path.

    Upper and lower case of a suffix are the same; hidden files are skipped. The id is the path within the
    folder without the suffix. Raises InputError if there is no such file.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder of {' or '.join(suffixes)} files")
    named = (path for path in folder.rglob("*") if path.suffix.lower() in suffixes)
    paths = sorted(path for path in named if not is_hidden(path, folder) and path.is_file())
    if not paths:
        raise InputError(f"{folder} has no {' or '.join(suffixes)} files")
    return [(path.relative_to(folder).with_suffix("").as_posix(), path) for path in paths]


def raw_image(key: str | Position, array: NDArray[Any], convention: str, where: str) -> RawImage:
    """Split (P, 4) boxes, or (P, 5) with a score last; ``where`` names file and image.

    Raises InputError for other shapes and types.
    """
    if array.size == 0:
        array = np.zeros((0, 4))  # an empty list comes out of most programs in some other shape
    if array.dtype.kind not in "iuf" or array.ndim != 2 or array.shape[1] not in (4, 5):
        raise InputError(
            f"{where}: expected numbers of shape (P, 4) or (P, 5), not {array.dtype} of shape {array.shape}"
        )
    scores = array[:, 4] if array.shape[1] == 5 else None
    return RawImage(key, array[:, :4], scores, convention)


def make_proposals(boxes: NDArray[Any], scores: NDArray[Any] | None, where: str) -> Proposals:
    """Check boxes (P, 4) and scores (P,) of any number type and return them as float32 proposals."""
    if len(boxes) > MAX_BOXES:
        raise InputError(f"{where}: {len(boxes)} boxes are more than {MAX_BOXES} for one image")
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite and is refused below
        exact = np.array(boxes, dtype=np.float32)
        ranks = None if scores is None else np.array(scores, dtype=np.float32)
    bad = ~(np.abs(exact) < _MAX_COORDINATE).all(axis=1)
    if ranks is not None:
        bad |= ~np.isfinite(ranks)
    if bad.any():
        row = int(bad.argmax())
        value = exact[row].tolist() + ([] if ranks is None else [float(ranks[row])])
        raise InputError(f"{where}: row {row} is {value}; leave out what is not finite or not in pixels")
    return Proposals(boxes=torch.from_numpy(exact), scores=None if ranks is None else torch.from_numpy(ranks))
