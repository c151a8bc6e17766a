#!/usr/bin/env python3
"""Trains a config in several variants, with several seeds each, and compares their metrics.

    python benchmarks/study.py --study augmentation --config bccd_squeezenet --seeds 0 1 2

A study, ``benchmarks/studies/NAME.yaml``, maps the name of each variant to overrides of the config.
Differences are those from its first variant. Each run is one of ``tools/train.py``. Only VALIDATION images
are scored; with ``--final`` the config's own splits are used, and its test split is scored: for what was
chosen before.
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
STUDIES = Path(__file__).resolve().parent / "studies"
VALIDATION = {
    "data/bccd": ["data.train_split=train", "data.test_split=val"],
    # A fifth of the training photographs, since they have no validation split.
    "data/cards": [
        "data.annotations=images/train",
        "data.images=images/train",
        "data.split_ratio={train: 0.8, val: 0.2}",
        "data.test_split=val",
        "train.validation_fraction=0",
    ],
}
"""Overrides by the data set's folder that train on a part of its training images and score the rest."""
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
    variants = read_study(arguments.study)
    if arguments.variants:
        variants = {name: variants[name] for name in arguments.variants}
    jobs = [job for config in arguments.config for job in jobs_of(config, variants, arguments)]
    sources = {json.dumps(job.loaded.proposals.model_dump(mode="json")) + job.config: job for job in jobs}
    for job in sources.values():
        make_proposals(job.loaded)
    results = []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        for result in pool.map(partial(run, device=arguments.device), jobs):
            results.append(result)
            write_json(
                arguments.output, {"study": arguments.study, "steps": arguments.steps, "runs": results}
            )
    for config in arguments.config:
        Console(width=120).print(table(config, [one for one in results if one["config"] == config]))


def read_study(name: str) -> dict[str, list[str]]:
    """Return the overrides of each variant of a study. Raises InputError for an unknown name."""
    path = STUDIES / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(one.stem for one in STUDIES.glob("*.yaml")))
        raise InputError(f"--study {name}: there is none of this name; known: {known}")
    study: dict[str, list[str]] = yaml.safe_load(path.read_text())
    return study


def jobs_of(config: str, variants: dict[str, list[str]], arguments: argparse.Namespace) -> list[Job]:
    """Return the trainings of one config. Raises InputError where its test split would be scored."""
    name, validation = Path(config).stem, VALIDATION.get(load_config(config).data.root, [])
    common = [*([] if arguments.final else validation), *arguments.overrides, "train.draw_images=0"]
    if arguments.steps is not None:
        common += [f"train.steps={arguments.steps}", f"train.checkpoint_every={arguments.steps}"]
    if (
        not arguments.final
        and load_config(config, common).data.test_split == load_config(config).data.test_split
    ):
        raise InputError(
            f"{config}: its test split would be scored; name validation images instead, for instance "
            "data.train_split=train data.test_split=val"
        )
    return [
        Job(config, variant, seed, [*common, *changes, f"seed={seed}"], place / f"seed_{seed}")
        for variant, changes in variants.items()
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
    """Return means and standard deviations over the seeds, and mean differences from the first variant."""
    split, images, first = runs[0]["split"], runs[0]["images"], runs[0]["variant"]
    rows = Table(title=f"{config}: {images} images ({split}), mean ± standard deviation over the seeds")
    rows.add_column("variant")
    for name in ("11-point mAP", "difference", "area mAP", *runs[0]["per_class"]):
        rows.add_column(name, justify="right")
    plain = {one["seed"]: one[METRICS[0]] for one in runs if one["variant"] == first}
    for variant in dict.fromkeys(one["variant"] for one in runs):
        own = [one for one in runs if one["variant"] == variant]
        gains = [one[METRICS[0]] - plain[one["seed"]] for one in own]
        columns = [[one[name] for one in own] for name in METRICS]
        per_class = ([one["per_class"][name] for one in own] for name in own[0]["per_class"])
        rows.add_row(
            variant,
            spread(columns[0]),
            f"{statistics.mean(gains):+.3f}" if variant != first else "",
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
    parser.add_argument("--study", required=True, help="name of a file in benchmarks/studies")
    parser.add_argument("--variants", nargs="+", help="only these variants (default: all)")
    parser.add_argument("--final", action="store_true", help="score the config's own test split")
    parser.add_argument("--config", action="append", required=True, help="can be given several times")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help="steps of each run (default: those of the config)")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at the same time (default 1)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--folder", type=Path, default=Path("runs/study"), help="folder of the runs")
    parser.add_argument("--output", type=Path, default=Path("runs/study/metrics.json"), metavar="JSON")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="replace config values in all runs")
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    try:
        main()
    except InputError as error:
        sys.exit(f"error: {error}")
