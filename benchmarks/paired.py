"""Times two functions alternately in one process, so that other work on the machine affects both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def alternate(functions: Sequence[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Return the seconds of each function in each of ``rounds``, after one round that is not counted.

    A round calls every function once; the next round calls them in the opposite order.
    """
    taken: list[list[float]] = [[] for _ in functions]
    for number in range(-1, rounds):
        places = range(len(functions))
        for place in places if number % 2 else reversed(places):
            spent = seconds(functions[place])
            taken[place] += [spent] if number >= 0 else []
    return taken


def median_ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return how many times faster ``ours`` is than ``theirs``: the median of the ratios of the rounds."""
    return statistics.median(b / a for a, b in zip(ours, theirs, strict=True))


def compare(name: str, ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> None:
    """Print how many times faster ``ours`` is than ``theirs``, and the best time of each in milliseconds.

    Each round times both once. Two ratios are printed: that of the best times, and the median of the rounds.
    """
    mine, other = alternate((ours, theirs), rounds)
    print(
        f"{name:<58} best {min(other) / min(mine):5.1f}x  median {median_ratio(mine, other):5.1f}x"
        f"  (ours {1e3 * min(mine):.2f} ms, theirs {1e3 * min(other):.2f} ms)",
        flush=True,
    )


def uniform_rois(count: int, images: int, size: tuple[int, int]) -> Tensor:
    """Return RoIs (count, 5) with corners uniformly distributed in an image of ``size`` (height, width)."""
    corners = torch.rand(count, 2, 2) * torch.tensor([size[1], size[0]])
    batch = torch.arange(count)[:, None] % images
    return torch.cat((batch, corners.amin(1), corners.amax(1)), dim=1)


def proposal_rois(path: str, count: int, images: int, size: tuple[int, int]) -> Tensor:
    """Return RoIs (count, 5): boxes from a .npz file of proposals, stretched to ``size`` (height, width).

    If there are fewer boxes than ``count``, they are repeated.
    """
    with np.load(path, allow_pickle=False) as file:
        boxes = torch.from_numpy(np.concatenate([file[name] for name in file.files[:20]])).float()
    extent = boxes.amax(0)[2:]  # one of the proposals is the whole image
    boxes *= torch.tensor([size[1], size[0]]).div(extent).repeat(2)
    order = torch.randperm(len(boxes))
    boxes = boxes[order.repeat(-(-count // len(boxes)))[:count]]
    return torch.cat((torch.arange(count)[:, None] % images, boxes), dim=1)


def copy_bandwidth() -> float:
    """Return the bytes per second, read and written, of a copy that is too large for the caches."""
    source = torch.ones(100_000_000 // 4)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * 100_000_000 / min(seconds(lambda: target.copy_(source)) for _ in range(10))


def fresh_memory(numbers: int) -> float:
    """Return the seconds to write ``numbers`` float32 values to new memory, including page faults."""
    return min(seconds(lambda: torch.empty(numbers).zero_()) for _ in range(10))
