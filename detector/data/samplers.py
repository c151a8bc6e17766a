"""The order in which training sees its images: a pure function of seed and step.

The sampler has no state, so the position in the data order after N steps is N, and a resumed run continues
exactly where the stopped one was.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch

from detector.core.records import Records
from detector.core.structures import ImageRecord


@dataclass(eq=False)
class TrainingBatches:
    """Endless batches of (index, draw), starting at ``start_step``; every image occurs once per epoch.

    Each epoch is a new permutation. With ``groups``, one integer per image, a batch holds images of one
    group, except for the last ones of each group, which share batches so that none is left out. The last
    batch of an epoch is filled with images from the epoch's beginning.
    """

    count: int
    batch_size: int
    seed: int
    groups: Sequence[int] | None = None
    start_step: int = 0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError("cannot draw batches from no images")

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        number = self.start_step
        known, batches = -1, self.epoch(0)
        while True:
            epoch, place = divmod(number, len(batches))  # every epoch has the same number of batches
            if epoch != known:
                known, batches = epoch, self.epoch(epoch)
            yield [(index, number * self.batch_size + at) for at, index in enumerate(batches[place])]
            number += 1

    def epoch(self, epoch: int) -> list[list[int]]:
        """Return the batches of indices of one epoch, in order."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order = torch.randperm(self.count, generator=generator)
        whole: list[list[int]] = []
        rest: list[int] = []
        groups = torch.zeros(self.count) if self.groups is None else torch.tensor(self.groups)
        for group in groups.unique().tolist():
            members = order[groups[order] == group].tolist()
            end = len(members) - len(members) % self.batch_size
            whole += [members[at : at + self.batch_size] for at in range(0, end, self.batch_size)]
            rest += members[end:]
        while len(rest) % self.batch_size:
            rest.append(int(order[len(rest) % self.count]))
        whole += [rest[at : at + self.batch_size] for at in range(0, len(rest), self.batch_size)]
        return [whole[at] for at in torch.randperm(len(whole), generator=generator).tolist()]


@dataclass(frozen=True)
class Part:
    """What a process computes at a time, ``keys``, of the ``whole`` images of a step: (index, draw) each."""

    keys: list[tuple[int, int]]
    whole: list[tuple[int, int]]


def parts(
    batches: Iterable[list[tuple[int, int]]], rank: int, world_size: int, per_process: int
) -> Iterator[Part]:
    """Yield the parts of ``batches`` of process ``rank``, ``per_process`` for each batch.

    The images of a batch are divided in their order: first among the ``world_size`` processes, then into
    the parts of each. Their number must be a multiple of ``world_size * per_process``.
    """
    for whole in batches:
        size = len(whole) // (world_size * per_process)
        for part in range(rank * per_process, (rank + 1) * per_process):
            yield Part(whole[part * size : (part + 1) * size], whole)


def aspect_groups(records: Sequence[ImageRecord]) -> list[int]:
    """Return 0 for landscape and 1 for portrait images, so that batches waste little on padding."""
    heights, widths = Records.of(records).sizes.T
    return (heights > widths).astype(int).tolist()
