"""The data sets and loaders of a config."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import DataLoader

from detector.build.model import build_normalization
from detector.config import Config
from detector.data.choice import Choice, by_ratio, in_turn, read_left_out, without
from detector.data.coco import CocoDataset, category_names, load_coco
from detector.data.coco import image_names as coco_names
from detector.data.coco_json import read_coco
from detector.data.collate import collate, collate_or_error, raise_errors
from detector.data.dataset import InferenceDataset, ProposalSource, TrainingDataset, quiet_worker
from detector.data.generated import ensure_generated
from detector.data.samplers import TrainingBatches, aspect_groups
from detector.data.transforms import ImageTransform
from detector.data.voc import VOC_CLASSES, VocDataset, find_classes, load_voc, split_ids
from detector.data.voc import image_names as voc_names
from detector.data.voc_split import resolve_folder
from detector.errors import InputError
from detector.structures import Batch, ImageMeta, ImageName, ImageRecord, Sample


def ensure_data(config: Config) -> None:
    """Make the quick start's data set where the config says so and it is missing."""
    wanted = config.data.generate
    if wanted is not None:
        ensure_generated(
            Path(config.data.root),
            train_images=wanted.train_images,
            test_images=wanted.test_images,
            seed=wanted.seed,
            kind=wanted.kind,
        )


def class_names(config: Config) -> tuple[str, ...]:
    """Return the K class names: those of the config, or those found in the data set.

    VOC: all names in the annotations, sorted. COCO: the training split's categories by rising id.
    """
    match config.data.classes:
        case None if config.data.format == "coco":
            return tuple(
                category_names(read_coco(annotation_place(config, config.data.train_split))).values()
            )
        case None:
            splits = (config.data.train_split, config.data.test_split)
            places = dict.fromkeys(
                (for_split(config.data.annotations, split), for_split(config.data.images, split))
                for split in splits
            )
            kept = kept_images(config)
            found = (find_classes(config.data.root, folder, kept, images=images) for folder, images in places)
            return tuple(sorted(set().union(*found)))
        case "voc":
            return VOC_CLASSES
        case names:
            return names


def load_split(
    config: Config, split: str, classes: Sequence[str], *, training: bool
) -> VocDataset | CocoDataset:
    """Read a split; for evaluation every object is kept as annotated, for training faulty ones are not."""
    policy = config.data.invalid_boxes if training else None
    size, choose = config.data.min_box_size, split_choice(config, split)
    images = for_split(config.data.images, split)
    if config.data.format == "coco":
        return load_coco(
            annotation_place(config, split),
            Path(config.data.root) / images,
            root=config.data.root,
            choose=choose,
            classes=classes,
            invalid_boxes=policy,
            min_box_size=size,
        )
    return load_voc(
        config.data.root,
        split,
        annotations=for_split(config.data.annotations, split),
        images=images,
        splits=None if config.data.split_ratio else config.data.splits,
        choose=choose,
        classes=classes,
        invalid_boxes=policy,
        min_box_size=size,
    )


def annotation_place(config: Config, split: str) -> Path:
    """Return a split's JSON file (COCO) or folder of XML files (VOC)."""
    return Path(config.data.root) / for_split(config.data.annotations, split)


def split_choice(config: Config, split: str) -> Choice:
    """Return which of the images that the annotations or the split file name belong to ``split``."""
    return in_turn([*_divided(config, split), kept_images(config)])


def kept_images(config: Config) -> Choice:
    """Return the choice of all images but those of ``data.leave_out``."""
    listed = config.data.leave_out
    if listed is None:
        return in_turn([])
    shared = "{split}" not in config.data.annotations + config.data.images
    return without(
        read_left_out(Path(listed)),
        listed,
        tuple if shared else partial(all_names, config),  # within one folder or file, ids are unique
    )


def all_names(config: Config) -> list[ImageName]:
    """Return the names of the images of every split that the config names, those left out included.

    A split that is not there has none. Raises InputError for one that cannot be read.
    """
    data = config.data
    splits = filter(None, (data.train_split, data.test_split, config.train.evaluate_split))
    there = [split for split in dict.fromkeys(splits) if _split_source(config, split).exists()]
    return list(dict.fromkeys(name for split in there for name in _split_names(config, split)))


def _split_source(config: Config, split: str) -> Path:
    """Return the file or folder that names the images of a split."""
    if config.data.format == "coco" or config.data.split_ratio or config.data.splits is None:
        return annotation_place(config, split)
    return Path(config.data.root) / config.data.splits / f"{split}.txt"


def _split_names(config: Config, split: str) -> Sequence[ImageName]:
    data, root = config.data, Path(config.data.root)
    images, choose = for_split(data.images, split), in_turn(_divided(config, split))
    if data.format == "coco":
        return choose(coco_names(read_coco(annotation_place(config, split)), root / images, root))
    folder = resolve_folder(root, for_split(data.annotations, split), "one XML file an image")
    lists = None if data.split_ratio else data.splits
    return voc_names(split_ids(root, lists, split, folder, choose, images=images)[0], root, images)


def _divided(config: Config, split: str) -> list[Choice]:
    ratio = config.data.split_ratio
    return [by_ratio(split, ratio, config.data.split_seed)] if ratio else []


def for_split(name: str, split: str) -> str:
    return name.replace("{split}", split)


def training_batches(
    config: Config, records: Sequence[ImageRecord], source: ProposalSource, start_step: int
) -> Generator[Batch, None, None]:
    """Return the endless training batches from ``start_step`` on; ``source`` gives their proposals."""
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
    loader: DataLoader[Sample | InputError] = DataLoader(
        TrainingDataset(records, source, transform, config.seed, _draws_per_scale(config, sampler)),
        batch_sampler=sampler,
        collate_fn=collate_or_error,
        num_workers=config.data.workers,
        worker_init_fn=quiet_worker,
        generator=_own_generator(),
    )
    return raise_errors(loader)


def _draws_per_scale(config: Config, sampler: TrainingBatches) -> int | None:
    """Return how many samples in a row share a scale, None where each has its own."""
    match config.train.scale_per:
        case "image":
            return None
        case "batch":
            return sampler.batch_size
        case "epoch":
            return sampler.batch_size * len(sampler.epoch(0))


def inference_transforms(config: Config) -> list[ImageTransform]:
    """Return one transform a view of a test image: every scale, and with ``test.flip`` its mirror image."""
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
    config: Config, records: Sequence[ImageRecord], source: ProposalSource
) -> Iterator[list[Batch]]:
    """Return, image by image in order, one batch of one sample a view."""
    loader: DataLoader[list[Sample] | InputError] = DataLoader(
        InferenceDataset(records, source, inference_transforms(config)),
        batch_size=None,
        num_workers=min(config.data.workers, len(records)),
        worker_init_fn=quiet_worker,
        generator=_own_generator(),
    )
    return ([collate([sample]) for sample in samples] for samples in raise_errors(loader))


@contextmanager
def naming(metas: Sequence[ImageMeta]) -> Iterator[None]:
    """Add the images' ids to what the network says of its input, such as that it is too small."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{', '.join(meta.image_id for meta in metas)}: {error}") from None


def _own_generator() -> torch.Generator:
    """A DataLoader seeds its workers from a generator; with its own it leaves the global one alone."""
    return torch.Generator().manual_seed(0)
