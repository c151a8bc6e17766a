"""Reads the data set of a config: splits, class names, records, and checks that it can be trained on.

A run is validated on a split of its own, or on a part of the training images that is set aside. ``best.pt``
and the score threshold are chosen on these images. They are not trained on, and the test split has no part in
either choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from detector.config import Config
from detector.config.schema import is_own
from detector.core.box_labels import labels_of_boxes
from detector.core.distributed import check_shares, main_first
from detector.core.errors import InputError, listed
from detector.core.listing import real_paths
from detector.core.progress import note
from detector.core.records import Records
from detector.core.structures import ImageName, ImageRecord, Targets
from detector.data.annotation_cache import CACHE_FOLDER, AnnotationCache
from detector.data.coco.source import CocoSource
from detector.data.generated.dataset import ensure_generated
from detector.data.labelme.source import LabelMeSource
from detector.data.labelstudio.source import LabelStudioSource
from detector.data.own_source import OwnSource
from detector.data.selection import Selection, by_ratio, in_turn, read_left_out, set_aside, without
from detector.data.source import Dataset, DataSource
from detector.data.suspicions import sampled_unused_bits, summary
from detector.data.targets import OTHER_CLASS, ObjectRules
from detector.data.voc.source import VOC_CLASSES, VocSource
from detector.data.yolo.source import YoloSource
from detector.models.roi_sampler import trained_objects

DEFAULT_FRACTION = 0.15
"""Fraction of the training images that ``evaluate_every`` sets aside where the config does not say."""
VALIDATION_NAMES = ("val", "valid")
"""The usual names of a validation split next to one called "train"."""


def ensure_data(config: Config) -> None:
    """Make the quick start's data set if the config asks for it and it is missing."""
    wanted = config.data.generate
    if wanted is not None:
        ensure_generated(Path(config.data.root), **dict(wanted))


def build_source(config: Config) -> DataSource:
    """Return the data set of a config as the reader for its format."""
    data, root = config.data, Path(config.data.root)
    rules = ObjectRules(
        invalid_boxes=data.invalid_boxes, min_box_size=data.min_box_size, other_classes=data.other_classes
    )
    shared: dict[str, Any] = {
        "annotations": data.annotations,
        "rules": rules,
        "attributes": data.attributes or (),
        "cache": AnnotationCache(CACHE_FOLDER),
    }
    splits = None if data.split_ratio else data.splits
    match data.format:
        case "coco":
            return CocoSource(root, images=data.images, **shared)
        case "yolo":
            return YoloSource(root, whole=data.split_ratio is not None, **shared)
        case "labelme":
            return LabelMeSource(root, images=data.images, splits=splits, **shared)
        case "labelstudio":
            return LabelStudioSource(root, images=data.images, **shared)
        case "voc":
            return VocSource(root, images=data.images, splits=splits, first_pixel=data.first_pixel, **shared)
        case _:
            return OwnSource(root, function=data.format, whole=data.split_ratio is not None, rules=rules)


def class_names(config: Config) -> tuple[str, ...]:
    """Return the K class names: those of the config, or those in the data set.

    COCO: the training split's categories by rising id. YOLO: the names in data.yaml. Otherwise all names in
    the annotations, sorted.
    """
    match config.data.classes:
        case None:
            splits = (config.data.train_split, config.data.test_split)
            return build_source(config).class_names(*splits, choose=kept_images(config))
        case "voc":
            return VOC_CLASSES
        case names:
            return names


def load_split(
    config: Config,
    split: str,
    classes: Sequence[str],
    *,
    training: bool,
    choose: Selection | None = None,
    look_at_images: bool = True,
) -> Dataset:
    """Read a split; for evaluation every object is kept as annotated, for training invalid ones are not.

    For evaluation the split may have no annotations at all: see `Dataset.annotated`. For training it must
    have some, and probable mistakes in it are reported. ``choose`` picks some of the split's images.
    Without ``look_at_images`` no image file is opened, unless its annotation does not give its size.
    """
    selections = [split_selection(config, split), *([] if choose is None else [choose])]
    dataset = build_source(config).load(
        split, classes, training=training, choose=in_turn(selections), unannotated=not training
    )
    others = dataset.dropped.get(OTHER_CLASS, 0)
    if others:
        note(f"{split}: {others} objects of other classes than data.classes are left out")
    if training:
        report_suspicions(dataset, look_at_images=look_at_images)
    return dataset


def report_suspicions(dataset: Dataset, *, look_at_images: bool = True) -> None:
    """Print a warning for each kind of probable mistake that `detector.data.suspicions` knows."""
    files = dataset.records.files if look_at_images else ()
    deep = sampled_unused_bits(dataset.records.folder, files)
    for line in summary([*dataset.suspicions, *deep]):
        note(line)


