"""The files of regions that `tests.fuzz_readers` changes: one of each format with masks or fractions."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools import mask as coco_mask

from detector.core.errors import InputError
from detector.core.masks import Masks
from detector.core.structures import Proposals
from detector.proposals.convert import masks_of
from detector.proposals.inspection import inspect
from detector.proposals.journal import NAME as JOURNAL
from detector.proposals.journal import encode_entry
from detector.proposals.readers import read_images
from detector.proposals.recognition import guess_format
from detector.proposals.store import Entry, ProposalStore
from tests.proposals.readers import region_files

IMAGE = (40, 60)
_DECODED_PIXELS = 1 << 20


def make_one(folder: Path, write: region_files.Writer) -> Path:
    """Write the regions of one image and return the file."""
    source = write(folder, {"a": region_files.make_regions()["a"]})
    if source.is_file():
        return source
    for path in source.iterdir():
        if path.name in ("a.png", "classes.txt") and len(list(source.iterdir())) > 1:
            path.unlink()
    return next(source.iterdir())


def make_label_studio(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    brush = {"format": "rle", "rle": region_files.brush_encoded(rng.integers(0, 2, 40 * 60 * 4, np.uint8))}
    results: list[tuple[str, dict[str, Any]]] = [
        ("brushlabels", brush),
        ("polygonlabels", {"points": [[10, 20], [70, 30], [50, 90]], "closed": True}),
        ("rectanglelabels", {"x": 50.0, "y": 25.0, "width": 10.0, "height": 30.0, "rotation": 20}),
        ("ellipselabels", {"x": 50.0, "y": 50.0, "radiusX": 20.0, "radiusY": 25.0, "rotation": 0}),
    ]
    return region_files.dumped(folder / "p.json", [region_files.task("a", IMAGE, results)])


def make_labelme(folder: Path) -> Path:
    mask = region_files.png_text(np.ones((2, 3), bool))
    shapes: list[dict[str, Any]] = [
        {"shape_type": "polygon", "points": [[2, 3], [30, 5], [20, 33]]},
        {"shape_type": "rectangle", "points": [[5, 9], [1, 2]]},
        {"shape_type": "circle", "points": [[20, 20], [20, 30]]},
        {
            "shape_type": "mask",
            "points": [[4, 6], [6, 7]],
            "mask": mask,
        },
        {"shape_type": "polygon", "points": [[40, 3], [50, 5], [45, 20]], "group_id": 1},
        {"shape_type": "polygon", "points": [[40, 30], [50, 35], [45, 39]], "group_id": 1},
    ]
    return region_files.dumped(folder / "a.json", region_files.labelme_content("a", IMAGE, shapes))


def make_coco_polygons(folder: Path) -> Path:
    content = region_files.coco_content({"a": region_files.make_regions()["a"]})
    content["annotations"][0]["segmentation"] = [[2.2, 3.1, 30.4, 5.9, 20.0, 33.3], [40, 3, 50, 5, 45, 20]]
    content["annotations"][1]["score"] = 0.5
    return region_files.dumped(folder / "a.json", content)


def make_yolo_polygons(folder: Path) -> Path:
    (folder / "a.txt").write_text(
        "3 0.1 0.2 0.7 0.3 0.5 0.9\n0 0.5 0.5 0.2 0.1\n1 0.1 0.1 0.5 0.2 0.6 0.9 0.1 0.4\n"
    )
    return folder / "a.txt"


def read_regions(path: Path, file_format: str) -> object:
    """Guess the format, read the regions, draw the polygons and decode the masks of small images."""
    try:
        guess_format(path)
    except InputError as error:
        if str(path) not in str(error):
            raise AssertionError(f"guess_format does not name the file: {error}") from None
    found = []
    for image in read_images(path, file_format):
        masks = None if image.masks is None else masks_of(image.masks, image.size or IMAGE, str(path))
        assert image.boxes.shape == (len(image.boxes), 4)
        assert masks is None or len(masks) == len(image.boxes)
        if masks is not None and masks.size[0] * masks.size[1] <= _DECODED_PIXELS:
            for rle in masks.rles():
                assert rle is None or coco_mask.decode(rle).shape == masks.size
        found.append((image.key, image.boxes, image.scores, masks))
    return found


def make_store(folder: Path, name: str) -> Path:
    """Write a store whose first image has masks, and a journal with them; return the file ``name``."""
    store = ProposalStore.create(folder / "store", generator="test", parameters={"k": 1})
    regions = region_files.make_regions()["a"]
    masks = Masks.encode(regions.masks)
    whole = Proposals(boxes=masks.boxes(), masks=masks)
    store.append({"a": Entry(whole, "cafe", IMAGE), "b": Entry(Proposals(boxes=torch.ones(2, 4)))})
    (store.path / JOURNAL).write_bytes(encode_entry("c", Entry(whole, "cafe", IMAGE)) * 2)
    return store.path / name


def read_store(path: Path) -> object:
    """Read everything of the store that ``path`` is a file of, decode its masks, and describe it."""
    store = ProposalStore.open(path.parent)
    damaged = {image_id for damage in store.damaged() for image_id in damage.image_ids}
    for image_id in store.ids():
        if image_id in damaged:
            continue
        masks = store[image_id].masks
        if masks is not None:
            assert masks == Masks.encode(region_files.make_regions()["a"].masks)
    return inspect(path.parent)


Maker = Callable[[Path], Path]
JSON_FILES: list[tuple[str, str, Maker]] = [
    ("coco_annotations", "coco_annotations", partial(make_one, write=region_files.write_coco_annotations)),
    ("coco_annotations, polygons", "coco_annotations", make_coco_polygons),
    ("coco_annotations, runs", "coco_annotations", partial(make_one, write=region_files.write_coco_runs)),
    ("sam", "sam", partial(make_one, write=region_files.write_sa1b)),
    ("sam, list", "sam", partial(make_one, write=region_files.write_amg)),
    ("megadetector", "megadetector", partial(make_one, write=region_files.write_megadetector)),
    ("labelme", "labelme", make_labelme),
    ("labelstudio", "labelstudio", make_label_studio),
]
OTHER_FILES: list[tuple[str, str, Maker]] = [
    ("labels, png", "labels", partial(make_one, write=region_files.write_label_pngs)),
    ("labels, tif", "labels", partial(make_one, write=region_files.label_writer(".tif", np.int32, ""))),
    ("yolo", "yolo", partial(make_one, write=region_files.write_yolo)),
    ("yolo, polygons", "yolo", make_yolo_polygons),
    ("voc", "voc", partial(make_one, write=region_files.write_voc)),
]
make_cellpose = partial(make_one, write=region_files.write_cellpose)
