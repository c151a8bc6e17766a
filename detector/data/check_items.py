"""The images that a check has to look at: of split files, folders and COCO files, whatever their faults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from detector.data.check import Item, Problem
from detector.data.choice import Choice
from detector.data.coco import annotated_objects, annotations_by_image, category_names, image_names, record_id
from detector.data.coco_json import read_coco
from detector.data.keys import image_key
from detector.data.voc import annotated_ids, chosen_ids, split_ids
from detector.data.voc_split import find_image, resolve_folder
from detector.errors import InputError

Found = tuple[list[Item], list[Problem]]


def voc_items(
    root: Path,
    annotations: str,
    images: str,
    splits: str | None,
    choices: Mapping[str, Choice],
    kept: Choice | None,
) -> Found:
    """Return the images of the splits that ``choices`` names, as `detector.data.voc.load_voc` reads them.

    With ``kept`` the annotations that no split names are there as well, of the ids that it keeps.
    """
    problems: list[Problem] = []
    members: dict[str, list[str]] = {}
    try:
        folder = resolve_folder(root, annotations, "one XML file an image")
    except InputError as error:
        return [], [_whole(root / annotations, error)]
    for split, choose in choices.items():
        source = folder if splits is None else (root / splits).resolve() / f"{split}.txt"
        on_fault = _into(problems, source)
        try:
            for image_id in split_ids(root, splits, split, folder, choose, on_fault, images=images)[0]:
                members.setdefault(image_id, []).append(split)
        except InputError as error:
            on_fault(error)
    for image_id in chosen_ids(annotated_ids(folder), kept, root, images) if kept else ():
        members.setdefault(image_id, [])
    items = []
    for image_id, of in members.items():
        image = find_image(root / images, image_id, None)
        file, key = folder / f"{image_id}.xml", image_key(image, root)
        items.append(Item(image_id=image_id, key=key, splits=tuple(of), file=file, image=image))
    return items, problems


def coco_items(path: Path, image_folder: Path, root: Path, split: str, choose: Choice) -> Found:
    """Return the images of one split in a COCO file, and the faulty entries as problems."""
    problems: list[Problem] = []
    try:
        data = read_coco(path, _into(problems, path))
        entries = {record_id(entry): entry for entry in data["images"]}
        if len(entries) < len(data["images"]):
            raise InputError("two images have the same 'voc_id'; make them differ")
        chosen = choose(image_names(data, image_folder, root))
        if not chosen:
            raise InputError(f"no image is left of {split!r}; keep at least one")
    except InputError as error:
        return [], [*problems, _whole(path, error)]
    names, annotations = category_names(data), annotations_by_image(data)
    items = []
    for image_id, key in chosen:
        entry = entries[image_id]
        size = int(entry.get("height", 0)), int(entry.get("width", 0))
        items.append(
            Item(
                image_id=image_id,
                key=key,
                splits=(split,),
                file=path,
                image=image_folder / entry["file_name"],
                size=size if all(size) else None,
                objects=tuple(annotated_objects(annotations[entry["id"]], names, path)),
            )
        )
    return items, problems


def _into(problems: list[Problem], path: Path) -> Callable[[InputError], None]:
    return lambda error: problems.append(_whole(path, error))


def _whole(path: Path, error: InputError) -> Problem:
    """Return an error that no single image is to blame for."""
    message = str(error).removeprefix(f"{path}: ")
    return Problem(kind="annotations", file=str(path), message=message, stops=True)