def report_several_labels(config: Config, dataset: Dataset) -> None:
    """Print how many objects of the training images have several labels, where any has.

    Unless ``model.head.scores`` is sigmoid this is a warning, which names the first of them.
    """
    records, split = dataset.records, config.data.train_split
    objects = records.objects
    found = labels_of_boxes(objects, ~np.asarray(objects.crowd))
    several = np.flatnonzero(found.counts > 1)
    if not len(several):
        return
    how_many = f"{len(several)} of {len(found.rows)} boxes have several labels"
    if config.model.head.scores == "sigmoid":
        note(f"{split}: {how_many}, and are trained with all of them")
        return
    row = int(found.rows[several[0]])
    labels = found.labels[found.offsets[several[0]] : found.offsets[several[0] + 1]]
    image = records.image_ids[int(objects.image_numbers()[row])]
    box = ", ".join(f"{number:g}" for number in objects.boxes[row].tolist())
    note(
        f"warning: {split}: {how_many}, the first in {image!r} at {box}: "
        f"{listed(dataset.classes[label - 1] for label in labels)}; a region is trained with one of them "
        "only. Set model.head.scores to sigmoid to train all labels (docs/multilabel.md), or choose the "
        "wanted ones with data.classes and data.other_classes: ignore"
    )


def split_selection(config: Config, split: str) -> Selection:
    """Return the selection of a split's images, by ``data.split_ratio`` and ``data.leave_out``."""
    return in_turn([*_by_ratio(config, split), kept_images(config)])


def kept_images(config: Config) -> Selection:
    """Return the selection of all images but those of ``data.leave_out``."""
    listed = config.data.leave_out
    if listed is None:
        return in_turn([])
    shared = "{split}" not in config.data.annotations + config.data.images and not is_own(config.data.format)
    return without(
        read_left_out(Path(listed)),
        listed,
        tuple if shared else partial(all_names, config),  # within one folder or file, ids are unique
    )


def all_names(config: Config) -> list[ImageName]:
    """Return the names of the images of every split that training reads, including those left out.

    A split that does not exist has none. Raises InputError for one that cannot be read.
    """
    source = build_source(config)
    names: dict[ImageName, None] = {}
    for split in read_splits(config):
        if source.image_list(split).exists():
            names.update(dict.fromkeys(in_turn(_by_ratio(config, split))(source.image_names(split))))
    return list(names)


def _by_ratio(config: Config, split: str) -> list[Selection]:
    ratio = config.data.split_ratio
    return [by_ratio(split, ratio, config.data.split_seed)] if ratio else []


@dataclass(frozen=True)
class Validation:
    """Where validation images come from: a ``split``, or a ``fraction`` of the training split, or nowhere."""

    split: str | None = None
    fraction: float = 0.0
    implied: bool = False
    """Whether the split is used because of its name, without ``data.val_split``."""

    def __bool__(self) -> bool:
        return self.split is not None or self.fraction > 0

    def describe(self, images: int, config: Config) -> str:
        """Return a sentence on where ``images`` validation images come from and what they are for."""
        limit = config.test.max_images
        scored = "they" if limit is None or limit >= images else f"the first {limit} (test.max_images)"
        chosen = "best.pt" if config.task == "classification" else "best.pt and the score threshold"
        use = f"{scored} choose {chosen}; training does not use these images"
        if self.split is not None:
            return f"validation images: {images}, the split {self.split}; {use}"
        return (
            f"validation images: {images}, set aside from {config.data.train_split} "
            f"(train.validation_fraction {self.fraction:g}, data.split_seed {config.data.split_seed}); {use}"
        )


def find_validation(config: Config) -> Validation:
    """Return where the config's validation images come from.

    Raises:
        InputError: ``train.evaluate_every`` without images on which to choose a checkpoint.
    """
    train = config.train
    needed = train.evaluate_every is not None and train.evaluate_split is None
    if config.data.val_split is not None:
        return Validation(split=config.data.val_split)
    if train.validation_fraction == 0:
        if needed:
            raise InputError(
                "train.evaluate_every: without validation images there is nothing to choose best.pt on; name "
                "data.val_split, set train.validation_fraction above 0, or name train.evaluate_split"
            )
        return Validation()
    for name in _validation_names(config):
        if _exists(config, name):
            return Validation(split=name, implied=True)
    if train.validation_fraction is not None:
        return Validation(fraction=train.validation_fraction)
    return Validation(fraction=DEFAULT_FRACTION if needed else 0.0)


def load_training(
    config: Config, classes: Sequence[str], *, training: bool, look_at_images: bool = True
) -> Dataset:
    """Read the training split without the images that are set aside; the rest is as in `load_split`."""
    fraction = find_validation(config).fraction
    kept = _part(config, fraction, validation=False) if fraction else None
    split = config.data.train_split
    return load_split(config, split, classes, training=training, choose=kept, look_at_images=look_at_images)


