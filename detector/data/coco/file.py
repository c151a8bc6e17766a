"""An annotation file in COCO's format, read and checked before anything uses it.

Source: the format description at cocodataset.org, "Data format", object detection. The entries stay as they
are written; the checks cover what the loader, the evaluator and the converter rely on.

COCO's boxes are x, y, width, height, continuous and counted from 0, so x2 = x + width.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from detector.core.errors import FaultHandler, InputError
from detector.core.files import read_json
from detector.core.structures import ImageName
from detector.data.attributes import attribute_labels
from detector.data.paths import image_key, require_inside
from detector.data.targets import MAX_COORDINATE, AnnotatedObject

Entry = dict[str, Any]
CocoData = dict[str, list[Entry]]

SECTIONS = ("images", "categories", "annotations")
_NOT_A_PATH = re.compile(r"""[\\%]|\A/|//|/\Z|(\A|/)\.(/|\Z)""")
"""Names without a match are the paths of their files; others are looked for, or have a shorter path."""
MAX_ID = 2**63  # pycocotools puts ids into NumPy arrays


def read_coco(
    path: Path | str, on_fault: FaultHandler | None = None, *, unannotated: bool = False
) -> CocoData:
    """Read ``images``, ``categories`` and ``annotations``; other sections are ignored.

    With ``on_fault`` a faulty entry is passed to it and left out, and the rest is read. With ``unannotated``
    categories and annotations may be missing, as in files of test sets; they are then empty.

    Raises:
        InputError: an unreadable file or another format, an id or a category's name that occurs twice, a
            reference to an id that does not exist, a file name that leads out of the image folder, or a value
            that is not a number where one is expected; the message names file, section and entry.
    """
    path = Path(path)
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a COCO annotation file, an object with {', '.join(SECTIONS)}")
    if unannotated:
        content = {"categories": [], "annotations": [], **content}
    data = {section: _section(content, section, path) for section in SECTIONS}
    checks = {"images": _check_image, "categories": _check_category}
    for section, check in checks.items():
        data[section] = _accepted(data[section], f"{path}: {section}", _with_own_id(check), on_fault)
    _refuse_twins(data["categories"], path)
    known = {section: {entry["id"] for entry in data[section]} for section in checks}

    def check_annotation(entry: Entry, place: str) -> None:
        _check_annotation(entry, place)
        _check_reference(entry, "image_id", known["images"], "images", place)
        _check_categories(entry, known["categories"], place)

    data["annotations"] = _accepted(data["annotations"], f"{path}: annotations", check_annotation, on_fault)
    return data


def category_names(data: CocoData) -> dict[int, str]:
    """Return the names of the categories by id, in the order of the ids."""
    return {entry["id"]: entry["name"] for entry in sorted(data["categories"], key=lambda one: one["id"])}


def record_id(entry: Entry) -> str:
    """Return the id of an image's record: COCO's id as text, or the VOC id that the converter stored."""
    return str(entry.get("voc_id", entry["id"]))


def image_names(data: CocoData, image_folder: Path, root: Path) -> list[ImageName]:
    """Return the names of the images of a file, in its order; keys are paths below ``root``."""
    return [
        ImageName(record_id(entry), image_key(image_file(image_folder, entry["file_name"]), root))
        for entry in data["images"]
    ]


def annotations_by_image(data: CocoData) -> defaultdict[int, list[tuple[int, Entry]]]:
    """Return the annotations of each image id, each with its index in the file."""
    annotations: defaultdict[int, list[tuple[int, Entry]]] = defaultdict(list)
    for number, entry in enumerate(data["annotations"]):
        annotations[entry["image_id"]].append((number, entry))
    return annotations


def annotated_objects(
    annotations: list[tuple[int, Entry]], names: Mapping[int, str], path: Path
) -> Iterator[AnnotatedObject]:
    """Yield one image's ``annotations``, as `annotations_by_image` returns them, with half-open boxes.

    An annotation with several categories is yielded once for each.
    """
    for number, entry in annotations:
        x, y, width, height = entry["bbox"]
        difficult, kinds = bool(entry.get("difficult", 0)), category_ids(entry)
        attributes = attribute_labels(entry.get("attributes"))
        for kind in kinds:
            yield AnnotatedObject(
                name=names[kind],
                box=(x, y, x + width, y + height),
                difficult=difficult,
                # A difficult object of VOC is written as a crowd, so that COCO's tools ignore it too.
                crowd=bool(entry.get("iscrowd", 0)) and not difficult,
                ignore=bool(entry.get("ignore", 0)),
                area=entry.get("area"),
                file=path,
                place=annotation_place(number, entry["image_id"]),
                written=entry["bbox"],
                attributes=attributes if kind == kinds[-1] else (),
            )


def category_ids(entry: Entry) -> list[int]:
    """Return the ids of an annotation's categories, each once: ``category_ids``, else ``category_id``."""
    several = entry.get("category_ids")
    return [entry["category_id"]] if several is None else list(dict.fromkeys(several))


