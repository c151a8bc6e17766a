"""Batches on a GPU: equal to those on the CPU, whatever later batches do to the memory of earlier ones."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from detector.core.structures import Batch, DrawnRegions, ImageMeta, Proposals, Sample, Targets
from detector.data.loader import load, on_device
from detector.data.samples import collate

pytestmark = pytest.mark.gpu

BATCHES = 40
BUSY = 20_000_000
"""Cycles for which a stream is kept busy, about 10 ms."""
SIZES = ((300, 400), (280, 420))


def samples(number: int) -> list[Sample]:
    """Return two samples whose numbers are all drawn from ``number``."""
    rng = np.random.default_rng(number)

    def boxes(count: int) -> torch.Tensor:
        return torch.from_numpy(rng.uniform(0, 300, (count, 4)).astype(np.float32))

    return [
        Sample(
            image=torch.from_numpy(rng.integers(0, 256, (*size, 3), dtype=np.uint8)),
            proposals=Proposals(boxes=boxes(5)),
            rois=boxes(5),
            targets=Targets.empty(),
            meta=ImageMeta(image_id=f"{number}", original_size=size, input_size=size),
            drawn=DrawnRegions(
                boxes(64), torch.from_numpy(rng.integers(0, 21, 64)), boxes(64), torch.arange(64)
            ),
        )
        for size in SIZES
    ]


def pinned(number: int) -> Batch:
    return collate(samples(number), pin=True)


@dataclass
class CopiedLate:
    """A batch that is copied only after a while, when its page-locked memory has long been freed."""

    batch: Batch

    def to(self, device: torch.device | str) -> CopiedLate:
        torch.cuda._sleep(BUSY)
        return CopiedLate(self.batch.to(device))

    def device_tensors(self) -> list[torch.Tensor]:
        return self.batch.device_tensors()


def places() -> list[list[torch.Tensor]]:
    """Return the GPU's memory for the numbers of all batches; to allocate it later might wait for the GPU."""
    shapes = [(tensor.shape, tensor.dtype) for tensor in pinned(0).device_tensors()]
    return [
        [torch.empty(shape, dtype=dtype, device="cuda") for shape, dtype in shapes] for _ in range(BATCHES)
    ]


def assert_as_on_the_cpu(found: list[list[torch.Tensor]]) -> None:
    for number, tensors in enumerate(found):
        for tensor, expected in zip(tensors, collate(samples(number)).device_tensors(), strict=True):
            assert torch.equal(tensor.cpu(), expected), f"batch {number}"


def test_the_memory_of_a_batch_is_kept_until_a_late_step_has_read_it() -> None:
    """Each batch is read late and dropped early; its memory goes to a later one."""
    found = places()
    with closing(load(range(BATCHES), pinned, 3)) as batches:
        for place, batch in zip(found, on_device(batches, "cuda"), strict=True):
            torch.cuda._sleep(BUSY)
            for copy, tensor in zip(place, batch.device_tensors(), strict=True):
                copy.copy_(tensor)
    assert_as_on_the_cpu(found)


def test_page_locked_memory_is_kept_until_it_has_been_copied() -> None:
    """The threads make the next batches while the copies of earlier ones still wait."""
    found = places()
    with closing(load(range(BATCHES), lambda number: CopiedLate(pinned(number)), 3)) as batches:
        for place, batch in zip(found, on_device(batches, "cuda"), strict=True):
            for copy, tensor in zip(place, batch.device_tensors(), strict=True):
                copy.copy_(tensor)
    assert_as_on_the_cpu(found)


def test_a_batch_is_in_page_locked_memory() -> None:
    assert all(tensor.is_pinned() for tensor in pinned(0).device_tensors())


def test_moving_batches_does_not_wait_for_the_gpu() -> None:
    """The stream that computes is busy for longer than all copies take, and the host is done before it."""
    moving = on_device([pinned(number) for number in range(8)], "cuda")
    first = [next(moving) for _ in range(5)]  # allocates memory, which may wait
    torch.cuda.synchronize()
    del first
    torch.cuda._sleep(100 * BUSY)
    finished = torch.cuda.Event()
    finished.record()
    assert len(list(moving)) == 3
    assert not finished.query()
    torch.cuda.synchronize()
