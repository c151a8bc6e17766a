"""The order in which training sees its images: a pure function of seed and step.

The sampler has no state, so the position in the data order after N steps is N, and a resumed run continues
exactly where the stopped one was.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from detector.core.records import Records
from detector.core.structures import ImageRecord


@dataclass(eq=False)
class TrainingBatches:
    """Endless batches of (index, draw), starting at ``start_step``; every image occurs once per epoch.

    Each epoch is a new permutation. With ``groups``, one integer per image, a batch holds images of one
    group, except for the last ones of each group, which share batches so that none is left out. The last
    batch of an epoch is filled with images from the epoch's beginning. Process ``rank`` of ``world_size``
    takes every ``world_size``-th batch of the common stream, so that no two processes see the same batch.
    """

    count: int
    batch_size: int
    seed: int
    groups: Sequence[int] | None = None
    start_step: int = 0
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError("cannot draw batches from no images")

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        number = self.start_step * self.world_size + self.rank
        known, batches = -1, self.epoch(0)
        while True:
            epoch, place = divmod(number, len(batches))  # every epoch has the same number of batches
            if epoch != known:
                known, batches = epoch, self.epoch(epoch)
            yield [(index, number * self.batch_size + at) for at, index in enumerate(batches[place])]
            number += self.world_size

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


def aspect_groups(records: Sequence[ImageRecord]) -> list[int]:
    """Return 0 for landscape and 1 for portrait images, so that batches waste little on padding."""
    heights, widths = Records.of(records).sizes.T
    return (heights > widths).astype(int).tolist()
