"""Samples to a batch, for a DataLoader."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from detector.core.errors import InputError
from detector.core.structures import Batch, Sample
from detector.data.loading import share


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
    """``collate``, or the first error that a worker met; a worker's images are in shared memory."""
    good = [sample for sample in samples if isinstance(sample, Sample)]
    errors = [sample for sample in samples if isinstance(sample, InputError)]
    if errors:
        return errors[0]
    batch = collate(good)
    try:
        share(batch.images)
    except InputError as error:
        return error
    return batch


def views_or_error(views: list[Sample] | InputError) -> list[Sample] | InputError:
    """Return the views of one image, or the error that a worker met; images as in `collate_or_error`."""
    if not isinstance(views, InputError):
        try:
            for view in views:
                share(view.image)
        except InputError as error:
            return error
    return views
