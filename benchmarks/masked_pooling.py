"""Times pooling over masks against pooling of boxes, and laying the masks on the map against decoding them.

    python -m benchmarks.masked_pooling [--threads 1] [--rounds 5] [--device cuda]

The masks are random ellipses in an image of 640 x 480 pixels; the map is (1, 512, 38, 50), float32, for an
input of 800 x 600. The last line of each pair is a training step of 128 RoIs: forward and backward.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.paired import compare
from detector.core.cell_masks import CellMasks, cell_masks
from detector.core.masks import Masks
from detector.core.structures import ImageMeta
from detector.models.region_pools import LevelPool, PyramidPooling, RoIAlignPooling, RoIPooling

SIZE = (480, 640)
META = ImageMeta(image_id="", original_size=SIZE, input_size=(600, 800))
POOLS: dict[str, Callable[[str], LevelPool]] = {
    "roi 7": lambda mask: RoIPooling(512, 7, 16, mask=mask),
    "roi_align 7": lambda mask: RoIAlignPooling(512, 7, 16, mask=mask),
    "spp 6 3 2 1": lambda mask: PyramidPooling(512, (6, 3, 2, 1), 16, center=7.5, mask=mask),
}


def ellipses(count: int) -> Masks:
    """Return random ellipses; most are small, as regions are."""
    generator = np.random.default_rng(0)
    y, x = np.ogrid[: SIZE[0], : SIZE[1]]
    parts = []
    for _ in range(count):
        cy, cx = generator.random(2) * SIZE
        ry, rx = generator.exponential((60, 70)) + 4
        inside = ((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 < 1
        if inside.any():
            parts.append(Masks.encode(inside[None]))
    return Masks.join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=1400, help="masks of the image")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(arguments.threads)
    masks = ellipses(arguments.count)
    grid = POOLS["roi_align 7"]("cells").cell_grid(0, lambda _: (38, 50))
    compare(
        f"cell_masks of {len(masks)} masks against decoding",
        lambda: cell_masks(masks, META, grid),
        lambda: [None for _ in masks.dense()],
        arguments.rounds,
    )
    features = torch.randn(1, 512, 38, 50).to(arguments.device, memory_format=torch.channels_last)
    boxes = META.to_input(masks.boxes())
    rois = torch.cat((torch.zeros(len(boxes), 1), boxes), dim=1).to(arguments.device)

    def run(pool: LevelPool, count: int, covered: CellMasks | None, learns: bool) -> None:
        level = features.detach().requires_grad_(learns)
        with torch.set_grad_enabled(learns):
            pooled = pool([level], rois[:count], None, covered)
        if learns:
            pooled.sum().backward()
        if arguments.device != "cpu":
            torch.cuda.synchronize()

    for name, make in POOLS.items():
        for mode in ("cells", "weighted"):
            plain, masked = make("none"), make(mode)
            found = cell_masks(masks, META, masked.cell_grid(0, lambda _: (38, 50))).to(arguments.device)
            for count, learns in ((len(masks), False), (128, True)):
                compare(
                    f"{name} {mode}, {count} RoIs{', forward and backward' if learns else ''}",
                    lambda: run(masked, count, found.select(slice(0, count)), learns),  # noqa: B023
                    lambda: run(plain, count, None, learns),  # noqa: B023
                    arguments.rounds,
                )


if __name__ == "__main__":
    main()
