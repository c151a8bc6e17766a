"""Which splits a config has, and where they lie: training, validation and test images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from detector.config import Config
from detector.core.errors import InputError

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


def annotation_place(config: Config, split: str) -> Path:
    """Return a split's JSON file (COCO) or folder of XML files (VOC)."""
    return Path(config.data.root) / for_split(config.data.annotations, split)


def for_split(name: str, split: str) -> str:
    return name.replace("{split}", split)


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
