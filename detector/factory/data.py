"""The data sets and loaders of a config."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from detector.config import Config
from detector.core.errors import InputError
from detector.core.progress import note
from detector.core.structures import (
    Batch,
    ImageMeta,
    ImageName,
    ImageRecord,
    Proposals,
    ProposalSource,
    Targets,
)
from detector.data.choice import Choice, by_ratio, in_turn, read_left_out, without
from detector.data.coco import CocoDataset, category_names, load_coco
from detector.data.coco import image_names as coco_names
from detector.data.coco_json import read_coco
from detector.data.collate import collate, collate_or_error, views_or_error
from detector.data.dataset import InferenceDataset, TrainingDataset, quiet_worker
from detector.data.generated import ensure_generated
from detector.data.loading import PREFETCH, TRY_SECONDS, fitting_workers, load
from detector.data.objects import OTHER_CLASS
from detector.data.samplers import TrainingBatches, aspect_groups
from detector.data.suspicions import sampled_unused_bits, summed_up
from detector.data.transforms import ImageTransform
from detector.data.voc import VOC_CLASSES, VocDataset, find_classes, load_voc, split_ids
from detector.data.voc import image_names as voc_names
from detector.factory.model import build_normalization
from detector.factory.resources import worker_count
from detector.factory.splits import annotation_place, for_split, read_splits
from detector.models.roi_sampler import trained_objects


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
    config: Config, split: str, classes: Sequence[str], *, training: bool, choose: Choice | None = None
) -> VocDataset | CocoDataset:
    """Read a split; for evaluation every object is kept as annotated, for training faulty ones are not.

    For evaluation the split may have no annotations at all: see ``annotated`` of what is returned. For
    training it must, and what is suspicious about it is reported. With ``choose`` only those of its images
    that are chosen.
    """
    chosen = split_choice(config, split)
    choose = chosen if choose is None else in_turn([chosen, choose])
    dataset = _read_split(config, split, classes, choose, training=training)
    others = dataset.dropped.get(OTHER_CLASS, 0)
    if others:
        note(f"{split}: {others} objects of other classes than data.classes are left out")
    if training:
        report_suspicions(dataset)
    return dataset


def _read_split(
    config: Config, split: str, classes: Sequence[str], choose: Choice, *, training: bool
) -> VocDataset | CocoDataset:
    data = config.data
    images = for_split(data.images, split)
    if data.format == "coco":
        return load_coco(
            annotation_place(config, split),
            Path(data.root) / images,
            root=data.root,
            choose=choose,
            classes=classes,
            invalid_boxes=data.invalid_boxes if training else None,
            min_box_size=data.min_box_size,
            other_classes=data.other_classes,
            unannotated=not training,
        )
    return load_voc(
        data.root,
        split,
        annotations=for_split(data.annotations, split),
        images=images,
        splits=None if data.split_ratio else data.splits,
        choose=choose,
        classes=classes,
        invalid_boxes=data.invalid_boxes if training else None,
        min_box_size=data.min_box_size,
        other_classes=data.other_classes,
        first_pixel=data.first_pixel,
        unannotated=not training,
    )


def report_suspicions(dataset: VocDataset | CocoDataset) -> None:
    """Print a warning for each kind of probable mistake that `detector.data.suspicions` finds."""
    paths = [record.path for record in dataset.records]
    for line in summed_up([*dataset.suspicions, *sampled_unused_bits(paths)]):
        note(line)


def require_objects(targets: Iterable[Targets], config: Config, more: str = "") -> None:
    """Raise InputError where none of the training images' ``targets`` has an object to learn from.

    Crowd regions and ignored objects do not count, nor do difficult ones with ``data.difficult: skip`` or for
    a classifier. ``more`` ends the message.
    """
    classifies = config.task == "classification"
    use_difficult = config.data.difficult == "train" and not classifies
    if any(len(trained_objects(one, use_difficult=use_difficult)) for one in targets):
        return
    why = "difficult ones show no class" if classifies else "data.difficult is skip"
    unused = "crowd regions" if use_difficult else f"crowd regions and difficult objects ({why})"
    place = f"{config.data.root}: nothing to train on in {config.data.train_split}"
    raise InputError(f"{place}: no image has any objects but {unused}{more}")


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
    """Return the names of the images of every split that training reads, those left out included.

    A split that is not there has none. Raises InputError for one that cannot be read.
    """
    there = [split for split in read_splits(config) if _split_source(config, split).exists()]
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
        return choose(
            coco_names(read_coco(annotation_place(config, split), unannotated=True), root / images, root)
        )
    folder = annotation_place(config, split)
    lists = None if data.split_ratio else data.splits
    return voc_names(split_ids(root, lists, split, folder, choose, images=images)[0], root, images)


def _divided(config: Config, split: str) -> list[Choice]:
    ratio = config.data.split_ratio
    return [by_ratio(split, ratio, config.data.split_seed)] if ratio else []


def training_batches(
    config: Config,
    records: Sequence[ImageRecord],
    source: ProposalSource,
    start_step: int,
    device: str = "cpu",
) -> Generator[Batch, None, None]:
    """Return the endless training batches from ``start_step`` on; ``source`` gives their proposals.

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
    return load(_loader(dataset, workers, collate_or_error, batch_sampler=sampler))


