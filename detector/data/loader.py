"""A pool of threads that makes batches ahead of the loop that uses them.

Decoding and resizing an image release Python's interpreter lock, so threads of the main process do this work
side by side. Nothing is copied between processes, and no worker process or shared memory can fail.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Generic, Protocol, Self, TypeVar

import torch

from detector.core.errors import InputError

Key = TypeVar("Key")
Item = TypeVar("Item")
AnyBatch = TypeVar("AnyBatch", bound="Movable")

AHEAD = 8
"""Items that are made ahead, in all threads together."""
WAIT_SECONDS = 300.0
"""An item that takes longer than this is an error."""
CLOSE_SECONDS = 10.0
"""Threads that take longer than this to end, because a disk does not answer, are left behind."""


class LoaderFailed(InputError):
    """The threads that load images cannot continue."""


def load(
    keys: Iterable[Key],
    make: Callable[[Key], Item],
    workers: int,
    *,
    ahead: int = AHEAD,
    reads: str = "image",
) -> Generator[Item, None, None]:
    """Yield ``make(key)`` for each of ``keys``, in their order; ``workers`` threads make the items ahead.

    With 0 workers each item is made when it is asked for. ``keys`` may be endless. Closing the generator ends
    the threads, after the items that they are making. ``reads`` says in errors what an item is read from.

    Raises:
        LoaderFailed: an item was not there after `WAIT_SECONDS`.
        Exception: whatever ``make`` raises, in the place of its item.
    """
    if not workers:
        yield from map(make, keys)
        return
    pool = _Pool(make, workers)
    try:
        yield from _in_order(keys, pool, max(ahead, workers), reads)
    except LoaderFailed:
        pool.close(wait=False)
        raise
    finally:
        pool.close()


def _in_order(
    keys: Iterable[Key], pool: _Pool[Key, Item], ahead: int, reads: str
) -> Generator[Item, None, None]:
    waiting: deque[Future[Item]] = deque()
    for key in keys:
        waiting.append(pool.submit(key))
        if len(waiting) > ahead:
            yield _result(waiting.popleft(), reads)
    while waiting:
        yield _result(waiting.popleft(), reads)


def _result(future: Future[Item], reads: str) -> Item:
    try:
        return future.result(WAIT_SECONDS)
    except TimeoutError:
        if future.done():  # the item's own error, or it was finished just now
            return future.result()
        raise LoaderFailed(
            f"no {reads} was read within {WAIT_SECONDS:.0f} seconds; a network drive that does not answer is "
            f"the most likely reason: check the disk on which the {reads}s are"
        ) from None


class _Pool(Generic[Key, Item]):
    """Threads that call one function. Unlike those of ``concurrent.futures``, they are daemons: the program
    can end although one of them waits for a disk that does not answer.
    """

    def __init__(self, make: Callable[[Key], Item], workers: int) -> None:
        self._make = make
        self._tasks: SimpleQueue[tuple[Key, Future[Item]] | None] = SimpleQueue()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"loader-{number}", daemon=True)
            for number in range(workers)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, key: Key) -> Future[Item]:
        future: Future[Item] = Future()
        self._tasks.put((key, future))
        return future

    def close(self, *, wait: bool = True) -> None:
        """End the threads, without starting on what is still waiting, and ``wait`` up to `CLOSE_SECONDS`."""
        self._closed = True
        threads, self._threads = self._threads, []
        for _ in threads:
            self._tasks.put(None)
        until = time.monotonic() + CLOSE_SECONDS
        for thread in threads if wait else ():
            thread.join(max(until - time.monotonic(), 0.0))

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None and not self._closed:
            key, future = task
            try:
                future.set_result(self._make(key))
            except BaseException as error:  # also MemoryError: it is raised where the item is asked for
                future.set_exception(error)
            del task, key, future  # an item is freed when its user is done with it, not at the next one


class Movable(Protocol):
    """A batch that can be copied to a device."""

    def to(self, device: torch.device | str) -> Self:
        """Return the batch with those tensors on ``device`` that the device computes with."""

    def device_tensors(self) -> list[torch.Tensor]:
        """Return these tensors."""


def on_device(batches: Iterable[AnyBatch], device: torch.device | str) -> Generator[AnyBatch, None, None]:
    """Yield ``batches`` on ``device``.

    A GPU copies them in a stream of its own, while it is still computing the step before. The batches must be
    in page-locked memory for that. Neither they nor their copies need to be kept: torch's allocators wait
    with the memory of the former until it has been copied, and with that of the latter until ``computing``,
    the caller's stream, has done what it was given before the copy was freed.
    """
    place = torch.device(device)
    if place.type == "cpu":
        for batch in batches:
            yield batch.to(place)
        return
    gpu = torch.get_device_module(place)
    copies = gpu.Stream(place)
    for batch in batches:
        with gpu.stream(copies):
            moved = batch.to(place)
        computing = gpu.current_stream(place)
        computing.wait_stream(copies)  # the GPU waits, not the host
        for tensor in moved.device_tensors():
            tensor.record_stream(computing)
        yield moved
