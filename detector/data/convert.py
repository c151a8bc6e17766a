"""Annotations from VOC layout to COCO's format and back.

What COCO has no field for (pose, truncated, parts, source, ...) travels along under the key ``voc``, as a
tree [tag, text or list of children, attributes if any], in which null stands where COCO's own fields give
the content; so going back gives the same elements in the same order, and edits made to the COCO file in
between are kept. ``difficult`` is an additional key of an annotation. Such an annotation has ``iscrowd`` 1,
so that COCO's tools ignore it too; `load_coco` reads it as difficult, not as crowd.

Boxes are converted in decimal arithmetic, so 10.3 becomes 9.3 and 10.3 again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path, PurePosixPath
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from detector.data.coco import category_names
from detector.data.coco_json import CocoData, Entry, read_coco
from detector.data.voc import annotation_path, find_classes, image_size, split_ids
from detector.data.voc_split import find_image, resolve_folder
from detector.data.voc_xml import VocObject, parse_xml, to_annotation
from detector.errors import InputError
from detector.files import write_text

Node = list[Any]

# Paths whose content COCO's own fields give, in an annotation file and in one of its objects.
_IMAGE_FIELDS = ("/object", "/size/height", "/size/width")
_OBJECT_FIELDS = ("/name", "/difficult", "/bndbox")

_NEW_OBJECT: Node = ["object", [["name", None], ["difficult", None], ["bndbox", None]]]
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def voc_to_coco(
    root: Path | str,
    split: str | None,
    output: Path | str,
    *,
    annotations: str = "Annotations",
    images: str = "JPEGImages",
    splits: str = "ImageSets/Main",
) -> CocoData:
    """Write a split, or with None all annotated images, as COCO's format to ``output``, and return it.

    Categories are all class names of the annotation folder, sorted, with ids 1..K, so that the files of
    different splits agree. ``file_name`` is the image's path in the image folder. Objects stay as
    annotated, invalid boxes included.

    Raises InputError as `load_voc`, or if ``output`` cannot be written.
    """
    root = Path(root)
    folder = resolve_folder(root, annotations, "one XML file an image")
    ids, split_file = split_ids(root, splits if split else None, split or "all", folder)
    category_ids = {name: number for number, name in enumerate(find_classes(root, annotations), start=1)}
    data: CocoData = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": name} for name, number in category_ids.items()],
    }
    for number, image_id in enumerate(ids, start=1):
        tree = parse_xml(path := annotation_path(folder, image_id, split_file))
        annotation = to_annotation(tree, path)
        image = find_image(root / images, image_id, None)
        height, width = annotation.size or image_size(image, annotation, required=True)
        data["images"].append(
            {
                "id": number,
                "file_name": image.relative_to(root / images).as_posix(),
                "height": height,
                "width": width,
                "voc_id": image_id,
                "voc": _encode(tree, _IMAGE_FIELDS),
            }
        )
        for thing, element in zip(annotation.objects, tree.findall("object"), strict=True):
            entry = _to_entry(thing, element, category_ids)
            data["annotations"].append({"id": len(data["annotations"]) + 1, "image_id": number, **entry})
    write_text(Path(output), json.dumps(data, ensure_ascii=False))
    return data


def coco_to_voc(
    annotation_file: Path | str, root: Path | str, split: str, image_folder: Path | str | None = None
) -> list[str]:
    """Write ``ROOT/Annotations/ID.xml`` and the split ``ROOT/ImageSets/Main/<split>.txt``; return the ids.

    ID is the image's id in VOC layout if it came from there, else its file name without ending.
    ``ROOT/JPEGImages`` becomes a link to ``image_folder`` if one is given. The split is written last, so a
    split that is there is whole; further splits can be added to the same root. Crowd regions become
    ``difficult``; segmentations are left out.

    Raises:
        InputError: a malformed file (see `read_coco`), two images with one id, a split or another
            annotation of the same name that is there already, or a folder that cannot be written.
    """
    path, root = Path(annotation_file), Path(root)
    data = read_coco(path)
    names = category_names(data)
    split_file = root / "ImageSets" / "Main" / f"{split}.txt"
    if split_file.exists():
        raise InputError(f"{split_file} is there already; remove it, or choose another split or folder")
    objects: dict[int, list[Element]] = {entry["id"]: [] for entry in data["images"]}
    for number, entry in enumerate(data["annotations"]):
        place = f"{path}: annotations[{number}]"
        objects[entry["image_id"]].append(_to_object(entry, names[entry["category_id"]], place))
    written: dict[str, str] = {}
    for number, entry in enumerate(data["images"]):
        image_id = entry.get("voc_id") or PurePosixPath(entry["file_name"]).with_suffix("").as_posix()
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


def _to_entry(thing: VocObject, element: Element, category_ids: dict[str, int]) -> Entry:
    xmin, ymin, xmax, ymax = (Decimal(repr(corner)) for corner in thing.box)
    width, height = xmax - xmin + 1, ymax - ymin + 1
    return {
        "category_id": category_ids[thing.name],
        "bbox": [_number(value) for value in (xmin - 1, ymin - 1, width, height)],
        "area": _number(max(width, Decimal(0)) * max(height, Decimal(0))),
        "iscrowd": int(thing.difficult),
        "difficult": int(thing.difficult),
        "voc": _encode(element, _OBJECT_FIELDS),
    }


def _to_object(entry: Entry, name: str, place: str) -> Element:
    x, y, width, height = (Decimal(repr(number)) for number in entry["bbox"])
    difficult = str(int(entry["difficult"] if "difficult" in entry else entry.get("iscrowd", 0)))
    box = Element("bndbox")
    for corner, value in zip(_CORNERS, (x + 1, y + 1, x + width, y + height), strict=True):
        ElementTree.SubElement(box, corner).text = str(_number(value))
    fields = {"/name": _leaf("name", name), "/difficult": _leaf("difficult", difficult), "/bndbox": box}
    element = _decode(entry.get("voc", _NEW_OBJECT), lambda where: fields.pop(where, None), place)
    if difficult == "0":
        fields.pop("/difficult", None)  # its absence says the same
    element.extend(fields.values())
    return element


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
            f"{place}: a name or text in it cannot be written as XML ({error}); mend it"
        ) from None
    return text


def _encode(element: Element, fields: tuple[str, ...], path: str = "") -> Node:
    """Return an element as [tag, text or children, attributes if any], null at the paths ``fields``."""
    children = [_encode(child, fields, f"{path}/{child.tag}") for child in element]
    content = None if path in fields else children or (element.text or "")
    return [element.tag, content, dict(element.attrib)] if element.attrib else [element.tag, content]


def _decode(node: Any, field: Callable[[str], Element | None], place: str) -> Element:
    """Undo `_encode`; ``field(path)`` gives what stands at a null, None leaves the element out."""
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
        found = field(where) if child[1] is None else _element(child, field, where)
        if found is not None:
            element.append(found)
    return element


def _leaf(tag: str, text: str) -> Element:
    element = Element(tag)
    element.text = text
    return element


def _number(value: Decimal) -> int | float:
    return int(value) if value == int(value) else float(value)


def _write_new(path: Path, text: str) -> None:
    if path.exists() and path.read_text(encoding="utf-8") != text:
        raise InputError(f"{path} is there already and says something else; choose another folder")
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
