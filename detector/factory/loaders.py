"""Builds the transforms and loaders of a config: training batches, and the views of test images."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager

import torch

from detector.config import Config
from detector.core import distributed
from detector.core.devices import pins
from detector.core.errors import InputError
from detector.core.structures import (
    Batch,
    ImageMeta,
    ImageRecord,
    Normalization,
    Proposals,
    ProposalSource,
)
from detector.data.augmentation import Augmentation, ColorJitter, Crop, Cutout, Expand
from detector.data.loader import load, on_device
from detector.data.samplers import Part, TrainingBatches, aspect_groups, parts
from detector.data.samples import DrawRegions, InferenceViews, Placing, TrainingSamples, collate
from detector.data.transforms import Colour, ImageTransform
from detector.factory.model import build_normalization
from detector.factory.resources import worker_count


def training_batches(
    config: Config,
    records: Sequence[ImageRecord],
    source: ProposalSource,
    start_step: int,
    device: str = "cpu",
    *,
    draw_regions: DrawRegions | None = None,
    network: Placing | None = None,
) -> Generator[Batch, None, None]:
    """Yield the endless training batches from ``start_step`` on, on ``device``, where the training runs.

    Each step has ``train.accumulate`` of them; they hold this process's share of the step's images, padded to
    the largest of all.

    ``source`` returns the proposals of an image; ``draw_regions`` draws those of a step from them, and None
    draws none; ``network`` says where they lie at its maps. All are called by several threads at once.

    Raises:
        InputError: an image or its proposals cannot be read.
    """
    settings = config.train
    order = TrainingBatches(
        len(records),
        settings.images_per_batch,
        config.seed,
        groups=aspect_groups(records) if settings.group_by_aspect else None,
        start_step=start_step,
    )
    sample = TrainingSamples(
        records,
        source,
        training_transform(config),
        config.seed,
        _draws_per_scale(config, order),
        draw_regions,
        build_augmentation(config),
    )
    pin = pins(device)

    def make(part: Part) -> Batch:
        others = [key for key in part.whole if key not in part.keys]
        sizes = [sample.plan(*key).input_size for key in others]
        return collate([sample(*key) for key in part.keys], pin=pin, sizes=sizes, network=network)

    with closing(load(own_parts(config, order), make, worker_count(config, device))) as batches:
        yield from on_device(batches, device)


def loss_batches(
    config: Config,
    records: Sequence[ImageRecord],
    source: ProposalSource,
    numbers: Sequence[int],
    device: str,
    draw_regions: DrawRegions | None,
    network: Placing | None = None,
) -> Generator[Batch, None, None]:
    """Yield those of ``records`` that ``numbers`` give, each as a batch of one, for its losses.

    An image is seen as in the first view of an evaluation. Its regions are those of a training step, but
    drawn by its number, so that they are always the same. Raises InputError as `training_batches`.
    """
    view = inference_transforms(config)[0]
    sample = TrainingSamples(records, source, view, config.seed, draw_regions=draw_regions)
    pin = pins(device)

    def make(number: int) -> Batch:
        return collate([sample(number, number)], pin=pin, network=network)

    with closing(load(numbers, make, min(worker_count(config, device), len(numbers)))) as batches:
        yield from on_device(batches, device)


def own_parts(config: Config, order: TrainingBatches) -> Iterator[Part]:
    """Return what this process computes of the batches, ``train.accumulate`` parts per step."""
    return parts(order, distributed.rank(), distributed.world_size(), config.train.accumulate)


def training_transform(config: Config) -> ImageTransform:
    """Return the transform of training images."""
    settings = config.train
    return ImageTransform(
        scales=settings.scales,
        max_size=settings.max_size,
        resize=settings.resize,
        flip=settings.flip,
        vertical_flip=settings.vertical_flip,
        scale_jitter=settings.scale_jitter,
    )


def build_augmentation(config: Config) -> Augmentation | None:
    """Return what ``train.augment`` asks for, None for nothing; it fills with the network's mean colour."""
    chosen = config.train.augment
    jitter, expand, crop, cutout = chosen.color_jitter, chosen.expand, chosen.crop, chosen.cutout
    if not chosen.active:
        return None
    return Augmentation(
        color_jitter=ColorJitter(**dict(jitter)) if jitter.active else None,
        expand=Expand(**dict(expand)) if expand.active else None,
        crop=Crop(**dict(crop)) if crop.active else None,
        cutout=Cutout(**dict(cutout)) if cutout.active else None,
        fill=mean_colour(build_normalization(config)),
    )


def mean_colour(normalization: Normalization) -> Colour:
    """Return the colour, RGB, that the normalisation turns into about 0."""
    mean = [min(max(round(value * normalization.maximum), 0), 255) for value in normalization.mean]
    red, green, blue = reversed(mean) if normalization.bgr else mean
    return red, green, blue


def no_proposals(_record: ImageRecord) -> Proposals:
    """Return no boxes, as a proposal source for whole images."""
    return Proposals(boxes=torch.zeros(0, 4))


def _draws_per_scale(config: Config, order: TrainingBatches) -> int | None:
    """Return how many consecutive samples share a scale, None where each has its own."""
    match config.train.scale_per:
        case "image":
            return None
        case "batch":
            return order.batch_size
        case "epoch":
            return order.batch_size * len(order.epoch(0))


def inference_transforms(config: Config) -> list[ImageTransform]:
    """Return one transform per view of a test image: every scale, and with ``test.flip`` its mirror image."""
    return [
        ImageTransform(
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
) -> Generator[list[Batch], None, None]:
    """Yield the list of views of each of ``records``; each view is a batch of one sample.

    The views are in the memory of the CPU, page-locked where ``device`` is a GPU. Closing the generator ends
    its threads. Raises InputError as `training_batches`.
    """
    samples = InferenceViews(records, source, inference_transforms(config))
    pin = pins(device)

    def make(index: int) -> list[Batch]:
        return [collate([sample], pin=pin) for sample in samples(index)]

    return load(range(len(records)), make, min(worker_count(config, device), len(records)))


@contextmanager
def naming(metas: Sequence[ImageMeta]) -> Iterator[None]:
    """Add the images' ids to an InputError that the network raises about its input, such as its size."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{', '.join(meta.image_id for meta in metas)}: {error}") from None
