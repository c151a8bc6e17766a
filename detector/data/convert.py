"""Annotations from VOC layout to COCO's format and back, and from the other formats to both.

Content that has no field in COCO's format (pose, truncated, parts, source, ...) is kept under the key ``voc``
as a tree [tag, text or list of children, attributes if any]. A null in it marks content that COCO's own
fields give, so converting back gives the same elements in the same order and keeps edits of the COCO file.

``difficult`` is an additional key of an annotation. Such an annotation has ``iscrowd`` 1, so that COCO's
tools ignore it too; `detector.data.coco.file` reads it as difficult, not as crowd. ``ignore`` is written as
an additional <ignore> of an object, which `detector.data.voc.annotation` reads; a crowd region becomes such
an object too, so that it is not trained on. An <object> with several boxes becomes as many annotations, and
as many objects on the way back. Several <name> become ``category_ids``, and <attributes>, which CVAT writes,
``attributes``.

Boxes are converted in decimal arithmetic, so 10.3 becomes 9.3 and 10.3 again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from itertools import groupby
from pathlib import Path, PurePath, PurePosixPath
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from detector.core.errors import InputError
from detector.core.files import require_regular, write_text
from detector.data.coco.file import CocoData, Entry, category_ids, category_names, image_file, read_coco
from detector.data.image_set import ImageSetSource
from detector.data.source import size_of
from detector.data.targets import AnnotatedObject
from detector.data.voc.annotation import (
    CORNERS,
    object_elements,
    object_names,
    read_attributes,
    read_element,
    to_annotation,
)
from detector.data.voc.source import VocSource

Node = list[Any]

# Paths of elements whose content COCO's own fields give, in an annotation file and in one of its objects.
_IMAGE_FIELDS = ("/object", "/size/height", "/size/width")
_OBJECT_FIELDS = ("/name", "/difficult", "/ignore", "/bndbox")

_NEW_OBJECT: Node = ["object", [["name", None], ["difficult", None], ["bndbox", None]]]
_FLAGS = ("/difficult", "/ignore")
_ATTRIBUTES = "/attributes"
_DECIMALS = 6
"""Of a pixel: the rounding of files with fractions or percents is coarser."""


def voc_to_coco(
    root: Path | str,
    split: str | None,
    output: Path | str,
    *,
    annotations: str = VocSource.annotations,
    images: str = VocSource.images,
    splits: str | None = VocSource.splits,
    first_pixel: int = 1,
) -> CocoData:
    """Write a split, or with None all annotated images, in COCO's format to ``output``, and return it.

    Categories are all class names of the annotation folder, sorted, with ids 1..K, so that the files of
    different splits agree. ``file_name`` is the image's path in the image folder. Objects stay as
    annotated, including invalid boxes. ``annotations`` to ``first_pixel`` are as in `VocSource`.

    Raises InputError as `VocSource.load`, or if ``output`` cannot be written.
    """
    source = VocSource(
        Path(root),
        annotations=annotations,
        images=images,
        splits=splits if split else None,
        first_pixel=first_pixel,
    )
    split = split or "all"
    layout = source.layout(split)
    ids, listed_in = layout.split_ids(source.splits, split)
    kinds = {name: number for number, name in enumerate(source.class_names(split), start=1)}
    data: CocoData = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": name} for name, number in kinds.items()],
    }
    for number, image_id in enumerate(ids, start=1):
        tree = read_element(path := layout.annotation(image_id, listed_in))
        annotation = to_annotation(tree, path)
        image = layout.image(image_id)
        height, width = annotation.size or size_of(image, f"{path}: no <size>", required=True)
        data["images"].append(
            {
                "id": number,
                "file_name": image.relative_to(layout.images).as_posix(),
                "height": height,
                "width": width,
                "voc_id": image_id,
                "voc": _encode(tree, _IMAGE_FIELDS),
            }
        )
        things = iter(annotation.objects)  # one for each name of an object
        for _, element in object_elements(tree, path):
            own = [next(things) for _ in object_names(element)]
            entry = _to_entry(own, element, kinds, first_pixel)
            data["annotations"].append({"id": len(data["annotations"]) + 1, "image_id": number, **entry})
    write_text(Path(output), json.dumps(data, ensure_ascii=False))
    return data


def coco_to_voc(
    annotation_file: Path | str,
    root: Path | str,
    split: str,
    image_folder: Path | str | None = None,
    *,
    first_pixel: int = 1,
) -> list[str]:
    """Write ``ROOT/Annotations/ID.xml`` and the split ``ROOT/ImageSets/Main/<split>.txt``; return the ids.

    ID is the image's id in VOC layout if it came from there, otherwise its file name without suffix.
    ``ROOT/JPEGImages`` becomes a link to ``image_folder`` if one is given. The split file is written last, so
    a split that exists is complete; further splits can be added to the same root. Crowd regions become
    ``difficult`` with ``ignore``; segmentations are left out. ``first_pixel`` is as in `VocSource`.

    Raises:
        InputError: a malformed file (see `read_coco`), two images with one id, a split or another
            annotation of the same name that exists already, or a folder that cannot be written.
    """
    path = Path(annotation_file)
    return _write_voc(read_coco(path), path, Path(root), split, image_folder, first_pixel)


def _write_voc(
    data: CocoData, path: Path, root: Path, split: str, image_folder: Path | str | None, first_pixel: int
) -> list[str]:
    """Write ``data``, which was read from ``path``, as `coco_to_voc`."""
    names = category_names(data)
    split_file = root / "ImageSets" / "Main" / f"{split}.txt"
    if split_file.exists():
        raise InputError(f"{split_file} exists already; remove it, or choose another split or folder")
    objects: dict[int, list[Element]] = {entry["id"]: [] for entry in data["images"]}
    for number, entry in enumerate(data["annotations"]):
        place = f"{path}: annotations[{number}]"
        own_names = [names[kind] for kind in category_ids(entry)]
        element = _to_object(entry, own_names, place, first_pixel)
        objects[entry["image_id"]].append(element)
    written: dict[str, str] = {}
    for number, entry in enumerate(data["images"]):
        image_id = entry.get("voc_id") or _voc_id(entry["file_name"], image_folder)
        place = f"{path}: images[{number}]"
        if image_id in written:
            raise InputError(f"{place}: another image has the id {image_id!r} too; rename one of the files")
        written[image_id] = _to_xml(entry, objects[entry["id"]], place)
    for image_id, text in written.items():
        _write_new(root / "Annotations" / f"{image_id}.xml", text)
    if image_folder is not None:
        _link(root / "JPEGImages", Path(image_folder))
    write_text(split_file, "".join(f"{image_id}\n" for image_id in written))
    return list(written)


def _voc_id(name: str, image_folder: Path | str | None) -> str:
    """Return the id in VOC layout of the image that a COCO file calls ``name``: its path without suffix."""
    image: PurePath
    if image_folder is not None:
        image = image_file(Path(image_folder), name).relative_to(image_folder)
    else:
        image = PurePosixPath(name.replace("\\", "/"))
    return image.with_suffix("").as_posix()


def to_coco(source: ImageSetSource, split: str, output: Path | str) -> CocoData:
    """Write a split of YOLO's, LabelMe's or Label Studio's format in COCO's to ``output``, and return it.

    ``file_name`` is the image's path below the root. Several labels of an object become ``category_ids``, its
    attributes ``attributes``; outlines are left out. Objects stay as annotated, including invalid boxes.

    Raises InputError for what the source refuses, or if ``output`` cannot be written.
    """
    data = _as_coco(source, split)
    write_text(Path(output), json.dumps(data, ensure_ascii=False))
    return data


def to_voc(source: ImageSetSource, split: str, root: Path | str, *, first_pixel: int = 1) -> list[str]:
    """Write a split of YOLO's, LabelMe's or Label Studio's format in VOC layout, and return the ids.

    It is written as `coco_to_voc` writes what `to_coco` returns, with the source's root as the images.
    """
    data, path = _as_coco(source, split), source.image_list(split)
    return _write_voc(data, path, Path(root), split, source.root, first_pixel)


def _as_coco(source: ImageSetSource, split: str) -> CocoData:
    names = source.class_names(split)
    kinds = {name: number for number, name in enumerate(names, start=1)}
    data: CocoData = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": name} for name, number in kinds.items()],
    }
    for number, image in enumerate(source.whole_images(split), start=1):
        height, width = image.size or size_of(image.path, f"{image.annotation}: no size", required=True)
        side = {"height": height, "width": width}
        data["images"].append({"id": number, "file_name": image.key, **side})
        for _, own in groupby(image.objects or (), key=lambda thing: thing.place):
            entry = _drawn_entry(list(own), kinds)
            data["annotations"].append({"id": len(data["annotations"]) + 1, "image_id": number, **entry})
    return data


def _drawn_entry(things: list[AnnotatedObject], kinds: dict[str, int]) -> Entry:
    """Return the annotation of one object, which is in ``things`` once for each of its labels."""
    x1, y1, x2, y2 = (round(corner, _DECIMALS) for corner in things[0].box)
    width, height = round(x2 - x1, _DECIMALS), round(y2 - y1, _DECIMALS)
    difficult = int(things[0].difficult)
    attributes: dict[str, Any] = {}
    for name, label in things[-1].attributes:
        value: Any = True if label == name else label.removeprefix(f"{name}=")
        attributes[name] = [*_listed(attributes[name]), value] if name in attributes else value
    return {
        **_categories([thing.name for thing in things], kinds),
        "bbox": [x1, y1, width, height],
        "area": max(width, 0.0) * max(height, 0.0),
        "iscrowd": difficult,
        "difficult": difficult,
        **({"attributes": attributes} if attributes else {}),
    }


def _categories(names: list[str], kinds: dict[str, int]) -> Entry:
    several = [kinds[name] for name in names]
    return {"category_id": several[0], **({"category_ids": several} if len(several) > 1 else {})}


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _to_entry(
    things: list[AnnotatedObject], element: Element, kinds: dict[str, int], first_pixel: int
) -> Entry:
    """Return the annotation of one object, which is in ``things`` once for each of its names."""
    thing, attributes = things[0], read_attributes(element)
    fields = (*_OBJECT_FIELDS, _ATTRIBUTES) if _are_plain(element) else _OBJECT_FIELDS
    xmin, ymin, xmax, ymax = (Decimal(repr(corner)) for corner in thing.written)
    width, height = xmax - xmin + 1, ymax - ymin + 1
    return {
        **_categories([one.name for one in things], kinds),
        "bbox": [_number(value) for value in (xmin - first_pixel, ymin - first_pixel, width, height)],
        "area": _number(max(width, Decimal(0)) * max(height, Decimal(0))),
        "iscrowd": int(thing.difficult),
        "difficult": int(thing.difficult),
        **({"ignore": 1} if thing.ignore else {}),
        **({"attributes": _single_values(attributes)} if attributes else {}),
        "voc": _encode(element, fields),
    }


def _single_values(attributes: dict[str, list[str]]) -> dict[str, Any]:
    return {name: values[0] if len(values) == 1 else values for name, values in attributes.items()}


def _are_plain(element: Element) -> bool:
    """Say whether the <attributes> of an object are names with values only, which COCO's format can hold."""
    every = element.findall("attributes")
    if len(every) != 1 or every[0].attrib:
        return False
    return all(
        one.tag == "attribute"
        and not one.attrib
        and [(child.tag, len(child), child.attrib) for child in one] == [("name", 0, {}), ("value", 0, {})]
        for one in every[0]
    )


