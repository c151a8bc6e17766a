"""Finding files by a name without suffix and the suffixes that it may have, in any case."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path


class Lookup:
    """Finds files by their names without suffix, and remembers what it found.

    One object is for one call of a reader: files that appear later may not be seen.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[str, tuple[str, ...]], Path | None] = {}
        self._listed: dict[str, Mapping[str, list[str]]] = {}

    def find(self, base: Path, suffixes: tuple[str, ...]) -> Path | None:
        """Return the first file named ``base`` and one of ``suffixes`` in any case, None where there is none.

        ``suffixes`` are in lower case and begin with their only dot. All in lower case come first, then all
        in upper case, then the mixtures. A folder is listed once, when a file is first missing from it.
        """
        name = str(base)
        if (name, suffixes) not in self._found:
            folder, stem = os.path.split(name)
            found = None if folder in self._listed else _usual(name, suffixes)
            self._found[name, suffixes] = found or self._listed_file(folder, stem, suffixes)
        return self._found[name, suffixes]

    def _listed_file(self, folder: str, stem: str, suffixes: tuple[str, ...]) -> Path | None:
        if folder not in self._listed:
            self._listed[folder] = _endings(folder)

        def rank(ending: str) -> tuple[int, int, str]:
            usual = 0 if ending.islower() else 1 if ending.isupper() else 2
            return usual, suffixes.index(ending.lower()), ending.swapcase()

        endings = self._listed[folder].get(stem, ())
        known = sorted((one for one in endings if one.lower() in suffixes), key=rank)
        paths = (Path(folder, stem + ending) for ending in known)
        return next(filter(Path.is_file, paths), None)


def _usual(name: str, suffixes: tuple[str, ...]) -> Path | None:
    for written in (*suffixes, *map(str.upper, suffixes)):
        if os.path.isfile(path := name + written):  # noqa: PTH113 - much faster than Path
            return Path(path)
    return None


def _endings(folder: str) -> Mapping[str, list[str]]:
    """Return the suffixes, dot included, of the names in a folder by what stands before them.

    A folder that cannot be listed has none.
    """
    endings: defaultdict[str, list[str]] = defaultdict(list)
    try:
        with os.scandir(folder or os.curdir) as entries:
            names = [entry.name for entry in entries]
    except (OSError, ValueError):  # the last: a null character, which no file system takes
        names = []
    for stem, dot, ending in (name.rpartition(".") for name in names):
        if dot:
            endings[stem].append(dot + ending)
    return endings
