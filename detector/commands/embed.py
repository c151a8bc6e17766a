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
from detector.core.machine import process_seconds
from detector.core.progress import note, said_once, show

if TYPE_CHECKING:
    from detector.models.detector import RegionDetector
    from detector.staged.region_features import RegionFeatures


def main() -> int:
    arguments = parse()
    with cli.processes(arguments.device) as device:
        report(arguments, embed(arguments, device))
    return 0


def embed(arguments: argparse.Namespace, device: str) -> RegionFeatures:
    """Return the split's features, computed where they are not there yet."""
    from detector.engine.determinism import cuda_algorithms
    from detector.factory.resources import use_cores
    from detector.staged.region_features import embed_named_split

    limits = [f"proposals.top_k_{use}={arguments.top_k}" for use in ("train", "test") if arguments.top_k]
    config = load_config(arguments.config, [*arguments.overrides, *limits])
    split = arguments.split or config.data.train_split
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
        path = checkpoint_file(Path(checkpoint))
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


def checkpoint_file(place: Path) -> Path:
    """Return the checkpoint that ``place``, a run's folder or a file, stands for."""
    if not place.is_dir():
        return place
    best = place / "checkpoints" / "best.pt"
    if not best.is_file():
        raise InputError(f"--checkpoint {place}: the folder has no checkpoints/best.pt; name a checkpoint")
    return best


def report(arguments: argparse.Namespace, features: RegionFeatures) -> None:
    """Print where the features are and how many, as text or as JSON; rank 0 does."""
    outcome: dict[str, Any] = {
        "folder": str(features.folder),
        "key": features.plan.key,
        "images": len(features.images),
        "regions": len(features),
        "width": features.width,
        "seconds": round(process_seconds(), 1),
    }
    if arguments.json:
        show(json.dumps(outcome, indent=2))
        return
    show(
        f"{outcome['regions']} regions of {outcome['images']} images, {outcome['width']} features each: "
        f"{outcome['folder']}"
    )


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
    parser.add_argument(
        "--checkpoint",
        metavar="RUN_OR_FILE",
        help="take the weights of this run's best.pt or of this checkpoint (default: those of the config)",
    )
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
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    cli.add_device_argument(parser)
    return parser.parse_intermixed_args()
