"""Convert a data set's annotations from VOC layout to COCO's format or back, without loss."""

from __future__ import annotations

import argparse

from detector.commands import cli
from detector.core.progress import note
from detector.data.convert import coco_to_voc, voc_to_coco
from detector.data.voc.source import VocSource


def main() -> None:
    arguments = parse()
    if arguments.direction == "voc-to-coco":
        data = voc_to_coco(
            arguments.root,
            arguments.split,
            arguments.output,
            annotations=arguments.annotations,
            images=arguments.images,
            splits=arguments.splits,
            first_pixel=arguments.first_pixel,
        )
        objects, images = len(data["annotations"]), len(data["images"])
        note(
            f"wrote {arguments.output}: {images} images, {objects} objects, {len(data['categories'])} classes"
        )
    else:
        ids = coco_to_voc(
            arguments.file,
            arguments.output,
            arguments.split,
            arguments.images,
            first_pixel=arguments.first_pixel,
        )
        note(f"wrote {arguments.output}: {len(ids)} annotation files, split {arguments.split!r}")


def parse() -> argparse.Namespace:
    parser = cli.make_parser(
        __doc__ or "", "tools/convert_data.py voc-to-coco data/bccd --split test --output bccd_test.json"
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
    for direction in (to_coco, to_voc):
        direction.add_argument(
            "--first-pixel",
            type=int,
            choices=(0, 1),
            default=1,
            help="the number of the first pixel in the VOC layout's files (default: 1, as VOC counts)",
        )
    return parser.parse_args()
