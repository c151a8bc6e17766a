"""The pooling calls that are timed, ours and those of torchvision that are compared with them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.ops import roi_pool as torchvision_roi_pool

from benchmarks.paired import proposal_rois, uniform_rois
from detector.ops import roi_pool, spp_pool

LEVELS = (6, 3, 2, 1)
STRIDE = 16


@dataclass(frozen=True)
class Size:
    """The size of the calls: channels, cells of the map (height, width), and a divisor for the RoIs."""

    channels: int = 512
    map: tuple[int, int] = (38, 63)
    fewer: int = 1

    @property
    def image(self) -> tuple[int, int]:
        return self.map[0] * STRIDE, self.map[1] * STRIDE


REHEARSAL = Size(channels=8, map=(9, 12), fewer=50)


@dataclass(frozen=True)
class Case:
    """One call; ``target`` is how many times faster than torchvision it should be, None without a target.

    ``what`` is "inference", "training forward" or "backward"; ``pool`` "roi", "max pyramid" or "avg pyramid".
    torchvision has only float32 and no pyramid; for a pyramid it makes four maximum calls and concatenates.
    """

    name: str
    pool: str
    what: str
    rois: int
    dtype: torch.dtype = torch.float32
    target: float | None = None

    @property
    def images(self) -> int:
        return 1 if self.rois == 2000 else 2

    def ours(self, features: Tensor, rois: Tensor) -> Tensor:
        if self.pool == "roi":
            return roi_pool(features, rois, 7, 1 / STRIDE)
        return spp_pool(features, rois, LEVELS, 1 / STRIDE, self.pool.removesuffix(" pyramid"))

    def theirs(self, features: Tensor, rois: Tensor) -> Tensor:
        if self.pool == "roi":
            return torchvision_roi_pool(features, rois, 7, 1 / STRIDE)
        return torch.cat([torchvision_roi_pool(features, rois, n, 1 / STRIDE).flatten(1) for n in LEVELS], 1)

    def bytes(self, features: Tensor, outputs: int) -> int:
        """Return the least number of bytes to move: features, outputs and places of maxima, each once.

        A backward pass reads the gradient and the places and writes the gradient of the features.
        """
        keeps_places = self.what != "inference" and self.pool != "avg pyramid"
        return (features.numel() + outputs) * features.element_size() + 4 * outputs * keeps_places


CASES = (
    Case("forward, float32, 2000 RoIs", "roi", "inference", 2000, target=5),
    Case("forward, bfloat16, 2000 RoIs", "roi", "inference", 2000, torch.bfloat16, target=8),
    Case("forward, float16, 2000 RoIs", "roi", "inference", 2000, torch.float16, target=8),
    Case("forward, float32, 128 RoIs", "roi", "inference", 128, target=2),
    Case("training forward, 512 RoIs", "roi", "training forward", 512, target=3),
    Case("training forward, 128 RoIs", "roi", "training forward", 128, target=1.5),
    Case("backward, 512 RoIs", "roi", "backward", 512, target=1.5),
    Case("backward, 128 RoIs", "roi", "backward", 128, target=1.2),
    Case("maximum pyramid, forward, 2000 RoIs", "max pyramid", "inference", 2000, target=10),
    Case("maximum pyramid, backward, 512 RoIs", "max pyramid", "backward", 512),
    Case("average pyramid, forward, 2000 RoIs", "avg pyramid", "inference", 2000),
    Case("average pyramid, backward, 512 RoIs", "avg pyramid", "backward", 512, target=1),
)


def make_rois(kind: str, case: Case, size: Size, proposals: Path) -> Tensor:
    count = max(case.rois // size.fewer, 2)
    if kind == "uniform":
        return uniform_rois(count, case.images, size.image)
    return proposal_rois(str(proposals), count, case.images, size.image)


def call(case: Case, pool: Callable[[Tensor, Tensor], Tensor], features: Tensor, rois: Tensor,
         grad: Tensor | None) -> Callable[[], Tensor]:  # fmt: skip
    """Return the call to time; ``pool`` is ``case.ours`` or ``case.theirs``.

    ``grad`` is the gradient for a backward pass, in the shape of the pooled features.
    """
    if case.what == "inference":

        def infer() -> Tensor:
            with torch.inference_mode():
                return pool(features, rois)

        return infer
    leaf = features.detach().requires_grad_()
    if case.what == "training forward":
        return lambda: pool(leaf, rois)
    assert grad is not None
    pooled = pool(leaf, rois)
    return lambda: torch.autograd.grad(pooled, leaf, grad.view_as(pooled), retain_graph=True)[0]
