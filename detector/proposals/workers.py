"""Processes that share a list of tasks; a task that takes too long or crashes does not stop the others."""

from __future__ import annotations

import signal
import time
import traceback
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Generic, TypeVar

import cv2
import torch

from detector.core.errors import InputError
from detector.core.machine import available_cores, threads_set_by

Task = TypeVar("Task")
Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Lost:
    """Why a task has no answer, as the end of a sentence that begins with the task's name."""

    reason: str


_STARTED = Lost("its process has only started")


def run_tasks(
    function: Callable[[Task], Answer],
    tasks: Iterable[Task],
    *,
    workers: int,
    time_limit: float | None = None,
    prepare: Callable[[], None] | None = None,
) -> Generator[tuple[Task, Answer | Lost], None, None]:
    """Call ``function`` for each task in ``workers`` processes; yield tasks and answers as they end.

    A task that takes over ``time_limit`` seconds, or whose process dies, has the answer `Lost`; its process
    is replaced. An exception in ``function`` is raised here. ``prepare`` is called once in each process,
    before its first task and outside the limit. Function, tasks and answers must be picklable; one task per
    process is in memory. The processes share the cores: each uses its share of them as threads, at least one.
    """
    threads = max(1, available_cores() // max(workers, 1))
    todo = iter(tasks)
    pool: list[_Worker[Task, Answer]] = []
    try:
        for task in islice(todo, workers):
            pool.append(_Worker(function, prepare, threads))
            pool[-1].start(task)
        while pool:
            for worker in _ready(pool, time_limit):
                answer = worker.answer(time_limit)
                if answer is _STARTED:
                    continue
                yield worker.task, answer
                following = list(islice(todo, 1))
                if not following:
                    worker.stop()
                    pool.remove(worker)
                elif isinstance(answer, Lost):
                    worker.stop()
                    worker.start(following[0])
                else:
                    worker.give(following[0])
    finally:
        for worker in pool:
            worker.stop()


class _Worker(Generic[Task, Answer]):
    """A process and the task that it has."""

    def __init__(
        self, function: Callable[[Task], Answer], prepare: Callable[[], None] | None, threads: int
    ) -> None:
        self._work = function, prepare, threads

    def start(self, task: Task) -> None:
        """Start a process that gets ``task`` once it is ready."""
        # Not forked: forking a process that has threads, as this one does, may leave locks held for ever.
        context = get_context("spawn")
        self.connection, far_end = context.Pipe()
        self._process = context.Process(target=_serve, args=(*self._work, far_end), daemon=True)
        self._process.start()
        far_end.close()
        self.task = task
        self.began: float | None = None  # when it was given the task

    def give(self, task: Task) -> None:
        self.task = task
        self.began = time.monotonic()
        try:
            self.connection.send(task)
        except OSError:
            return  # it has died, which `answer` will report

    def answer(self, time_limit: float | None) -> Answer | Lost:
        """Return the answer, why there is none, or ``_STARTED`` when the process reports that it is ready."""
        if not self.connection.poll():
            return Lost(f"took over {time_limit:g} seconds")
        try:
            kind, value = self.connection.recv()
        except (EOFError, OSError):
            self._process.join()
            status = f"exit status {self._process.exitcode}"
            if self.began is None:
                raise InputError(
                    f"a worker process ended while it started ({status}); see its message above"
                ) from None
            return Lost(f"ended its process ({status})")
        if kind == "ready":
            self.give(self.task)
            return _STARTED
        if kind == "raised":
            raise value
        return value

    def stop(self) -> None:
        self._process.kill()
        self._process.join()
        self.connection.close()


def _ready(pool: list[_Worker[Task, Answer]], time_limit: float | None) -> list[_Worker[Task, Answer]]:
    """Wait until some workers have sent something or have exceeded the limit, and return these."""
    limit = float("inf") if time_limit is None else time_limit
    ends = {id(worker): worker.began + limit for worker in pool if worker.began is not None}
    first = min(ends.values(), default=float("inf"))
    patience = None if first == float("inf") else max(0.0, first - time.monotonic())
    sent = wait([worker.connection for worker in pool], patience)
    now = time.monotonic()
    return [worker for worker in pool if worker.connection in sent or now >= ends.get(id(worker), now + 1)]


def _serve(
    function: Callable[[Task], Answer],
    prepare: Callable[[], None] | None,
    threads: int,
    connection: Connection,
) -> None:
    """What a worker does: answer until the other end is closed."""
    if threads_set_by() is None:
        torch.set_num_threads(threads)
    cv2.setNumThreads(min(threads, torch.get_num_threads()))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    if prepare is not None:
        prepare()
    connection.send(("ready", None))
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
