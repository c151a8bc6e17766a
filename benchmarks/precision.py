"""The precisions of a checkpoint on a CPU: headline metric on a split, and time per image against float32.

    python -m benchmarks.precision --checkpoint runs/quickstart/checkpoints/best.pt [--split test]

Every image goes through the network in every precision, in changing order; printed are medians over the
images, and the median of the ratios to float32. The time is that of the predictor: network, decoding and
suppression, without loading and proposals. ``--images`` and config values limit and replace as elsewhere.
"""

from __future__ import annotations

import argparse
import statistics
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from detector.config import Config
from detector.config.load import override, parse_config, parse_stored
from detector.engine.checkpoint import load_checkpoint
from detector.factory.loaders import inference_views
from detector.factory.model import build_predictor, restore_model
from detector.factory.resources import use_cores
from detector.tasks.scoring import headline
from detector.tasks.start import build_scorer

PRECISIONS = ("float32", "bfloat16", "int8")


def in_precision(config: Config, precision: str) -> Config:
    values = override(config.model_dump(mode="json"), [f"test.precision={precision}"])
    return parse_config(values, "the checkpoint")


def measure(config: Config, checkpoint: dict[str, Any], split: str) -> dict[str, tuple[float, list[float]]]:
    """Return the headline metric and the seconds per image of each precision."""
    model = restore_model(config, checkpoint, checkpoint["file"])
    scorer = build_scorer(config, "cpu", classes=checkpoint["classes"], split=split)
    predictors = {name: build_predictor(in_precision(config, name), model, "cpu") for name in PRECISIONS}
    records = scorer.test_set.records
    results: dict[str, dict[str, Any]] = {name: {} for name in PRECISIONS}
    taken: dict[str, list[float]] = {name: [] for name in PRECISIONS}
    with closing(inference_views(config, records, scorer.test_set.proposals)) as views:
        for number, (record, image) in enumerate(zip(records, views, strict=True)):
            for name in PRECISIONS if number % 2 else reversed(PRECISIONS):
                predictors[name](image)  # a first call for an image's size prepares its kernels
                began = time.perf_counter()
                results[name][record.image_id] = predictors[name](image)
                taken[name].append(time.perf_counter() - began)
    scores = {name: headline(config, scorer.compare(results[name]).metrics) for name in PRECISIONS}
    return {name: (scores[name], taken[name]) for name in PRECISIONS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--split")
    parser.add_argument("--images", type=int, help="only so many images, the first of the split")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    arguments = parser.parse_intermixed_args()
    checkpoint = load_checkpoint(Path(arguments.checkpoint))
    limit = [f"test.max_images={arguments.images}"] if arguments.images else []
    config = parse_stored(checkpoint["config"], [*arguments.overrides, *limit], arguments.checkpoint)
    use_cores(config, "cpu")
    found = measure(config, checkpoint, arguments.split or config.data.test_split)
    whole = found["float32"][1]
    print(f"{len(whole)} images, {torch.get_num_threads()} threads, metric {config.test.metric}")
    for name, (score, times) in found.items():
        ratio = statistics.median(one / other for one, other in zip(times, whole, strict=True))
        print(f"{name:<9} {score:.6f}  {1e3 * statistics.median(times):8.2f} ms  {ratio:6.3f} of float32")


if __name__ == "__main__":
    main()
