"""Two functions timed against each other: alternating in one process, so that both meet the same machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def compare(name: str, ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> None:
    """Print how many times faster ``ours`` is than ``theirs``: best against best, and the median of ratios.

    A round times each once; ``ours`` is also given its best time, for those who want the absolute.
    """
    ours(), theirs()
    mine, other = zip(*((seconds(ours), seconds(theirs)) for _ in range(rounds)), strict=True)
    ratio = statistics.median(b / a for a, b in zip(mine, other, strict=True))
    print(
        f"{name:<58} best {min(other) / min(mine):5.1f}x  median {ratio:5.1f}x"
        f"  (ours {1e3 * min(mine):.2f} ms, theirs {1e3 * min(other):.2f} ms)",
        flush=True,
    )


def uniform_rois(count: int, images: int, size: tuple[int, int]) -> Tensor:
    """Return (count, 5): both corners of a box uniform in an image of ``size`` (height, width)."""
    corners = torch.rand(count, 2, 2) * torch.tensor([size[1], size[0]])
    batch = torch.arange(count)[:, None] % images
    return torch.cat((batch, corners.amin(1), corners.amax(1)), dim=1)


def proposal_rois(path: str, count: int, images: int, size: tuple[int, int]) -> Tensor:
    """Return (count, 5): boxes of a .npz of selective search's proposals, stretched to ``size``.

    Where there are fewer boxes than ``count``, they come again.
    """
    with np.load(path, allow_pickle=False) as file:
        boxes = torch.from_numpy(np.concatenate([file[name] for name in file.files[:20]])).float()
    extent = boxes.amax(0)[2:]  # some proposal is the whole image
    boxes *= torch.tensor([size[1], size[0]]).div(extent).repeat(2)
    order = torch.randperm(len(boxes))
    boxes = boxes[order.repeat(-(-count // len(boxes)))[:count]]
    return torch.cat((torch.arange(count)[:, None] % images, boxes), dim=1)


def copy_bandwidth() -> float:
    """Return bytes a second, read and written, of a copy too large for the caches, at the set threads."""
    source = torch.ones(100_000_000 // 4)
    target = torch.empty_like(source)
    target.copy_(source)
    return 2 * 100_000_000 / min(seconds(lambda: target.copy_(source)) for _ in range(10))


def fresh_memory(numbers: int) -> float:
    """Return the seconds that writing ``numbers`` float32 to fresh memory costs, page faults included."""
    return min(seconds(lambda: torch.empty(numbers).zero_()) for _ in range(10))
