"""Names of files in a data set: finding files without their suffix, keys of images, and safe names."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

from detector.core.errors import InputError
from detector.core.listing import Listing

OUTSIDE = "@parent"
"""Replaces ``..`` in the key of an image outside the data root: stores refuse names that lead upwards."""

_DRIVE = re.compile(r"[A-Za-z]:")
_MAX_NAME_BYTES = 240  # file systems refuse names over 255 bytes, suffix included


def image_key(path: Path, root: Path) -> str:
    """Return an image's path below ``root``, suffix included, with ``/`` between its parts.

    Links are not followed: the key is what the config and the annotations say, not where a link leads.
    An image outside the root has a key as well, in which each step upwards is written `OUTSIDE`.
    """
    text, start = str(path), f"{root}{os.sep}"
    if text.startswith(start) and os.pardir not in text:
        return text.removeprefix(start).replace(os.sep, "/")
    parts = Path(os.path.relpath(path, root)).parts
    return "/".join(OUTSIDE if part == os.pardir else part for part in parts)


def image_keys(folder: Path, files: Iterable[str], root: Path) -> list[str]:
    """Return the `image_key` of each of ``files``, which are paths below ``folder`` without ``..``."""
    above = image_key(folder / "_", root).removesuffix("_")
    return [above + file.replace(os.sep, "/") for file in files]


def require_inside(name: str, place: str, expected: str) -> None:
    """Raise InputError for a file name that could lead outside the folder in which it is looked up.

    Links that lie in the folder are the user's own and are followed. ``place`` and ``expected`` are for the
    message.
    """
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or not _is_file_name(name) or ".." in parts or parts[0] == "/" or _DRIVE.match(name):
        raise InputError(
            f"{place} {name[:80]!r} leads out of the data root or is not a file name; expected {expected}"
        )


def inside(path: Path, root: Path) -> Path | None:
    """Return ``path`` with its ``..`` resolved, below ``root`` as written; None where it leads out of it.

    An absolute path may name the root as written or as it really is. Links that lie in the root are the
    user's own and are followed.
    """
    if "\0" in str(path):
        return None
    plain = os.path.abspath(path)  # noqa: PTH100 - `Path.resolve` would follow links
    for start in (os.path.abspath(root), os.path.realpath(root)):  # noqa: PTH100
        if plain == start or plain.startswith(start.rstrip(os.sep) + os.sep):
            return root / os.path.relpath(plain, start)
    return None


def _is_file_name(name: str) -> bool:
    """Say whether a file system accepts ``name``: no control characters, encodable, not too long."""
    encoded = name.encode("utf-8", errors="replace")
    return min(name) >= " " and len(encoded) <= _MAX_NAME_BYTES and encoded.decode() == name


class FileFinder:
    """Finds files by their names without suffix, and remembers the results.

    Use one object per call of a reader: it may not see files that appear later.
    """

    def __init__(self) -> None:
        self._results: dict[tuple[str, tuple[str, ...]], Path | None] = {}
        self._suffixes_by_folder: dict[str, Mapping[str, list[str]]] = {}
        self._listing = Listing()

    def find(self, base: Path, suffixes: tuple[str, ...]) -> Path | None:
        """Return the first file named ``base`` plus one of ``suffixes`` in any case, or None.

        ``suffixes`` are in lower case and begin with their only dot. Suffixes all in lower case come first,
        then those all in upper case, then mixtures. A folder is listed once.
        """
        key = str(base), suffixes
        if key not in self._results:
            self._results[key] = self._find(*key)
        return self._results[key]

    def _find(self, name: str, suffixes: tuple[str, ...]) -> Path | None:
        folder, stem = os.path.split(name)
        if folder not in self._suffixes_by_folder:
            self._suffixes_by_folder[folder] = _suffixes(self._listing.regular(folder))

        def rank(written: str) -> tuple[int, int, str]:
            case = 0 if written.islower() else 1 if written.isupper() else 2
            return case, suffixes.index(written.lower()), written.swapcase()

        candidates = self._suffixes_by_folder[folder].get(stem, ())
        if not self._suffixes_by_folder[folder]:  # a folder that may be entered but not listed
            candidates = [*suffixes, *map(str.upper, suffixes)]
        known = sorted((one for one in candidates if one.lower() in suffixes), key=rank)
        for path in (name + written for written in known):
            if path in self._listing or os.path.isfile(path):  # noqa: PTH113 - much faster than Path
                return Path(path)
        return None


def _suffixes(names: Iterable[str]) -> Mapping[str, list[str]]:
    """Return the suffixes, with their dots, of each stem among the ``names`` in a folder."""
    suffixes: defaultdict[str, list[str]] = defaultdict(list)
    for stem, dot, suffix in (name.rpartition(".") for name in names):
        if dot:
            suffixes[stem].append(dot + suffix)
    return suffixes
