#!/usr/bin/env python3
"""How long region features take per image, against bare forward passes of the same images.

    python benchmarks/embed.py --config bccd_squeezenet --images 40 --rounds 5 model.pool.output_size=1

A bare pass is ``model.features`` on inputs that are normalised and in memory already. Making region features
includes all that ``tools/embed.py`` does after it has opened data and proposals: hashing the files, reading
and resizing the images, pooling all regions, checksums and writing, forced to the disk. Both use the compute
threads that the tools choose. The rounds alternate in both orders; medians and their ratio are printed, of
the time that has passed and of the CPU's time, on which other work on the machine has less influence.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from detector.commands import cli
from detector.config import Config, load_config
from detector.core.errors import InputError
from detector.core.progress import said_once, show, speak_as
from detector.core.structures import ImageRecord
from detector.factory.data import class_names, split_records
from detector.factory.loaders import inference_views, no_proposals
from detector.factory.model import initial_model
from detector.factory.proposals import open_proposals, stored_proposals
from detector.factory.resources import choose_device, use_cores
from detector.models.detector import RegionDetector
from detector.staged.region_features import embed_split


def main() -> None:
    arguments = parse()
    config = load_config(arguments.config, arguments.overrides)
    device = choose_device(arguments.device)
    use_cores(config, device)
    split = arguments.split or config.data.train_split
    records = list(split_records(config, [split])[split][: arguments.images])
    source = stored_proposals(config, open_proposals(config, records, split), training=True)
    model = initial_model(config, class_names(config)).to(device).eval()
    inputs = inputs_of(config, model, records, device)
    bare(model, inputs, device)  # warms up
    times: dict[str, list[float]] = {"bare": [], "embed": []}
    cpu: dict[str, list[float]] = {"bare": [], "embed": []}
    if arguments.folder is not None:
        Path(arguments.folder).mkdir(parents=True, exist_ok=True)
    place = Path(tempfile.mkdtemp(prefix="embed_", dir=arguments.folder))
    speak_as(1)  # only warnings
    with said_once():
        for number in range(arguments.rounds):
            for name in ("bare", "embed") if number % 2 else ("embed", "bare"):
                started, used = time.perf_counter(), time.process_time()
                if name == "bare":
                    bare(model, inputs, device)
                else:
                    features = embed_split(config, model, records, source, place / str(number), device)
                times[name].append(time.perf_counter() - started)
                cpu[name].append(time.process_time() - used)
                shutil.rmtree(place / str(number), ignore_errors=True)
    shutil.rmtree(place)
    speak_as(0)
    report(times, cpu, len(records), len(features), features.width, device)


def inputs_of(
    config: Config, model: RegionDetector, records: list[ImageRecord], device: str
) -> list[list[torch.Tensor]]:
    """Return the normalised inputs of every image, one per scale."""
    straight = config.model_copy(update={"test": config.test.model_copy(update={"flip": False})})
    with closing(inference_views(straight, records, no_proposals, device)) as images:
        return [[model.inputs(view.to(device).images, view.sizes) for view in views] for views in images]


@torch.inference_mode()
def bare(model: RegionDetector, inputs: list[list[torch.Tensor]], device: str) -> None:
    for views in inputs:
        for view in views:
            model.features(view)
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def report(
    times: dict[str, list[float]],
    cpu: dict[str, list[float]],
    images: int,
    regions: int,
    width: int,
    device: str,
) -> None:
    outcome: dict[str, Any] = {
        "device": device,
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "images": images,
        "regions": regions,
        "width": width,
    }
    for what, seconds in (("wall", times), ("cpu", cpu)):
        ratios = [ours / theirs for ours, theirs in zip(seconds["embed"], seconds["bare"], strict=True)]
        outcome[what] = {
            "ms_per_image": {
                name: round(1000 * statistics.median(values) / images, 2) for name, values in seconds.items()
            },
            "ratio_of_pairs": [round(ratio, 3) for ratio in ratios],
            "median_ratio": round(statistics.median(ratios), 3),
        }
    show(json.dumps(outcome, indent=1))


def parse() -> argparse.Namespace:
    parser = cli.make_parser(__doc__ or "", "python benchmarks/embed.py --config bccd_squeezenet")
    cli.add_config_arguments(parser)
    parser.add_argument("--split", help="split of the data set (default: the training split)")
    parser.add_argument("--images", type=int, default=40, help="the first images of the split (40)")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of measurements (5)")
    parser.add_argument("--folder", help="where the features are written and removed again")
    cli.add_device_argument(parser)
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
