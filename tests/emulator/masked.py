"""Random calls of masked pooling: the maps and RoIs of other calls, with masks that partly miss the map."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch

from detector.core.cell_masks import CellMasks
from detector.ops.masked_pooling import MODES
from tests.emulator.calls import Call, drawn_gradient, random_features, random_rois

FAR = 2**29  # cells


def random_masked_call(draw: random.Random, *, big: bool = False) -> Call:
    """Return a call that depends only on ``draw``; ``big`` calls are for a real device."""
    torch.manual_seed(draw.randrange(2**31))
    features, layout = random_features(draw, big=big)
    scale = draw.choice((1 / 16, 1.0, 0.3, 1 / 8, 1e-6, 1e6))
    rois = random_rois(draw, features, scale, big=big)
    masks = random_masks(draw, len(rois), features.shape[2], features.shape[3])
    operator, options = _random_options(draw)
    options |= {"spatial_scale": scale, "mode": draw.choice(MODES)}
    call = Call(operator, features, rois, options, masks=masks, facts={"layout": layout})
    drawn_gradient(draw, call)
    return call


def _random_options(draw: random.Random) -> tuple[str, dict[str, Any]]:
    size = draw.choice((1, 7, draw.randint(1, 9)))
    match draw.randrange(3):
        case 0:
            return "masked_roi_pool", {"output_size": size}
        case 1:
            return "masked_roi_align", {"output_size": size, "sampling_ratio": draw.choice((0, 0, 1, 2, 5))}
    return "masked_spp_pool", {
        "levels": draw.choice(([6, 3, 2, 1], [draw.randint(1, 7) for _ in range(draw.randint(1, 5))])),
        "window": draw.choice(("roi", "spp")),
        "center": draw.choice((0.0, draw.uniform(-30, 30))),
        "shrink": draw.choice((None, draw.uniform(-30, 30))),
    }


def random_masks(draw: random.Random, count: int, height: int, width: int) -> CellMasks:
    """Return masks for ``count`` RoIs: absent, on the map, beside it, or partly both."""
    windows = []
    for _ in range(count):
        left, right = sorted(draw.randint(-2, width + 2) for _ in range(2))
        top, bottom = sorted(draw.randint(-2, height + 2) for _ in range(2))
        window = draw.choice(((left, top, right, bottom),) * 3 + ((0, 0, width, height),))
        if draw.random() < 0.1:
            far = draw.choice((-FAR, FAR))
            window = (far, top, far + 2, bottom)
        windows.append(window if draw.random() < 0.8 else (0, 0, 0, 0))
    table = torch.tensor(windows, dtype=torch.int64).reshape(-1, 4)
    counts = (table[:, 2:] - table[:, :2]).prod(1)
    offsets = torch.cat((torch.zeros(1, dtype=torch.int64), counts.cumsum(0)))
    chance = np.random.default_rng(draw.randrange(2**31)).random((3, int(offsets[-1])))
    coverage = torch.from_numpy((chance[0] * (chance[1] < draw.choice((0.1, 0.6, 1.0)))).astype(np.float32))
    covered = torch.from_numpy(chance[2] < draw.choice((0.05, 0.5, 1.0)))
    return CellMasks(table, offsets, coverage, covered, torch.zeros(count, dtype=torch.bool))