def no_proposals(_record: ImageRecord) -> Proposals:
    """Return no boxes: a whole image needs none."""
    return Proposals(boxes=torch.zeros(0, 4))


def check_batch_size(config: Config, images: int, kind: str = "") -> None:
    """Raise InputError where a batch would show one of ``images`` training images, of a ``kind``, twice."""
    wanted = config.train.images_per_batch
    if wanted > images:
        raise InputError(
            f"train.images_per_batch: {wanted} images per step are wanted, and {config.data.train_split} has "
            f"{images}{kind}; give at most {images}"
        )


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
    config: Config, records: Sequence[ImageRecord], source: ProposalSource, device: str = "cpu"
) -> Iterator[list[Batch]]:
    """Return, image by image in order, one batch of one sample a view; ``device`` as `training_batches`."""
    transforms = inference_transforms(config)
    image_bytes = max(
        (sum(batch_bytes([record], view, 1)[0] for view in transforms) for record in _shapes(records)),
        default=0,
    )
    workers = min(_workers(config, device, image_bytes), len(records))
    dataset = InferenceDataset(records, source, transforms)
    loader = _loader(dataset, workers, views_or_error, batch_size=None)
    return ([collate([sample]) for sample in samples] for samples in load(loader))


def _loader(
    dataset: Dataset[Any], workers: int, collate_fn: Callable[[Any], Any], **batches: Any
) -> DataLoader[Any]:
    helped: dict[str, Any] = {"timeout": TRY_SECONDS, "prefetch_factor": PREFETCH} if workers else {}
    return DataLoader(
        dataset,
        collate_fn=collate_fn,
        num_workers=workers,
        worker_init_fn=quiet_worker,
        generator=_own_generator(),
        **helped,
        **batches,
    )


def _workers(config: Config, device: str, usual_bytes: int, largest_bytes: int | None = None) -> int:
    """Return how many worker processes load batches of so many bytes; says so where memory decides."""
    wanted, fixed = worker_count(config, device), config.data.workers is not None
    found = fitting_workers(wanted, usual_bytes, largest_bytes, fixed=fixed)
    if found != wanted:
        note(f"/dev/shm has room for the images of {found} loader processes, not of {wanted}: using {found}")
    return found


def batch_bytes(records: Sequence[ImageRecord], transform: ImageTransform, count: int) -> tuple[int, int]:
    """Return the most bytes that the images of a batch of ``count`` take: usually, of one group as
    `aspect_groups` makes them, and where landscape and portrait images share the batch."""
    scale = max(transform.scales) * max(transform.scale_jitter or (1.0,))
    sizes = [transform.size_of((record.height, record.width), scale) for record in _shapes(records)]
    if count == 1:
        usual = mixed = max((height * width for height, width in sizes), default=0)
    else:
        upright = [size for size in sizes if size[0] > size[1]]
        lying = [size for size in sizes if size[0] <= size[1]]
        usual = max((_padded(group) for group in (upright, lying) if group), default=0)
        mixed = _padded(sizes) if sizes else 0
    return 12 * count * usual, 12 * count * mixed  # three channels of four bytes


def _padded(sizes: Sequence[tuple[int, int]]) -> int:
    return max(height for height, _ in sizes) * max(width for _, width in sizes)


def _shapes(records: Sequence[ImageRecord]) -> list[ImageRecord]:
    """Return one record of each image size."""
    return list({(record.height, record.width): record for record in records}.values())


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


def split_records(config: Config, splits: Sequence[str] | None = None) -> dict[str, list[ImageRecord]]:
    """Read the images of ``splits``, by default of all splits that training reads, as evaluation does."""
    ensure_data(config)
    classes = class_names(config)
    names = splits or read_splits(config)
    return {name: load_split(config, name, classes, training=False).records for name in names}
