"""The order of training is a pure function of seed and step."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.core.structures import ImageRecord, Targets
from detector.data.samplers import TrainingBatches, aspect_groups, parts

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
def test_starting_later_equals_skipping(start: int) -> None:
    whole = TrainingBatches(9, 2, 3, groups=[0, 1] * 4 + [0])
    later = TrainingBatches(9, 2, 3, groups=[0, 1] * 4 + [0], start_step=start)
    assert list(islice(later, 12)) == list(islice(whole, start, start + 12))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 7))
def test_processes_and_parts_divide_each_batch_in_its_order(
    world_size: int, per_process: int, size: int, start: int
) -> None:
    batches = TrainingBatches(40, world_size * per_process * size, seed=1, start_step=start)
    streams = [
        list(islice(parts(batches, rank, world_size, per_process), 5 * per_process))
        for rank in range(world_size)
    ]
    for step, whole in enumerate(islice(batches, 5)):
        at = slice(step * per_process, (step + 1) * per_process)
        own = [part for stream in streams for part in stream[at]]
        assert [key for part in own for key in part.keys] == whole
        assert all(part.whole == whole and len(part.keys) == size for part in own)


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
