"""Runs parts as separate processes, one after another or at the same time, each with its own time limit."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.gpu_check.report import Outcome
from benchmarks.gpu_check.result import DEADLINE_VARIABLE, PATH_VARIABLE, Result, read_result

LEAST_SECONDS = 10.0
"""A part is not started if less time than this is left, unless it says otherwise."""
GRACE_SECONDS = 6.0
"""How long a part may take to end after it was interrupted at its limit."""
RESERVED_SECONDS = 130.0
"""The most time that the ``alone`` parts leave for the parts that run together after them."""

Reader = Callable[[str, Result], None]


@dataclass
class Part:
    """One program to run: its command, how long it may take and how its log is read.

    ``alone`` parts run one at a time and in order, before the others, which run at the same time. ``skip``
    says why a part cannot run on this machine, ``needed`` whether this counts as a fault. A part that takes
    ``least`` seconds is not started if less time is left; for an ``optional`` one that is no fault. A
    ``first`` part leaves no time for others, because they need what it makes. The ``alone`` parts leave the
    ``usual`` seconds of those after them.
    """

    name: str
    title: str
    command: list[str]
    limit: float
    alone: bool = False
    folder: Path | None = None
    environment: dict[str, str] = field(default_factory=dict)
    read: Reader | None = None
    skip: str = ""
    needed: bool = True
    least: float = LEAST_SECONDS
    optional: bool = False
    first: bool = False
    usual: float = RESERVED_SECONDS


class Process:
    """A running part."""

    def __init__(
        self, part: Part, outcome: Outcome, work: Path, environment: dict[str, str], limit: float
    ) -> None:
        self.part, self.outcome = part, outcome
        self.result = work / f"{part.name}.json"
        outcome.log, outcome.limit, outcome.status = work / f"{part.name}.log", limit, "running"
        self.limit, self.started = limit, time.monotonic()
        self.interrupted: float | None = None
        own = {PATH_VARIABLE: str(self.result), DEADLINE_VARIABLE: str(self.started + limit)}
        with outcome.log.open("wb") as log:
            self.process = subprocess.Popen(
                part.command,
                cwd=part.folder or work,
                env={**environment, **part.environment, **own},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def ended(self) -> bool:
        """Return whether the part has ended; at its limit interrupt it, after the grace period kill it."""
        if self.process.poll() is not None:
            return True
        now = time.monotonic()
        if self.interrupted is None and now - self.started > self.limit:
            self.interrupted = now
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGINT)
        if self.interrupted is not None and now - self.interrupted > GRACE_SECONDS:
            self.kill()
        return False

    def kill(self) -> None:
        """Kill the part and all processes that it has started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(5)

    def finish(self, status: str = "") -> None:
        """Read the part's result and set its outcome; ``status`` is the outcome if it is already known."""
        self.kill()  # processes that it may have left behind
        outcome = self.outcome
        outcome.seconds = time.monotonic() - self.started
        outcome.result = read_result(self.result)
        if self.part.read is not None:
            try:
                self.part.read(outcome.log_text(), outcome.result)
            except Exception as error:
                outcome.result.fault(f"the log cannot be read: {type(error).__name__}: {error}")
        code = self.process.returncode
        if status or self.interrupted is not None:
            outcome.status = status or "timed out"
        elif code or outcome.result.faults:
            outcome.status, outcome.why = "failed", f"exit status {code}" if code else "see its faults"
        else:
            outcome.status = "passed"


class Runner:
    """Runs parts until the time for all parts together is used up."""

    def __init__(
        self, work: Path, environment: dict[str, str], deadline: float, on_end: Callable[[Outcome], None]
    ) -> None:
        self.work, self.environment, self.deadline, self.on_end = work, environment, deadline, on_end
        self.running: list[Process] = []

    def run(self, parts: list[tuple[Part, Outcome]]) -> None:
        """Run the ``alone`` parts in order, then all other parts at the same time."""
        reserved = max((part.usual for part, _ in parts if not part.alone and not part.skip), default=0.0)
        for part, outcome in parts:
            if part.alone:
                self._start(part, outcome, 0.0 if part.first else reserved)
                self._wait()
        for part, outcome in parts:
            if not part.alone:
                self._start(part, outcome)
        self._wait()

    def stop(self) -> None:
        """Kill all running parts and keep the results that they have written so far."""
        for process in self.running:
            process.kill()
        while self.running:
            process = self.running.pop()
            process.finish("interrupted")
            self.on_end(process.outcome)

    def _start(self, part: Part, outcome: Outcome, reserved: float = 0.0) -> None:
        left = self.deadline - time.monotonic() - GRACE_SECONDS - reserved
        if part.skip:
            outcome.status, outcome.why = ("failed" if part.needed else "skipped"), part.skip
            return
        if left < part.least:
            outcome.status = "skipped" if part.optional else "not run"
            outcome.why = f"{max(left, 0.0):.0f} s were left" if part.optional else "no time was left"
            return
        try:
            limit = min(part.limit, left)
            self.running.append(Process(part, outcome, self.work, self.environment, limit))
        except OSError as error:
            outcome.status, outcome.why = "failed", f"cannot be started: {error}"

    def _wait(self) -> None:
        while self.running:
            for process in [each for each in self.running if each.ended()]:
                process.finish()
                self.running.remove(process)
                self.on_end(process.outcome)
            time.sleep(0.1)
