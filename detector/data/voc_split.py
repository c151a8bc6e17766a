"""Names in a VOC layout: folders under the root, ids in a split file, the files an id stands for."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from detector.core.errors import InputError, nearest
from detector.core.files import ASCII_SPACE, IMAGE_SUFFIXES, read_short_text
from detector.data.suffixes import Lookup
from detector.data.voc_xml import faults_to

# The per-class lists of VOC ("aeroplane_test.txt") have 1, -1 or 0 after each id. Only spaces are before it:
# a no-break space may be a part of a name.
_CLASS_COLUMN = re.compile(r"(?P<id>.*[^ ])[ ]+(-1|0|1)")
_DRIVE = re.compile(r"[A-Za-z]:")
_MAX_NAME_BYTES = 240  # file systems refuse names over 255 bytes, ending included


def resolve_folder(root: Path, name: str, content: str) -> Path:
    """Return the real path of ``ROOT/<name>``, links followed; ``content`` says what belongs in it.

    Raises InputError, with the layout that is expected, if the root or the folder is missing.
    """
    if not root.is_dir():
        raise InputError(
            f"data root {root} does not exist; expected a folder in VOC layout: Annotations/ with one XML "
            "file an image, JPEGImages/ with the images, ImageSets/Main/ with one text file a split"
        )
    folder = root / name
    if not folder.is_dir():
        below = sorted(root.glob(f"*/{name}")) if not Path(name).is_absolute() else []
        hint = f"; did you mean the root {below[0].parents[len(Path(name).parts) - 1]}?" if below else ""
        raise InputError(f"{folder} does not exist; expected {content}{hint}")
    return folder.resolve()


def read_split(
    root: Path,
    splits: str,
    split: str,
    folders: tuple[Path, Path],
    on_fault: Callable[[InputError], None] | None = None,
    lookup: Lookup | None = None,
) -> tuple[list[str], Path]:
    """Return the ids of ``ROOT/<splits>/<split>.txt`` in its order, and that path.

    Blank lines, a byte-order mark, Windows line ends and the 1/-1/0 column of per-class lists are
    understood; a line is taken whole where a file has just that name in one of ``folders``, those of the
    annotations and of the images. With ``on_fault`` a faulty line is handed to it and left out, and the rest
    is read.

    Raises:
        InputError: no such split (the message lists those there are), an unreadable or empty one, an id
            twice, or an id that would lead out of the folders.
    """
    folder = resolve_folder(root, splits, "a text file a split, one image id a line")
    path = folder / f"{split}.txt"
    if not path.is_file():
        found = _split_names(folder)
        there = f"splits there: {', '.join(found)}" if found else "the folder has no split (*.txt)"
        raise InputError(f"{path}: no such split{nearest(split, found)}; {there}")
    lines = read_short_text(path, "the split").replace("\t", " ").split("\n")
    seen: dict[str, int] = {}
    lookup = lookup or Lookup()
    for number, line in enumerate((line.strip(ASCII_SPACE) for line in lines), start=1):
        if line:
            with faults_to(on_fault):
                _add_line(seen, line, number, path, folders, lookup)
    if not seen:
        raise InputError(f"{path}: the split names no image; expected one image id a line")
    return list(seen), path


def _add_line(
    seen: dict[str, int], line: str, number: int, path: Path, folders: tuple[Path, Path], lookup: Lookup
) -> None:
    """Add the id of a line to ``seen``, the line's number by the id."""
    check_name(line, f"{path}: line {number}: image id", "an image's file name without its ending")
    image_id = _image_id(line, folders, lookup)
    if image_id in seen:
        raise InputError(
            f"{path}: line {number}: image id {image_id!r} is also on line {seen[image_id]}; remove one"
        )
    seen[image_id] = number


def find_image(folder: Path, image_id: str, split_file: Path | None, lookup: Lookup | None = None) -> Path:
    """Return the image of an id, the expected .jpg where there is none and no ``split_file`` is given.

    ``lookup`` is that of the reader that looks for many.

    Raises InputError naming ``split_file``, the id and the expected path if the image is missing.
    """
    found = (lookup or Lookup()).find(folder / image_id, IMAGE_SUFFIXES)
    expected = folder / f"{image_id}.jpg"
    if found is None and split_file is not None:
        others = ", ".join(IMAGE_SUFFIXES[1:])
        raise InputError(
            f"{split_file}: image id {image_id!r} has no image: expected {expected} (or {others}); "
            "put it there or take the id out of the split"
        )
    return found or expected


def check_name(name: str, place: str, expected: str) -> None:
    """Raise InputError for a name that could lead to a file outside the folder it is looked up in.

    Links that lie in the folder are the user's own and are followed.
    """
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if not parts or not _fits(name) or ".." in parts or parts[0] == "/" or _DRIVE.match(name):
        raise InputError(
            f"{place} {name[:80]!r} leads out of the data root or is no file name; expected {expected}"
        )


def _fits(name: str) -> bool:
    """Say whether the file system can take ``name``: no control characters, encodable, not too long."""
    encoded = name.encode("utf-8", errors="replace")
    return min(name) >= " " and len(encoded) <= _MAX_NAME_BYTES and encoded.decode() == name


def _image_id(line: str, folders: tuple[Path, Path], lookup: Lookup) -> str:
    column = _CLASS_COLUMN.fullmatch(line)
    if column is None:
        return line
    annotations, images = folders
    whole = lookup.find(annotations / line, (".xml",)) or lookup.find(images / line, IMAGE_SUFFIXES)
    return line if whole else column["id"]


def _split_names(folder: Path) -> list[str]:
    """Return the splits of a folder without the per-class lists, "CLASS_SPLIT"."""
    names = {path.stem for path in folder.glob("*.txt") if not path.name.startswith(".")}
    return sorted(name for name in names if name.rpartition("_")[2] not in names - {name})
