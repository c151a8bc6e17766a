"""Searches random images with random configurations: no crash, and the boxes are as documented.

    python tests/ops/fuzz_selective_search.py --images 2000

Sizes, contents, configurations, threads and seeds are drawn from one seed. Each image is searched with one
thread and with several, which must agree box by box; nothing else is compared here, the tests do that. The
number of the image is printed with whatever fails; `--first` starts there.
"""

from __future__ import annotations

import argparse
import random

import numpy as np
import torch

from detector.ops import SelectiveSearchConfig, SelectiveSearchResult, selective_search
from detector.ops.selective_search_config import COLOR_SPACES, SIMILARITIES

MAX_SIDE = 160
EXTREME_SHAPES = ((1, 1), (1, 3000), (3000, 1), (2, 2), (7, 900), (900, 7))


def random_image(draw: random.Random) -> np.ndarray:
    """Noise, few levels, one colour, blocks or a gradient: uint8, grey, RGB or with alpha."""
    rng = np.random.default_rng(draw.getrandbits(64))
    height, width = draw.randint(1, MAX_SIDE), draw.randint(1, MAX_SIDE)
    if draw.random() < 0.1:
        height, width = draw.choice(EXTREME_SHAPES)
    shape = (height, width, *draw.choice(((), (1,), (3,), (3,), (4,))))
    image: np.ndarray
    match draw.randrange(5):
        case 0:
            image = rng.integers(0, 256, shape)
        case 1:
            image = rng.integers(0, draw.choice((2, 3)), shape) * draw.choice((1, 85, 127))
        case 2:
            image = np.full(shape, draw.randrange(256))
        case 3:
            block = draw.randint(2, 40)
            coarse = rng.integers(0, 256, (height // block + 1, width // block + 1, *shape[2:]))
            image = coarse.repeat(block, axis=0).repeat(block, axis=1)[:height, :width]
        case _:
            image = np.linspace(0, 255, height * width).reshape(height, width, *(1 for _ in shape[2:]))
            image = image + rng.integers(0, draw.choice((1, 9)), shape)
    return np.clip(image, 0, 255).astype(np.uint8)


def some(draw: random.Random, names: list[str]) -> tuple[str, ...]:
    return tuple(draw.sample(names, draw.randint(1, len(names))))


def random_config(draw: random.Random) -> SelectiveSearchConfig:
    return SelectiveSearchConfig(
        color_spaces=some(draw, list(COLOR_SPACES))[:3],
        scales=tuple(draw.choice((0, 1, 20, 50.5, 150, 750, 1e9)) for _ in range(draw.randint(1, 3))),
        similarities=some(draw, list(SIMILARITIES)),
        sigma=draw.choice((0, 0.005, 0.5, 0.8, 3, 40)),
        min_size=draw.choice((None, 0, 1, 30, 10**6)),
        connectivity=draw.choice((4, 8)),
        diagonal_neighbours=draw.random() < 0.5,
        all_texture_channels=draw.random() < 0.5,
        size_in_thirds=draw.random() < 0.5,
        min_side=draw.choice((0, 1, 2, 20, 250)),
        width=draw.choice((None, None, 1, 40, 333)),
        max_pixels=draw.choice((None, 1, 5000, 1_000_000)),
    )


def check(image: np.ndarray, config: SelectiveSearchConfig, result: SelectiveSearchResult) -> None:
    boxes, scores = result
    height, width = image.shape[:2]
    searched = config.working_size((height, width))
    sides = boxes[:, 2:] - boxes[:, :2]
    scale = torch.tensor([width / searched[1], height / searched[0]])
    assert boxes.shape == (len(scores), 4)
    assert torch.isfinite(boxes).all()
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= torch.tensor([width, height]) * (1 + 1e-6)).all()
    assert (sides >= max(config.min_side, 1) * scale * (1 - 1e-4) - 1e-3).all()
    assert len({tuple(box) for box in boxes.tolist()}) == len(boxes)
    assert (scores[1:] < scores[:-1]).all()
    assert (min(searched) >= config.min_side) == (len(boxes) > 0)


def search_one(number: int, seed: int) -> int:
    draw = random.Random(f"{seed}/{number}")
    image, config = random_image(draw), random_config(draw)
    order = draw.getrandbits(64) - 2**63
    result = selective_search(image, config, seed=order)
    check(image, config, result)
    threads = draw.choice((2, 3, 8))
    again = selective_search(image, config, seed=order, num_threads=threads)
    assert torch.equal(result.boxes, again.boxes), f"{threads} threads differ from one"
    return len(result.boxes)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=2000, help="how many (default 2000)")
    parser.add_argument("--first", type=int, default=0, help="number of the first image (default 0)")
    parser.add_argument("--seed", type=int, default=0, help="of the images and configurations (default 0)")
    arguments = parser.parse_args()
    boxes = 0
    for number in range(arguments.first, arguments.first + arguments.images):
        try:
            boxes += search_one(number, arguments.seed)
        except Exception as error:
            error.add_note(f"image {number}, seed {arguments.seed}")
            raise
    print(f"{arguments.images} images, {boxes} boxes, nothing wrong")


if __name__ == "__main__":
    main()
