"""From records to samples (one image with its proposals and objects), and from samples to batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from detector.core.cell_masks import CellMasks
from detector.core.masks import Masks
from detector.core.structures import (
    Batch,
    DrawnRegions,
    ImageMeta,
    ImageRecord,
    Proposals,
    ProposalSource,
    Sample,
    SampledRoIs,
    Targets,
)
from detector.data.augmentation import Augmentation, shown_in_window
from detector.data.images import LoadedImage, open_image
from detector.data.transforms import BLACK, Colour, ImageTransform, transformed

DrawRegions = Callable[[torch.Tensor, Targets, np.random.Generator], DrawnRegions]
"""Draws the regions of a training step from the proposals (P, 4) of an image and its objects."""

_SCALE_STREAM = 1  # separates the random stream of shared scales from the samples' own streams
_REGION_STREAM = 2  # and that of the drawn regions
_WINDOW_STREAM = 3  # and that of the windows that samples show
_PAINT_STREAM = 4  # and that of changed colours and holes


def make_sample(
    record: ImageRecord,
    image: LoadedImage,
    proposals: Proposals,
    meta: ImageMeta,
    fill: Colour = BLACK,
) -> Sample:
    """Bring one image and its boxes into network-input pixels, for training, evaluation and demo alike.

    ``fill`` is the colour of what a window has outside the image.
    """
    proposals, targets = shown_in_window(proposals, record.targets, meta.window)
    return Sample(
        image=transformed(image.pixels(meta.full_size), meta, fill),
        proposals=proposals,
        rois=meta.to_input(proposals.boxes),
        targets=targets.with_boxes(meta.to_input(targets.boxes)),
        meta=meta,
    )


def region_stream(seed: int, draw: int) -> np.random.Generator:
    """Return the generator of the regions of one image in one step; ``draw`` as in `TrainingSamples`."""
    return np.random.default_rng((seed, draw, _REGION_STREAM))


@dataclass(frozen=True, eq=False)
class TrainingSamples:
    """Makes samples by (index, draw); ``draw`` is a sample's number in the run and seeds its random choices.

    A sample therefore depends on the seed, the step and the image only, not on the thread that makes it or on
    other samples, and a resumed run draws the same ones. With ``draws_per_scale``, that many consecutive
    samples, those of a batch or an epoch, share a scale. ``draw_regions`` draws the regions of a step; None
    draws none. ``augmentation`` changes the images before that; None changes none.
    """

    records: Sequence[ImageRecord]
    proposals: ProposalSource
    transform: ImageTransform
    seed: int
    draws_per_scale: int | None = None
    draw_regions: DrawRegions | None = None
    augmentation: Augmentation | None = None

    def plan(self, index: int, draw: int) -> ImageMeta:
        """Return how the sample will be made, without reading the image."""
        return self._plan(self.records[index], draw)

    def _plan(self, record: ImageRecord, draw: int) -> ImageMeta:
        window, size = None, (record.height, record.width)
        rng = np.random.default_rng((self.seed, draw))
        if self.augmentation is not None:
            window_rng = np.random.default_rng((self.seed, draw, _WINDOW_STREAM))
            window = self.augmentation.window(size, record.targets, window_rng)
        return self.transform.plan(size, record.image_id, rng, self._scale_rng(draw), window)

    def __call__(self, index: int, draw: int) -> Sample:
        """Return the sample. Raises InputError where the image or its proposals cannot be read."""
        record, augmentation = self.records[index], self.augmentation
        meta = self._plan(record, draw)
        image = open_image(record.path, meta.original_size, meta.full_size)
        fill = BLACK if augmentation is None else augmentation.fill
        sample = make_sample(record, image, self.proposals(record), meta, fill)
        if augmentation is not None:
            sample = augmentation.paint(sample, np.random.default_rng((self.seed, draw, _PAINT_STREAM)))
        if self.draw_regions is None:
            return sample
        drawn = self.draw_regions(sample.rois, sample.targets, region_stream(self.seed, draw))
        return replace(sample, drawn=drawn)

    def _scale_rng(self, draw: int) -> np.random.Generator | None:
        if self.draws_per_scale is None:
            return None
        return np.random.default_rng((self.seed, draw // self.draws_per_scale, _SCALE_STREAM))


@dataclass(frozen=True, eq=False)
class InferenceViews:
    """Makes all views of one image by its index: samples with the same proposals."""

    records: Sequence[ImageRecord]
    proposals: ProposalSource
    transforms: Sequence[ImageTransform]

    def __call__(self, index: int) -> list[Sample]:
        """Return the views. Raises InputError where the image or its proposals cannot be read."""
        record = self.records[index]
        metas = [view.plan((record.height, record.width), record.image_id) for view in self.transforms]
        image = open_image(record.path, (record.height, record.width), metas[0].input_size)
        proposals = self.proposals(record)
        return [make_sample(record, image, proposals, meta) for meta in metas]


class Placing(Protocol):
    """What says where regions lie at a network's feature maps: ``models.detector.RegionDetector``."""

    def place(self, rois: torch.Tensor, roi_levels: torch.Tensor | None) -> torch.Tensor | None: ...
    def cover(
        self, masks: Masks, metas: Sequence[ImageMeta], roi_levels: torch.Tensor | None
    ) -> CellMasks | None: ...


