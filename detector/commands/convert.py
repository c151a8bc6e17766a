"""Convert annotations: VOC layout to COCO's format and back, without loss, and other formats to both."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from detector.commands import cli
from detector.core.progress import note
from detector.data.coco.file import CocoData
from detector.data.convert import coco_to_voc, to_coco, to_voc, voc_to_coco
from detector.data.image_set import ImageSetSource
from detector.data.labelme.source import LabelMeSource
from detector.data.labelstudio.source import LabelStudioSource
from detector.data.voc.source import VocSource
from detector.data.yolo.source import YoloSource

_NAMES = {
    "yolo": "a split of a data.yaml of YOLO",
    "labelme": "LabelMe's files",
    "labelstudio": "an export of Label Studio",
}
_TARGETS = {"coco": "to a COCO file", "voc": "to a split of a VOC layout"}
SOURCES = {"yolo": YoloSource, "labelme": LabelMeSource, "labelstudio": LabelStudioSource}


def main() -> None:
    arguments = parse()
    match arguments.direction.split("-to-"):
        case ["voc", "coco"]:
            data = voc_to_coco(
                arguments.root,
                arguments.split,
                arguments.output,
                annotations=arguments.annotations,
                images=arguments.images,
                splits=arguments.splits,
                first_pixel=arguments.first_pixel,
            )
            _note_coco(data, arguments.output)
        case ["coco", "voc"]:
            ids = coco_to_voc(
                arguments.file,
                arguments.output,
                arguments.split,
                arguments.images,
                first_pixel=arguments.first_pixel,
            )
            _note_voc(ids, arguments.output, arguments.split)
        case [_, "coco"]:
            data = to_coco(source_of(arguments), arguments.split, arguments.output)
            _note_coco(data, arguments.output)
        case _:
            first_pixel = arguments.first_pixel
            ids = to_voc(source_of(arguments), arguments.split, arguments.output, first_pixel=first_pixel)
            _note_voc(ids, arguments.output, arguments.split)


def source_of(arguments: argparse.Namespace) -> ImageSetSource:
    """Return the data set that a direction from YOLO, LabelMe or Label Studio reads."""
    kind = SOURCES[arguments.direction.partition("-")[0]]
    given = {name: getattr(arguments, name, None) for name in ("annotations", "images", "splits")}
    return kind(Path(arguments.root), **{name: value for name, value in given.items() if value is not None})


def _note_coco(data: CocoData, output: str) -> None:
    objects, images = len(data["annotations"]), len(data["images"])
    note(f"wrote {output}: {images} images, {objects} objects, {len(data['categories'])} classes")


def _note_voc(ids: list[str], output: str, split: str) -> None:
    note(f"wrote {output}: {len(ids)} annotation files, split {split!r}")


def parse() -> argparse.Namespace:
    parser = cli.make_parser(
        __doc__ or "",
        "tools/convert_data.py voc-to-coco data/bccd --split test --output bccd_test.json\n  "
        "tools/convert_data.py yolo-to-voc my_yolo --split train --output my_voc",
    )
    directions = parser.add_subparsers(dest="direction", required=True)
    to_coco = directions.add_parser("voc-to-coco", help="a VOC layout, or one split of it, to a COCO file")
    to_coco.add_argument("root", help="folder with Annotations/, the images and perhaps ImageSets/Main/")
    to_coco.add_argument("--split", help="the split (default: every annotated image, without split files)")
    to_coco.add_argument("--output", required=True, help="the COCO file to write, .json")
    to_coco.add_argument("--annotations", default=VocSource.annotations, help="the annotation folder's name")
    to_coco.add_argument("--images", default=VocSource.images, help="the image folder's name")
    to_coco.add_argument("--splits", default=VocSource.splits, help="the split folder's name")
    to_voc = directions.add_parser("coco-to-voc", help="a COCO file to a split of a VOC layout")
    to_voc.add_argument("file", help="a COCO annotation file, .json")
    to_voc.add_argument("--split", required=True, help="the split to write, a new one")
    to_voc.add_argument("--output", required=True, help="the root to write the split to")
    to_voc.add_argument("--images", help="the image folder; JPEGImages becomes a link to it")
    others = {kind: _add_direction(directions, kind) for kind in SOURCES}
    for direction in (to_coco, to_voc, *others.values()):
        direction.add_argument(
            "--first-pixel",
            type=int,
            choices=(0, 1),
            default=1,
            help="the number of the first pixel in the VOC layout's files (default: 1, as VOC counts)",
        )
    return parser.parse_args()


def _add_direction(directions: Any, kind: str) -> argparse.ArgumentParser:
    """Add the directions from ``kind`` to COCO's format and VOC layout; return the latter."""
    outputs = {"coco": "the COCO file to write, .json", "voc": "the root to write the split to"}
    for target, output in outputs.items():
        parser = directions.add_parser(f"{kind}-to-{target}", help=f"{_NAMES[kind]}, {_TARGETS[target]}")
        parser.add_argument("root", help="the folder of the data set, data.root in a config")
        parser.add_argument("--split", required=True, help="the split, such as train")
        parser.add_argument("--output", required=True, help=output)
        parser.add_argument("--annotations", help="as data.annotations in a config")
        if kind != "yolo":
            parser.add_argument("--images", help="as data.images in a config")
        if kind == "labelme":
            parser.add_argument("--splits", help="the split folder's name (default: every annotated image)")
    return parser
