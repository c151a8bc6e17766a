"""Cellpose's ``X_seg.npy``: a pickled dictionary, whose ``masks`` are a label image of the image X.

Source: the documentation of Cellpose, "Outputs". The pickle is read as data by `read_pickle`; nothing in it
runs. The other entries (``outlines``, ``flows``, ``img``, ...) are not used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from detector.core.errors import InputError
from detector.core.files import require_regular
from detector.proposals.npy import read_header
from detector.proposals.readers.label_images import regions_of
from detector.proposals.readers.pickles import array_of, first_of, read_pickle
from detector.proposals.readers.raw_images import RawImage, RawImages, clear_errors, files_or_one

_END = "_seg"


def read_cellpose(source: Path) -> RawImages:
    """Return the images of the folder ``source`` of ``X_seg.npy``, or of one such file, with their masks.

    Other files of the folder are not read. One file is in memory at a time.
    """
    files = files_or_one(source, ".npy")
    files = [(key.removesuffix(_END), path) for key, path in files if key.endswith(_END)]
    if not files:
        raise InputError(f"{source}: the name of no file ends with {_END}.npy, as Cellpose's do")
    return RawImages([key for key, _ in files], (_image(key, path) for key, path in files))


def holds_objects(path: Path) -> bool:
    """Say whether ``path`` is a ``.npy`` file of Python objects and not of numbers. Raises InputError."""
    require_regular(path)
    with clear_errors(path, ".npy file", ValueError, EOFError), path.open("rb") as file:
        return read_header(file, objects=True).dtype.hasobject


def _image(key: str, path: Path) -> RawImage:
    return regions_of(key, _masks(path), str(path))


def _masks(path: Path) -> NDArray[Any]:
    require_regular(path)
    with clear_errors(path, ".npy file", ValueError, EOFError), path.open("rb") as file:
        header = read_header(file, objects=True)
        start = file.tell()
    if not header.dtype.hasobject:
        raise InputError(f"{path}: holds {header.dtype} and not the dictionary that Cellpose writes")
    content = first_of(read_pickle(path, start))
    masks = content.get("masks") if isinstance(content, dict) else None
    found = array_of(masks)
    if found is None or found.ndim != 2 or found.dtype.kind not in "iu":
        shape = "" if found is None else f", but {found.dtype} of shape {found.shape}"
        raise InputError(
            f"{path}: its 'masks' are not whole numbers of shape (height, width){shape}; save each plane "
            "of a stack as a file of its own"
        )
    return found
