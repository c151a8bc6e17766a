"""Data sets, proposals and loaders of a config."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from detector.build.model import build_normalization
from detector.config import Config
from detector.data.collate import collate, collate_or_error, raise_errors
from detector.data.dataset import InferenceDataset, TrainingDataset, quiet_worker
from detector.data.generated import ensure_generated
from detector.data.images import read_image
from detector.data.samplers import TrainingBatches, aspect_groups
from detector.data.transforms import ImageTransform
from detector.data.voc import VOC_CLASSES, VocDataset, find_classes, load_voc
from detector.errors import InputError
from detector.progress import note, progress_bar
from detector.proposals.convert import convert, source_parameters
from detector.proposals.generate import generate_store, store_name
from detector.proposals.prepare import filter_proposals
from detector.proposals.recall import recall
from detector.proposals.store import ProposalStore
from detector.structures import Batch, ImageRecord, Proposals, Sample

PROPOSALS_FOLDER = Path("data/proposals")
LOW_RECALL = 0.5
"""Below this recall at IoU 0.5 something is wrong with the boxes more often than with the method."""


@dataclass(frozen=True)
class StoredProposals:
    """Looks an image's proposals up and filters them as the config says.

    An image without an entry has none: ``with_proposals`` has said so, and evaluation leaves no image out.
    """

    store: ProposalStore
    top_k: int
    min_size: float

    def __call__(self, record: ImageRecord) -> Proposals:
        if record.image_id not in self.store:
            return Proposals(boxes=torch.zeros(0, 4))
        size = (record.height, record.width)
        found = self.store[record.image_id]
        return filter_proposals(found, size, min_size=self.min_size, top_k=self.top_k)


def ensure_data(config: Config) -> None:
    """Make the quick start's data set where the config says so and it is missing."""
    wanted = config.data.generate
    if wanted is not None:
        ensure_generated(
            Path(config.data.root),
            train_images=wanted.train_images,
            test_images=wanted.test_images,
            seed=wanted.seed,
        )


def class_names(config: Config) -> tuple[str, ...]:
    """Return the K class names: those of the config, or those found in all annotations."""
    match config.data.classes:
        case None:
            return find_classes(config.data.root, config.data.annotations)
        case "voc":
            return VOC_CLASSES
        case names:
            return names


def load_split(config: Config, split: str, classes: Sequence[str], *, training: bool) -> VocDataset:
    """Read a split; for evaluation every object is kept as annotated, for training faulty ones are not."""
    dataset = load_voc(
        config.data.root,
        split,
        annotations=config.data.annotations,
        images=config.data.images,
        splits=config.data.splits,
        classes=classes,
        invalid_boxes=config.data.invalid_boxes if training else None,
        min_box_size=config.data.min_box_size,
    )
    if not dataset.records:
        raise InputError(f"{config.data.root}: the split {split!r} names no image")
    return dataset


def open_proposals(config: Config, records: Sequence[ImageRecord]) -> ProposalStore:
    """Open the proposals of ``records``, converting or making first what is not there yet."""
    source = config.proposals
    if source.method is not None:
        return make_proposals(config, records)
    assert source.file is not None  # the schema allows one of the two
    path = Path(source.file)
    if not path.exists():
        raise InputError(
            f"{path}: no such proposals; proposals.file names a file of format {source.format!r} with the "
            f"boxes of every image of {config.data.root}, or set proposals.method to make them"
        )
    if source.format == "store":
        return ProposalStore.open(path)
    key = source_parameters(path, source.format or "")["source_blake2b"][:8]
    target = PROPOSALS_FOLDER / f"{path.stem}_{key}"
    if not target.exists():
        note(f"converting {path} into the store {target}")
    return convert(path, source.format or "", target)


def make_proposals(
    config: Config, records: Sequence[ImageRecord], target: Path | None = None
) -> ProposalStore:
    """Make what the config's method has not made yet for ``records``; None is the usual folder."""
    method = config.proposals.method
    if method is None:
        raise InputError("proposals.method is not set; name one to make proposals with")
    parameters = method_parameters(config)
    with progress_bar(f"{method} proposals") as advance:
        return generate_store(
            records,
            target or proposals_folder(config) / store_name(method, parameters),
            method=method,
            read_image=read_image,
            parameters=parameters,
            progress=advance,
        )


