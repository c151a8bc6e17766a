"""Which images a run is validated on: a split of their own, or a part of the training images set aside.

``best.pt`` and the score threshold are chosen on them. They are not trained on, and the test split has no
part in either choice.
"""

from __future__ import annotations

from collections.abc import Sequence

from detector.config import Config
from detector.core.errors import InputError
from detector.core.progress import note
from detector.core.structures import ImageName, ImageRecord
from detector.data.selection import Selection, set_aside
from detector.data.source import Dataset
from detector.factory.data import find_validation, load_split


def load_training(config: Config, classes: Sequence[str], *, training: bool) -> Dataset:
    """Read the training split without the images that are set aside; ``training`` as in `load_split`."""
    fraction = find_validation(config).fraction
    kept = _part(config, fraction, validation=False) if fraction else None
    return load_split(config, config.data.train_split, classes, training=training, choose=kept)


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
    paths = {record.path.resolve() for record in trained}
    shared = [record for record in validation if record.path.resolve() in paths]
    if shared:
        raise InputError(
            f"{config.data.root}: {len(shared)} of {len(validation)} images of the validation split "
            f"{find_validation(config).split!r} are images of the training split {config.data.train_split!r} "
            f"too, the first: {shared[0].path}; name another split in data.val_split, or set "
            "train.validation_fraction to 0 to do without"
        )


def _part(config: Config, fraction: float, *, validation: bool) -> Selection:
    def choose(names: Sequence[ImageName]) -> list[ImageName]:
        kept, aside = set_aside([name.image_id for name in names], fraction, config.data.split_seed)
        chosen = set(aside if validation else kept)
        return [name for name in names if name.image_id in chosen]

    return choose
