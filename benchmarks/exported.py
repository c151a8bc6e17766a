#!/usr/bin/env python3
"""How fast an exported network is, against the network of the checkpoint on the same image and regions.

    python -m benchmarks.exported --checkpoint runs/quickstart/checkpoints/best.pt
    python -m benchmarks.exported --random fpn --formats onnx openvino --regions 300 --rounds 5

The network is exported as ``tools/export.py`` does it, without post-processing, into a temporary folder, and
loaded again. The checkpoint's network (eager: the predictor up to the scores and boxes of all regions, or the
scores of a classifier) and the exported one then run alternately in this process, and each round begins with
the other one. Printed are medians over the rounds, the median of the ratios, the largest differences of the
outputs, and the size of the files.

``--random`` makes a checkpoint of random weights: a ResNet-18 with RoI pooling, with a feature pyramid and
RoIAlign, with spatial pyramid pooling, or as a classifier. ONNX Runtime and OpenVINO take one thread per core
whatever OMP_NUM_THREADS says, so compare with as many threads of torch.
"""

from __future__ import annotations

from detector.commands import cli  # isort: skip  # before torch, since it sets how threads wait

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.paired import alternate, median_ratio
from detector.commands import export
from detector.config import Config
from detector.config.load import override, parse_config
from detector.core.machine import available_cores
from detector.core.progress import show
from detector.engine.checkpoint import load_checkpoint, save_checkpoint
from detector.engine.inference import RegionPredictor
from detector.export.checks import USUAL, Case, largest_difference, test_image, test_regions
from detector.export.formats import FILES, load, needed, require
from detector.factory.model import build_model, build_predictor
from detector.factory.resources import use_cores

_PYRAMID = {"pool": {"kind": "spp", "levels": [6, 3, 2, 1]}}
KINDS: dict[str, dict[str, Any]] = {
    "resnet18": {"pool": {"kind": "roi", "output_size": 7}},
    "fpn": {"neck": "fpn", "pool": {"kind": "roi_align", "output_size": 7}},
    "spp": _PYRAMID,
    "classification": _PYRAMID,
}
"""Parts of the section ``model`` of each kind of random network."""
CLASSES = 20
NETWORK_FILES = {*FILES.values(), "model.bin"}


def random_config(kind: str, overrides: Sequence[str] = ()) -> Config:
    """Return the config of a ResNet-18 of this kind, a key of `KINDS`, with the usual test scale of 600."""
    values: dict[str, Any] = {
        "data": {"root": "data"},
        "model": {"backbone": {"name": "resnet18"}, "head": {"hidden": [1024, 1024]}, **KINDS[kind]},
        "train": {"steps": 1},
    }
    if kind == "classification":
        values["task"] = kind
    else:
        values["proposals"] = {"method": "dense"}
    return parse_config(override(values, list(overrides)), kind)


def save_random(config: Config, path: Path, classes: int) -> Path:
    """Write a checkpoint with random weights, whose scores and boxes differ from region to region."""
    model, generator = build_model(config, classes), torch.Generator().manual_seed(config.seed)
    with torch.no_grad():
        for name, part in (*model.named_parameters(), *model.named_buffers()):
            if name in ("predictor.cls_score.weight", "predictor.bbox_pred.weight"):
                part.normal_(0, 0.3 if "cls" in name else 0.05, generator=generator)
    names = [chr(ord("a") + number) for number in range(classes)]
    state = {"step": 1, "config": config.model_dump(mode="json"), "classes": names}
    save_checkpoint(path, {**state, "model": model.state_dict()})
    return path


def eager(exporting: export.Export, case: Case) -> Callable[[], list[Tensor]]:
    """Return a call of the checkpoint's network, with the outputs of the exported one."""
    predictor = build_predictor(exporting.config, exporting.model, "cpu")
    view = exporting.batch(case)

    def run() -> list[Tensor]:
        if not isinstance(predictor, RegionPredictor):
            return [predictor([view])]
        found = predictor.regions([view])
        return [found.scores, found.boxes]

    return run


def prepare(checkpoint: dict[str, Any], form: str, overrides: Sequence[str] = ()) -> export.Export:
    """Return the export of a checkpoint with the usual options of ``tools/export.py``."""
    require(*needed(form))
    options = argparse.Namespace(
        format=form,
        postprocess=False,
        selective_search=False,
        score_tolerance=USUAL.scores,
        box_tolerance=USUAL.boxes,
        overrides=list(overrides),
    )
    return export.prepared(checkpoint, options)


