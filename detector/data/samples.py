"""From records to samples (one image with its proposals and objects), and from samples to batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset

from detector.core.errors import InputError
from detector.core.structures import Batch, ImageRecord, Proposals, ProposalSource, Sample
from detector.data.images import read_image
from detector.data.transforms import ImageTransform

_SCALE_STREAM = 1  # separates the random stream of shared scales from the samples' own streams


def make_sample(
    record: ImageRecord,
    image: np.ndarray,
    proposals: Proposals,
    transform: ImageTransform,
    rng: np.random.Generator | None = None,
    scale_rng: np.random.Generator | None = None,
) -> Sample:
    """Bring one image and its boxes into network-input pixels, for training, evaluation and demo alike.

    ``image`` is (H, W, 3) uint8 RGB. The sample shares no memory with the record: sending it to another
    process could move that memory into shared memory for as long as the record lives.
    """
    pixels, meta = transform(image, record.image_id, rng, scale_rng)
    return Sample(
        image=pixels,
        proposals=proposals,
        rois=meta.to_input(proposals.boxes),
        targets=record.targets.with_boxes(meta.to_input(record.targets.boxes)).clone(),
        meta=meta,
    )


@dataclass(eq=False)
class TrainingDataset(Dataset["Sample | InputError"]):
    """Samples by (index, draw): ``draw`` is the sample's number in the run and seeds its random choices.

    A sample therefore depends on nothing that a worker process remembers, and a resumed run draws the same
    samples. With ``draws_per_scale``, that many consecutive samples, those of a batch or an epoch, share a
    scale. An error about an image is returned instead of a sample: it is raised in the main process, where
    its message stays one clear line.
    """

    records: Sequence[ImageRecord]
    proposals: ProposalSource
    transform: ImageTransform
    seed: int
    draws_per_scale: int | None = None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: tuple[int, int]) -> Sample | InputError:
        index, draw = key
        record = self.records[index]
        rng = np.random.default_rng((self.seed, draw))
        try:
            image = read_image(record.path, (record.height, record.width))
            return make_sample(
                record, image, self.proposals(record), self.transform, rng, self._scale_rng(draw)
            )
        except InputError as error:
            return error

    def _scale_rng(self, draw: int) -> np.random.Generator | None:
        if self.draws_per_scale is None:
            return None
        return np.random.default_rng((self.seed, draw // self.draws_per_scale, _SCALE_STREAM))


@dataclass(eq=False)
class InferenceDataset(Dataset["list[Sample] | InputError"]):
    """Each item is one image in all its views: a list of samples with the same proposals, or an error."""

    records: Sequence[ImageRecord]
    proposals: ProposalSource
    transforms: Sequence[ImageTransform]

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> list[Sample] | InputError:
        record = self.records[index]
        try:
            image = read_image(record.path, (record.height, record.width))
            proposals = self.proposals(record)
        except InputError as error:
            return error
        return [make_sample(record, image, proposals, transform) for transform in self.transforms]


def collate(samples: Sequence[Sample]) -> Batch:
    """Put N samples into one batch; images are padded right and bottom with zeros, the mean colour."""
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
