"""Builds the transforms and loaders of a config: training batches, and the views of test images."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager

import torch

from detector.config import Config
from detector.core.errors import InputError
from detector.core.progress import note
from detector.core.structures import Batch, ImageMeta, ImageRecord, Proposals, ProposalSource
from detector.data.loader import (
    batch_bytes,
    collate_or_error,
    load,
    make_loader,
    one_per_size,
    views_or_error,
    workers_that_fit,
)
from detector.data.samplers import TrainingBatches, aspect_groups
from detector.data.samples import InferenceDataset, TrainingDataset, collate
from detector.data.transforms import ImageTransform
from detector.factory.model import build_normalization
from detector.factory.resources import worker_count


def training_batches(
    config: Config,
    records: Sequence[ImageRecord],
    source: ProposalSource,
    start_step: int,
    device: str = "cpu",
) -> Generator[Batch, None, None]:
    """Return the endless training batches from ``start_step`` on; ``source`` returns their proposals.

    The number of worker processes depends on ``device``, on which the training runs.

    Raises:
        InputError: the workers' batches may not fit into shared memory.
    """
    settings = config.train
    transform = ImageTransform(
        normalization=build_normalization(config),
        scales=settings.scales,
        max_size=settings.max_size,
        resize=settings.resize,
        flip=settings.flip,
        vertical_flip=settings.vertical_flip,
        scale_jitter=settings.scale_jitter,
    )
    sampler = TrainingBatches(
        len(records),
        settings.images_per_batch,
        config.seed,
        groups=aspect_groups(records) if settings.group_by_aspect else None,
        start_step=start_step,
    )
    dataset = TrainingDataset(records, source, transform, config.seed, _draws_per_scale(config, sampler))
    usual, mixed = batch_bytes(records, transform, settings.images_per_batch)
    workers = _workers(config, device, usual if settings.group_by_aspect else mixed, mixed)
    return load(make_loader(dataset, workers, collate_or_error, batch_sampler=sampler))


def no_proposals(_record: ImageRecord) -> Proposals:
    """Return no boxes, as a proposal source for whole images."""
    return Proposals(boxes=torch.zeros(0, 4))


def _draws_per_scale(config: Config, sampler: TrainingBatches) -> int | None:
    """Return how many consecutive samples share a scale, None where each has its own."""
    match config.train.scale_per:
        case "image":
            return None
        case "batch":
            return sampler.batch_size
        case "epoch":
            return sampler.batch_size * len(sampler.epoch(0))


def inference_transforms(config: Config) -> list[ImageTransform]:
    """Return one transform per view of a test image: every scale, and with ``test.flip`` its mirror image."""
    return [
        ImageTransform(
            normalization=build_normalization(config),
            scales=(scale,),
            max_size=config.test.max_size,
            resize=config.test.resize,
            mirrored=mirrored,
        )
        for mirrored in ((False, True) if config.test.flip else (False,))
        for scale in (config.test.scales[:1] if config.test.resize == "none" else config.test.scales)
    ]


def inference_views(
    config: Config, records: Sequence[ImageRecord], source: ProposalSource, device: str = "cpu"
) -> Iterator[list[Batch]]:
    """Return an iterator over the lists of views of ``records``; each view is a batch of one sample.

    ``device`` is as in `training_batches`.
    """
    transforms = inference_transforms(config)
    image_bytes = max(
        (sum(batch_bytes([record], view, 1)[0] for view in transforms) for record in one_per_size(records)),
        default=0,
    )
    workers = min(_workers(config, device, image_bytes), len(records))
    dataset = InferenceDataset(records, source, transforms)
    loader = make_loader(dataset, workers, views_or_error, batch_size=None)
    return ([collate([sample]) for sample in samples] for samples in load(loader))


def _workers(config: Config, device: str, usual_bytes: int, largest_bytes: int | None = None) -> int:
    """Return how many processes load batches of these sizes; print the number if shared memory limits it."""
    wanted, fixed = worker_count(config, device), config.data.workers is not None
    workers = workers_that_fit(wanted, usual_bytes, largest_bytes, fixed=fixed)
    if workers != wanted:
        note(
            f"/dev/shm has room for the images of {workers} loader processes, not of {wanted}: "
            f"using {workers}"
        )
    return workers


@contextmanager
def naming(metas: Sequence[ImageMeta]) -> Iterator[None]:
    """Add the images' ids to an InputError that the network raises about its input, such as its size."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{', '.join(meta.image_id for meta in metas)}: {error}") from None
