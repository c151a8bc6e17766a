"""Starts programs in several processes, as a user does with ``torchrun``."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.conftest import PROJECT

TIMEOUT = 240


def torchrun(count: int, *program: str, options: tuple[str, ...] = ("--standalone",)) -> list[str]:
    """Return the command that starts ``count`` processes of a ``program`` on this machine."""
    return [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={count}", *options, *program]


def run(command: list[str], folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end; its output and errors are together in ``stdout``."""
    with started(command, folder, **variables) as job:
        output, _ = job.communicate(timeout=TIMEOUT)
    return subprocess.CompletedProcess(command, job.returncode, output)


@contextmanager
def started(command: list[str], folder: Path, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """Start a command in ``folder``; no process of it is left when the block ends."""
    job = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield job
    finally:
        for number in [*below(job.pid), job.pid] if job.poll() is None else []:
            with suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        job.wait()


def below(number: int) -> list[int]:
    """Return the processes that a process has started, and those that these have started."""
    parents = {}
    for place in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parents[int(place.parent.name)] = int(place.read_text().rpartition(")")[2].split()[1])
    own = [child for child, parent in parents.items() if parent == number]
    return own + [one for child in own for one in below(child)]


def ranks(job: subprocess.Popen[str]) -> dict[int, int]:
    """Return the processes of a job by their rank; only those that ``torchrun`` itself has started."""
    found: dict[int, int] = {}
    for number in below(job.pid):
        with suppress(OSError):
            variables = Path(f"/proc/{number}/environ").read_bytes().split(b"\0")
            found |= {int(one[5:]): number for one in variables if one.startswith(b"RANK=")}
    return found


def wait_until(true: Callable[[], bool], job: subprocess.Popen[str], seconds: float = 120) -> None:
    """Wait for something that a job does."""
    limit = time.monotonic() + seconds
    while not true():
        assert job.poll() is None, f"the job ended first: {job.communicate()[0]}"
        assert time.monotonic() < limit, "it did not happen in time"
        time.sleep(0.05)


def tool(name: str) -> str:
    return str(PROJECT / "tools" / f"{name}.py")
