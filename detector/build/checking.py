"""Checking the data set of a config before an hour is spent: what ``tools/check_data.py`` does."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2

from detector.build.data import (
    annotation_place,
    class_names,
    ensure_data,
    for_split,
    kept_images,
    split_choice,
)
from detector.config import Config
from detector.data.check import Problem, Rules, check_item
from detector.data.check_items import Found, coco_items, voc_items
from detector.data.check_report import CheckReport, summarise
from detector.data.voc import VOC_CLASSES
from detector.errors import InputError
from detector.progress import track

CHUNK = 16
"""Images that a process takes at a time."""


def checked_splits(config: Config) -> list[str]:
    """Return the splits that training with ``config`` reads."""
    evaluated = config.train.evaluate_split or config.data.test_split
    return list(dict.fromkeys((config.data.train_split, config.data.test_split, evaluated)))


def check_data(config: Config, splits: Sequence[str], *, images: bool = True) -> CheckReport:
    """Look at every image of ``splits`` and its annotation, on all cores; ``images`` False at no picture.

    Where class names are found in a VOC layout, annotations that no split names are read as well.
    """
    ensure_data(config)
    items, problems = _find_items(config, splits)
    rules = Rules(
        classes=_known_classes(config),
        policy=config.data.invalid_boxes,
        min_box_size=config.data.min_box_size,
        trained=frozenset([config.data.train_split]),
        images=images,
    )
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), initializer=_one_thread) as pool:
        results = pool.map(partial(check_item, rules=rules), items, chunksize=CHUNK)
        checked = list(track(results, len(items), "checking"))
    return summarise(checked, problems, splits, config.data.train_split)


def _find_items(config: Config, splits: Sequence[str]) -> Found:
    data, root = config.data, Path(config.data.root)
    every = None if data.classes or data.format == "coco" else kept_images(config)
    by_folders: dict[tuple[str, str], list[str]] = {}
    for split in splits:  # splits that share their folders are read together
        folders = (for_split(data.annotations, split), for_split(data.images, split))
        by_folders.setdefault(folders, []).append(split)
    items, problems = [], []
    for (places, images), members in by_folders.items():
        choices = {split: split_choice(config, split) for split in members}
        if data.format == "voc":
            lists = None if data.split_ratio else data.splits
            found = [voc_items(root, places, images, lists, choices, every)]
        else:
            found = [
                coco_items(annotation_place(config, split), root / images, root, split, choose)
                for split, choose in choices.items()
            ]
        for more, faults in found:
            items += more
            problems += faults
    return items, _once(problems)


def _known_classes(config: Config) -> frozenset[str] | None:
    """Return the names that an object may have, None where any name becomes a class."""
    match config.data.classes:
        case None if config.data.format == "coco":
            try:
                return frozenset(class_names(config))
            except InputError:  # told as a problem of the file, where its images are looked for
                return None
        case None:
            return None
        case "voc":
            return frozenset(VOC_CLASSES)
        case names:
            return frozenset(names)


def _once(problems: list[Problem]) -> list[Problem]:
    """Leave out what two splits of one file both found."""
    return list(dict.fromkeys(problems))


def _one_thread() -> None:
    cv2.setNumThreads(0)