def measure(exporting: export.Export, case: Case, rounds: int) -> dict[str, Any]:
    """Export a network, and compare times and outputs with those of the network itself."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        exporting.write(folder)
        size = sum(path.stat().st_size for path in folder.iterdir() if path.name in NETWORK_FILES)
        run = load(exporting.form, folder, exporting.signature)
        inputs, own = exporting.inputs_of(case), eager(exporting, case)
        mine, other = alternate((lambda: run(inputs), own), rounds)
        pairs = zip(exporting.signature.outputs, run(inputs), own(), strict=True)
        differences = {output: largest_difference(found, expected) for output, found, expected in pairs}
    return {
        "format": exporting.form,
        "eager_ms": 1e3 * statistics.median(other),
        "exported_ms": 1e3 * statistics.median(mine),
        "times_as_fast": median_ratio(mine, other),
        "differences": differences,
        "megabytes": size / 1e6,
    }


def run(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Return the rows of all formats, and what they were measured on."""
    path, overrides = arguments.checkpoint, arguments.overrides
    if arguments.random:
        config = random_config(arguments.random, overrides)
        path, overrides = save_random(config, folder / "random.pt", CLASSES), ()
    checkpoint = load_checkpoint(cli.checkpoint_file(Path(path)))
    case = arguments.size, test_image(arguments.size, 0), test_regions(arguments.size, arguments.regions, 0)
    first = prepare(checkpoint, arguments.formats[0], overrides)
    use_cores(first.config, "cpu", loaders=False)
    input_height, input_width = first.batch(case).metas[0].input_size
    return {
        "network": arguments.random or arguments.checkpoint,
        "input": f"{input_height}x{input_width}",
        "regions": None if first.classifies else arguments.regions,
        "rounds": arguments.rounds,
        "torch_threads": torch.get_num_threads(),
        "cores": available_cores(),
        "rows": [
            measure(prepare(checkpoint, form, overrides), case, arguments.rounds)
            for form in arguments.formats
        ],
    }


def lines(found: dict[str, Any]) -> str:
    """Return the results as a table."""
    regions = "no regions" if found["regions"] is None else f"{found['regions']} regions"
    text = [
        f"{found['network']}: input {found['input']}, {regions}, {found['rounds']} rounds, "
        f"{found['torch_threads']} threads of torch, {found['cores']} cores",
        f"{'format':<13} {'eager ms':>9} {'exported ms':>12} {'times as fast':>14} {'MB':>8}  differences",
    ]
    for row in found["rows"]:
        differences = ", ".join(f"{name} {value:.1e}" for name, value in row["differences"].items())
        text.append(
            f"{row['format']:<13} {row['eager_ms']:9.1f} {row['exported_ms']:12.1f} "
            f"{row['times_as_fast']:14.3f} {row['megabytes']:8.2f}  {differences}"
        )
    return "\n".join(text)


def main() -> None:
    arguments = parse()
    with tempfile.TemporaryDirectory() as folder:
        found = run(arguments, Path(folder))
    show(json.dumps(found, indent=2) if arguments.json else lines(found))


def size_of(text: str) -> tuple[int, int]:
    height, width = (int(side) for side in text.split("x"))
    return height, width


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    network = parser.add_mutually_exclusive_group(required=True)
    network.add_argument("--checkpoint", metavar="FILE", help="a checkpoint, or a run: its best.pt")
    network.add_argument(
        "--random", choices=tuple(KINDS), metavar="KIND", help=f"random weights: {', '.join(KINDS)}"
    )
    parser.add_argument(
        "--formats", nargs="+", choices=tuple(FILES), default=list(FILES), help="default: all"
    )
    parser.add_argument("--regions", type=int, default=2000, help="default: %(default)s")
    parser.add_argument(
        "--size",
        type=size_of,
        default="480x640",
        metavar="HxW",
        help="of the image in pixels (default: %(default)s)",
    )
    parser.add_argument("--rounds", type=int, default=11, help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print the results as JSON")
    cli.add_overrides_argument(parser)
    return parser.parse_args()


if __name__ == "__main__":
    cli.run(main)
