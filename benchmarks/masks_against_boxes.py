#!/usr/bin/env python3
"""Masks against boxes: blood cells (BCCD), with masks from a segmentation that needs no learning.

    python -m benchmarks.masks_against_boxes --seeds 0 1 2
    python -m benchmarks.masks_against_boxes --images 6 --seeds 0 --regions 100 --steps 50   # a quick try

Each proposal of ``--config`` is segmented in its own box: Otsu's threshold of the green channel, in which
stained cells are dark; the largest part of it, with its holes filled, is the mask. Regions whose mask fills
less than ``--min-share`` of the box are left out, in all rows of the table. The box of a region is that of
its mask, so all rows pool and score the same boxes:

- "boxes, maximum": ``model.pool.mask: none``
- "masks, maximum": ``cells``
- "boxes, average": ``weighted``, of regions without masks
- "masks, average": ``weighted``

Only the head is trained, on stored features (``train.head_only``), for each of the seeds; the train split is
trained on and the val split scored, without refined boxes, which have no masks. Prints a table with the
regions whose mask covers no cell centre, and writes all numbers to ``--folder``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from benchmarks.heads import fitted
from detector.config import Config, load_config
from detector.core.masks import Masks
from detector.core.progress import progress_bar
from detector.core.records import Records
from detector.core.structures import ImageRecord, Proposals
from detector.data.images import read_image
from detector.evaluation.report import write_json
from detector.factory.data import class_names, split_records
from detector.factory.model import initial_model
from detector.factory.proposals import open_proposals, stored_proposals
from detector.proposals.store import Entry, ProposalStore
from detector.staged.region_features import embed_split
from detector.tasks.start import build_scorer

ROWS = {
    "boxes, maximum": ("masks", "none"),
    "masks, maximum": ("masks", "cells"),
    "boxes, average": ("boxes", "weighted"),
    "masks, average": ("masks", "weighted"),
}
"""The store and the mode of each row of the table."""
SPLITS = ("train", "val")


def segment(green: NDArray[Any], box: Sequence[int]) -> NDArray[Any] | None:
    """Return the mask of the dark object in ``box`` (x1, y1, x2, y2) of ``green`` (H, W), within the box.

    None is returned where the box is empty or has only one colour.
    """
    x1, y1, x2, y2 = box
    inside = np.ascontiguousarray(green[y1:y2, x1:x2])
    if inside.size == 0 or inside.min() == inside.max():
        return None
    _, dark = cv2.threshold(inside, 0, 1, cv2.THRESH_BINARY_INV | cv2.THRESH_OTSU)
    contours, _ = cv2.findContours(dark, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not contours:
        return None
    largest = max(contours, key=cv2.contourArea)
    filled = np.zeros_like(dark)
    cv2.drawContours(filled, [largest], 0, 1, cv2.FILLED)
    return filled


def segmented(record: ImageRecord, boxes: NDArray[np.float32], least: float) -> Masks:
    """Return the masks of ``boxes`` (P, 4) of an image that fill the share ``least`` of their boxes."""
    green = cv2.GaussianBlur(np.ascontiguousarray(read_image(record.path)[..., 1]), (5, 5), 0)
    corners = boxes.round().astype(int).clip(0, (record.width, record.height) * 2)
    canvas = np.zeros((1, record.height, record.width), np.uint8)
    parts = [Masks.absent(0, (record.height, record.width))]
    for box in corners.tolist():
        mask = segment(green, box)
        if mask is None or mask.mean() < least:
            continue
        window = canvas[0, box[1] : box[3], box[0] : box[2]]
        window[:] = mask
        parts.append(Masks.encode(canvas))
        window[:] = 0
    return Masks.join(parts)


def make_stores(config: Config, records: Records, split: str, arguments: argparse.Namespace) -> None:
    """Write two stores of the regions of ``records``, with their masks and as boxes, those still missing."""
    parameters = {"config": arguments.config, "share": arguments.min_share, "regions": arguments.regions}
    stores = {
        name: ProposalStore.create(
            arguments.folder / name, generator="segmented proposals", parameters={**parameters, "as": name}
        )
        for name in ("masks", "boxes")
    }
    left = [record for record in records if any(record.image_id not in store for store in stores.values())]
    if not left:
        return
    source = stored_proposals(config, open_proposals(config, records, split), training=split == "train")

    def entries(record: ImageRecord) -> tuple[str, Masks]:
        boxes = source(record).boxes.numpy()[: arguments.regions]
        return record.image_id, segmented(record, boxes, arguments.min_share)

    with ThreadPoolExecutor(2) as pool, progress_bar(f"masks of {split}") as report:
        found = []
        for one in pool.map(entries, left):
            found.append(one)
            report(len(found), len(left))
    for name, store in stores.items():
        store.append(
            {
                image: Entry(
                    Proposals(boxes=masks.boxes(), masks=masks if name == "masks" else None), size=masks.size
                )
                for image, masks in found
                if image not in store
            }
        )


def run(arguments: argparse.Namespace, row: str, seed: int) -> dict[str, Any]:
    """Return the metrics of one row of the table with one seed."""
    store, mode = ROWS[row]
    given = [
        f"proposals={{method: null, convention: null, file: {arguments.folder / store}, format: store}}",
        f"model.pool.mask={mode}",
        f"train.features_folder={arguments.folder / 'features'}",
        f"seed={seed}",
    ]
    config = load_config(arguments.config, [*common(arguments), *given])
    classes = class_names(config)
    records = split_records(config, SPLITS)["train"]
    source = stored_proposals(config, open_proposals(config, records, "train"), training=True)
    model = initial_model(config, classes).eval()
    features = embed_split(
        config, model, records, source, Path(config.train.features_folder), arguments.device
    )
    started = time.perf_counter()
    fit = fitted(config, features)
    seconds = time.perf_counter() - started
    metrics = build_scorer(config, classes=classes).evaluate(fit.model.eval()).metrics
    return {"row": row, "seed": seed, "seconds": seconds, **metrics}


def common(arguments: argparse.Namespace) -> list[str]:
    given = ["train.head_only=true", "data.train_split=train", "data.test_split=val", "test.refinements=0"]
    given += ["train.validation_fraction=0", *arguments.override]
    if arguments.steps is not None:
        given.append(f"train.steps={arguments.steps}")
    if arguments.images is not None:
        root = Path(load_config(arguments.config).data.root)
        given.append(f"data.root={part_of(root, arguments.folder / 'data', arguments.images)}")
    return given


def part_of(root: Path, folder: Path, images: int) -> Path:
    """Return a data set in ``folder`` with the first ``images`` of each split of ``root``, as links."""
    (folder / "ImageSets" / "Main").mkdir(parents=True, exist_ok=True)
    for name in ("Annotations", "JPEGImages"):
        if not (folder / name).exists():
            (folder / name).symlink_to((root / name).resolve())
    for split in SPLITS:
        lines = (root / "ImageSets" / "Main" / f"{split}.txt").read_text().splitlines()
        (folder / "ImageSets" / "Main" / f"{split}.txt").write_text("\n".join(lines[:images]) + "\n")
    return folder


def table(results: Sequence[dict[str, Any]]) -> Table:
    shown = Table("regions", "val mAP, mean", "of each seed", "masked regions", "fallbacks")
    for row in ROWS:
        mine = [one for one in results if one["row"] == row]
        values = [one["voc07_mAP"] for one in mine]
        shown.add_row(
            row,
            f"{statistics.mean(values):.4f}",
            " ".join(f"{value:.4f}" for value in values),
            str(mine[0].get("masked_regions", 0)),
            str(mine[0].get("mask_fallbacks", 0)),
        )
    return shown


def main() -> None:
    arguments = parse()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    config = load_config(arguments.config, common(arguments))
    for split, records in split_records(config, SPLITS).items():
        make_stores(config, records, split, arguments)
    results = [run(arguments, row, seed) for row in ROWS for seed in arguments.seeds]
    write_json(arguments.folder / "masks_against_boxes.json", {"results": results})
    Console().print(table(results))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="bccd_head")
    parser.add_argument("--folder", type=Path, default=Path("runs/masks_against_boxes"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--min-share", type=float, default=0.3, help="of the box that a mask fills")
    parser.add_argument("--regions", type=int, help="proposals per image, the first ones (default: all)")
    parser.add_argument("--images", type=int, help="images per split, the first ones (default: all)")
    parser.add_argument("--steps", type=int, help="training steps of the head (default: the config's)")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("override", nargs="*", help="KEY=VALUE for the config")
    return parser.parse_args()


if __name__ == "__main__":
    main()
