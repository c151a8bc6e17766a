"""Samples and batches: the same bytes in every process, and errors in workers stay one clear line."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from detector.core.errors import InputError
from detector.core.structures import Batch, ImageMeta, ImageRecord, Normalization, Proposals, Sample, Targets
from detector.data.loader import collate_or_error, load, quiet_worker
from detector.data.samples import InferenceDataset, TrainingDataset, collate
from detector.data.transforms import ImageTransform
from tests.conftest import MakeBoxes

PLAIN = Normalization(mean=(0.0, 0.0, 0.0), deviation=(1.0, 1.0, 1.0), maximum=255.0, bgr=False)
RANDOM = ImageTransform(
    normalization=PLAIN,
    scales=(32, 40, 48),
    max_size=90,
    flip=0.5,
    vertical_flip=0.5,
    scale_jitter=(0.8, 1.2),
)


@pytest.fixture
def records(tmp_path: Path) -> list[ImageRecord]:
    rng = np.random.default_rng(0)
    found = []
    for number in range(5):
        height, width = 40 + number, 60 - number
        path = tmp_path / f"{number}.png"
        cv2.imwrite(str(path), rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
        targets = Targets.make(torch.tensor([[5.0, 5.0, 25.0, 30.0 + number]]), torch.tensor([1]))
        record = ImageRecord(image_id=str(number), path=path, height=height, width=width, targets=targets)
        found.append(record)
    return found


def proposals(record: ImageRecord) -> Proposals:
    return Proposals(boxes=torch.tensor([[0.0, 0.0, record.width, record.height], [3.0, 4.0, 20.0, 21.0]]))


KEYS = [[(0, 0), (1, 1)], [(2, 2), (3, 3)], [(4, 4), (0, 5)], [(1, 6), (2, 7)]]


def batches(records: list[ImageRecord], workers: int) -> list[Batch]:
    loader: DataLoader = DataLoader(
        TrainingDataset(records, proposals, RANDOM, seed=11),
        batch_sampler=KEYS,
        collate_fn=collate_or_error,
        num_workers=workers,
        worker_init_fn=quiet_worker,
    )
    return list(load(loader))


def drawn(dataset: TrainingDataset, draw: int) -> Sample:
    """The first record's sample of a draw."""
    sample = dataset[0, draw]
    assert not isinstance(sample, InputError)
    return sample


def test_workers_do_not_change_a_byte(records: list[ImageRecord]) -> None:
    for alone, helped in zip(batches(records, 0), batches(records, 2), strict=True):
        assert torch.equal(alone.images, helped.images)
        assert torch.equal(alone.rois(), helped.rois())
        assert alone.metas == helped.metas


def test_a_draw_decides_all_that_is_random(records: list[ImageRecord]) -> None:
    dataset = TrainingDataset(records, proposals, RANDOM, seed=11)
    first, again = drawn(dataset, 3), drawn(dataset, 3)
    assert torch.equal(first.image, again.image)
    assert first.meta == again.meta
    sizes = {drawn(dataset, draw).meta.input_size for draw in range(12)}
    assert len(sizes) > 3
    other_seed = TrainingDataset(records, proposals, RANDOM, seed=12)
    assert {drawn(other_seed, draw).meta.input_size for draw in range(12)} != sizes


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_image_in_a_worker_is_one_clean_error(records: list[ImageRecord], workers: int) -> None:
    records[3].path.write_bytes(b"no image")
    with pytest.raises(InputError) as caught:
        batches(records, workers)
    assert str(caught.value) == (
        f"{records[3].path}: not a readable image; replace the file or leave its id out of the split "
        "(tools/check_data.py --fix-list LIST finds all such images, data.leave_out=LIST leaves them out)"
    )


def test_inference_gives_one_sample_a_scale_with_the_same_proposals(records: list[ImageRecord]) -> None:
    transforms = [ImageTransform(normalization=PLAIN, scales=(side,), max_size=200) for side in (40, 80)]
    dataset = InferenceDataset(records, proposals, transforms)
    assert len(dataset) == 5
    samples = dataset[1]
    assert not isinstance(samples, InputError)
    small, large = samples
    assert (small.meta.input_size, large.meta.input_size) == ((40, 58), (80, 115))
    assert torch.equal(small.proposals.boxes, large.proposals.boxes)
    assert torch.equal(small.rois, small.meta.to_input(small.proposals.boxes))
    assert large.rois[0].tolist() == [0, 0, 115, 80]
    records[1].path.unlink()
    assert isinstance(dataset[1], InputError)


def test_consecutive_samples_share_a_scale_as_configured(records: list[ImageRecord]) -> None:
    dataset = TrainingDataset(records, proposals, RANDOM, seed=11, draws_per_scale=4)
    scales = [drawn(dataset, draw).meta.input_size for draw in range(80)]
    groups = [set(scales[start : start + 4]) for start in range(0, 80, 4)]
    assert all(len(group) == 1 for group in groups)
    assert len(set.union(*groups)) > 10  # and each group draws again
    assert scales[7::-1] == [drawn(dataset, draw).meta.input_size for draw in range(7, -1, -1)]
    flips = {drawn(dataset, draw).meta.flipped for draw in range(4)}
    assert flips == {True, False}


def sample(height: int, width: int, boxes: torch.Tensor) -> Sample:
    return Sample(
        image=torch.rand(3, height, width) + 1,
        proposals=Proposals(boxes=boxes),
        rois=boxes * 2,
        targets=Targets.empty(),
        meta=ImageMeta(image_id=f"{height}x{width}", original_size=(9, 9), input_size=(height, width)),
    )


def test_images_are_padded_right_and_bottom_with_zeros(make_boxes: MakeBoxes) -> None:
    samples = [sample(4, 9, make_boxes(3)), sample(7, 5, make_boxes(0)), sample(7, 9, make_boxes(1))]
    batch = collate(samples)
    assert batch.images.shape == (3, 3, 7, 9)
    for image, one in zip(batch.images, samples, strict=True):
        height, width = one.meta.input_size
        assert torch.equal(image[:, :height, :width], one.image)
        assert not image[:, height:].any()
        assert not image[:, :, width:].any()
    assert [meta.image_id for meta in batch.metas] == ["4x9", "7x5", "7x9"]
    assert batch.rois()[:, 0].tolist() == [0, 0, 0, 2]
    assert torch.equal(batch.rois()[:3, 1:], samples[0].rois)


def test_the_first_error_of_a_batch_takes_its_place(make_boxes: MakeBoxes) -> None:
    good, first, second = sample(4, 4, make_boxes(1)), InputError("first"), InputError("second")
    assert collate_or_error([good, first, second]) is first
    batch = collate_or_error([good, good])
    assert not isinstance(batch, InputError)
    assert len(batch) == 2
