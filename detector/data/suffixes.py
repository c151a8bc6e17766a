"""The endings by which files are known; none of them depends on case."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from pathlib import Path

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")


def with_suffix_of(base: Path, suffixes: tuple[str, ...]) -> Path | None:
    """Return the first file named ``base`` and one of ``suffixes`` in any case, None where there is none.

    ``suffixes`` are in lower case. The order is theirs; of one suffix, lower case comes before upper case
    and that before any mixture.
    """
    for suffix in suffixes:
        for written in _cases(suffix):
            path = base.with_name(base.name + written)
            if path.is_file():
                return path
    return None


def _cases(suffix: str) -> Iterator[str]:
    yield suffix
    yield suffix.upper()
    mixtures = map("".join, product(*((letter, letter.upper()) for letter in suffix[1:])))
    yield from (f".{mixture}" for mixture in mixtures)
