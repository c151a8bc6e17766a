"""Selections of images: the splits of a data set by ratio, and lists of images to leave out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path

from detector.core.errors import InputError, nearest
from detector.core.files import ASCII_SPACE, read_short_text
from detector.core.structures import ImageName

Selection = Callable[[Sequence[ImageName]], Sequence[ImageName]]
"""Takes the names of all images of a source and returns those of the images to read, in their order."""

_HERE = "./"


def divide(ids: Sequence[str], ratio: Mapping[str, float], seed: int) -> dict[str, list[str]]:
    """Return the ids of each split of ``ratio``, whose values are fractions of all images.

    The images are drawn in the order of a hash of ``seed`` and id, so the division depends neither on the
    order of ``ids`` nor on the machine. If the fractions add up to 1, every image is in exactly one split.
    Each split keeps the order of ``ids``.
    """

    def draw(image_id: str) -> bytes:
        # A surrogate represents a byte of a file name that is not UTF-8.
        text = f"{seed}:{image_id}".encode(errors="surrogatepass")
        return hashlib.blake2b(text, digest_size=16).digest()

    drawn = sorted(ids, key=draw)
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

    Raises InputError for fewer than two images, because none would stay.
    """
    if len(ids) < 2:
        raise InputError(
            f"train.validation_fraction: of {len(ids)} training images none can be set aside; set it to 0, "
            "or name data.val_split"
        )
    count = min(max(round(fraction * len(ids)), 1), len(ids) - 1)
    parts = divide(ids, {"aside": count / len(ids), "stays": 1 - count / len(ids)}, seed)
    return parts["stays"], parts["aside"]


def by_ratio(split: str, ratio: Mapping[str, float], seed: int) -> Selection:
    """Return the selection of one split of `divide`.

    Raises InputError for a split that ``ratio`` does not name; the selection raises it if no image is left.
    """
    if split not in ratio:
        raise InputError(
            f"data.split_ratio names no split {split!r}{nearest(split, ratio)}; it has {', '.join(ratio)}"
        )

    def select(names: Sequence[ImageName]) -> list[ImageName]:
        members = set(divide([name.image_id for name in names], ratio, seed)[split])
        if not members:
            raise InputError(
                f"data.split_ratio: {ratio[split]:g} of {len(names)} images leaves none for {split!r}; "
                "give it a larger share"
            )
        return [name for name in names if name.image_id in members]

    return select


def without(
    left_out: Collection[str], source: Path | str, everything: Callable[[], Iterable[ImageName]] = tuple
) -> Selection:
    """Return the selection of every image that ``left_out``, read from ``source``, does not name.

    An image is named by its key, or by its id if no other image has that id. ``everything`` returns the
    images of all splits and is called only where an id is named. The selection raises InputError for an id
    that two images have.
    """

    def select(names: Sequence[ImageName]) -> list[ImageName]:
        by_id = {
            name.image_id: name.key
            for name in names
            if name.image_id in left_out and name.key not in left_out
        }
        for image_id, key in everything() if by_id else ():
            listed = by_id.get(image_id, key)
            if listed != key:
                raise InputError(
                    f"{source}: {image_id!r} is the id of {listed!r} and of {key!r}; write instead the path "
                    "of the image to leave out"
                )
        return [name for name in names if name.key not in left_out and name.image_id not in by_id]

    return select


def in_turn(selections: Sequence[Selection]) -> Selection:
    """Return one selection that applies several in their order."""

    def select(names: Sequence[ImageName]) -> Sequence[ImageName]:
        for selection in selections:
            names = selection(names)
        return names

    return select


def read_left_out(path: Path) -> set[str]:
    """Return the keys or ids in a list, one per line; blank lines and lines that begin with # are ignored.

    Raises InputError for a file that cannot be read or is over 64 MiB.
    """
    lines = read_short_text(path, "the list of images to leave out").split("\n")
    listed = (line.strip(ASCII_SPACE) for line in lines if not line.startswith("#"))
    return {line.removeprefix(_HERE) for line in listed if line}


def list_line(key: str) -> str:
    """Return the line that `read_left_out` reads as ``key``, which may begin with # or a blank."""
    return f"{_HERE}{key}" if key.startswith(("#", *ASCII_SPACE)) else key
