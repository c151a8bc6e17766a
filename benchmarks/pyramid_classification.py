"""Measures what a pyramid and training on several sizes gain for a classifier when layout matters.

    python benchmarks/pyramid_classification.py --seeds 0 1 2 --folder runs/pyramid_classification

Trains ``configs/spp_classifier_arrangements.yaml`` once per variant and seed, and scores each network on the
test images at several sizes. The seed determines the weights and the order of the data; the images are always
the same. A run that the folder has already is not trained again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from detector.config import Config, load_config
from detector.engine.checkpoint import load_checkpoint, numbered_checkpoints
from detector.evaluation.report import write_json
from detector.factory.model import restore_model
from detector.tasks.start import build_scorer, start_run

CONFIG = "configs/spp_classifier_arrangements.yaml"
VARIANTS = {
    "pyramid 1, 2, 4": ["model.pool.levels=[1,2,4]"],
    "single pool 1": ["model.pool.levels=[1]"],
    "pyramid, one size": ["model.pool.levels=[1,2,4]", "train.scales=[128]", "train.scale_jitter=null"],
}
SIZES = (80, 104, 128, 160, 200)
"""Shorter sides of the test images in pixels; those in training are in the config."""


def score(config: Config, folder: Path) -> dict[str, float]:
    """Train unless that is done, and return the 11-point mAP at each size and at the original size."""
    steps = config.train.steps
    assert steps is not None, f"{CONFIG} says no train.steps"
    done = numbered_checkpoints(folder / "checkpoints")
    if not done or int(done[-1].stem.removeprefix("step_")) < steps:
        folder.mkdir(parents=True, exist_ok=True)
        start_run(config, folder, "cpu", resume=True).run()
    checkpoint = load_checkpoint(numbered_checkpoints(folder / "checkpoints")[-1])
    model = restore_model(config, checkpoint, str(folder))
    changes = {str(size): {"scales": (size,)} for size in SIZES} | {"own": {"resize": "none"}}
    metrics = {}
    for name, change in changes.items():
        at_size = config.model_copy(update={"test": config.test.model_copy(update=change)})
        scorer = build_scorer(at_size, split=config.data.test_split)
        metrics[name] = float(scorer.evaluate(model).metrics["voc07_mAP"])
    return metrics


def table(results: dict[str, list[dict[str, float]]]) -> Table:
    rows = Table(title="11-point mAP, mean and range over the seeds")
    rows.add_column("variant")
    for name in next(iter(results.values()))[0]:
        rows.add_column(name, justify="right")
    for variant, runs in results.items():
        rows.add_row(variant, *(_spread([run[name] for run in runs]) for name in runs[0]))
    return rows


def _spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.3f} ({min(values):.3f}-{max(values):.3f})"


def main() -> None:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", type=Path, default=Path("runs/pyramid_classification"))
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="replace config values")
    arguments = parser.parse_intermixed_args()
    results: dict[str, Any] = {}
    for variant, changes in VARIANTS.items():
        for seed in arguments.seeds:
            config = load_config(CONFIG, [*arguments.overrides, *changes, f"seed={seed}"])
            folder = arguments.folder / f"{variant.replace(' ', '_').replace(',', '')}_seed_{seed}"
            results.setdefault(variant, []).append(score(config, folder))
            print(json.dumps({"variant": variant, "seed": seed, **results[variant][-1]}), flush=True)
    write_json(arguments.folder / "metrics.json", results)
    Console(width=140).print(table(results))


if __name__ == "__main__":
    main()