def _attributes_element(attributes: Any) -> Element:
    """Return <attributes> with the ``attributes`` of an annotation, a list as one for each of its values."""
    element = Element("attributes")
    for name, value in attributes.items() if isinstance(attributes, dict) else ():
        for each in _listed(value):
            attribute = ElementTree.SubElement(element, "attribute")
            text = each if isinstance(each, str) else json.dumps(each, ensure_ascii=False)
            attribute.extend([_leaf("name", str(name)), _leaf("value", "" if each is None else text)])
    return element


def _to_object(entry: Entry, names: list[str], place: str, first_pixel: int) -> Element:
    x, y, width, height = (Decimal(repr(number)) for number in entry["bbox"])
    left, top = x + first_pixel, y + first_pixel
    box = Element("bndbox")
    for corner, value in zip(CORNERS, (left, top, left + width - 1, top + height - 1), strict=True):
        ElementTree.SubElement(box, corner).text = str(_number(value))
    fields = {"/name": [_leaf("name", name) for name in names], "/bndbox": [box], **_flags(entry)}
    attributes = _attributes_element(entry.get("attributes"))
    if len(attributes):
        fields[_ATTRIBUTES] = [attributes]

    def take(where: str) -> Element | None:
        return fields[where].pop(0) if fields.get(where) else None

    element = _decode(entry.get("voc", _NEW_OBJECT), take, place)
    if element.find("attributes") is not None:
        fields.pop(_ATTRIBUTES, None)  # what COCO's format cannot hold was kept as it was
    for flag in _FLAGS:
        if fields[flag] and fields[flag][0].text == "0":
            del fields[flag]  # without the element the meaning is the same
    element.extend(one for own in fields.values() for one in own)
    return element


