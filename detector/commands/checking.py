"""Checking the data set of a config before an hour is spent: what ``tools/check_data.py`` does."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import cv2
import torch

from detector.config import Config
from detector.core.errors import InputError
from detector.core.machine import available_cores
from detector.core.progress import track
from detector.core.structures import Targets
from detector.data.check import Checked, Problem, Rules, check_item
from detector.data.check_items import Found, coco_items, voc_items
from detector.data.check_report import CheckReport, summarise
from detector.data.voc import VOC_CLASSES
from detector.factory.data import class_names, ensure_data, kept_images, require_objects, split_choice
from detector.factory.splits import annotation_place, find_validation, for_split

CHUNK = 16
"""Images that a process takes at a time."""


def check_data(config: Config, splits: Sequence[str], *, images: bool = True) -> CheckReport:
    """Look at every image of ``splits`` and its annotation, on all cores; ``images`` False at no picture.

    Where class names are found in a VOC layout, annotations that no split names are read as well.
    """
    ensure_data(config)
    items, problems = _find_items(config, splits)
    classes = _known_classes(config)
    rules = Rules(
        classes=classes,
        policy=config.data.invalid_boxes,
        min_box_size=config.data.min_box_size,
        trained=frozenset([config.data.train_split]),
        images=images,
        other_classes=config.data.other_classes == "ignore",
        first_pixel=config.data.first_pixel,
    )
    try:
        with ProcessPoolExecutor(available_cores(), initializer=_one_thread) as pool:
            results = pool.map(partial(check_item, rules=rules), items, chunksize=CHUNK)
            checked = list(track(results, len(items), "checking"))
    except BrokenProcessPool:
        raise InputError(
            "a process that checks images died; most often memory ran out: close other programs, or let it "
            "use fewer cores (taskset -c 0 python tools/check_data.py ...)"
        ) from None
    if any(config.data.train_split in one.item.splits for one in checked):
        problems += _nothing_to_train_on(config, checked)
    return summarise(
        checked,
        problems,
        splits,
        config.data.train_split,
        first_pixel=config.data.first_pixel,
        classes=sorted(classes or ()),
        validation_split=find_validation(config).split,
    )


def _nothing_to_train_on(config: Config, checked: Sequence[Checked]) -> list[Problem]:
    """Ask the function that decides it when a training run starts."""
    split = config.data.train_split
    flags = [flag for one in checked if split in one.item.splits for flag in one.flags]
    difficult, crowd = torch.tensor(flags, dtype=torch.bool).reshape(-1, 2).unbind(dim=1)
    count = len(flags)
    targets = Targets.make(torch.zeros(count, 4), torch.ones(count, dtype=torch.int64), difficult, crowd)
    try:
        require_objects([targets], config)
    except InputError as error:
        message = str(error.args[0]).removeprefix(f"{config.data.root}: ")
        return [Problem(kind="nothing to train on", file=split, message=message, stops=True)]
    return []


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
            found = [voc_items(root, places, images, lists, choices, every, data.train_split)]
        else:
            found = [
                coco_items(
                    *(annotation_place(config, split), root / images, root, split, choose),
                    trained=split == data.train_split,
                )
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
            except InputError:  # reported as a problem of the file where its images are looked for
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
