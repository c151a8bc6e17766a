"""Which of a data set's images belong to a split where no file lists them, and which are left out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from detector.errors import InputError, nearest
from detector.files import read_short_text

Choice = Callable[[Sequence[str]], Sequence[str]]
"""Takes the ids of all images that a source names and returns those to read, in the same order."""


def divide(ids: Sequence[str], ratio: Mapping[str, float], seed: int) -> dict[str, list[str]]:
    """Return the ids of each split of ``ratio``, whose values are fractions of all images.

    The images are drawn by the order of a hash of ``seed`` and id, so the division depends on nothing
    else: neither on the order of ``ids`` nor on the machine. With fractions that add up to 1 every image
    is in exactly one split. Within a split the order is that of ``ids``.
    """
    drawn = sorted(ids, key=lambda one: hashlib.blake2b(f"{seed}:{one}".encode(), digest_size=16).digest())
    splits: dict[str, list[str]] = {}
    start, total = 0, 0.0
    for name, fraction in ratio.items():
        total += fraction
        end = min(round(total * len(drawn)), len(drawn))
        members = set(drawn[start:end])
        splits[name] = [image_id for image_id in ids if image_id in members]
        start = end
    return splits


def set_aside(ids: Sequence[str], fraction: float, seed: int) -> tuple[list[str], list[str]]:
    """Return the ids that stay and the ``fraction`` of them, at least one, that is set aside; see `divide`.

    Raises InputError for fewer than two images, of which none would stay.
    """
    if len(ids) < 2:
        raise InputError(
            f"train.validation_fraction: of {len(ids)} training images none can be set aside; set it to 0, "
            "or name data.val_split"
        )
    count = min(max(round(fraction * len(ids)), 1), len(ids) - 1)
    parts = divide(ids, {"aside": count / len(ids), "stays": 1 - count / len(ids)}, seed)
    return parts["stays"], parts["aside"]


def by_ratio(split: str, ratio: Mapping[str, float], seed: int) -> Choice:
    """Return the choice of one split of `divide`.

    Raises InputError for a split that ``ratio`` does not name, and, when called, for one without images.
    """
    if split not in ratio:
        raise InputError(
            f"data.split_ratio names no split {split!r}{nearest(split, ratio)}; it has {', '.join(ratio)}"
        )

    def choose(ids: Sequence[str]) -> list[str]:
        chosen = divide(ids, ratio, seed)[split]
        if not chosen:
            raise InputError(
                f"data.split_ratio: {ratio[split]:g} of {len(ids)} images leaves none for {split!r}; "
                "give it a larger share"
            )
        return chosen

    return choose


def without(left_out: set[str]) -> Choice:
    """Return the choice of everything that is not in ``left_out``."""
    return lambda ids: [image_id for image_id in ids if image_id not in left_out]


def in_turn(choices: Sequence[Choice]) -> Choice:
    """Return one choice that applies several, the first first."""

    def choose(ids: Sequence[str]) -> Sequence[str]:
        for choice in choices:
            ids = choice(ids)
        return ids

    return choose


def read_left_out(path: Path) -> set[str]:
    """Return the image ids of a list, one a line; blank lines and lines that begin with # are comments.

    Raises InputError for a file that cannot be read or is over 64 MiB.
    """
    lines = read_short_text(path, "the list of images to leave out").splitlines()
    return {line.strip() for line in lines if line.strip() and not line.startswith("#")}
