"""Samples to a batch, and a batch's way out of the DataLoader."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import TypeVar

import torch

from detector.errors import InputError
from detector.structures import Batch, Sample

Item = TypeVar("Item")


def collate(samples: Sequence[Sample]) -> Batch:
    """Put N samples into one batch, the images padded right and bottom with zeros, the mean colour."""
    height = max(sample.image.shape[1] for sample in samples)
    width = max(sample.image.shape[2] for sample in samples)
    images = torch.zeros(len(samples), 3, height, width)
    for place, sample in zip(images, samples, strict=True):
        place[:, : sample.image.shape[1], : sample.image.shape[2]] = sample.image
    return Batch(
        images=images,
        proposals=[sample.proposals for sample in samples],
        rois_per_image=[sample.rois for sample in samples],
        targets=[sample.targets for sample in samples],
        metas=[sample.meta for sample in samples],
    )


def collate_or_error(samples: Sequence[Sample | InputError]) -> Batch | InputError:
    """``collate``, or the first error that a worker met."""
    good = [sample for sample in samples if isinstance(sample, Sample)]
    errors = [sample for sample in samples if isinstance(sample, InputError)]
    return errors[0] if errors else collate(good)


def raise_errors(items: Iterable[Item | InputError]) -> Generator[Item, None, None]:
    """Pass on what a DataLoader yields and raise, here in the main process, what a worker refused."""
    for item in items:
        if isinstance(item, InputError):
            raise item
        yield item
