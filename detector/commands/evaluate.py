"""Score a checkpoint on a split of its data set, or score existing result files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from detector.commands import cli
from detector.config import Config, load_config
from detector.core.errors import InputError
from detector.core.files import file_name_of
from detector.core.machine import process_seconds
from detector.core.progress import note, said_once, show
from detector.evaluation.region_scores import check_name
from detector.evaluation.report import metrics_shown, write_json


def main() -> int:
    arguments = parse()
    if arguments.detections:
        cli.require_one_process("--detections")
        report(arguments, score_files(arguments))
        return 0
    with cli.processes(arguments.device) as device:
        report(arguments, score_given(arguments, device))
    return 0


def report(arguments: argparse.Namespace, metrics: dict[str, Any]) -> None:
    """Print the metrics, and write them where the user wants them; rank 0 does both."""
    from detector.core.distributed import is_main

    if not is_main():
        return
    show(metrics_shown(metrics))
    if arguments.detections:
        name = "AP" if arguments.metric == "coco" else f"{arguments.metric}_mAP"
        show(f"{name} {metrics[name]:.6f}")
    if arguments.output:
        write_json(arguments.output, metrics)


def score_given(arguments: argparse.Namespace, device: str) -> dict[str, Any]:
    """Score the checkpoint; results go into a folder for this checkpoint and split.

    Several processes share the images, and only rank 0 writes.
    """
    from detector.core.distributed import is_main
    from detector.engine.checkpoint import load_checkpoint
    from detector.factory.resources import use_cores

    metric = [f"test.metric={arguments.metric}"] if arguments.metric else []
    own = [*arguments.overrides, *metric, *cli.precision_override(arguments)]
    config = load_config(arguments.config, own)
    place = cli.checkpoint_file(arguments.checkpoint)
    checkpoint = load_checkpoint(place)
    split = arguments.split or config.data.test_split
    use_cores(config, device)
    folder = results_folder(place, arguments.output, split, checkpoint["step"])
    save_scores = None if arguments.save_scores is None else Path(arguments.save_scores)
    if save_scores is not None and config.task == "classification":
        raise InputError(
            "--save-scores: task: classification scores whole images; there are no regions to save"
        )
    metrics = score_checkpoint(config, checkpoint, str(place), split, folder, device, save_scores=save_scores)
    if save_scores is not None and is_main():
        note(f"wrote all scores of all regions to {save_scores}")
    metrics = {**metrics, "seconds": round(process_seconds(), 1), "step": checkpoint["step"]}
    if is_main():
        write_json(folder / "metrics.json", metrics)
    return metrics


def score_checkpoint(
    config: Config,
    checkpoint: dict[str, Any],
    source: str,
    split: str,
    folder: Path,
    device: str,
    *,
    save_scores: Path | None = None,
) -> dict[str, Any]:
    """Return the metrics of a checkpoint read from ``source``; write result files and pictures to ``folder``.

    ``save_scores`` names a file for all scores of all regions (`detector.evaluation.region_scores`).

    Raises:
        InputError: a checkpoint of another network, task or classes than the config's, or missing data.
    """
    from detector.core.distributed import is_main
    from detector.engine.determinism import cuda_algorithms
    from detector.engine.memory import peak_memory
    from detector.factory.model import restore_model
    from detector.tasks.start import build_scorer

    with cuda_algorithms(device, deterministic=config.train.deterministic):
        model = restore_model(config, checkpoint, source).to(device)
        with said_once():
            scorer = build_scorer(config, device, classes=checkpoint["classes"], split=split)
        evaluation = scorer.evaluate(model, save_scores=save_scores)
    if is_main():
        scorer.write_results(folder, evaluation)
    return {**evaluation.at_threshold(checkpoint.get("score_threshold")).metrics, **peak_memory(device)}


def results_folder(checkpoint: Path, output: str | None, split: str, step: int) -> Path:
    """Return a folder that only holds results of this checkpoint on this split.

    It is in a folder named like --output, or in the checkpoint's run.
    """
    stem = checkpoint.stem if checkpoint.stem == f"step_{step}" else f"{checkpoint.stem}_step_{step}"
    name = f"evaluation_{file_name_of(split)}_{stem}"
    if output:
        return Path(output).with_suffix("") / name
    in_run = checkpoint.parent.name == "checkpoints"
    return (checkpoint.parent.parent if in_run else checkpoint.parent) / name


def score_files(arguments: argparse.Namespace) -> dict[str, Any]:
    """Score result files against annotations, for which no image, network or compiled code is needed."""
    from detector.commands.file_scoring import score_detections

    detections, annotations = Path(arguments.detections), Path(arguments.annotations)
    for option, path in (("--detections", detections), ("--annotations", annotations)):
        if not path.exists():
            raise InputError(f"{option} {path} does not exist")
    split = arguments.split or "test"
    metrics = score_detections(detections, annotations, arguments.metric, split, arguments.iou)
    if arguments.metric == "coco":
        return metrics
    return {**metrics, "metric": arguments.metric, "iou_threshold": arguments.iou, "split": split}


def parse() -> argparse.Namespace:
    parser = cli.make_parser(
        __doc__ or "",
        "python tools/evaluate.py --config quickstart "
        "--checkpoint runs/quickstart/checkpoints/best.pt\n  "
        "python tools/evaluate.py --detections results/ --annotations data/VOC2007 --metric voc07\n  "
        "python tools/evaluate.py --detections results.json --annotations instances.json --metric coco",
    )
    cli.add_config_arguments(parser, required=False)
    cli.add_checkpoint_argument(parser, required=False)
    parser.add_argument("--split", help="split to score (default: the config's test split, or test)")
    parser.add_argument(
        "--output",
        metavar="FILE.json",
        help="write the metrics there too, and result files into a folder FILE",
    )
    parser.add_argument(
        "--save-scores",
        metavar="FILE.npz",
        help="write all class scores of all regions there too, before threshold and suppression, with the "
        "regions and their refined boxes; numpy.load reads one image at a time (docs/multilabel.md)",
    )
    parser.add_argument(
        "--detections",
        metavar="PLACE",
        help="score the comp4_det_SPLIT_CLASS.txt files in this folder, or this COCO results.json",
    )
    parser.add_argument(
        "--annotations",
        metavar="PLACE",
        help="what they are scored against: a root in VOC layout, or a COCO instances.json",
    )
    parser.add_argument(
        "--metric",
        choices=("voc07", "voc", "coco"),
        help="11-point or area AP at one IoU, or COCO's twelve metrics (default: voc07, or the config's)",
    )
    parser.add_argument("--iou", type=float, default=0.5, help="IoU of a correct detection (default 0.5)")
    cli.add_precision_argument(parser)
    cli.add_device_argument(parser)
    arguments = parser.parse_intermixed_args()
    if arguments.detections and not arguments.annotations:
        raise InputError("--detections needs --annotations, the data set that they are scored against")
    if not arguments.detections and not (arguments.config and arguments.checkpoint):
        raise InputError("give --config and --checkpoint, or --detections and --annotations")
    if arguments.detections:
        arguments.metric = arguments.metric or "voc07"
    if arguments.save_scores is not None:
        if arguments.detections:
            raise InputError("--save-scores needs a checkpoint; result files hold detections only")
        check_name("--save-scores", Path(arguments.save_scores))
    if arguments.output and Path(arguments.output).suffix.lower() != ".json":
        raise InputError(f"--output {arguments.output}: name a .json file")
    if not 0 < arguments.iou <= 1:
        raise InputError(f"--iou {arguments.iou:g}: expected a number above 0 and at most 1")
    return arguments
