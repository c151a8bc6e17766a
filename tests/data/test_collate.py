"""Samples to batches, and errors out of worker processes."""

from __future__ import annotations

import torch

from detector.core.errors import InputError
from detector.core.structures import ImageMeta, Proposals, Sample, Targets
from detector.data.collate import collate, collate_or_error
from tests.conftest import MakeBoxes


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
