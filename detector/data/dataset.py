"""Data sets for the DataLoader: one image, its proposals and its objects at a time."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from detector.core.errors import InputError
from detector.core.structures import ImageRecord, Proposals, ProposalSource, Sample
from detector.data.images import read_image
from detector.data.transforms import ImageTransform

_SCALES = 1  # sets the stream of shared scales apart from the samples' own


def make_sample(
    record: ImageRecord,
    image: np.ndarray,
    proposals: Proposals,
    transform: ImageTransform,
    rng: np.random.Generator | None = None,
    scale_rng: np.random.Generator | None = None,
) -> Sample:
    """Bring one image and its boxes into network-input pixels; training, evaluation and demo alike.

    Nothing of the sample lies in the record's memory: sending it to another process could move that into
    shared memory for as long as the record lives.
    """
    pixels, meta = transform(image, record.image_id, rng, scale_rng)
    return Sample(
        image=pixels,
        proposals=proposals,
        rois=meta.to_input(proposals.boxes),
        targets=record.targets.with_boxes(meta.to_input(record.targets.boxes)).clone(),
        meta=meta,
    )


class TrainingDataset(Dataset["Sample | InputError"]):
    """Samples by (index, draw): ``draw`` is the sample's number in the run and seeds its randomness.

    So a sample depends on nothing that a worker process remembers, and a resumed run draws the same.
    With ``draws_per_scale`` that many samples in a row, those of a batch or an epoch, have one scale.
    """

    def __init__(
        self,
        records: Sequence[ImageRecord],
        proposals: ProposalSource,
        transform: ImageTransform,
        seed: int,
        draws_per_scale: int | None = None,
    ) -> None:
        self.records = records
        self.proposals = proposals
        self.transform = transform
        self.seed = seed
        self.draws_per_scale = draws_per_scale

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
            return error  # raised in the main process, where its message stays one clear line

    def _scale_rng(self, draw: int) -> np.random.Generator | None:
        if self.draws_per_scale is None:
            return None
        return np.random.default_rng((self.seed, draw // self.draws_per_scale, _SCALES))


class InferenceDataset(Dataset["list[Sample] | InputError"]):
    """One image in every view, scales and mirror images: a list of samples, the same proposals in each."""

    def __init__(
        self,
        records: Sequence[ImageRecord],
        proposals: ProposalSource,
        transforms: Sequence[ImageTransform],
    ) -> None:
        self.records = records
        self.proposals = proposals
        self.transforms = transforms

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


def quiet_worker(_worker: int) -> None:
    """Set up a DataLoader worker: one thread each; a signal to the whole group is the main process's.

    On SIGTERM a worker leaves without an error: with one, torch would raise in the middle of a step of the
    main process, which then could not save.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
