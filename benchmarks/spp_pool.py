"""Times detector.ops.spp_pool against four calls of torchvision's roi_pool and a cat, alternating.

    python -m benchmarks.spp_pool [--proposals data/bccd_opencv_fast_proposals.npz]

The map is (1, 512, 38, 50), float32; the grids are 6, 3, 2 and 1 (50 bins).
"""

from __future__ import annotations

import argparse

import torch
from torch import Tensor
from torchvision.ops import roi_pool

from benchmarks.paired import compare, proposal_rois, uniform_rois
from detector.ops import spp_pool

LEVELS = (6, 3, 2, 1)
SIZE = (600, 800)  # of the image, pixels


def four_calls(features: Tensor, rois: Tensor) -> Tensor:
    return torch.cat([roi_pool(features, rois, n, 1 / 16).flatten(1) for n in LEVELS], dim=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--proposals", help=".npz file of proposals to time besides uniform boxes")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    kinds = {"uniform": uniform_rois(2000, 1, SIZE)}
    if arguments.proposals:
        kinds["proposals"] = proposal_rois(arguments.proposals, 2000, 1, SIZE)
    features = torch.randn(1, 512, 38, 50)
    for threads in arguments.threads:
        torch.set_num_threads(threads)
        for kind, rois in kinds.items():
            label = f"2000 RoIs, {kind}, {threads} thread(s)"
            with torch.no_grad():
                compare(
                    f"max, {label}",
                    lambda: spp_pool(features, rois, LEVELS),  # noqa: B023
                    lambda: four_calls(features, rois),  # noqa: B023
                    arguments.rounds,
                )
            learning = features.detach().requires_grad_()
            pooled, expected = spp_pool(learning, rois[:128], LEVELS), four_calls(learning, rois[:128])
            grad = torch.randn_like(pooled)
            compare(
                f"backward, 128 RoIs, {kind}, {threads} thread(s)",
                lambda: torch.autograd.grad(pooled, learning, grad, retain_graph=True),  # noqa: B023
                lambda: torch.autograd.grad(expected, learning, grad, retain_graph=True),  # noqa: B023
                2 * arguments.rounds,
            )


if __name__ == "__main__":
    main()
