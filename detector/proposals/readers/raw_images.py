"""What all readers of proposal files share: the images as a file has them, limits, checks and errors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

import numpy as np
import torch
from numpy.typing import NDArray

from detector.core.errors import InputError
from detector.core.files import is_hidden
from detector.core.masks import MAX_PIXELS, Masks
from detector.core.polygons import FractionalPolygons
from detector.core.structures import Proposals

# A hundred times what the largest published sets hold; more is a mistake or an attack.
MAX_BOXES = 1_000_000
MAX_SIDE = 1 << 24
"""The longest side of an image: float32 holds every whole number up to here."""
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
    convention (`detector.proposals.conventions`), or "auto". ``size`` is the (height, width) that the file
    gives for the image, None where it gives none. ``masks`` are those of the P regions, or polygons that
    become masks once the size is known; None where no region has one.
    """

    key: str | Position
    boxes: NDArray[Any]
    scores: NDArray[Any] | None
    convention: str
    size: tuple[int, int] | None = None
    masks: Masks | FractionalPolygons | None = None


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


def files_or_one(source: Path, *suffixes: str) -> list[tuple[str, Path]]:
    """Return (id, path) for each file of the folder ``source``, as `files_of`, or for that one file."""
    return files_of(source, *suffixes) if source.is_dir() else [(source.stem, source)]


def number_of_pixels(height: object, width: object, where: str) -> tuple[int, int]:
    """Return the (height, width) of an image as a file gives it; InputError for anything but whole numbers.

    A whole number may be written as 640.0. An image may have `detector.core.masks.MAX_PIXELS` pixels.
    """
    sides: list[int] = []
    for side in (height, width):
        if not is_number(side) or side != side // 1 or not 0 < side <= MAX_SIDE:
            raise InputError(f"{where}: {width!r:.40} x {height!r:.40} is not the size of an image in pixels")
        sides.append(int(side))
    if sides[0] * sides[1] > MAX_PIXELS:
        raise InputError(f"{where}: an image of {sides[1]} x {sides[0]} pixels is refused; cut it into tiles")
    return sides[0], sides[1]


def is_number(value: object) -> TypeGuard[int | float]:
    """Say whether a value from JSON is a number that a float64 can hold; true and false are none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isinstance(value, float) or abs(value) < 2**63


def numbers(values: object, count: int, where: str) -> list[float]:
    """Return a list of ``count`` numbers from JSON; InputError, which begins with ``where``, for others."""
    if not isinstance(values, list) or len(values) != count or not all(map(is_number, values)):
        raise InputError(f"{where} must be {count} numbers, not {values!r:.80}")
    return [float(value) for value in values]


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


def make_proposals(
    boxes: NDArray[Any], scores: NDArray[Any] | None, where: str, masks: Masks | None = None
) -> Proposals:
    """Check boxes (P, 4) and scores (P,) of any number type and return them as float32 proposals.

    The box of a region with one of the ``masks`` (P) is the mask's own.
    """
    if len(boxes) > MAX_BOXES:
        raise InputError(f"{where}: {len(boxes)} boxes are more than {MAX_BOXES} for one image")
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinite and is refused below
        exact = np.array(boxes, dtype=np.float32)
        ranks = None if scores is None else np.array(scores, dtype=np.float32)
    bad = ~(np.abs(exact) < MAX_SIDE).all(axis=1)
    if ranks is not None:
        bad |= ~np.isfinite(ranks)
    if bad.any():
        row = int(bad.argmax())
        value = exact[row].tolist() + ([] if ranks is None else [float(ranks[row])])
        raise InputError(f"{where}: row {row} is {value}; leave out what is not finite or not in pixels")
    found = torch.from_numpy(exact)
    if masks is not None:
        present = torch.from_numpy(masks.present)
        found = torch.where(present[:, None], masks.boxes(), found)
    return Proposals(boxes=found, scores=None if ranks is None else torch.from_numpy(ranks), masks=masks)