def with_single_categories(data: CocoData, labels: Mapping[str, int], wanted: Sequence[str]) -> CocoData:
    """Return ``data`` with a single category in every annotation, as COCO's tools expect it.

    An annotation with several categories is written once for each. So is one with attributes named by
    ``wanted`` for their labels, whose categories ``labels`` has by name; other labels are left out.
    """
    entries: list[Entry] = []
    for entry in data["annotations"]:
        attributes = dict.fromkeys(attribute_labels(entry.get("attributes"))) if wanted else ()
        found = [labels[label] for name, label in attributes if name in wanted and label in labels]
        kinds = [*category_ids(entry), *found]
        single = {key: value for key, value in entry.items() if key != "category_ids"}
        plain = single == entry and not found
        entries += [entry] if plain else [{**single, "category_id": kind} for kind in kinds]
    if len(entries) > len(data["annotations"]):
        entries = [{**entry, "id": number} for number, entry in enumerate(entries, start=1)]
    return {**data, "annotations": entries}


def annotation_place(number: int, image_id: int) -> str:
    """Return what messages call the annotation with this index in the file."""
    return f"annotations[{number}], image {image_id}"


def missing_section(path: Path, section: str) -> InputError:
    return InputError(
        f"{path}: {section!r} is missing or not a list of objects; expected a COCO annotation file"
    )


def image_file(folder: Path, name: str) -> Path:
    """Return the path of the image that a COCO file calls ``name``, in ``folder``.

    If no file has exactly that name, it is looked for with ``\\`` as the separator of folders and with
    ``%20`` and similar codes decoded, as some tools write them; never outside ``folder``.
    """
    forward = name.replace("\\", "/")
    if forward != name or "%" in name:
        for written in dict.fromkeys((name, forward, unquote(name), unquote(forward))):
            with suppress(InputError):
                require_inside(written, "", "")
                if (folder / written).is_file():
                    return folder / written
    return folder / name


def image_files(folder: Path, names: Iterable[str]) -> list[str]:
    """Return the path of the `image_file` of each of ``names`` below ``folder``, as text."""
    return [
        name if _NOT_A_PATH.search(name) is None else str(image_file(folder, name).relative_to(folder))
        for name in names
    ]


def _section(content: dict[str, Any], section: str, path: Path) -> list[Entry]:
    entries = content.get(section)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise missing_section(path, section)
    return entries


def _accepted(
    entries: list[Entry], place: str, check: Callable[[Entry, str], None], on_fault: FaultHandler | None
) -> list[Entry]:
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


def _with_own_id(check: Callable[[Entry, str], None]) -> Callable[[Entry, str], None]:
    """Return a check that each entry has an id of its own, and that then does what ``check`` does."""
    seen: dict[int, str] = {}

    def check_entry(entry: Entry, place: str) -> None:
        identity = entry.get("id")
        if not isinstance(identity, int) or isinstance(identity, bool) or abs(identity) >= MAX_ID:
            raise InputError(f"{place}: id is {_short(identity)}; expected a whole number of 64 bits at most")
        if identity in seen:
            raise InputError(f"{place}: id {identity} is also that of {seen[identity]}; ids must differ")
        seen[identity] = place.rpartition(" ")[2]
        check(entry, place)

    return check_entry


def _check_image(entry: Entry, place: str) -> None:
    name = entry.get("file_name")
    if not isinstance(name, str):
        raise InputError(f"{place}: file_name is {_short(name)}; expected the image's path in its folder")
    require_inside(name, f"{place}: file_name", "the image's path in its folder")
    if "voc_id" in entry:
        if not isinstance(entry["voc_id"], str):
            raise InputError(f"{place}: voc_id is {_short(entry['voc_id'])}; expected a text")
        require_inside(entry["voc_id"], f"{place}: voc_id", "the image's id in VOC layout")
    for side in ("height", "width"):
        value = entry.get(side, 0)
        if not _is_pixels(value) or value < 0 or value != int(value):
            raise InputError(f"{place}: {side} is {_short(value)}; expected a whole number of pixels")


def _check_category(entry: Entry, place: str) -> None:
    name = entry.get("name")
    if not isinstance(name, str) or not name.strip():
        raise InputError(f"{place}: name is {_short(name)}; expected the class's name")
    if name.encode("utf-8", errors="replace").decode() != name:
        raise InputError(f"{place}: name is {_short(name)}, with half a character in it; correct it")


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
        raise InputError(f"{place}: {key} is {_short(entry.get(key))}, which is not an id in {section!r}")


def _check_categories(entry: Entry, known: set[int], place: str) -> None:
    """Check ``category_id``, or ``category_ids``, besides which ``category_id`` may be one of them."""
    several = entry.get("category_ids")
    if several is None:
        _check_reference(entry, "category_id", known, "categories", place)
        return
    if not isinstance(several, list) or not several:
        raise InputError(f"{place}: category_ids is {_short(several)}; expected a list of ids, at least one")
    for one in several:
        _check_reference({"category_ids": one}, "category_ids", known, "categories", place)
    if "category_id" in entry and entry["category_id"] not in several:
        raise InputError(
            f"{place}: category_id is {_short(entry['category_id'])}, which is not among category_ids; add "
            "it there or leave it out"
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_pixels(value: Any) -> bool:
    return _is_number(value) and abs(value) <= MAX_COORDINATE


def _short(value: Any) -> str:
    return repr(value)[:60]