def load_validation(config: Config, classes: Sequence[str]) -> tuple[str, Dataset] | None:
    """Read the validation images as annotated, and print where they come from and what they are for.

    Returns their split and the images, or None if there are none.

    Raises:
        InputError: the split cannot be read.
    """
    source = find_validation(config)
    if not source:
        return None
    split = source.split or config.data.train_split
    part = None if source.split is not None else _part(config, source.fraction, validation=True)
    try:
        dataset = load_split(config, split, classes, training=False, choose=part)
    except InputError as error:
        if not source.implied:
            raise
        raise InputError(
            f"{error} (the split {split!r} is read for validation because of its name; name another one in "
            "data.val_split, or set train.validation_fraction to 0 to do without)"
        ) from None
    note(source.describe(len(dataset.records), config))
    return split, dataset


def check_apart(config: Config, trained: Sequence[ImageRecord], validation: Sequence[ImageRecord]) -> None:
    """Raise InputError if an image is both trained on and validated on."""
    paths = set(real_paths(Records.of(trained).paths()))
    validated = Records.of(validation).paths()
    shared = [path for path, real in zip(validated, real_paths(validated), strict=True) if real in paths]
    if shared:
        raise InputError(
            f"{config.data.root}: {len(shared)} of {len(validation)} images of the validation split "
            f"{find_validation(config).split!r} are images of the training split {config.data.train_split!r} "
            f"too, the first: {shared[0]}; name another split in data.val_split, or set "
            "train.validation_fraction to 0 to do without"
        )


def _part(config: Config, fraction: float, *, validation: bool) -> Selection:
    def choose(names: Sequence[ImageName]) -> list[ImageName]:
        kept, aside = set_aside([name.image_id for name in names], fraction, config.data.split_seed)
        chosen = set(aside if validation else kept)
        return [name for name in names if name.image_id in chosen]

    return choose


def read_splits(config: Config) -> list[str]:
    """Return the splits that training with ``config`` reads, each of them once."""
    data = config.data
    names = (data.train_split, find_validation(config).split, data.test_split, config.train.evaluate_split)
    return list(dict.fromkeys(name for name in names if name is not None))


def _validation_names(config: Config) -> list[str]:
    """Return the usual names of a validation split that goes with this training split."""
    split = config.data.train_split
    if "train" not in split or "trainval" in split:
        return []
    names = [split.replace("train", name) for name in VALIDATION_NAMES]
    return [name for name in names if name != config.data.test_split]


def _exists(config: Config, split: str) -> bool:
    """Return whether the data set has ``split`` as a split of its own, separate from the training split."""
    if config.data.split_ratio is not None:
        return split in config.data.split_ratio
    source = build_source(config)
    place = source.image_list(split)
    return place != source.image_list(config.data.train_split) and place.exists()


def require_objects(targets: Iterable[Targets], config: Config, more: str = "") -> None:
    """Raise InputError unless at least one of the training images' ``targets`` has an object to learn from.

    Crowd regions and ignored objects do not count; nor do difficult objects with ``data.difficult: skip`` or
    where the labels of whole images are trained on. ``more`` is added to the message.
    """
    of_images = config.task != "detection"
    use_difficult = config.data.difficult == "train" and not of_images
    if any(len(trained_objects(one, use_difficult=use_difficult)) for one in targets):
        return
    why = "difficult ones show no class" if of_images else "data.difficult is skip"
    unused = "crowd regions" if use_difficult else f"crowd regions and difficult objects ({why})"
    place = f"{config.data.root}: nothing to train on in {config.data.train_split}"
    raise InputError(f"{place}: no image has any objects but {unused}{more}")


def check_batch_size(config: Config, images: int, kind: str = "") -> None:
    """Raise InputError if a batch would contain one of ``images`` training images, of a ``kind``, twice.

    Or if it cannot be divided among the processes.
    """
    wanted = config.train.images_per_batch
    check_shares(wanted, config.train.accumulate)
    if wanted > images:
        raise InputError(
            f"train.images_per_batch: {wanted} images per step are wanted, and {config.data.train_split} has "
            f"{images}{kind}; give at most {images}"
        )


def split_records(config: Config, splits: Sequence[str] | None = None) -> dict[str, Records]:
    """Read the images of ``splits``, by default of all splits that training reads, as evaluation does.

    Where there are several processes, all of them call this alike.
    """
    with main_first():
        ensure_data(config)
        classes = class_names(config)
        names = splits or read_splits(config)
        return {name: load_split(config, name, classes, training=False).records for name in names}
