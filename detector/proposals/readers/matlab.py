"""MATLAB files: the selective search boxes of rbgirshick/fast-rcnn and of the IJCV release.

Three layouts: one file for a data set, a cell array ``boxes`` with a matrix (P, 4) for each image and often
a cell array ``images`` with their names; one file for an image, a matrix ``boxes``; a folder of such files.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from detector.errors import InputError
from detector.proposals.readers.arrays import Position, RawImage, image_place, raw_image
from detector.proposals.readers.folders import files_of

_HEADER = 128
_COMPRESSED = 15  # the element type of a compressed variable
_MAX_RATIO = 100
_ALWAYS_ALLOWED = 64 << 20
_BLOCK = 1 << 20


def read_matlab(source: Path) -> Iterator[RawImage]:
    """Yield the images of the file or folder ``source``.

    Files of one image are called after it, perhaps with ``_boxes`` behind (the demo of fast-rcnn).
    """
    if source.is_dir():
        for key, path in files_of(source, ".mat"):
            yield _single(path, key, _load(path)["boxes"])
        return
    variables = _load(source)
    boxes = variables["boxes"]
    if not boxes.dtype.hasobject:
        yield _single(source, source.stem, boxes)
        return
    cells = boxes.ravel()
    names = _names(source, variables["images"], len(cells)) if "images" in variables else None
    for index, cell in enumerate(cells):
        name = Position(index, len(cells)) if names is None else names[index]
        yield raw_image(name, np.asarray(cell), "auto", image_place(source, name))


def _single(path: Path, name: str, boxes: NDArray[Any]) -> RawImage:
    return raw_image(name.removesuffix("_boxes"), boxes, "auto", str(path))


def _names(source: Path, cells: NDArray[Any], count: int) -> list[str]:
    texts = [np.ravel(cell) for cell in cells.ravel()]
    if not all(text.dtype.kind == "U" and len(text) == 1 for text in texts):
        raise InputError(f"{source}: 'images' is no cell array of names")
    if len(texts) != count:
        raise InputError(f"{source} has {len(texts)} names in 'images' and {count} cells in 'boxes'")
    return [str(text[0]) for text in texts]


def _load(path: Path) -> dict[str, NDArray[Any]]:
    """Return the variables ``boxes`` and ``images`` of a MATLAB 5 file, after a look at its size."""
    import scipy.io  # here, because it takes longer to import than all of this package

    try:
        with path.open("rb") as file:
            _refuse_bomb(path, file)
        found = scipy.io.loadmat(
            path, variable_names=["boxes", "images"], verify_compressed_data_integrity=True
        )
    except InputError:
        raise
    except NotImplementedError as error:
        raise InputError(f"{path} is of MATLAB 7.3 (HDF5); save it with -v7") from error
    except Exception as error:  # scipy raises whatever the damage leads to
        raise InputError(f"{path} is no readable .mat file ({type(error).__name__}: {error})") from error
    if not isinstance(found.get("boxes"), np.ndarray):
        raise InputError(f"{path} has no variable 'boxes'")
    return found


def _refuse_bomb(path: Path, file: BinaryIO) -> None:
    """Unpack the variables without keeping them; InputError if they are far larger than the file."""
    limit = max(_ALWAYS_ALLOWED, _MAX_RATIO * path.stat().st_size)
    header = file.read(_HEADER)
    order = "big" if header[126:128] == b"MI" else "little"
    unpacked = 0
    while len(tag := file.read(8)) == 8:
        kind = int.from_bytes(tag[:4], order)  # type: ignore[arg-type]
        length = int.from_bytes(tag[4:], order)  # type: ignore[arg-type]
        if kind != _COMPRESSED:
            file.seek(length, 1)
            continue
        unpack = zlib.decompressobj()
        end = file.tell() + length
        while file.tell() < end and (block := file.read(min(_BLOCK, end - file.tell()))):
            while block:
                unpacked += len(unpack.decompress(block, _BLOCK))
                block = unpack.unconsumed_tail
                if unpacked > limit:
                    raise InputError(f"{path} unpacks to over {_MAX_RATIO} times its size; it is refused")
