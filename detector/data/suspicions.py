"""Probable mistakes in a data set whose files contain no error.

``tools/check_data.py`` shows each of them as a line, and a training run that starts shows a summary. Nothing
is changed because of them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from detector.data.problems import Problem

DEPTH_SAMPLE = 100
"""Number of images whose bit depth a starting training run looks at; a check looks at all."""

_DEEP_SUFFIXES = (".png", ".tif", ".tiff")  # the formats that can hold 16 bits


def other_image(named: str | None, image: Path, annotation: Path) -> Iterator[Problem]:
    """Compare the image name in an XML file with the ``image`` that is loaded for it.

    Differences in the folder, in case and in the suffix are ignored, because tools write them differently;
    the suffix counts where both files exist.
    """
    name = PurePosixPath((named or "").replace("\\", "/")).name
    if not name or image.name.casefold() in (name.casefold(), unquote(name).casefold()):
        return
    spellings = (name, PurePosixPath(name).stem, PurePosixPath(unquote(name)).stem)
    stems = {spelling.casefold() for spelling in spellings}
    # Looking for a longer name, or one with a null character, would be an error; no folder has such names.
    possible = len(name.encode(errors="replace")) < 256 and "\0" not in name
    exists = possible and image.with_name(name).is_file()
    if image.stem.casefold() in stems and not exists:
        return
    beside = "both files exist" if exists else f"no file of that name is beside {image.name}"
    message = f"<filename> names {name[:80]!r}, the image that is read is {image.name!r}; {beside}"
    yield Problem(kind="another image", file=str(annotation), message=message)


def several_boxes(places: Iterable[str], annotation: Path) -> Iterator[Problem]:
    """Look for objects of an XML file with more than one box; ``places`` are those of all its objects."""
    message = "has several <bndbox>; each is read as a separate object"
    for place in places:
        if place.endswith(", box 2"):
            thing = place.removesuffix(", box 2")
            yield Problem(kind="several boxes", file=str(annotation), message=message, object=thing)


def same_image(images: Sequence[tuple[object, Path]], annotations: Path) -> Iterator[Problem]:
    """Look for image files that a COCO file lists under two ids; ``images`` has the id and path of each."""
    first: dict[Path, object] = {}
    for identity, path in images:
        before = first.setdefault(path, identity)
        if before != identity:
            message = f"images {before} and {identity} are one file, {path.name!r}; merge their annotations"
            yield Problem(kind="one file twice", file=str(annotations), message=message)


def similar_names(names: Iterable[str], source: str) -> Iterator[Problem]:
    """Look for class names that differ only in case, in spaces or in the Unicode form of a letter."""
    first: dict[str, str] = {}
    for name in dict.fromkeys(names):
        plain = " ".join(unicodedata.normalize("NFKC", name).casefold().replace("_", " ").split())
        before = first.setdefault(plain, name)
        if before != name:
            message = f"classes {before!r} and {name!r} are two classes; if they are one, correct the name"
            yield Problem(kind="similar classes", file=source, message=message)


def at_wrong_edge(
    written: NDArray[np.float64], sizes: NDArray[np.int32], first_pixel: int
) -> NDArray[np.bool_]:
    """Say which VOC boxes (G, 4), as written, are impossible where pixels count from ``first_pixel``.

    ``sizes`` are their images' (height, width), (G, 2) or (2,) for one image. Where pixels
    count from 1, no corner is at 0; where they count from 0, none is at the height or width.
    """
    if first_pixel == 1:
        return (written[:, :2] == 0).any(1)
    ends = written[:, 2:]
    return (ends != 0).any(1) & (ends == sizes[..., ::-1]).any(1)


def wrong_first_pixel(count: int, objects: int, first_pixel: int, source: str) -> Iterator[Problem]:
    """Report how many of a VOC data set's objects are `at_wrong_edge`."""
    if count:
        edge = "0" if first_pixel == 1 else "the image's width or height"
        other = 1 - first_pixel
        message = (
            f"{count} of {objects} objects have a corner at {edge}, so the files seem to count pixels from "
            f"{other}; if they do, set data.first_pixel={other}"
        )
        yield Problem(kind="first pixel", file=source, message=message)


def unused_bits(image: Path) -> Iterator[Problem]:
    """Look for an image of 16 bits per channel whose data seem to have fewer, although it is read as 16.

    Raises InputError as `detector.data.images.read_image`.
    """
    if image.suffix.lower() in _DEEP_SUFFIXES:
        from detector.data.images import low_bit_depth  # OpenCV only for the few files that need it

        message = low_bit_depth(image)
        if message is not None:
            yield Problem(kind="bit depth", file=str(image), message=message)


def sampled_unused_bits(folder: Path, files: Iterable[str]) -> Iterator[Problem]:
    """Apply `unused_bits` to at most `DEPTH_SAMPLE` of the images ``files`` in ``folder``, evenly spaced."""
    deep = [file for file in files if file.lower().endswith(_DEEP_SUFFIXES)]
    for file in deep[:: max(1, -(-len(deep) // DEPTH_SAMPLE))]:
        yield from unused_bits(folder / file)


def summary(suspicions: Iterable[Problem]) -> list[str]:
    """Return one line for each kind: the first problem, and how many more there are."""
    kinds: dict[str, list[Problem]] = {}
    for one in suspicions:
        kinds.setdefault(one.kind, []).append(one)
    lines = []
    for kind, (first, *others) in kinds.items():
        more = f" ({len(others)} more of this kind; tools/check_data.py lists all)" if others else ""
        lines.append(f"warning: {kind}: {first.place}: {first.message}{more}")
    return lines