def collate(
    samples: Sequence[Sample],
    *,
    pin: bool = False,
    sizes: Sequence[tuple[int, int]] = (),
    network: Placing | None = None,
) -> Batch:
    """Put N samples into one batch; ``pin`` puts what goes to a GPU into page-locked memory.

    ``network`` gives the levels of the drawn regions, and their masks at these levels' maps; without it they
    are boxes at a single level.

    Images are padded with zeros at the right and bottom, to the largest of them and of ``sizes``, (height,
    width) each, those of images in other parts of the batch. `RegionDetector.inputs` replaces the padding.
    """
    every = [*sizes, *(sample.meta.input_size for sample in samples)]
    height, width = (max(sides) for sides in zip(*every, strict=True))
    images = torch.empty(len(samples), height, width, 3, dtype=torch.uint8, pin_memory=pin)
    for pixels, sample in zip(images.numpy(), samples, strict=True):
        inside = sample.image.shape
        pixels[: inside[0], : inside[1]] = sample.image.numpy()
        pixels[inside[0] :] = 0
        pixels[: inside[0], inside[1] :] = 0
    drawn = [sample.drawn for sample in samples if sample.drawn is not None]
    sampled = SampledRoIs.stack(drawn) if drawn else None
    if sampled is not None and network is not None:
        roi_levels, metas = network.place(sampled.rois, None), [sample.meta for sample in samples]
        masks = covered(list(map(_masks_drawn, samples)), metas, sampled.counts, roi_levels, network)
        sampled = replace(sampled, roi_levels=roi_levels, masks=masks)
    return Batch(
        images=images,
        proposals=[sample.proposals for sample in samples],
        rois_per_image=[sample.rois for sample in samples],
        targets=[sample.targets for sample in samples],
        metas=[sample.meta for sample in samples],
        sampled=sampled.pin_memory() if pin and sampled is not None else sampled,
    )


def covered(
    masks: Sequence[Masks | None],
    metas: Sequence[ImageMeta],
    counts: Sequence[int],
    roi_levels: torch.Tensor | None,
    network: Placing,
) -> CellMasks | None:
    """Return the masks of the RoIs of a batch at the maps of their levels.

    ``counts`` has the number of RoIs of each image, which follow each other, and ``masks`` their masks, None
    for an image whose regions are boxes. None is returned if no image has any, or the network pools boxes.
    """
    if all(own is None for own in masks):
        return None
    levels = [None] * len(metas) if roi_levels is None else roi_levels.split(list(counts))
    parts = []
    for own, meta, count, at in zip(masks, metas, counts, levels, strict=True):
        own = Masks.absent(count, meta.original_size) if own is None else own
        part = network.cover(own, [meta], at)
        if part is None:
            return None
        parts.append(part)
    return CellMasks.join(parts)


def _masks_drawn(sample: Sample) -> Masks | None:
    if sample.proposals.masks is None or sample.drawn is None:
        return None
    return sample.proposals.masks.take(sample.drawn.rows)
