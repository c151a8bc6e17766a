"""One process per folder: refused with the holder's id, free again however that process ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from detector.core.errors import InputError
from detector.engine.run_lock import LOCK, run_lock

HOLD = """
import os, sys, time
from pathlib import Path
from detector.engine.run_lock import run_lock
with run_lock(Path(sys.argv[1])):
    if os.fork() == 0:  # as a DataLoader worker, which outlives its parent for some seconds
        time.sleep(60)
    print("held", flush=True)
    time.sleep(60)
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    """Start a process, with a child of its own, that holds the lock of ``folder``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        env=dict(os.environ),
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_live_process_is_named_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    process = hold(tmp_path)
    try:
        for _ in range(2):
            with (
                pytest.raises(InputError, match=rf"process {process.pid} is training in this folder"),
                run_lock(tmp_path),
            ):
                pass
        process.kill()
        process.wait(20)
        with run_lock(tmp_path):
            assert (tmp_path / LOCK).read_text().split()[0] == str(os.getpid())
    finally:
        os.killpg(process.pid, signal.SIGKILL)
    assert list(tmp_path.iterdir()) == []


def test_the_lock_leaves_nothing_behind_also_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), run_lock(tmp_path):
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match="absent: cannot write the run's folder"),
        run_lock(tmp_path / "absent"),
    ):
        pass
    os.mkfifo(tmp_path / LOCK)  # nothing waits for a reader of it
    with pytest.raises(InputError, match=r"\.run\.lock: not a regular file"), run_lock(tmp_path):
        pass
