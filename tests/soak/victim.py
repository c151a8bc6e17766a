"""The process that is killed: a training command that reports its phases, and can kill itself.

The current phase is the last line of the report file. A kill at a random time comes from outside. The moments
that are too short to be met from outside, between two operations on files and in the middle of writing a
checkpoint, come from a `Plan`: the process then sends SIGKILL to itself.
"""

from __future__ import annotations

import functools
import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch

from detector.commands import cli, train
from detector.engine import checkpoint
from detector.engine.run import Run
from detector.factory import proposals
from detector.staged import feature_cache
from detector.staged.box_ridge import RidgeFit
from detector.staged.runner import StagedTraining
from detector.staged.svm import SVMFit
from detector.tasks.scoring import Scorer

START = "start"
_CHANGES = {"os.rename", "os.remove", "os.link", "os.truncate", "os.mkdir", "os.rmdir"}


class Plan(NamedTuple):
    """When the process kills itself: in ``phase``, before the ``operation``-th change or image, from 1 on.

    With ``share`` it is in the middle of writing the ``operation``-th checkpoint instead, when that part of
    the bytes has been written. ``operation`` 0 is never.
    """

    phase: str = ""
    operation: int = 0
    share: float | None = None


def main(arguments: list[str], folder: str, report: str, plan: Plan) -> NoReturn:
    """Run the training command in ``folder``, which is the working directory, and write ``report``."""
    os.chdir(folder)
    output = os.open(f"{report}.output", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(output, 1)
    os.dup2(output, 2)
    torch.set_num_threads(1)
    watch = _Watch(Path(folder), report, plan)
    watch.install()
    sys.argv = ["tools/train.py", *arguments]
    cli.run(train.main, together=True)
    raise AssertionError("cli.run exits")


def kill() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("SIGKILL cannot be survived")


class _Watch:
    """Follows the phases of this process, its changes of files below ``folder``, and the images it opens."""

    def __init__(self, folder: Path, report: str, plan: Plan) -> None:
        self.folder = str(folder)
        self.plan = plan
        self.phase = START
        self.operations = self.checkpoints = 0
        first = int(os.environ.get("RANK", "0")) == 0
        self.report = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644) if first else None
        if not first:
            self.plan = Plan()
        self._say(str(os.getpid()))
        self._enter(START)

    def install(self) -> None:
        """Report the beginnings and ends of the phases, and watch the operations on files."""
        for owner, name, phase in (
            (proposals, "generate", "proposals"),
            (checkpoint, "save_checkpoint", "checkpoint"),
            (Scorer, "evaluate", "evaluation"),
            (Scorer, "finish", "results"),
            (Run, "run", _of_run),
            (feature_cache, "fill_cache", "features"),
            (SVMFit, "fit", "svm"),
            (RidgeFit, "fit", "boxes"),
            (StagedTraining, "_score", "scoring"),
        ):
            self._wrap(owner, name, phase)
        if self.plan.share is not None:
            torch.save = functools.partial(self._save, torch.save)
        sys.addaudithook(self._notice)

    def _wrap(self, owner: Any, name: str, phase: str | Callable[[Any], str]) -> None:
        inner = getattr(owner, name)

        @functools.wraps(inner)
        def wrapped(*given: Any, **named: Any) -> Any:
            outer = self.phase
            self._enter(phase if isinstance(phase, str) else phase(given[0]))
            try:
                return inner(*given, **named)
            finally:
                self._enter(outer)

        setattr(owner, name, wrapped)

    def _enter(self, phase: str) -> None:
        self.phase = phase
        self.checkpoints += phase == "checkpoint"
        self._say(f"{phase} {time.monotonic():.6f}")

    def _say(self, line: str) -> None:
        if self.report is not None:
            os.write(self.report, f"{line}\n".encode())

    def _notice(self, event: str, given: tuple[Any, ...]) -> None:
        if event == "open":
            name = str(given[0])
            writes = isinstance(given[2], int) and given[2] & (os.O_WRONLY | os.O_RDWR)
            own = name.startswith((self.folder, "run", "data"))
            if not (writes and own) and not name.endswith(".jpg"):
                return
        elif event not in _CHANGES:
            return
        self._say(f"+{self.phase}")
        if self.phase == self.plan.phase and self.plan.share is None:
            self.operations += 1
            if self.operations == self.plan.operation:
                kill()

    def _save(self, save: Callable[..., None], content: Any, file: Any) -> None:
        """Write a checkpoint, or die when a part of it has been written."""
        if self.checkpoints != self.plan.operation:
            save(content, file)
            return
        whole = io.BytesIO()
        save(content, whole)
        assert self.plan.share is not None
        file.write(whole.getvalue()[: int(self.plan.share * len(whole.getvalue()))])
        file.flush()
        kill()


def _of_run(run: Run[Any]) -> str:
    """Return the phase of a loop: the name of its stage, if it has one."""
    staged = run.folder.parent.name == "stages"
    return run.folder.name.partition("_")[2] if staged else "training"


if __name__ == "__main__":  # started by torchrun
    given = json.loads(sys.argv[1])
    main(given["arguments"], given["folder"], given["report"], Plan(*given["plan"]))
