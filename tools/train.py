#!/usr/bin/env python3
"""Train a detector as a config says, score it, and leave everything of the run in one folder."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from detector import cli
from detector.config import Config, load_config
from detector.engine.trainer import StopRequested
from detector.errors import InputError
from detector.progress import note


def main() -> int:
    arguments = parse()
    config = load_config(arguments.config, arguments.overrides)
    folder = Path(arguments.output or f"runs/{Path(arguments.config).stem}")

    from detector.build.resources import use_cores
    from detector.build.tasks import build_task
    from detector.build.training import TrainingRun, find_state

    device = cli.choose_device(arguments.device)
    use_cores(config, device)

    prepare_folder(folder, resume=arguments.resume or bool(arguments.stage), overwrite=arguments.overwrite)
    if config.stages:
        return train_stages(config, folder, arguments, device)
    if arguments.stage:
        raise InputError(f"--stage {arguments.stage}: {arguments.config} has no stages")
    state = find_state(config, folder) if arguments.resume else None
    try:
        task = build_task(config, device, state)
        if arguments.overwrite:
            remove_run(folder)  # not before data and network have been found to be in order
        run = TrainingRun(config, folder, task, state)
        evaluation = run.run()
    except StopRequested as stop:
        note(f"{stop}; go on with --resume")
        return stop.exit_status
    run.task.finish(folder, evaluation, cli.seconds(), run.memory)
    return 0


def train_stages(config: Config, folder: Path, arguments: argparse.Namespace, device: str) -> int:
    """Do the config's stages, or one of them, and score the detector that comes out."""
    from detector.build.proposal_jobs import split_records
    from detector.build.stages import StagedTraining

    if arguments.overwrite:
        split_records(config, None)  # faulty data end here, while the old run is still there
        remove_run(folder)
    training = StagedTraining(config, folder, device)
    try:
        evaluation = training.run(arguments.stage)
    except StopRequested as stop:
        note(f"{stop} of its stage; go on with --resume")
        return stop.exit_status
    if evaluation is not None:
        training.finish(evaluation, cli.seconds())
    return 0


def prepare_folder(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Make the run's folder; never mix two runs in one."""
    holds_run = any((folder / name).exists() for name in ("checkpoints", "log.jsonl", "stages"))
    if holds_run and not (resume or overwrite):
        raise InputError(
            f"{folder}: holds a run already; go on with --resume, start over with --overwrite, or give "
            "another --output"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise InputError(f"{folder}: cannot write the run's folder: {error.strerror}") from None


def remove_run(folder: Path) -> None:
    """Delete what a run leaves, and nothing else that may lie in the folder."""
    for name in ("checkpoints", "tensorboard", "results", "detections", "classified", "stages", "cache"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in ("log.jsonl", "config.yaml", "metrics.json", "run.png"):
        (folder / name).unlink(missing_ok=True)


def parse() -> argparse.Namespace:
    parser = cli.make_parser(
        __doc__ or "",
        "python tools/train.py --config configs/quickstart.yaml --output runs/mine train.steps=500",
    )
    cli.add_config_arguments(parser)
    parser.add_argument("--output", metavar="DIR", help="the run's folder (default: runs/NAME of the config)")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on from the folder's last step_N.pt")
    again.add_argument("--overwrite", action="store_true", help="delete the run in the folder and start over")
    parser.add_argument(
        "--stage", metavar="NAME", help="of a staged config: do this stage alone, or go on with it"
    )
    cli.add_device_argument(parser)
    return parser.parse_intermixed_args()


if __name__ == "__main__":
    cli.run(main)
