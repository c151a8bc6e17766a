#!/usr/bin/env python3
"""Measures how well a detector is learned from the labels of whole images, beside chance and true boxes.

    python benchmarks/weak_detection.py --seeds 0 1 2

For each seed:

- "image labels" trains ``--weak``, a config with ``task: weak_detection``;
- "pseudo boxes" lets ``tools/pseudo_label.py`` write the best box of each present class, trains an ordinary
  detector, ``--detector``, on them, and scores it with the data set's own annotations;
- "true boxes" trains ``--detector`` on the data set's own annotations.

All of them are scored on the test split. CorLoc is measured on the training images. "chance" is the expected
CorLoc of a region that is drawn at random from the proposals, for each class that is present in an image;
it is computed exactly. One process works at a time; a run that the folder has already is not trained again.
Prints a table and writes all metrics to ``--output``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from detector.config import Config, load_config
from detector.core.boxes import iou
from detector.evaluation.corloc import MIN_IOU
from detector.evaluation.report import write_json
from detector.tasks.start import build_scorer

TOOLS = Path(__file__).resolve().parents[1] / "tools"
METRICS = ("voc07_mAP", "voc_mAP")


def main() -> None:
    arguments = parse()
    folder = Path(arguments.folder)
    metrics: dict[str, list[dict[str, Any]]] = {"image labels": [], "pseudo boxes": [], "true boxes": []}
    for seed in arguments.seeds:
        weak = folder / f"weak_{seed}"
        metrics["image labels"].append(trained(arguments.weak, weak, seed))
        metrics["pseudo boxes"].append(
            on_pseudo_boxes(arguments.weak, arguments.detector, weak, folder, seed)
        )
        metrics["true boxes"].append(trained(arguments.detector, folder / f"supervised_{seed}", seed))
    chance = chance_corloc(load_config(arguments.weak, []))
    write_json(arguments.output, {"chance": chance, "seeds": arguments.seeds, **metrics})
    Console().print(table(metrics, chance["CorLoc"]))


def trained(config: str, folder: Path, seed: int, *changes: str) -> dict[str, Any]:
    """Return the metrics of a run, which is trained unless it is finished already."""
    if not (folder / "metrics.json").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        call("train", "--config", config, "--output", str(folder), f"seed={seed}", *changes)
    return read(folder / "metrics.json")


def on_pseudo_boxes(weak_config: str, config: str, weak: Path, folder: Path, seed: int) -> dict[str, Any]:
    """Return the metrics, by the true annotations, of a detector that is trained on pseudo boxes."""
    pseudo, second = folder / f"pseudo_{seed}", folder / f"second_{seed}"
    split = load_config(weak_config, []).data.train_split
    if not pseudo.exists():
        call("pseudo_label", "--checkpoint", str(weak), "--split", split, "--output", str(pseudo))
    trained(config, second, seed, *read(pseudo / "pseudo_labels.json")["changes"])
    scored = folder / f"second_{seed}.json"
    if not scored.is_file():
        checkpoint = str(second / "checkpoints" / "best.pt")
        call("evaluate", "--config", config, "--checkpoint", checkpoint, "--output", str(scored))
    return read(scored)


def chance_corloc(config: Config) -> dict[str, Any]:
    """Return the expected CorLoc of random regions: per class, and the mean."""
    scorer = build_scorer(config, split=config.data.train_split)
    records, shares = scorer.test_set.records, {name: list[float]() for name in scorer.classes}
    for record in records:
        boxes, targets = scorer.test_set.proposals(record).boxes, record.targets
        for label in (targets.presence(len(scorer.classes)) > 0).nonzero()[:, 0].add(1).tolist():
            own = targets.boxes[(targets.labels == label) & ~targets.crowd]
            hits = (iou(boxes, own) >= MIN_IOU).any(dim=1)
            shares[scorer.classes[label - 1]].append(hits.double().mean().item() if len(boxes) else 0.0)
    per_class = {name: statistics.fmean(values) for name, values in shares.items() if values}
    return {"CorLoc": statistics.fmean(per_class.values()), "per_class": per_class}


def table(metrics: dict[str, list[dict[str, Any]]], chance: float) -> Table:
    """Return a row per kind of training: the mean over the seeds, and the lowest and highest value."""
    shown = Table("trained on", "CorLoc (train)", *METRICS, "of true boxes", title="Weak supervision")
    full = statistics.fmean(one["voc_mAP"] for one in metrics["true boxes"])
    shown.add_row("chance", f"{chance:.3f}", "", "", "")
    for name, runs in metrics.items():
        corloc = spread([run["CorLoc"]["CorLoc"] for run in runs]) if "CorLoc" in runs[0] else ""
        part = statistics.fmean(run["voc_mAP"] for run in runs) / full
        columns = [spread([run[metric] for run in runs]) for metric in METRICS]
        shown.add_row(name, corloc, *columns, f"{part:.0%}")
    return shown


def spread(values: list[float]) -> str:
    return f"{statistics.fmean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def call(tool: str, *arguments: str) -> None:
    subprocess.run([sys.executable, str(TOOLS / f"{tool}.py"), *arguments], check=True)


def read(path: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads(path.read_text())
    return values


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--weak", default="weak_quickstart_squeezenet", help="config with weak_detection")
    parser.add_argument("--detector", default="quickstart", help="config of the detector with boxes")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--folder", default="runs/weak_detection", help="where the runs are")
    parser.add_argument("--output", default="weak_detection.json")
    return parser.parse_args()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
