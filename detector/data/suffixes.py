"""The endings by which files are known; none of them depends on case."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path


def with_suffix_of(base: Path, suffixes: tuple[str, ...]) -> Path | None:
    """Return the first file named ``base`` and one of ``suffixes`` in any case, None where there is none.

    ``suffixes`` are in lower case. All are tried in lower case, then all in upper case, then the mixtures.
    """
    for written in _spellings(suffixes):
        path = base.with_name(base.name + written)
        if path.is_file():
            return path
    return None


def _spellings(suffixes: tuple[str, ...]) -> Iterator[str]:
    yield from suffixes
    yield from map(str.upper, suffixes)
    for suffix in suffixes:
        for letters in product(*((letter, letter.upper()) for letter in suffix)):
            yield "".join(letters)