def _flags(entry: Entry) -> dict[str, list[Element]]:
    """Return <difficult> and <ignore>; a crowd region has both, a difficult object of VOC is not a crowd."""
    of_voc = "difficult" in entry and "voc" in entry  # then ``iscrowd`` equals ``difficult``
    crowd = bool(entry.get("iscrowd", 0)) and not (of_voc or entry.get("difficult", 0))
    ignore = crowd or bool(entry.get("ignore", 0))
    values = {"difficult": ignore or bool(entry.get("difficult", 0)), "ignore": ignore}
    return {f"/{flag}": [_leaf(flag, str(int(value)))] for flag, value in values.items()}


def _to_xml(entry: Entry, objects: list[Element], place: str) -> str:
    things: Iterator[Element] = iter(objects)
    fields = {f"/size/{side}": _leaf(side, str(entry.get(side, 0))) for side in ("height", "width")}
    size = ["size", [["width", None], ["height", None], ["depth", "3"]]]
    node = entry.get("voc", ["annotation", [["filename", entry["file_name"]], size]])
    root = _decode(node, lambda where: next(things, None) if where == "/object" else fields.get(where), place)
    root.extend(things)
    ElementTree.indent(root, "\t")
    text = ElementTree.tostring(root, encoding="unicode") + "\n"
    try:
        ElementTree.fromstring(text)
    except (ElementTree.ParseError, ValueError) as error:
        raise InputError(
            f"{place}: a name or text in it cannot be written as XML ({error}); correct it"
        ) from None
    return text


