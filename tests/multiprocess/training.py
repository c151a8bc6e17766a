"""A training in float64 under ``torchrun``: ``python -m tests.multiprocess.training CONFIG OUTPUT``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from detector.commands import cli
from detector.config import Config, load_config
from detector.tasks.start import build_task, start_run


def double_task(config: Config, device: str, state: dict[str, Any] | None) -> Any:
    """Build the config's task with a network that computes in float64."""
    task = build_task(config, device, state)
    inputs = task.model.inputs
    task.model.double()
    task.model.pixel_values = task.model.pixel_values.float()  # the operator makes float32
    task.model.inputs = lambda *given: inputs(*given).double()  # type: ignore[method-assign]
    return task


def main() -> None:
    config_path, folder = Path(sys.argv[1]), Path(sys.argv[2])
    folder.mkdir(exist_ok=True)
    with cli.processes("cpu") as device:
        start_run(load_config(config_path, sys.argv[3:]), folder, device, make_task=double_task).run()


if __name__ == "__main__":
    cli.run(main)
