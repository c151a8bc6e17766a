#!/usr/bin/env python3
"""Measures what each kind of augmentation brings to a detector that is trained on a few hundred images.

    python benchmarks/augmentation.py --config bccd_squeezenet --config cards_squeezenet --seeds 0 1 2

Trains each config with no augmentation, with each of colour jitter, crops, expanding and cut-out, and with
all of them, once per seed, by ``tools/train.py``. Only VALIDATION images are scored; no test split is read.
Proposals are made once, before the runs, of which ``--jobs`` go on at the same time with one compute thread
each. A run that the folder has already is not trained again; its checkpoints are deleted when it is done.
Prints a table and writes all metrics to ``--output``.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from rich.console import Console
from rich.table import Table

from detector.config import Config, load_config
from detector.core.errors import InputError
from detector.evaluation.report import write_json
from detector.factory import data as data_parts
from detector.factory.proposals import open_proposals
from detector.tasks.resume import changed_settings

TRAIN = Path(__file__).resolve().parents[1] / "tools" / "train.py"
EFFECTS = {
    "colour jitter": "color_jitter={brightness: 0.2, contrast: 0.2, saturation: 0.2, hue: 0.02}",
    "crop": "crop={probability: 0.5, min_scale: 0.5}",
    "expand": "expand={probability: 0.5, max_ratio: 2.0}",
    "cut-out": "cutout={probability: 0.5, count: 2, size: [0.1, 0.25]}",
}
VARIANTS = {
    "none": [],
    **{name: [f"train.augment.{text}"] for name, text in EFFECTS.items()},
    "all": [f"train.augment.{text}" for text in EFFECTS.values()],
}
VALIDATION = {
    "bccd_squeezenet": ["data.train_split=train", "data.test_split=val"],
    # A fifth of the training photographs, since they have no validation split.
    "cards_squeezenet": [
        "data.annotations=images/train",
        "data.images=images/train",
        "data.split_ratio={train: 0.8, val: 0.2}",
        "data.test_split=val",
        "train.validation_fraction=0",
    ],
}
"""Overrides by the name of a config that train on a part of its training images and score the rest."""
METRICS = ("voc07_mAP", "voc_mAP")
FREE = ("data.workers",)
"""Settings that do not change results."""


class Job(NamedTuple):
    """One training: which config and variant, the overrides of the config, and the run's folder."""

    config: str
    variant: str
    seed: int
    overrides: list[str]
    folder: Path

    @property
    def loaded(self) -> Config:
        return load_config(self.config, self.overrides)


def main() -> None:
    arguments = parse()
    jobs = [job for config in arguments.config for job in jobs_of(config, arguments)]
    for config in arguments.config:
        make_proposals(next(job for job in jobs if job.config == config).loaded)
    results = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for result in pool.map(partial(run, device=arguments.device), jobs):
            results.append(result)
            write_json(arguments.output, {"steps": arguments.steps, "runs": results})
    for config in arguments.config:
        Console(width=120).print(table(config, [one for one in results if one["config"] == config]))


def jobs_of(config: str, arguments: argparse.Namespace) -> list[Job]:
    """Return the trainings of one config. Raises InputError where its test split would be scored."""
    name = Path(config).stem
    common = [*VALIDATION.get(name, []), *arguments.overrides, "train.draw_images=0"]
    if arguments.steps is not None:
        common += [f"train.steps={arguments.steps}", f"train.checkpoint_every={arguments.steps}"]
    if load_config(config, common).data.test_split == load_config(config).data.test_split:
        raise InputError(
            f"{config}: its test split would be scored; name validation images instead, for instance "
            "data.train_split=train data.test_split=val"
        )
    return [
        Job(config, variant, seed, [*common, *changes, f"seed={seed}"], place / f"seed_{seed}")
        for variant, changes in VARIANTS.items()
        for place in [arguments.folder / name / variant.replace(" ", "_")]
        for seed in arguments.seeds
    ]


def make_proposals(config: Config) -> None:
    """Make or convert the proposals of both splits, so that the runs only read them."""
    data_parts.ensure_data(config)
    classes = data_parts.class_names(config)
    for split in (config.data.train_split, config.data.test_split):
        open_proposals(config, data_parts.load_split(config, split, classes, training=False).records, split)


def run(job: Job, device: str) -> dict[str, Any]:
    """Train and score one job, unless that is done, and return its metrics.

    Raises:
        InputError: the training failed, or the folder has a run with other settings.
    """
    done = job.folder / "metrics.json"
    if not done.is_file():
        job.folder.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, str(TRAIN), "--config", job.config, "--output", str(job.folder)]
        command += ["--device", device, "--resume", *job.overrides]
        path = os.pathsep.join(filter(None, (str(TRAIN.parents[1]), os.environ.get("PYTHONPATH"))))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
        with (job.folder / "output.txt").open("w") as output:
            ended = subprocess.run(command, stdout=output, stderr=output, env=environment, check=False)
        if ended.returncode:
            raise InputError(f"{' '.join(command)}: failed; see {job.folder / 'output.txt'}")
        shutil.rmtree(job.folder / "checkpoints")
    trained = yaml.safe_load((job.folder / "config.yaml").read_text())
    changes = changed_settings(trained, job.loaded, str(job.folder))
    if changed := sorted(set(changes) - set(FREE)):
        raise InputError(
            f"{job.folder}: trained with another {changed[0]}; give another --folder, or delete this one"
        )
    metrics = json.loads(done.read_text())
    print(f"{job.config} {job.variant} seed {job.seed}: {metrics[METRICS[0]]:.4f}", flush=True)
    classes = {name: row["voc07_AP"] for name, row in metrics["per_class"].items()}
    return {
        **{"config": job.config, "variant": job.variant, "seed": job.seed},
        **{name: metrics[name] for name in (*METRICS, "images", "split")},
        "per_class": classes,
    }


def table(config: str, runs: list[dict[str, Any]]) -> Table:
    """Return the means over the seeds, their standard deviations, and the mean difference from "none"."""
    split, images = runs[0]["split"], runs[0]["images"]
    rows = Table(title=f"{config}: {images} validation images ({split}), mean ± deviation over the seeds")
    rows.add_column("augmentation")
    for name in ("11-point mAP", "difference", "area mAP", *runs[0]["per_class"]):
        rows.add_column(name, justify="right")
    plain = {one["seed"]: one[METRICS[0]] for one in runs if one["variant"] == "none"}
    for variant in VARIANTS:
        own = [one for one in runs if one["variant"] == variant]
        gains = [one[METRICS[0]] - plain[one["seed"]] for one in own]
        columns = [[one[name] for one in own] for name in METRICS]
        per_class = ([one["per_class"][name] for one in own] for name in own[0]["per_class"])
        rows.add_row(
            variant,
            spread(columns[0]),
            f"{statistics.mean(gains):+.3f}" if variant != "none" else "",
            spread(columns[1]),
            *("-" if None in values else f"{statistics.mean(values):.3f}" for values in per_class),
        )
    return rows


def spread(values: list[float]) -> str:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.3f} ± {deviation:.3f}"


def parse() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--config", action="append", required=True, help="can be given several times")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="steps of each run (default: those of the config)")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at the same time (default 1)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--folder", type=Path, default=Path("runs/augmentation"), help="folder of the runs")
    parser.add_argument("--output", type=Path, default=Path("runs/augmentation/metrics.json"), metavar="JSON")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="replace config values in all runs")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
