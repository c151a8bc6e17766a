"""The images that a check has to look at: of split files, folders and COCO files, whatever their faults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from detector.core.errors import InputError
from detector.data.check import Item, Problem
from detector.data.choice import Choice
from detector.data.coco import annotated_objects, annotations_by_image, category_names, image_names, record_id
from detector.data.coco_json import image_file, read_coco
from detector.data.keys import image_key
from detector.data.suffixes import Lookup
from detector.data.suspicions import same_image
from detector.data.voc import annotated_ids, chosen_ids, find_annotation, split_ids
from detector.data.voc_split import find_image, resolve_folder

Found = tuple[list[Item], list[Problem]]


def voc_items(
    root: Path,
    annotations: str,
    images: str,
    splits: str | None,
    choices: Mapping[str, Choice],
    kept: Choice | None,
    trained: str,
) -> Found:
    """Return the images of the splits that ``choices`` names, as `detector.data.voc.load_voc` reads them.

    With ``kept`` the annotations that no split names are there as well, of the ids that it keeps. A split
    other than ``trained`` may be wholly without annotations.
    """
    problems: list[Problem] = []
    members: dict[str, list[str]] = {}
    lookup = Lookup()
    try:
        folder = resolve_folder(root, annotations, "one XML file an image")
    except InputError as error:
        return [], [_whole(root / annotations, error)]
    for split, choose in choices.items():
        source = folder if splits is None else (root / splits).resolve() / f"{split}.txt"
        on_fault = _into(problems, source)
        try:
            ids, _ = split_ids(root, splits, split, folder, choose, on_fault, images=images, lookup=lookup)
            for image_id in ids:
                members.setdefault(image_id, []).append(split)
        except InputError as error:
            on_fault(error)
    for image_id in chosen_ids(annotated_ids(folder), kept, root, images, lookup) if kept else ():
        members.setdefault(image_id, [])
    files = {image_id: find_annotation(folder, image_id, lookup) for image_id in members}
    bare = {split for split in choices if split != trained and _is_bare(split, members, files)}
    problems += [_nothing_to_score(root / images, split) for split in sorted(bare)]
    items = []
    for image_id, of in members.items():
        image = find_image(root / images, image_id, None, lookup)
        items.append(
            Item(
                image_id=image_id,
                key=image_key(image, root),
                splits=tuple(of),
                file=files[image_id] or folder / f"{image_id}.xml",
                image=image,
                objects=() if of and bare.issuperset(of) else None,
            )
        )
    return items, problems


def _is_bare(split: str, members: Mapping[str, list[str]], files: Mapping[str, Path | None]) -> bool:
    """Say whether ``split`` has images, and none of them an annotation."""
    mine = [image_id for image_id, of in members.items() if split in of]
    return bool(mine) and not any(files[image_id] for image_id in mine)


def _nothing_to_score(place: Path, split: str) -> Problem:
    message = f"no image of {split} has an annotation: result files can be written, and nothing is scored"
    return Problem(kind="no annotations", file=str(place), message=message, splits=(split,))


def coco_items(
    path: Path, image_folder: Path, root: Path, split: str, choose: Choice, *, trained: bool
) -> Found:
    """Return the images of one split in a COCO file, and the faulty entries as problems.

    A split that is not ``trained`` on may be without annotations.
    """
    problems: list[Problem] = []
    try:
        data = read_coco(path, _into(problems, path), unannotated=not trained)
        entries = {record_id(entry): entry for entry in data["images"]}
        if len(entries) < len(data["images"]):
            raise InputError("two images have the same 'voc_id'; make them differ")
        chosen = choose(image_names(data, image_folder, root))
        if not chosen:
            raise InputError(f"no image is left of {split!r}; keep at least one")
    except InputError as error:
        return [], [*problems, _whole(path, error)]
    if not trained and not data["annotations"]:
        problems.append(_nothing_to_score(path, split))
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
                image=image_file(image_folder, entry["file_name"]),
                size=size if all(size) else None,
                objects=tuple(annotated_objects(annotations[entry["id"]], names, path)),
            )
        )
    twins = same_image([(entries[item.image_id]["id"], item.image) for item in items], path)
    problems += [Problem(kind=kind, file=file, message=message) for kind, file, message, _ in twins]
    return items, problems


def _into(problems: list[Problem], path: Path) -> Callable[[InputError], None]:
    return lambda error: problems.append(_whole(path, error))


def _whole(path: Path, error: InputError) -> Problem:
    """Return an error that no single image is to blame for."""
    message = str(error.args[0]).removeprefix(f"{path}: ")
    return Problem(kind="annotations", file=str(path), message=message, stops=True)
