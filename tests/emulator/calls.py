"""Random calls of the pooling operators: maps, RoIs and options, both ordinary and hostile."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from detector.core.cell_masks import CellMasks
from detector.ops import roi_pool, spp_pool
from detector.ops.masked_pooling import masked_roi_align, masked_roi_pool, masked_spp_pool

OPERATORS: dict[str, Callable[..., Tensor]] = {
    "roi_pool": roi_pool,
    "spp_pool": spp_pool,
    "masked_roi_pool": masked_roi_pool,
    "masked_spp_pool": masked_spp_pool,
    "masked_roi_align": masked_roi_align,
}

FATAL = (math.nan, math.inf, -math.inf)
HOSTILE = (0.0, -0.0, 0.5, -0.5, 1e-45, 8.0, 24.0, 1e9, -1e9, 2.0**31, -(2.0**31), 3e38, -3e38)
DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
CHANNELS = (0, 1, 2, 3, 4, 8, 16, 31, 32, 33, 63, 64, 65, 83, 96, 128, 130)
LONG = (255, 256, 257)  # beyond 255 cells a side, places within a window no longer fit into a byte
LAYOUTS = (
    "plain",
    "channels last",
    "transposed",
    "channels last, transposed",
    "every second channel",
    "one channel expanded",
    "one image expanded",
    "one cell expanded",
    "some channels of more",
    "some columns of more",
    "a sequence as a map",
)


@dataclass
class Call:
    """One call: ``operator(features, rois, **options)``, with its gradient if ``grad_seed`` is given.

    ``masks`` are given to the operators of masked pooling, a mask for each of ``rois``.
    """

    operator: str
    features: Tensor
    rois: Tensor
    options: dict[str, Any]
    grad_seed: int | None = None
    grad_layout: str = "plain"
    facts: dict[str, Any] = field(default_factory=dict)
    masks: CellMasks | None = None

    def run(self, features: Tensor, rois: Tensor, rows: Tensor | None = None) -> Tensor:
        """Call the operator with its options on tensors of any device; ``rows`` are those of ``rois``."""
        options = self.options
        if self.masks is not None:
            masks = self.masks if rows is None else self.masks.select(rows)
            options = options | {"masks": masks.to(features.device)}
        return OPERATORS[self.operator](features, rois, **options)

    def usable(self) -> Tensor:
        """Return a mask (R,) of the valid RoIs. The CPU refuses the others; on CUDA they give zeros."""
        rois = self.rois
        images = rois[:, 0].trunc()  # -0.5 is image 0
        usable = torch.isfinite(rois).all(1) & (images >= 0) & (images < len(self.features))
        if self.options.get("window") == "cells":
            usable &= (rois[:, 1:] == rois[:, 1:].floor()).all(1)
        return usable

    def gradient(self, shape: torch.Size) -> Tensor:
        """Return a gradient of the output, the same for every backend, in the layout that was drawn."""
        assert self.grad_seed is not None
        generator = torch.Generator().manual_seed(self.grad_seed)
        grad = torch.randn(shape, generator=generator).to(self.features.dtype)
        match self.grad_layout:
            case "one row expanded" if len(grad):
                return grad[:1].expand(shape)
            case "transposed":
                return grad.transpose(0, 1).contiguous().transpose(0, 1)
            case "special numbers":
                chosen = torch.rand(shape, generator=generator) < 0.1
                special = torch.tensor((*FATAL, -0.0), dtype=grad.dtype)
                picks = torch.randint(len(special), shape, generator=generator)
                return torch.where(chosen, special[picks], grad)
        return grad

    def __str__(self) -> str:
        shape, strides = tuple(self.features.shape), self.features.stride()
        return (
            f"{self.operator} of {self.features.dtype} {shape} with strides {strides}, "
            f"{len(self.rois)} RoIs of {self.rois.dtype}, {self.options}, "
            f"gradient {self.grad_layout if self.grad_seed else 'none'}, {self.facts}"
        )


def random_call(draw: random.Random, *, big: bool = False) -> Call:
    """Return a call that depends only on ``draw``; ``big`` calls are for a real device."""
    torch.manual_seed(draw.randrange(2**31))
    features, layout = random_features(draw, big=big)
    scale = draw.choice((1 / 16, 1.0, 0.3, 1 / 8, 1e-6, 1e6))
    rois = random_rois(draw, features, scale, big=big)
    if draw.random() < 0.5:
        operator, options = "roi_pool", random_roi_options(draw, scale)
    else:
        operator, options = "spp_pool", random_spp_options(draw, scale)
    if options.get("window") == "cells" and draw.random() < 0.9:
        rois[:, 1:] = (rois[:, 1:] * scale).round()
    call = Call(operator, features, rois, options, facts={"layout": layout})
    drawn_gradient(draw, call)
    return call


def drawn_gradient(draw: random.Random, call: Call) -> None:
    """Ask for a gradient in most cases."""
    if draw.random() < 0.7:
        call.grad_seed = draw.randrange(2**31)
        call.grad_layout = draw.choice(("plain",) * 5 + ("one row expanded", "transposed", "special numbers"))


def random_features(draw: random.Random, *, big: bool) -> tuple[Tensor, str]:
    """Return a map (N, C, H, W), of which any size may be 0, and the name of its memory layout."""
    images, channels = draw.choice((0, 1, 1, 2, 2, 3)), draw.choice(CHANNELS)
    height, width = (
        draw.choice((0, 1, 1, 2, 3, 5, 7, 9, 12, 13, draw.randint(1, 40 if big else 16))) for _ in range(2)
    )
    if draw.random() < 0.06:
        height, width = draw.choice(LONG), draw.choice((1, 2, 3, *(LONG if big else ())))
        channels = min(channels, 130 if big else 33)
        if draw.random() < 0.5:
            height, width = width, height
    dtype, layout = draw.choice(DTYPES), draw.choice(LAYOUTS)
    features = torch.randn(images, channels, height, width)
    if draw.random() < 0.3:
        features = (features * 2).round() / 2  # ties
    features = arranged(features.to(dtype), layout, draw)
    if draw.random() < 0.25 and features.numel() and "expanded" not in layout:
        chosen = torch.rand(features.shape) < draw.choice((0.05, 0.5, 1.0))
        features[chosen] = draw.choice((*FATAL, -0.0, 0.0, 65504.0, -65504.0, 1e-7))
    return features, layout


def arranged(features: Tensor, layout: str, draw: random.Random) -> Tensor:
    """Return features like ``features`` in the given memory layout; some layouts change the shape."""
    images, channels, height, width = features.shape
    last = torch.channels_last

    def random(*shape: int) -> Tensor:
        return torch.randn(shape).to(features.dtype)

    match layout:
        case "channels last":
            return features.contiguous(memory_format=last)
        case "transposed":
            return features.transpose(2, 3)
        case "channels last, transposed":
            return features.contiguous(memory_format=last).transpose(2, 3)
        case "every second channel":
            return features[:, ::2]
        case "one channel expanded" if channels:
            return features[:, :1].expand(features.shape)
        case "one image expanded" if images:
            return features[:1].expand(features.shape)
        case "one cell expanded" if height and width:
            return features[:, :, :1, :1].contiguous(memory_format=last).expand(features.shape)
        case "some channels of more":  # addresses that no wide load may use
            first = draw.choice((3, 4, 8))
            return random(images, height, width, channels + 8).permute(0, 3, 1, 2)[
                :, first : first + channels
            ]
        case "some columns of more":
            return random(images, height, width + 3, channels).permute(0, 3, 1, 2)[..., 1 : 1 + width]
        case "a sequence as a map":  # strides of an axis of length 1 say nothing
            return random(images, height, channels).permute(0, 2, 1).unsqueeze(draw.choice((2, 3)))
    return features


def random_rois(draw: random.Random, features: Tensor, scale: float, *, big: bool) -> Tensor:
    """Return RoIs (R, 5), most in and around the image, some with hostile numbers or image indices."""
    images, height, width = len(features), features.shape[2] / scale, features.shape[3] / scale
    count = draw.randint(60, 140) if big else draw.choice((0, 1, 2, 3, 5, 8, 31, 33))
    rows = [[_image(draw, images), *_corners(draw, height, width)] for _ in range(count)]
    for row in rows:
        if draw.random() < 0.04:
            hostile = (*FATAL, *HOSTILE, -1.0, float(images), images + 0.5, 1e30)
            row[draw.randrange(5)] = draw.choice(hostile)
    wide = features.dtype == torch.float64 and draw.random() < 0.6
    rois = torch.tensor(rows, dtype=torch.float64 if wide else torch.float32).reshape(-1, 5)
    return rois.repeat_interleave(2, dim=1)[:, ::2] if draw.random() < 0.2 else rois


def _image(draw: random.Random, images: int) -> float:
    index = float(draw.randrange(max(images, 1)))
    return draw.choice((-0.5, index + 0.25, index + 0.75, -0.999)) if draw.random() < 0.05 else index


def _corners(draw: random.Random, height: float, width: float) -> list[float]:
    style = draw.random()
    if style < 0.6:
        left, right = sorted(draw.uniform(-0.2, 1.2) * width for _ in range(2))
        top, bottom = sorted(draw.uniform(-0.2, 1.2) * height for _ in range(2))
        corners = [left, top, right, bottom]
    elif style < 0.75:
        corners = [draw.uniform(-0.3, 1.3) * extent for extent in (width, height, width, height)]
    else:
        corners = [draw.choice((draw.uniform(-50, 250), draw.choice(HOSTILE))) for _ in range(4)]
    if draw.random() < 0.3:  # halves of a cell at stride 16: ties of rounding
        corners = [float(round(corner / 8) * 8) for corner in corners]
    return corners


def random_roi_options(draw: random.Random, scale: float) -> dict[str, Any]:
    sizes = (
        (7, 7),
        (14, 14),
        (1, 1),
        (33, 1),
        (draw.randint(1, 9), draw.randint(1, 9)),
        (draw.randint(1, 9), draw.randint(1, 9)),
        (draw.randint(1, 20), draw.randint(1, 20)),
    )
    bins = draw.choice(("caffe", "exact", "partition"))
    return {"output_size": draw.choice(sizes), "spatial_scale": scale, "bins": bins}


def random_spp_options(draw: random.Random, scale: float) -> dict[str, Any]:
    levels = [draw.randint(1, 7) for _ in range(draw.randint(1, 5))]
    return {
        "levels": draw.choice(([6, 3, 2, 1], levels)),
        "spatial_scale": (scale, scale * draw.choice((1, 1, 2, 0.7))),
        "reduction": draw.choice(("max", "avg")),
        "window": draw.choice(("roi", "spp", "cells")),
        "center": tuple(draw.choice((0.0, draw.uniform(-30, 30), 1e308)) for _ in range(2)),
        "shrink": draw.choice((None, tuple(draw.choice((draw.uniform(-30, 30), 1e308)) for _ in range(2)))),
    }