def method_parameters(config: Config) -> dict[str, Any]:
    """Return the parameters that the config gives to ``proposals.method``."""
    source = config.proposals
    given = {"scales": source.scales, "aspects": source.aspects, "stride_fraction": source.stride_fraction}
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in given.items() if value
    }


def proposals_folder(config: Config) -> Path:
    """Return where stores that the tools make lie: by data set, the quick start's inside its own folder."""
    root = Path(config.data.root)
    if config.data.generate is not None:
        return root / "proposals"
    place = hashlib.blake2b(str(root.resolve()).encode(), digest_size=4).hexdigest()
    return PROPOSALS_FOLDER / f"{root.resolve().name}_{place}"  # two data sets may have one name


def with_proposals(config: Config, records: Sequence[ImageRecord], store: ProposalStore) -> list[ImageRecord]:
    """Return the ``records`` that have proposals; what happens to others is ``proposals.missing``."""
    missing = [record.image_id for record in records if record.image_id not in store]
    if missing and config.proposals.missing == "error":
        raise InputError(
            f"{store.path}: no proposals for {len(missing)} of {len(records)} images, the first is "
            f"{missing[0]!r}; add them, or set proposals.missing to skip"
        )
    if missing:
        note(
            f"{len(missing)} images have no proposals, such as {missing[0]!r}: not trained on, nothing found"
        )
    return [record for record in records if record.image_id in store]


def report_recall(records: Sequence[ImageRecord], store: ProposalStore, config: Config, split: str) -> None:
    """Print the line that says whether these proposals can work, and a warning if they cannot."""
    training = split == config.data.train_split
    limit = config.proposals.top_k_train if training else config.proposals.top_k_test
    figures = recall(records, store, limit=limit)
    note(
        f"proposals for {split}: {figures['proposals_per_image']:.0f} an image, recall "
        f"{figures['recall_0.5']:.3f} at IoU 0.5, {figures['recall_0.7']:.3f} at IoU 0.7"
    )
    if figures["objects"] and figures["recall_0.5"] < LOW_RECALL:
        note(
            f"warning: {store.path} covers only {figures['recall_0.5']:.0%} of the objects at IoU 0.5; are "
            "the boxes x1, y1, x2, y2 in pixels of these images?"
        )


def training_batches(
    config: Config, records: Sequence[ImageRecord], store: ProposalStore, start_step: int
) -> Iterator[Batch]:
    """Return the endless training batches from ``start_step`` on."""
    settings = config.train
    transform = ImageTransform(
        normalization=build_normalization(config),
        scales=settings.scales,
        max_size=settings.max_size,
        flip=settings.flip,
        vertical_flip=settings.vertical_flip,
        scale_jitter=settings.scale_jitter,
    )
    source = StoredProposals(store, config.proposals.top_k_train, config.proposals.min_size)
    sampler = TrainingBatches(
        len(records),
        settings.images_per_batch,
        config.seed,
        groups=aspect_groups(records) if settings.group_by_aspect else None,
        start_step=start_step,
    )
    loader: DataLoader[Sample | InputError] = DataLoader(
        TrainingDataset(records, source, transform, config.seed),
        batch_sampler=sampler,
        collate_fn=collate_or_error,
        num_workers=config.data.workers,
        worker_init_fn=quiet_worker,
        generator=_own_generator(),
    )
    return raise_errors(loader)


def inference_transforms(config: Config) -> list[ImageTransform]:
    """Return one transform a test scale."""
    normalization = build_normalization(config)
    return [
        ImageTransform(normalization=normalization, scales=(scale,), max_size=config.test.max_size)
        for scale in config.test.scales
    ]


def inference_views(
    config: Config, records: Sequence[ImageRecord], source: Callable[[ImageRecord], Proposals]
) -> Iterator[list[Batch]]:
    """Return, image by image in order, one batch of one sample a test scale."""
    loader: DataLoader[list[Sample] | InputError] = DataLoader(
        InferenceDataset(records, source, inference_transforms(config)),
        batch_size=None,
        num_workers=min(config.data.workers, len(records)),
        worker_init_fn=quiet_worker,
        generator=_own_generator(),
    )
    return ([collate([sample]) for sample in samples] for samples in raise_errors(loader))


def _own_generator() -> torch.Generator:
    """A DataLoader seeds its workers from a generator; with its own it leaves the global one alone."""
    return torch.Generator().manual_seed(0)
