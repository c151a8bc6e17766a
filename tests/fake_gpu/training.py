"""Trains on the fake GPU, in a separate process.

    python -m tests.fake_gpu.training CONFIG FOLDER LIBRARY

Prints a line of JSON, by place in the code: the waits for the device a training step, but for the first two,
and the copies to the device from memory that is not pinned.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tests.fake_gpu import device

WARM_UP = 2  # steps that make what later ones use, such as momentum


def main() -> None:
    config_path, folder, library = map(Path, sys.argv[1:])
    torch.set_num_threads(1)
    torch.ops.load_library(library)
    device.install()
    # Only now: functions decorated with torch.inference_mode() take what it is when they are imported.
    from detector.config import load_config
    from detector.staged.runner import StagedTraining
    from detector.tasks.start import build_task, start_run

    config = load_config(config_path, [])
    folder.mkdir()
    with device.FakeGpu():
        if config.stages:
            StagedTraining(config, folder, device.NAME).run()
            return
        counted: list[Counter[Any]] = []

        def counting_task(*given: Any) -> Any:
            task: Any = build_task(*given)
            batches = task.batches

            def counted_batches(start: int) -> Iterator[Any]:
                for batch in batches(start):
                    yield batch
                    counted.append(device.waits + device.pageable)  # asked for the next: the step is done

            task.batches = counted_batches
            return task

        start_run(config, folder, device.NAME, make_task=counting_task).run()
    number = len(counted) - WARM_UP
    a_step = {key: count / number for key, count in (counted[-1] - counted[WARM_UP - 1]).items()}
    result = {
        "waits": {" at ".join(key): count for key, count in a_step.items() if isinstance(key, tuple)},
        "pageable": {key: count for key, count in a_step.items() if isinstance(key, str)},
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
