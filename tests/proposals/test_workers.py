"""Tasks in processes: answers, tasks that take too long, processes that die, errors."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import cv2
import pytest
import torch

from detector.proposals.workers import Lost, run_tasks


def work(task: object) -> int:
    match task:
        case "sleep":
            time.sleep(60)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "fail":
            raise KeyError("sky")
    return 10 * int(str(task))


def test_every_task_is_answered_once() -> None:
    tasks = list(range(20))
    found = list(run_tasks(work, tasks, workers=2))
    assert sorted(found) == [(task, 10 * task) for task in tasks]
    assert list(run_tasks(work, [], workers=2)) == []


@pytest.mark.slow
def test_a_slow_task_and_a_dying_process_cost_themselves_alone() -> None:
    tasks: list[object] = [1, "sleep", 2, "die", 3, 4]
    begun = time.monotonic()
    found = dict(run_tasks(work, tasks, workers=1, time_limit=3.0))
    assert time.monotonic() - begun < 40
    assert found.pop("sleep") == Lost("took over 3 seconds")
    assert found.pop("die") == Lost("ended its process (exit status -9)")
    assert found == {1: 10, 2: 20, 3: 30, 4: 40}


def test_an_error_is_raised_here_with_its_place() -> None:
    with pytest.raises(KeyError, match="sky") as caught:
        list(run_tasks(work, [1, "fail"], workers=1))
    assert 'raise KeyError("sky")' in caught.value.__notes__[0]


def threads(_task: int) -> tuple[int, int]:
    return torch.get_num_threads(), cv2.getNumThreads()


@pytest.mark.slow
def test_the_processes_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each had as many threads as there are cores."""
    monkeypatch.setattr("detector.proposals.workers.available_cores", lambda: 6)
    monkeypatch.delenv("OMP_NUM_THREADS")
    for workers, expected in ((2, 3), (6, 1), (8, 1)):
        assert next(run_tasks(threads, [0], workers=workers)) == (0, (expected, expected))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert next(run_tasks(threads, [0], workers=2)) == (0, (1, 1))


def test_no_process_is_left_behind() -> None:
    found = run_tasks(work, ["sleep", 1], workers=2)
    assert next(found) == (1, 10)
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    before = set(children.read_text().split())
    found.close()
    assert len(set(children.read_text().split()) & before) < len(before)


def nothing(_task: int) -> None:
    return None


def test_none_is_an_answer() -> None:
    assert sorted(run_tasks(nothing, [1, 2, 3], workers=2)) == [(1, None), (2, None), (3, None)]
