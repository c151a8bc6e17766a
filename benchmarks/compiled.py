"""Training steps with and without ``train.compile``, in turn, on random images of changing sizes.

    python -m benchmarks.compiled [--device cpu] [--steps 24] [CONFIG ...]

A step is everything but loading: forward, backward, clipping where the config does it, and the optimizer.
Prints, per config, the median times of both, the median ratio of neighbouring steps, the highest difference
of a loss, and the time that compilation took. The default configs are the quick start and SqueezeNet on
BCCD; their data are not needed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from detector.config import Config, load_config
from detector.core.structures import SampledRoIs
from detector.engine.optim import clip_gradients
from detector.factory.model import build_loss, build_model, build_optimizer, compiled

CLASSES = 3
SIZES = (1.0, 1.1, 0.9, 1.05)
"""Factors on the longer side: images of a data set have several proportions."""


def batch(config: Config, number: int, device: str) -> tuple[Tensor, SampledRoIs]:
    """Return random input images (N, 3, H, W) and as many RoIs as a step of the config has."""
    generator = torch.Generator().manual_seed(number)
    side = config.train.scales[0]
    width = min(round(side * 4 / 3 * SIZES[number % len(SIZES)]), config.train.max_size)
    images, each = config.train.images_per_batch, config.train.sampling.rois_per_image
    corners = torch.rand(images * each, 2, generator=generator) * side / 2
    extents = side / 20 + torch.rand(images * each, 2, generator=generator) * side / 3
    rows = torch.arange(images).repeat_interleave(each)[:, None].float()
    sampled = SampledRoIs(
        rois=torch.cat((rows, corners, corners + extents), dim=1),
        labels=torch.randint(0, CLASSES + 1, (images * each,), generator=generator),
        box_targets=torch.randn(images * each, 4, generator=generator),
    )
    return torch.randn(images, 3, side, width, generator=generator).to(device), sampled.to(device)


def stepper(config: Config, device: str, *, compile_it: bool) -> Callable[[Tensor, SampledRoIs], float]:
    """Return a function that does one step and returns its loss, which waits for the device."""
    model = build_model(config, CLASSES).to(device).train()
    network: Any = compiled(model) if compile_it else model
    loss, optimizer = build_loss(config), build_optimizer(config, model)

    def step(images: Tensor, sampled: SampledRoIs) -> float:
        optimizer.zero_grad()
        total = torch.stack(list(loss(network(images, sampled.rois), sampled).values())).sum()
        total.backward()
        if config.train.clip_gradient_norm is not None:
            clip_gradients(optimizer, config.train.clip_gradient_norm)
        optimizer.step()
        return total.item()

    return step


def compare(config: Config, device: str, steps: int) -> str:
    """Time both in turn, in changing order, after every size was seen."""
    both = {name: stepper(config, device, compile_it=name == "compiled") for name in ("eager", "compiled")}
    times: dict[str, list[float]] = {name: [] for name in both}
    losses: dict[str, list[float]] = {name: [] for name in both}
    for number in range(len(SIZES) + steps):
        images, sampled = batch(config, number, device)
        for name in both if number % 2 else reversed(both):
            began = time.perf_counter()
            losses[name].append(both[name](images, sampled))
            times[name].append(time.perf_counter() - began)
    first = sum(times["compiled"][: len(SIZES)]) - sum(times["eager"][: len(SIZES)])
    late = {name: values[len(SIZES) :] for name, values in times.items()}
    ratio = statistics.median(a / b for a, b in zip(late["eager"], late["compiled"], strict=True))
    off = max(abs(a - b) / abs(a) for a, b in zip(losses["eager"], losses["compiled"], strict=True))
    medians = ", ".join(f"{name} {1e3 * statistics.median(values):.1f} ms" for name, values in late.items())
    return f"{medians}, eager / compiled {ratio:.2f}, losses differ by {off:.1e}, compilation {first:.0f} s"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("configs", nargs="*", default=["quickstart", "bccd_squeezenet"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=24)
    arguments = parser.parse_args()
    overrides = ["model.backbone.weights=null", "model.head.dropout=0.0"]
    for name in arguments.configs:
        config = load_config(name, overrides)
        print(f"{name}: {compare(config, arguments.device, arguments.steps)}", flush=True)


if __name__ == "__main__":
    main()