def _encode(element: Element, fields: tuple[str, ...], path: str = "") -> Node:
    """Return an element as [tag, text or children, attributes if any], with null at the paths ``fields``."""
    children = [_encode(child, fields, f"{path}/{child.tag}") for child in element]
    content = None if path in fields else children or (element.text or "")
    return [element.tag, content, dict(element.attrib)] if element.attrib else [element.tag, content]


def _decode(node: Any, field: Callable[[str], Element | None], place: str) -> Element:
    """Undo `_encode`; ``field(path)`` returns the element for a null, or None to leave it out."""
    try:
        return _element(node, field, "")
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, RecursionError) as error:
        raise InputError(f"{place}: 'voc' is not as the converter writes it ({error}); remove it") from None


def _element(node: Node, field: Callable[[str], Element | None], path: str) -> Element:
    tag, content, attributes = node if len(node) == 3 else (*node, {})
    element = Element(str(tag), {str(key): str(value) for key, value in attributes.items()})
    if isinstance(content, str):
        element.text = content
        return element
    for child in content:
        where = f"{path}/{child[0]}"
        below = field(where) if child[1] is None else _element(child, field, where)
        if below is not None:
            element.append(below)
    return element


def _leaf(tag: str, text: str) -> Element:
    element = Element(tag)
    element.text = text
    return element


def _number(value: Decimal) -> int | float:
    return int(value) if value == int(value) else float(value)


def _write_new(path: Path, text: str) -> None:
    if path.exists():
        require_regular(path)
        try:
            written = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path}: cannot read the file: {error.strerror}") from None
        if written != text.encode(errors="backslashreplace"):  # as `write_text`
            raise InputError(f"{path} exists already with other content; choose another folder")
    write_text(path, text)


def _link(link: Path, folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist; expected the folder of the images")
    if link.exists() and link.resolve() == folder.resolve():
        return
    try:
        link.symlink_to(folder.resolve())
    except OSError as error:
        raise InputError(f"cannot link {link} to {folder}: {error.strerror}") from None
