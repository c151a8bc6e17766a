"""From an array that somebody else wrote to checked ``Proposals``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from detector.core.errors import InputError
from detector.core.structures import Proposals
from detector.proposals.npy import read_header

# A hundred times what the largest published sets hold; more is a mistake or an attack.
MAX_BOXES = 1_000_000
# float32 counts whole pixels up to here
_MAX_COORDINATE = float(1 << 24)
# The numbers of one image in a file: five columns of the widest type, and a header.
MAX_ARRAY_BYTES = MAX_BOXES * 5 * 8 + 10_240


class Position(NamedTuple):
    """Where an image stands in a file that names none: at ``place`` of ``total``, as in the data set."""

    place: int
    total: int


class RawImage(NamedTuple):
    """One image of a file, as it stands there: ``boxes`` (P, 4) numbers, ``scores`` (P,) or None.

    ``key`` is what the file calls the image, or its place; ``convention`` the name of the format's box
    convention (`detector.proposals.conventions`), or "auto".
    """

    key: str | Position
    boxes: NDArray[Any]
    scores: NDArray[Any] | None
    convention: str


class RawImages:
    """The images of a file, which can be run through once, and ``names``, what the file calls them.

    The names, of which a file that names none has none, are known before any boxes are read.
    """

    def __init__(self, names: Sequence[str], images: Iterator[RawImage]) -> None:
        self.names = names
        self._images = images

    def __iter__(self) -> Iterator[RawImage]:
        return self._images


def image_place(source: Path, key: str | Position) -> str:
    """Return the words with which a message names an image of ``source``."""
    name = repr(key) if isinstance(key, str) else f"number {key.place + 1} of {key.total}"
    return f"{source}, image {name}"


def raw_image(key: str | Position, array: NDArray[Any], convention: str, where: str) -> RawImage:
    """Split (P, 4) boxes, or (P, 5) with a score last; ``where`` names file and image.

    Raises InputError for other shapes and types.
    """
    if array.size == 0:
        array = np.zeros((0, 4))  # an empty list comes out of most programs in some other shape
    if array.dtype.kind not in "iuf" or array.ndim != 2 or array.shape[1] not in (4, 5):
        raise InputError(
            f"{where}: expected numbers of shape (P, 4) or (P, 5), found {array.dtype} of shape {array.shape}"
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


def read_array(file: IO[bytes], declared: int, where: str) -> NDArray[Any]:
    """Read one ``.npy`` of ``declared`` bytes, trusting nothing it says about itself.

    The shape is checked against ``declared`` before any memory is taken; arrays of Python objects, which
    would have to be unpickled, are refused.
    """
    try:
        header = read_header(file)
    except (ValueError, EOFError) as error:
        raise InputError(f"{where}: no readable array ({error})") from error
    if header.dtype.kind not in "iuf":
        raise InputError(f"{where}: holds {header.dtype} and not plain numbers")
    length = header.data_bytes
    if len(header.shape) > 2 or length > MAX_ARRAY_BYTES or max(header.shape, default=0) > MAX_BOXES:
        raise InputError(f"{where}: expected shape (P, 4) or (P, 5), found {header.shape}")
    if length > declared:
        raise InputError(f"{where}: announces {length} bytes of boxes and has {declared}")
    data = file.read(length)
    if len(data) != length:
        raise InputError(f"{where}: ends after {len(data)} of {length} bytes")
    return np.frombuffer(data, header.dtype).reshape(header.shape, order="F" if header.fortran_order else "C")
