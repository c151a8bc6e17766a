"""Compute the features of a split's regions, and keep them on the disk for fast training of classifiers.

Every image goes once through the convolutions. A run that was stopped goes on where it was, and features that
are there already are not computed again: they depend on the weights, the transform and the regions only, and
not on labels. docs/features.md says how to read the arrays."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detector.commands import cli
from detector.config import Config, load_config
from detector.core.errors import InputError
from detector.core.files import file_name_of
from detector.core.machine import process_seconds
from detector.core.progress import note, progress_bar, said_once, show

if TYPE_CHECKING:
    from detector.models.detector import RegionDetector
    from detector.staged.region_features import RegionFeatures


def main() -> int:
    arguments = parse()
    from detector.core.distributed import is_main
    from detector.staged.feature_export import require_exporter

    for form in arguments.to:
        require_exporter(form)
    with cli.processes(arguments.device) as device:
        config, split = configuration(arguments)
        features = embed(arguments, config, split, device)
        if is_main():
            report(arguments, split, features, export_all(arguments, split, features))
    return 0


def configuration(arguments: argparse.Namespace) -> tuple[Config, str]:
    """Return the config with the limits of ``--top-k``, and the split."""
    limits = [f"proposals.top_k_{use}={arguments.top_k}" for use in ("train", "test") if arguments.top_k]
    config = load_config(arguments.config, [*arguments.overrides, *limits])
    return config, arguments.split or config.data.train_split


def embed(arguments: argparse.Namespace, config: Config, split: str, device: str) -> RegionFeatures:
    """Return the split's features, computed where they are not there yet."""
    from detector.engine.determinism import cuda_algorithms
    from detector.factory.resources import use_cores
    from detector.staged.region_features import embed_named_split

    hidden = arguments.features == "hidden"
    use_cores(config, device)
    with cuda_algorithms(device, deterministic=config.train.deterministic):
        with said_once():
            model = network(config, arguments.checkpoint, hidden=hidden).to(device)
        return embed_named_split(config, model, split, Path(arguments.output), device, hidden=hidden)


def network(config: Config, checkpoint: str | None, *, hidden: bool) -> RegionDetector:
    """Return the network whose features are wanted: a checkpoint's, or the one that training starts from."""
    from detector.core.distributed import main_first
    from detector.engine.checkpoint import load_checkpoint
    from detector.factory.data import class_names, ensure_data
    from detector.factory.model import initial_model, restore_model

    if checkpoint is not None:
        path = cli.checkpoint_file(checkpoint)
        return restore_model(config, load_checkpoint(path), str(path))
    if hidden and not config.model.published_head and config.train.initial_weights is None:
        note(
            "warning: --features hidden without trained fully connected layers: these are random; give "
            "--checkpoint, or set model.head.weights"
        )
    with main_first():
        ensure_data(config)
        classes = class_names(config)
    return initial_model(config, classes)


def export_all(arguments: argparse.Namespace, split: str, features: RegionFeatures) -> list[str]:
    """Write the files that ``--to`` asks for, SPLIT.parquet and SPLIT.npz; return their paths."""
    from detector.staged.feature_export import export

    paths = []
    for form in arguments.to:
        path = Path(arguments.output) / file_name_of(f"{split}.{form}")
        with progress_bar(f"writing {path.name}") as advance:
            export(features, path, form, arguments.dtype, advance)
        paths.append(str(path))
    return paths


def report(arguments: argparse.Namespace, split: str, features: RegionFeatures, exported: list[str]) -> None:
    """Print where the features are and how many, as text or as JSON."""
    outcome: dict[str, Any] = {
        "folder": str(features.folder),
        "key": features.plan.key,
        "split": split,
        "images": len(features.images),
        "regions": len(features),
        "width": features.width,
        "exported": exported,
        "seconds": round(process_seconds(), 1),
    }
    if arguments.json:
        show(json.dumps(outcome, indent=2))
        return
    show(
        f"{split}: {outcome['regions']} regions of {outcome['images']} images, {outcome['width']} features "
        f"each: {outcome['folder']}"
    )
    for path in exported:
        show(f"exported: {path}")


def parse() -> argparse.Namespace:
    parser = cli.make_parser(
        __doc__ or "",
        "python tools/embed.py --config quickstart --split train --output runs/features \\\n"
        "      --checkpoint runs/quickstart\n  "
        "torchrun --nproc_per_node 2 tools/embed.py --config quickstart --output runs/features",
    )
    cli.add_config_arguments(parser)
    parser.add_argument("--split", help="split of the data set (default: the config's training split)")
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder in which each set of features has its own"
    )
    what = "where the weights are taken from (default: those of the config): "
    cli.add_checkpoint_argument(parser, what, required=False)
    parser.add_argument(
        "--features",
        choices=("pooled", "hidden"),
        default="pooled",
        help="the region pool's output, or that of the last hidden layer (default: pooled)",
    )
    parser.add_argument(
        "--top-k",
        type=int,
        metavar="N",
        help="at most N regions per image (default: proposals.top_k_train for the training split, "
        "proposals.top_k_test for others)",
    )
    parser.add_argument(
        "--to",
        action="append",
        choices=("parquet", "npz"),
        default=[],
        help="also write SPLIT.parquet or SPLIT.npz into DIR, for other programs; can be given twice",
    )
    parser.add_argument(
        "--dtype",
        choices=("float16", "float32"),
        default="float16",
        help="type of the features in the files of --to (default: float16, as they are stored)",
    )
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    cli.add_device_argument(parser)
    arguments = parser.parse_intermixed_args()
    if arguments.top_k is not None and arguments.top_k < 1:
        raise InputError(f"--top-k {arguments.top_k}: give a number of regions, at least 1")
    return arguments
