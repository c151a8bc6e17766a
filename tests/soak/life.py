"""One life of a victim: from its start to its end, by a kill or by itself."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.soak.victim import START, Plan
from tests.soak.victim import main as run_victim

LONGEST_SECONDS = 300.0
_POLL_SECONDS = 0.0005


@dataclass
class Report:
    """What a victim said: its last ``phase``; by phase the beginnings, operations on files and seconds."""

    phase: str = START
    begun: Counter[str] = field(default_factory=Counter)
    operations: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))


class Life:
    """A running victim. With several ``processes`` torchrun starts them, and the one of rank 0 is killed.

    A single one is forked from a server that has imported everything, which saves seconds per life.
    """

    def __init__(self, arguments: list[str], folder: Path, report: Path, plan: Plan, processes: int) -> None:
        self.output = Path(f"{report}.output")
        self._report = report
        self._single: multiprocessing.process.BaseProcess | None = None
        if processes == 1:
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["tests.soak.victim"])
            given = (arguments, str(folder), str(report), plan)
            self._single = context.Process(target=run_victim, args=given)
            self._single.start()
            return
        text = json.dumps(
            {"arguments": arguments, "folder": str(folder), "report": str(report), "plan": plan}
        )
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(processes)]
        command += ["--standalone", "-m", "tests.soak.victim", text]
        with self.output.open("ab") as output:
            self._several = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)

    def kill_in(self, phase: str, delay: float) -> None:
        """Send SIGKILL ``delay`` seconds after ``phase`` has begun, unless the victim has ended by then."""
        while self._alive() and not any(line.startswith(f"{phase} ") for line in self._lines()):
            time.sleep(_POLL_SECONDS)
        time.sleep(delay)
        if self._alive():
            os.kill(int(self._lines()[0]), signal.SIGKILL)

    def wait(self, seconds: float) -> int:
        """Wait for the end and return the exit status."""
        if self._single is None:
            with suppress(subprocess.TimeoutExpired):
                return self._several.wait(seconds)
            self._several.terminate()  # torchrun ends its processes
        else:
            self._single.join(seconds)
            if self._single.exitcode is not None:
                return self._single.exitcode
            self._single.kill()
        raise SystemExit(f"a victim was still running after {seconds:.0f} seconds: {self.output}")

    def killed(self, status: int) -> bool:
        """Return whether this exit status is that of a victim that was killed."""
        return status == -signal.SIGKILL if self._single is not None else status != 0

    def report(self) -> Report:
        """Return what the victim has said so far."""
        report, began = Report(), 0.0
        for line in self._lines()[1:]:
            if line.startswith("+"):
                report.operations[line[1:]] += 1
                continue
            name, _, moment = line.partition(" ")
            report.seconds[report.phase] += float(moment) - began if began else 0.0
            report.phase, began = name, float(moment)
            report.begun[name] += 1
        return report

    def _lines(self) -> list[str]:
        return self._report.read_text().splitlines() if self._report.exists() else []

    def _alive(self) -> bool:
        return self._single.is_alive() if self._single is not None else self._several.poll() is None
