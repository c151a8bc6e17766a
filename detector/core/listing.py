"""Whether many files exist, how long they are and where they really lie, asked about all of them at once.

Folders are listed, which also says of each name whether it is a regular file or a link. Only where the file
system has to be asked about each file, for its length or for what a link leads to, threads ask at once: a
disk in a network answers many questions in the time of one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from detector.core.errors import InputError

THREADS = 16
_AT_ONCE = 64
"""Files that a thread asks about before it takes others."""

Answer = TypeVar("Answer")


class Listing:
    """The names in folders: whether each is a regular file, as far as the folder itself says so.

    A folder is listed when it is first needed; one that cannot be listed has no names.
    """

    def __init__(self) -> None:
        self._regular: dict[str, dict[str, bool]] = {}

    def regular(self, folder: str) -> dict[str, bool]:
        """Return the names in ``folder``; False is a link, a folder or whatever else the name may be."""
        if folder not in self._regular:
            try:
                with os.scandir(folder or os.curdir) as entries:
                    found = {entry.name: entry.is_file(follow_symlinks=False) for entry in entries}
            except (OSError, ValueError):  # ValueError: a null character, which no file system accepts
                found = {}
            self._regular[folder] = found
        return self._regular[folder]

    def __contains__(self, path: str) -> bool:
        """Say whether ``path`` is a regular file and no link, as far as its folder says so."""
        folder, name = os.path.split(path)
        return self.regular(folder).get(name, False)


def existing(paths: Sequence[str]) -> NDArray[np.bool_]:
    """Return (N,) whether each of ``paths`` is a file, or a link to one."""
    listing = Listing()
    exists = np.array([path in listing for path in paths], np.bool_)
    unsure = np.flatnonzero(~exists).tolist()
    exists[unsure] = asked([paths[row] for row in unsure], os.path.isfile)
    return exists


def file_sizes(paths: Sequence[str]) -> NDArray[np.int64]:
    """Return (N,) the sizes of files in bytes. Raises InputError for the first that is missing."""
    sizes = asked(paths, _size)
    for path, size in zip(paths, sizes, strict=True):
        if isinstance(size, str):
            raise InputError(f"{path}: cannot read the image: {size}")
    return np.array(sizes, np.int64)


def real_paths(paths: Sequence[str]) -> list[str]:
    """Return ``paths`` without links in them, as `os.path.realpath`."""
    listing = Listing()
    folders: dict[str, str] = {}

    def in_real_folder(path: str) -> str:
        folder, name = os.path.split(path)
        if folder not in folders:
            folders[folder] = os.path.realpath(folder)
        return os.path.join(folders[folder], name)  # noqa: PTH118 - much faster than Path

    real = [in_real_folder(path) for path in paths]
    links = [row for row, path in enumerate(real) if path not in listing]
    for row, target in zip(links, asked([real[row] for row in links], _target), strict=True):
        end = in_real_folder(target)
        real[row] = end if end in listing else os.path.realpath(real[row])
    return real


def _target(path: str) -> str:
    """Return where the link at ``path`` leads in one step, ``path`` itself if it is no link."""
    try:
        return os.path.join(os.path.split(path)[0], os.readlink(path))  # noqa: PTH115, PTH118
    except OSError:
        return path


def asked(paths: Sequence[str], ask: Callable[[str], Answer]) -> list[Answer]:
    """Return the answers of ``ask`` for ``paths``, in their order, asked by `THREADS` threads."""
    parts = [paths[start : start + _AT_ONCE] for start in range(0, len(paths), _AT_ONCE)]
    if len(parts) < 2:
        return [ask(path) for path in paths]
    with ThreadPoolExecutor(THREADS) as pool:
        return list(chain.from_iterable(pool.map(lambda part: [ask(path) for path in part], parts)))


def _size(path: str) -> int | str:
    """Return the size of a file, or why it cannot be read."""
    try:
        return os.stat(path).st_size  # noqa: PTH116 - much faster than Path
    except OSError as error:
        return error.strerror or str(error)
