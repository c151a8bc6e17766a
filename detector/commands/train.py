"""Train a detector as a config describes, evaluate it, and write everything into one folder."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path

from detector.commands import cli
from detector.config import Config, load_config, require_stage
from detector.core.errors import InputError
from detector.core.machine import process_seconds
from detector.core.progress import note, said_once
from detector.engine.run_folder import remove_run, run_folder


def main() -> int:
    arguments = parse()
    config = load_config(arguments.config, arguments.overrides)
    if arguments.stage:
        require_stage(config, arguments.stage)
    folder = Path(arguments.output or f"runs/{Path(arguments.config).stem}")

    from detector.core.distributed import is_main, main_first
    from detector.engine.run import StopRequested
    from detector.factory.resources import use_cores

    try:
        with cli.processes(arguments.device) as device, ExitStack() as held:
            with main_first():  # it holds the folder before the others look into it
                if is_main():
                    go_on = arguments.resume or bool(arguments.stage)
                    held.enter_context(run_folder(folder, go_on=go_on, overwrite=arguments.overwrite))
            use_cores(config, device)
            (train_stages if config.all_stages else train)(config, folder, device, arguments)
    except StopRequested as stop:
        note(f"{stop}{' of its stage' if config.all_stages else ''}; go on with --resume")
        return stop.exit_status
    return 0


def train(config: Config, folder: Path, device: str, arguments: argparse.Namespace) -> None:
    """Do a run, from the start or from its last checkpoint, and report its last evaluation."""
    from detector.core.distributed import is_main
    from detector.tasks.start import start_run

    run = start_run(
        config,
        folder,
        device,
        resume=arguments.resume,
        accept_changed_data=arguments.accept_changed_data,
        loading=process_seconds(),
    )
    if arguments.overwrite and is_main():
        start_over(folder)  # only after the data and the network have been checked
    run.run()
    run.finish()


def train_stages(config: Config, folder: Path, device: str, arguments: argparse.Namespace) -> None:
    """Do the config's stages, or one of them, and report the evaluation of the finished detector."""
    from detector.core.distributed import barrier, is_main
    from detector.factory.data import split_records
    from detector.staged.runner import StagedTraining

    training = StagedTraining(config, folder, device, accept_changed_data=arguments.accept_changed_data)
    if arguments.overwrite:
        with said_once():
            training.check_start(overwrite=True)
            split_records(config)  # faulty data end here, while the old run is still there
        if is_main():
            start_over(folder)
        barrier()
    evaluation = training.run(arguments.stage)
    if evaluation is not None:
        training.finish(evaluation)


def start_over(folder: Path) -> None:
    """Delete the run in ``folder``, and report the files that are kept."""
    kept = remove_run(folder)
    if kept:
        note(
            f"{folder}: {len(kept)} files are kept, since the earlier run is not known to have written them, "
            f"such as {kept[0]}"
        )


def parse() -> argparse.Namespace:
    parser = cli.make_parser(
        __doc__ or "",
        "python tools/train.py --config quickstart --output runs/mine train.steps=500",
    )
    cli.add_config_arguments(parser)
    parser.add_argument("--output", metavar="DIR", help="the run's folder (default: runs/NAME of the config)")
    again = parser.add_mutually_exclusive_group()
    again.add_argument(
        "--resume", action="store_true", help="continue from the folder's last sound step_N.pt"
    )
    again.add_argument("--overwrite", action="store_true", help="delete the run in the folder and start over")
    parser.add_argument(
        "--accept-changed-data",
        action="store_true",
        help="with --resume: go on although images, annotations or splits have changed since",
    )
    parser.add_argument(
        "--stage", metavar="NAME", help="of a staged config: do only this stage, or go on with it"
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
