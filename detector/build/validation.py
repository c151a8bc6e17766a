"""Which images a run is validated on: a split of their own, or a part of the training images set aside.

On them ``train.evaluate_every`` chooses ``best.pt``, and the score threshold for use is chosen. They are not
trained on, and the test split has no part in either choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from detector.build.data import annotation_place, load_split
from detector.config import Config
from detector.data.choice import Choice, set_aside
from detector.data.coco import CocoDataset
from detector.data.voc import VocDataset
from detector.errors import InputError
from detector.structures import ImageName, ImageRecord

DEFAULT_FRACTION = 0.15
"""What ``evaluate_every`` sets aside where nothing else is said."""
CUSTOMARY = ("val", "valid")
"""The names of a validation split beside one called "train"."""


@dataclass(frozen=True)
class Validation:
    """Where validation images come from: a ``split``, or a ``fraction`` of the training split, or nowhere."""

    split: str | None = None
    fraction: float = 0.0
    implied: bool = False
    """Whether the split was found by its name, without ``data.val_split``."""

    def __bool__(self) -> bool:
        return self.split is not None or self.fraction > 0

    def describe(self, images: int, config: Config) -> str:
        """Return a sentence on where ``images`` validation images come from and what they are for."""
        limit = config.test.max_images
        scored = "they" if limit is None or limit >= images else f"the first {limit} (test.max_images)"
        chosen = "best.pt and the score threshold" if config.task == "detection" else "best.pt"
        use = f"{scored} choose {chosen}, and none of them is trained on"
        if self.split is not None:
            return f"validation images: {images}, the split {self.split}; {use}"
        return (
            f"validation images: {images}, set aside from {config.data.train_split} "
            f"(train.validation_fraction {self.fraction:g}, data.split_seed {config.data.split_seed}); {use}"
        )


def find_validation(config: Config) -> Validation:
    """Return where the config's validation images come from.

    Raises:
        InputError: ``train.evaluate_every`` without any images to choose on.
    """
    data, train = config.data, config.train
    if data.val_split is not None:
        return Validation(split=data.val_split)
    if train.validation_fraction == 0:
        if train.evaluate_every is not None and train.evaluate_split is None:
            raise InputError(
                "train.evaluate_every: without validation images there is nothing to choose best.pt on; name "
                "data.val_split, set train.validation_fraction above 0, or name train.evaluate_split"
            )
        return Validation()
    for name in _customary_names(config):
        if _is_there(config, name):
            return Validation(split=name, implied=True)
    if train.validation_fraction is not None:
        return Validation(fraction=train.validation_fraction)
    chooses = train.evaluate_every is not None and train.evaluate_split is None
    return Validation(fraction=DEFAULT_FRACTION if chooses else 0.0)


def read_splits(config: Config) -> list[str]:
    """Return the splits that training with ``config`` reads, each once."""
    data = config.data
    names = (data.train_split, find_validation(config).split, data.test_split, config.train.evaluate_split)
    return list(dict.fromkeys(name for name in names if name is not None))


def load_training(config: Config, classes: Sequence[str], *, training: bool) -> VocDataset | CocoDataset:
    """Read the training split without the images that are set aside; ``training`` as for `load_split`."""
    fraction = find_validation(config).fraction
    kept = _part(config, fraction, validation=False) if fraction else None
    return load_split(config, config.data.train_split, classes, training=training, choose=kept)


def load_validation(config: Config, classes: Sequence[str]) -> tuple[str, VocDataset | CocoDataset] | None:
    """Read the validation images as annotated; return the split they are in too, or None without any.

    Raises:
        InputError: the split cannot be read.
    """
    found = find_validation(config)
    if found.split is None:
        if not found.fraction:
            return None
        split, part = config.data.train_split, _part(config, found.fraction, validation=True)
        return split, load_split(config, split, classes, training=False, choose=part)
    try:
        return found.split, load_split(config, found.split, classes, training=False)
    except InputError as error:
        if not found.implied:
            raise
        raise InputError(
            f"{error} (the split {found.split!r} is read for validation because of its name; name another "
            "one in data.val_split, or set train.validation_fraction to 0 to do without)"
        ) from None


def check_apart(config: Config, trained: Sequence[ImageRecord], validation: Sequence[ImageRecord]) -> None:
    """Raise InputError where an image is both trained on and validated on."""
    paths = {record.path.resolve() for record in trained}
    shared = [record for record in validation if record.path.resolve() in paths]
    if shared:
        raise InputError(
            f"{config.data.root}: {len(shared)} of {len(validation)} images of the validation split "
            f"{find_validation(config).split!r} are images of the training split {config.data.train_split!r} "
            f"too, the first: {shared[0].path}; name another split in data.val_split, or set "
            "train.validation_fraction to 0 to do without"
        )


def _part(config: Config, fraction: float, *, validation: bool) -> Choice:
    def choose(names: Sequence[ImageName]) -> list[ImageName]:
        kept, aside = set_aside([name.image_id for name in names], fraction, config.data.split_seed)
        chosen = set(aside if validation else kept)
        return [name for name in names if name.image_id in chosen]

    return choose


def _customary_names(config: Config) -> list[str]:
    """Return the names that the validation split beside this training split may have."""
    split = config.data.train_split
    if "train" not in split or "trainval" in split:
        return []
    names = [split.replace("train", name) for name in CUSTOMARY]
    return [name for name in names if name != config.data.test_split]


def _is_there(config: Config, split: str) -> bool:
    data = config.data
    if data.split_ratio is not None:
        return split in data.split_ratio
    if data.format == "voc" and data.splits is not None:
        return (Path(data.root) / data.splits / f"{split}.txt").is_file()
    return "{split}" in data.annotations and annotation_place(config, split).exists()
