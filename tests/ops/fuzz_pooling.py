"""Calls the pooling operators at random with hostile RoIs: no crash, and every error has a clear message.

    python tests/ops/fuzz_pooling.py --calls 100000

Nothing is compared here; the tests do that. Shapes, types, layouts, options and RoIs are drawn from one seed,
which is printed with the call that fails.
"""

from __future__ import annotations

import argparse
import random

import torch
from torch import Tensor

from detector.ops import roi_pool, spp_pool

HOSTILE = (0.0, -0.0, 0.5, -0.5, 1e-45, 8.0, 24.0, 1e9, -1e9, 2.0**31, -(2.0**31), 3e38, -3e38)
FATAL = (float("nan"), float("inf"), float("-inf"))
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def random_features(draw: random.Random) -> Tensor:
    shape = (
        draw.randint(0, 3),
        draw.choice((0, 1, 3, 16, 17, 64, 70)),
        draw.randint(0, 12),
        draw.randint(0, 12),
    )
    features = torch.randn(shape).to(draw.choice(DTYPES))
    match draw.randrange(5):
        case 0:
            features = features.contiguous(memory_format=torch.channels_last)
        case 1:
            features = features.transpose(2, 3)
        case 2:
            features = features[:, ::2]
        case 3 if features.numel():
            features.view(-1)[:: draw.randint(1, 9)] = draw.choice((*FATAL, -0.0))
    return features


def random_rois(draw: random.Random, images: int, dtype: torch.dtype) -> Tensor:
    rows = []
    for _ in range(draw.randint(0, 6)):
        corners = [draw.choice((draw.uniform(-50, 250), draw.choice(HOSTILE))) for _ in range(4)]
        row = [float(draw.randrange(max(images, 1))), *corners]
        if draw.random() < 0.03:
            row[draw.randrange(5)] = draw.choice((*FATAL, *HOSTILE))
        rows.append(row)
    return torch.tensor(rows, dtype=dtype).reshape(-1, 5)


def one_call(draw: random.Random) -> bool:
    """Make one call, in half of the cases with a gradient; return whether it was refused."""
    features = random_features(draw)
    wide = features.dtype == torch.float64 and draw.random() < 0.5
    rois = random_rois(draw, len(features), torch.float64 if wide else torch.float32)
    if draw.random() < 0.5:
        features = features.detach().requires_grad_()
    scale = draw.choice((1 / 16, 1.0, 0.3, 1e-6, 1e6, 1e-310, 1e300))
    try:
        if draw.random() < 0.5:
            size = (draw.randint(1, 9), draw.randint(1, 9))
            pooled = roi_pool(features, rois, size, scale, draw.choice(("caffe", "exact", "partition")))
        else:
            levels = [draw.randint(1, 7) for _ in range(draw.randint(1, 4))]
            window = draw.choice(("roi", "spp", "cells"))
            whole = rois.round() if window == "cells" else rois
            reduction = draw.choice(("max", "avg"))
            center = draw.choice((0.0, draw.uniform(-30, 30), (-1e308, 1e308)))
            shrink = draw.choice((None, draw.uniform(-30, 30), (1e308, 6.5)))
            pooled = spp_pool(features, whole, levels, scale, reduction, window, center, shrink)
        if pooled.requires_grad:
            pooled.sum().backward()
    except RuntimeError as error:
        if "of rois" not in str(error):
            raise
        return True
    return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    refused = 0
    for call in range(arguments.calls):
        seed = f"{arguments.seed}/{call}"
        draw = random.Random(seed)
        torch.manual_seed(call)
        try:
            refused += one_call(draw)
        except BaseException:
            print(f"failed at seed {seed}")
            raise
    print(f"{arguments.calls} calls, {refused} refused with a clear message, no crash")


if __name__ == "__main__":
    main()
