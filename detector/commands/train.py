"""Train a detector as a config says, score it, and leave everything of the run in one folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from detector.commands import cli
from detector.config import Config, load_config, require_stage
from detector.core.errors import InputError
from detector.core.machine import process_seconds
from detector.core.progress import note
from detector.engine.run_folder import run_folder
from detector.engine.trainer import StopRequested


def main() -> int:
    arguments = parse()
    config = load_config(arguments.config, arguments.overrides)
    if arguments.stage:
        require_stage(config, arguments.stage)
    folder = Path(arguments.output or f"runs/{Path(arguments.config).stem}")
    go_on = arguments.resume or bool(arguments.stage)
    try:
        with run_folder(folder, go_on=go_on, overwrite=arguments.overwrite):
            return (
                train_stages(config, folder, arguments) if config.stages else train(config, folder, arguments)
            )
    except StopRequested as stop:
        note(f"{stop}{' of its stage' if config.stages else ''}; go on with --resume")
        return stop.exit_status


def train(config: Config, folder: Path, arguments: argparse.Namespace) -> int:
    """Do a run, from the start or from its last checkpoint, and score the detector that comes out."""
    from detector.factory.resources import choose_device, use_cores
    from detector.tasks.base import build_task
    from detector.tasks.ending import report_end
    from detector.tasks.training import TrainingRun, find_state

    accept = arguments.accept_changed_data
    device = choose_device(arguments.device)
    use_cores(config, device)
    state = find_state(config, folder, accept_changed_data=accept) if arguments.resume else None
    task = build_task(config, device, state)
    if arguments.overwrite:
        start_over(folder)  # not before data and network have been found to be in order
    run = TrainingRun(config, folder, task, state, loading=process_seconds())
    evaluation = run.run()
    run.task.finish(folder, evaluation, run.seconds(), run.memory)
    report_end(folder, folder / "checkpoints" / "best.pt", task.device)
    return 0


def train_stages(config: Config, folder: Path, arguments: argparse.Namespace) -> int:
    """Do the config's stages, or one of them, and score the detector that comes out."""
    from detector.commands.proposal_jobs import split_records
    from detector.factory.resources import choose_device, use_cores
    from detector.staged.runner import StagedTraining
    from detector.tasks.ending import report_end

    device, accept = choose_device(arguments.device), arguments.accept_changed_data
    use_cores(config, device)
    training = StagedTraining(config, folder, device, accept_changed_data=accept)
    if arguments.overwrite:
        training.check_start(overwrite=True)
        split_records(config, None)  # faulty data end here, while the old run is still there
        start_over(folder)
    evaluation = training.run(arguments.stage)
    if evaluation is not None:
        report_end(folder, training.finish(evaluation), device)
    return 0


def start_over(folder: Path) -> None:
    """Delete the run in ``folder``, and say what is there that no run wrote."""
    from detector.engine.run_files import remove_run

    kept = remove_run(folder)
    if kept:
        note(
            f"{folder}: {len(kept)} files that the earlier run is not known to have written stay, "
            f"such as {kept[0]}"
        )


def parse() -> argparse.Namespace:
    parser = cli.make_parser(
        __doc__ or "",
        "python tools/train.py --config configs/quickstart.yaml --output runs/mine train.steps=500",
    )
    cli.add_config_arguments(parser)
    parser.add_argument("--output", metavar="DIR", help="the run's folder (default: runs/NAME of the config)")
    again = parser.add_mutually_exclusive_group()
    again.add_argument("--resume", action="store_true", help="go on from the folder's last sound step_N.pt")
    again.add_argument("--overwrite", action="store_true", help="delete the run in the folder and start over")
    parser.add_argument(
        "--accept-changed-data",
        action="store_true",
        help="with --resume: go on although images, annotations or splits have changed since",
    )
    parser.add_argument(
        "--stage", metavar="NAME", help="of a staged config: do this stage alone, or go on with it"
    )
    cli.add_device_argument(parser)
    arguments = parser.parse_intermixed_args()
    if arguments.accept_changed_data and not (arguments.resume or arguments.stage):
        raise InputError("--accept-changed-data belongs to --resume")
    if arguments.overwrite and arguments.stage:
        raise InputError(
            "--overwrite deletes all stages of a run, and --stage does one of them: give only one of the two"
        )
    return arguments
