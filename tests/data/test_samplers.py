"""The order of training is a pure function of seed and step."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.core.structures import ImageRecord, Targets
from detector.data.samplers import TrainingBatches, aspect_groups

groups = st.lists(st.integers(0, 2), min_size=1, max_size=40)


@settings(max_examples=100, deadline=None)
@given(groups, st.integers(1, 6), st.integers(0, 5))
def test_an_epoch_covers_every_image_in_a_fixed_number_of_batches(
    group_of: list[int], size: int, seed: int
) -> None:
    sampler = TrainingBatches(len(group_of), size, seed, groups=group_of)
    epochs = [sampler.epoch(number) for number in range(3)]
    for batches in epochs:
        assert all(len(batch) == size for batch in batches)
        drawn = Counter(index for batch in batches for index in batch)
        assert set(drawn) == set(range(len(group_of)))
        assert sum(drawn.values()) - len(group_of) < size  # only the last batch is filled up
        mixed = [batch for batch in batches if len({group_of[index] for index in batch}) > 1]
        assert len(mixed) <= len(set(group_of))
    assert len({len(batches) for batches in epochs}) == 1


def test_whole_batches_hold_one_group() -> None:
    group_of = [0] * 8 + [1] * 4
    for batch in TrainingBatches(12, 4, seed=0, groups=group_of).epoch(5):
        assert len({group_of[index] for index in batch}) == 1


def test_epochs_and_seeds_differ() -> None:
    sampler = TrainingBatches(20, 2, seed=0)
    assert sampler.epoch(0) != sampler.epoch(1)
    assert sampler.epoch(0) == TrainingBatches(20, 2, seed=0).epoch(0)
    assert sampler.epoch(0) != TrainingBatches(20, 2, seed=1).epoch(0)


@pytest.mark.parametrize("start", [0, 1, 4, 5, 23])
@pytest.mark.parametrize("world_size", [1, 3])
def test_starting_later_equals_skipping(start: int, world_size: int) -> None:
    whole = TrainingBatches(9, 2, 3, groups=[0, 1] * 4 + [0], world_size=world_size)
    later = TrainingBatches(9, 2, 3, groups=[0, 1] * 4 + [0], world_size=world_size, start_step=start)
    assert list(islice(later, 12)) == list(islice(whole, start, start + 12))


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_partition_the_stream(world_size: int) -> None:
    alone = list(islice(TrainingBatches(11, 2, 0), 12 * world_size))
    streams = [
        list(islice(TrainingBatches(11, 2, 0, rank=rank, world_size=world_size), 12))
        for rank in range(world_size)
    ]
    assert [streams[number % world_size][number // world_size] for number in range(12 * world_size)] == alone


def test_draws_number_the_samples_of_the_run() -> None:
    draws = [draw for batch in islice(TrainingBatches(5, 2, 0), 20) for _, draw in batch]
    assert draws == list(range(40))


def test_one_image_can_fill_a_batch() -> None:
    assert TrainingBatches(1, 3, 0).epoch(0) == [[0, 0, 0]]
    with pytest.raises(ValueError, match="no images"):
        TrainingBatches(0, 3, 0)


def test_portrait_and_landscape_are_groups() -> None:
    records = [
        ImageRecord(image_id="a", path=Path("a"), height=height, width=width, targets=Targets.empty())
        for height, width in [(10, 20), (20, 10), (10, 10)]
    ]
    assert aspect_groups(records) == [0, 1, 0]
