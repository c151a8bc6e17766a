"""Random calls of the operator on images."""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from detector.ops import normalize_images

SPECIAL = (0.0, -0.0, float("inf"), float("-inf"), 1e-45, 3e38)
MANY = 300  # more images than one launch of the kernel takes
BLOCK = 1024  # pixels that a block of the kernel takes


@dataclass
class ImageCall:
    """One call: ``normalize_images(images, table, sizes, bgr=bgr)``."""

    images: Tensor
    table: Tensor
    sizes: list[tuple[int, int]]
    bgr: bool

    def run(self, images: Tensor, table: Tensor) -> Tensor:
        """Call the operator on tensors of any device."""
        return normalize_images(images, table, self.sizes, bgr=self.bgr)

    def __str__(self) -> str:
        sizes = self.sizes if len(self.sizes) < 10 else f"{len(self.sizes)} sizes"
        offset = self.images.storage_offset()
        return f"normalize_images of {tuple(self.images.shape)} at {offset}, {sizes}, bgr={self.bgr}"


def random_image_call(draw: random.Random, *, big: bool = False) -> ImageCall:
    """Return a call that depends only on ``draw``; ``big`` calls are for a real device."""
    generator = torch.Generator().manual_seed(draw.randrange(2**31))
    count, height, width = _shape(draw, big=big)
    offset = draw.choice((0, 0, 16, draw.randrange(1, 16)))  # where no wide load may begin
    numbers = count * height * width * 3
    memory = torch.randint(256, (offset + numbers,), dtype=torch.uint8, generator=generator)
    images = memory[offset:].view(count, height, width, 3)
    table = torch.randn(3, 256, generator=generator)
    for _ in range(draw.choice((0, 5))):
        table[draw.randrange(3), draw.randrange(256)] = draw.choice(SPECIAL)
    sizes = [(_side(draw, height), _side(draw, width)) for _ in range(count)]
    return ImageCall(images, table, sizes, bgr=draw.random() < 0.5)


def _shape(draw: random.Random, *, big: bool) -> tuple[int, int, int]:
    """Return the number of images and their height and width, of which any may be 0."""
    style = draw.random()
    if style < 0.1:
        return draw.choice((MANY, MANY - 44, 2 * MANY)), draw.randint(1, 3), draw.randint(1, 3)
    if style < 0.2:
        sides = 1, draw.choice((BLOCK - 1, BLOCK, BLOCK + 1))
        return draw.randint(1, 3), *(sides if draw.random() < 0.5 else sides[::-1])
    most = 900 if big else 60
    height, width = (draw.choice((0, 1, 2, 3, *(draw.randint(1, most) for _ in range(8)))) for _ in range(2))
    return draw.choice((0, 1, 1, 2, 2, 3)), height, width


def _side(draw: random.Random, limit: int) -> int:
    return draw.choice((limit, limit, draw.randint(0, limit), max(limit - 1, 0)))
