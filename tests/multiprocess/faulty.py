"""``tools/train.py`` with a fault: ``python tests/multiprocess/faulty.py FAULT RANK STEP TARGET ...``.

The fault comes in the process of that rank, when it has done that many steps, or with STEP -1 when it begins
an evaluation; TARGET is the file that the fault needs, or "-". The remaining arguments are those of the tool.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detector.commands import cli, train
from detector.core import distributed
from detector.engine.run import Run


def exits(_target: Path) -> None:
    os._exit(7)


def dies_once(target: Path) -> None:
    if not target.exists():
        target.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def hangs(_target: Path) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def loses_an_image(target: Path) -> None:
    target.unlink()


def is_slow(target: Path) -> None:
    """Take its time for each step, so that a signal comes in between."""
    target.touch()
    time.sleep(0.5)


FAULTS: dict[str, Callable[[Path], None]] = {
    one.__name__: one for one in (exits, dies_once, hangs, loses_an_image, is_slow)
}


def main() -> int:
    fault, rank, step, target = FAULTS[sys.argv[1]], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
    sys.argv[1:5] = []
    distributed.SILENT_SECONDS = 6.0
    original = Run.__dict__["_assess" if step < 0 else "_agree" if step else "run"]

    def faulty(run: Run[Any], *given: Any, **named: Any) -> Any:
        now = step < 0 or run.step == step or (fault is is_slow and run.step >= step)
        if distributed.rank() == rank and now:
            fault(target)
        return original(run, *given, **named)

    setattr(Run, original.__name__, faulty)
    return train.main()


if __name__ == "__main__":
    cli.run(main, together=True)
