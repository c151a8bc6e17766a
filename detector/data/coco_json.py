"""An annotation file in COCO's format, read and checked before anything uses it.

Source: the format description at cocodataset.org, "Data format", object detection. The entries stay as
written; what is checked is what the loader, the evaluator and the converter rely on.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

from detector.core.errors import InputError
from detector.core.files import read_json
from detector.data.voc_split import check_name
from detector.data.voc_xml import MAX_COORDINATE

Entry = dict[str, Any]
CocoData = dict[str, list[Entry]]

SECTIONS = ("images", "categories", "annotations")
MAX_ID = 2**63  # pycocotools puts ids into NumPy arrays


def read_coco(
    path: Path | str, on_fault: Callable[[InputError], None] | None = None, *, unannotated: bool = False
) -> CocoData:
    """Read ``images``, ``categories`` and ``annotations``; other sections are left out.

    With ``on_fault`` a faulty entry is handed to it and left out, and the rest is read. With ``unannotated``
    the last two may be missing, as in files of test sets; they are then empty.

    Raises:
        InputError: not readable or not of the format, an id or a category's name twice, an id that nothing
            has, a file name that leaves the image folder, or a number that is none; the message names file,
            section and entry.
    """
    path = Path(path)
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a COCO annotation file, an object with {', '.join(SECTIONS)}")
    if unannotated:
        content = {"categories": [], "annotations": [], **content}
    data = {section: _section(content, section, path) for section in SECTIONS}
    checks = {"images": _WithOwnId(_check_image), "categories": _WithOwnId(_check_category)}
    for section, check in checks.items():
        data[section] = _sound(data[section], f"{path}: {section}", check, on_fault)
    _refuse_twins(data["categories"], path)
    known = {section: {entry["id"] for entry in data[section]} for section in checks}

    def check_annotation(entry: Entry, place: str) -> None:
        _check_annotation(entry, place)
        _check_reference(entry, "image_id", known["images"], "images", place)
        _check_reference(entry, "category_id", known["categories"], "categories", place)

    data["annotations"] = _sound(data["annotations"], f"{path}: annotations", check_annotation, on_fault)
    return data


def image_file(folder: Path, name: str) -> Path:
    """Return the path of the image that a COCO file calls ``name``, in ``folder``.

    Where no file has just that name, it is looked for with ``\\`` as the separator of folders and with
    ``%20`` and its like decoded, as some tools write them; never outside ``folder``.
    """
    for written in plain_names(name) if "\\" in name or "%" in name else ():
        if (folder / written).is_file():
            return folder / written
    return folder / name


def plain_names(name: str) -> list[str]:
    """Return a COCO file's name of an image, and what else it may mean: see `image_file`."""
    forward = name.replace("\\", "/")
    names = [name]
    for written in (forward, unquote(name), unquote(forward)):
        try:
            check_name(written, "", "")
        except InputError:
            continue
        names.append(PurePosixPath(written).as_posix())
    return list(dict.fromkeys(names))


def _section(content: dict[str, Any], section: str, path: Path) -> list[Entry]:
    entries = content.get(section)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise InputError(
            f"{path}: {section!r} is missing or no list of objects; expected a COCO annotation file"
        )
    return entries


def _sound(
    entries: list[Entry],
    place: str,
    check: Callable[[Entry, str], None],
    on_fault: Callable[[InputError], None] | None,
) -> list[Entry]:
    """Return the entries that pass ``check``."""
    kept = []
    for number, entry in enumerate(entries):
        try:
            check(entry, f"{place}[{number}]")
        except InputError as error:
            if on_fault is None:
                raise
            on_fault(error)
        else:
            kept.append(entry)
    return kept


class _WithOwnId:
    """Checks that each entry has an id of its own, and whatever ``check`` does."""

    def __init__(self, check: Callable[[Entry, str], None]) -> None:
        self.check = check
        self.seen: dict[int, str] = {}

    def __call__(self, entry: Entry, place: str) -> None:
        identity = entry.get("id")
        if not isinstance(identity, int) or isinstance(identity, bool) or abs(identity) >= MAX_ID:
            raise InputError(f"{place}: id is {_short(identity)}; expected a whole number of 64 bits at most")
        if identity in self.seen:
            raise InputError(f"{place}: id {identity} is also that of {self.seen[identity]}; ids must differ")
        self.seen[identity] = place.rpartition(" ")[2]
        self.check(entry, place)


def _check_image(entry: Entry, place: str) -> None:
    name = entry.get("file_name")
    if not isinstance(name, str):
        raise InputError(f"{place}: file_name is {_short(name)}; expected the image's path in its folder")
    check_name(name, f"{place}: file_name", "the image's path in its folder")
    if "voc_id" in entry:
        if not isinstance(entry["voc_id"], str):
            raise InputError(f"{place}: voc_id is {_short(entry['voc_id'])}; expected a text")
        check_name(entry["voc_id"], f"{place}: voc_id", "the image's id in VOC layout")
    for side in ("height", "width"):
        value = entry.get(side, 0)
        if not _is_pixels(value) or value < 0 or value != int(value):
            raise InputError(f"{place}: {side} is {_short(value)}; expected a whole number of pixels")


def _check_category(entry: Entry, place: str) -> None:
    name = entry.get("name")
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"{place}: name is {_short(name)}; expected the class's name")
    if name.encode("utf-8", errors="replace").decode() != name:
        raise InputError(f"{place}: name is {_short(name)}, with half of a character in it; correct it")


def _refuse_twins(categories: list[Entry], path: Path) -> None:
    ids: dict[str, int] = {}
    for entry in categories:
        twin = ids.setdefault(entry["name"], entry["id"])
        if twin != entry["id"]:
            raise InputError(
                f"{path}: categories {twin} and {entry['id']} are both named {entry['name']!r}; rename one"
            )


def _check_annotation(entry: Entry, place: str) -> None:
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_pixels, box)):
        raise InputError(f"{place}: bbox is {_short(box)}; expected [x, y, width, height] in pixels")
    for flag in ("iscrowd", "difficult", "ignore"):
        if entry.get(flag, 0) not in (0, 1):
            raise InputError(f"{place}: {flag} is {_short(entry[flag])}; expected 0 or 1")
    area = entry.get("area", 0)
    if not _is_number(area) or not 0 <= area <= MAX_COORDINATE**2:
        raise InputError(f"{place}: area is {_short(area)}; expected a number of square pixels")


def _check_reference(entry: Entry, key: str, known: set[int], section: str, place: str) -> None:
    if not isinstance(entry.get(key), int) or entry[key] not in known:
        raise InputError(f"{place}: {key} is {_short(entry.get(key))}, which is no id in {section!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_pixels(value: Any) -> bool:
    return _is_number(value) and abs(value) <= MAX_COORDINATE


def _short(value: Any) -> str:
    return repr(value)[:60]
