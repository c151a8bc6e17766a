"""All scores of all regions of a split in one file, which is written image by image.

The file is an ``.npz`` of NumPy that holds no pickles, and NumPy reads one image of it at a time:

    saved = np.load("scores.npz")
    for number, image in enumerate(saved["images"]):
        scores = saved[f"{number}/scores"]  # (P, K+1); see saved["classes"]
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detector.core.errors import InputError
from detector.core.files import atomic_write

Floats = NDArray[np.float32]
BACKGROUND = "background"
"""The name of column 0 in ``classes``."""
_WRITTEN = (1980, 1, 1, 0, 0, 0)  # the time of every entry, so that equal scores give equal files


class RegionScoresFile:
    """Takes the regions of the N images of a split, one after the other; made by `writing`.

    The entries of the file:

    - ``classes`` (K+1,): the names of the columns, ``background`` first;
    - ``images`` (N,) and ``keys`` (N,): the id and the key of each image;
    - ``0/boxes`` (P, 4) float32: the regions of image 0, (x1, y1, x2, y2), half-open, in pixels of the
      original image;
    - ``0/scores`` (P, K+1) float32, as `detector.engine.inference.Regions` has them: before any threshold and
      suppression;
    - ``0/refined`` (P, K+1, 4) float32: the region as each class moves it, clipped to the image;
    - and so on up to image N - 1.
    """

    def __init__(self, archive: zipfile.ZipFile, names: Mapping[str, Sequence[str]]) -> None:
        self._archive = archive
        self._images = 0
        for name, values in names.items():
            self._write(name, np.array(list(values), dtype=np.str_))

    def add(self, boxes: Floats, scores: Floats, refined: Floats) -> None:
        """Write the regions of the next image."""
        columns = {"boxes": boxes, "scores": scores, "refined": refined}
        for name, values in columns.items():
            self._write(f"{self._images}/{name}", values)
        self._images += 1

    def _write(self, name: str, values: NDArray[np.generic]) -> None:
        entry = zipfile.ZipInfo(f"{name}.npy", _WRITTEN)
        with self._archive.open(entry, "w", force_zip64=True) as file:
            np.lib.format.write_array(file, np.ascontiguousarray(values), allow_pickle=False)


@contextmanager
def writing(path: Path, names: Mapping[str, Sequence[str]]) -> Iterator[RegionScoresFile]:
    """Open the file ``path`` for the regions of a split; it appears when the block ends without an error.

    ``names`` are the entries ``classes``, ``images`` and ``keys``.

    Raises:
        InputError: the file cannot be written.
    """
    with atomic_write(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        yield RegionScoresFile(archive, names)


def check_name(option: str, path: Path) -> None:
    """Raise InputError, naming ``option``, unless ``path`` has the suffix of such a file."""
    if path.suffix.lower() != ".npz":
        raise InputError(f"{option} {path}: name a .npz file")
