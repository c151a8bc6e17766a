"""Processes that share a list of tasks, in which one task can take too long or crash without the others."""

from __future__ import annotations

import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Generic, TypeVar

import cv2
import torch

from detector.core.errors import InputError
from detector.core.machine import available_cores, threads_are_chosen

Task = TypeVar("Task")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Lost:
    """Why a task has no answer, as the end of a sentence about it."""

    reason: str


def run_tasks(
    function: Callable[[Task], Answer],
    tasks: Iterable[Task],
    *,
    workers: int,
    time_limit: float | None = None,
    prepare: Callable[[], None] | None = None,
) -> Iterator[tuple[Task, Answer | Lost]]:
    """Yield each task with ``function`` of it as it is done, in ``workers`` processes.

    A task that takes over ``time_limit`` seconds, or whose process dies, is yielded as `Lost`; its process is
    replaced. An exception of ``function`` is raised here. ``prepare`` is called once in each process, before
    its first task and outside the limit. Function, tasks and answers travel as pickles. The processes share
    the cores: each computes with its part of them, one thread where there are as many processes as cores.
    """
    pool: list[_Worker[Task, Answer]] = []
    todo = iter(tasks)
    try:
        threads = max(1, available_cores() // max(workers, 1))
        start = partial(_Worker, function, prepare, threads)
        pool = [start(task) for _, task in zip(range(workers), todo, strict=False)]
        while pool:
            for worker in _ready(pool, time_limit):
                outcome = worker.outcome(time_limit)
                if outcome is None:  # it has only just started
                    continue
                yield worker.task, outcome
                worker_lost = isinstance(outcome, Lost)
                following = next(todo, None)
                if worker_lost or following is None:
                    worker.stop()
                    pool.remove(worker)
                if following is not None:
                    if worker_lost:
                        pool.append(start(following))
                    else:
                        worker.give(following)
    finally:
        for worker in pool:
            worker.stop()


class _Worker(Generic[Task, Answer]):
    """One process and the task that it has."""

    def __init__(
        self, function: Callable[[Task], Answer], prepare: Callable[[], None] | None, threads: int, task: Task
    ) -> None:
        # Fresh processes: forking one that has threads, as this one has, may leave locks held for ever.
        context = get_context("spawn")
        self.connection, far_end = context.Pipe()
        self._process: BaseProcess = context.Process(
            target=_serve, args=(function, prepare, threads, far_end), daemon=True
        )
        self._process.start()
        far_end.close()
        self.task = task
        self.deadline: float | None = None
        self._started = False

    def give(self, task: Task) -> None:
        self.task = task
        self.deadline = time.monotonic()
        try:
            self.connection.send(task)
        except OSError:
            return  # it has died; reading from it will say so

    def outcome(self, time_limit: float | None) -> Answer | Lost | None:
        """Return the answer, why there is none, or None where the process reports that it has started."""
        if not self.connection.poll():
            return Lost(f"took over {time_limit:g} seconds")
        try:
            kind, value = self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
            if not self._started:
                raise InputError(
                    f"a worker process ended while it started (exit status {self._process.exitcode}); "
                    "its message stands above"
                ) from None
            return Lost(f"ended its process (exit status {self._process.exitcode})")
        if kind == "started":
            self._started = True
            self.give(self.task)
            return None
        if kind == "raised":
            raise value
        return value

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()


def _ready(pool: list[_Worker[Task, Answer]], time_limit: float | None) -> list[_Worker[Task, Answer]]:
    """Wait until some workers have something to say or are over their time, and return these."""
    begun = [worker.deadline for worker in pool if worker.deadline is not None]
    patience = None
    if time_limit is not None and begun:
        patience = max(0.0, min(begun) + time_limit - time.monotonic())
    speaking = wait([worker.connection for worker in pool], patience)
    now = time.monotonic()
    return [
        worker
        for worker in pool
        if worker.connection in speaking
        or (time_limit is not None and worker.deadline is not None and now >= worker.deadline + time_limit)
    ]


def _serve(
    function: Callable[[Task], Answer],
    prepare: Callable[[], None] | None,
    threads: int,
    connection: Connection,
) -> None:
    """What a worker does: answer until the other end is closed."""
    if not threads_are_chosen():
        torch.set_num_threads(threads)
    cv2.setNumThreads(min(threads, torch.get_num_threads()))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    if prepare is not None:
        prepare()
    connection.send(("started", None))
    while True:
        try:
            task = connection.recv()
        except (EOFError, OSError):
            return
        try:
            reply: tuple[str, object] = ("done", function(task))
        except Exception as error:
            error.add_note(traceback.format_exc())  # the other process has no traceback of this one
            reply = ("raised", error)
        try:
            connection.send(reply)
        except OSError:
            return
