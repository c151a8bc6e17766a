"""The paper's table of truncated SVD (Fast R-CNN, figure 2) with VGG16's shapes: time only, random weights.

    python -m benchmarks.compress [--rounds 5] [--rois 2000] [--scale 600]

Times the convolutions, RoI pooling, fc6, fc7 and the rest of one test image, whole and with ranks 1024 (fc6)
and 256 (fc7), in turn and in changing order, and prints medians beside those of the paper, measured on
an Nvidia K40. What can be compared are the ratios.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.paired import seconds, uniform_rois
from detector.core.structures import Embedded
from detector.models.backbones import build_backbone
from detector.models.heads import BoxHead, BoxPredictor
from detector.models.region_pools import RoIPooling

RANKS = (1024, 256)
CHUNK = 1024
PAPER = {
    "whole": {"conv": 146.0, "roi_pool": 17.0, "fc6": 122.0, "fc7": 20.0, "other": 11.0, "total": 320.0},
    "svd": {"conv": 143.0, "roi_pool": 17.0, "fc6": 37.0, "fc7": 4.0, "other": 11.0, "total": 223.0},
}
"""Milliseconds per image; the parts do not sum exactly to the totals, in the paper neither."""
Part = Callable[[], object]


def layers_of(head: BoxHead, name: str) -> nn.Sequential:
    """Return fc6 or fc7, or the two layers in its place, with the ReLU."""
    relu = f"relu{name[-1]}"
    return nn.Sequential(
        *(part for key, part in head.layers.named_children() if key.split("_")[0] in (name, relu))
    )


def in_chunks(layer: Callable[[Tensor], Any], rows: Tensor) -> Part:
    return lambda: [layer(part) for part in rows.split(CHUNK)]


def parts_of(
    head: BoxHead, levels: Tensor, rois: Tensor, image: Tensor, backbone: nn.Module
) -> dict[str, Part]:
    """Return what computes each part of a test image with ``head``."""
    pool, predictor = RoIPooling(512, 7, 16.0), BoxPredictor(4096, 20).eval()
    pooled = torch.rand(len(rois), pool.out_features)
    hidden = torch.rand(len(rois), 4096)
    return {
        "conv": lambda: backbone(image),
        "roi_pool": in_chunks(lambda part: pool([levels], part, None), rois),
        "fc6": in_chunks(layers_of(head, "fc6"), pooled),
        "fc7": in_chunks(layers_of(head, "fc7"), hidden),
        "other": in_chunks(lambda part: predictor(Embedded(part, part)), hidden),
    }


@torch.inference_mode()
def measure(rounds: int, count: int, scale: int) -> dict[str, dict[str, list[float]]]:
    """Return the seconds of every part by kind of head, one per round after the first."""
    torch.manual_seed(0)
    backbone = build_backbone("vgg16", freeze="none").eval().to(memory_format=torch.channels_last)
    size = scale, round(scale * 4 / 3)
    image = torch.randn(1, 3, *size).contiguous(memory_format=torch.channels_last)
    levels, rois = backbone(image), uniform_rois(count, 1, size)
    heads = {"whole": None, "svd": RANKS}
    parts = {
        kind: parts_of(BoxHead(512 * 49, (4096, 4096), 0.5, ranks).eval(), levels, rois, image, backbone)
        for kind, ranks in heads.items()
    }
    taken: dict[str, dict[str, list[float]]] = {kind: {name: [] for name in parts[kind]} for kind in parts}
    for number in range(rounds + 1):
        for name in parts["whole"]:
            for kind in heads if number % 2 else reversed(heads):
                spent = seconds(parts[kind][name])
                taken[kind][name] += [spent] if number else []
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rois", type=int, default=2000)
    parser.add_argument("--scale", type=int, default=600, help="shorter side of the image in pixels")
    arguments = parser.parse_args()
    taken = measure(arguments.rounds, arguments.rois, arguments.scale)
    for times in taken.values():
        times["total"] = [sum(one) for one in zip(*times.values(), strict=True)]
    print(f"{arguments.rois} RoIs, {torch.get_num_threads()} threads; ranks {RANKS}; milliseconds")
    print(f"{'part':<9} {'whole':>9} {'SVD':>9} {'SVD/whole':>10} {'paper':>14} {'SVD/whole':>10}")
    for name in taken["whole"]:
        pairs = zip(taken["svd"][name], taken["whole"][name], strict=True)
        ratio = statistics.median(svd / whole for svd, whole in pairs)
        ours = [1e3 * statistics.median(taken[kind][name]) for kind in ("whole", "svd")]
        paper = PAPER["whole"][name], PAPER["svd"][name]
        print(
            f"{name:<9} {ours[0]:9.1f} {ours[1]:9.1f} {ratio:10.3f} {paper[0]:6.0f} -> {paper[1]:4.0f} "
            f"{paper[1] / paper[0]:10.3f}"
        )


if __name__ == "__main__":
    main()
