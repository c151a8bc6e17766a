"""Workers that process a stream of items at the same time, each in threads of its own.

A worker does one kind of work on every item and hands it over to the next worker. Between two workers there
is room for a few items only, so a slow worker makes the others wait and memory stays bounded. Items leave in
the order in which they came. How long each worker computed and waited is recorded, which shows the slowest.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, NamedTuple, Self

ROOM = 2
"""Items that wait between two workers."""
CLOSE_SECONDS = 10.0
"""Threads that take longer than this to end, because a disk or a camera does not answer, are left behind."""


class Worker(NamedTuple):
    """A kind of work: ``work`` takes an item and returns what the next worker takes.

    With several ``threads`` it is called for several items at once; their order is restored afterwards.
    """

    name: str
    work: Callable[[Any], Any]
    threads: int = 1


@dataclass(kw_only=True)
class Timing:
    """What a worker did so far; the seconds are the sums of its ``threads``."""

    name: str
    threads: int = 1
    items: int = 0
    busy: float = 0.0
    """Seconds of work."""
    starved: float = 0.0
    """Seconds of waiting for the worker before it."""
    blocked: float = 0.0
    """Seconds of waiting until the worker after it had room."""

    def load(self, seconds: float) -> float:
        """Return the share of ``seconds`` in which the threads were at work, 0 to 1."""
        return self.busy / (self.threads * seconds) if seconds > 0 else 0.0


class _HandOver:
    """Takes items with the numbers 0, 1, 2, ... from one worker and gives them to the next in this order.

    It holds up to ``room`` items after the last one taken. ``end`` says how many items there are; those that
    have a larger number are refused.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._items: dict[int, Any] = {}
        self._taken = 0
        self._abandoned = False
        self._changed = threading.Condition()
        self.dropped = 0
        self.count: int | None = None
        self.error: BaseException | None = None

    def put(self, number: int, item: Any) -> bool:
        """Wait for room and keep the item; False where it is no longer wanted."""
        with self._changed:
            self._changed.wait_for(lambda: self._refuses(number) or number < self._taken + self._room)
            if self._refuses(number):
                return False
            self._items[number] = item
            self._changed.notify_all()
            return True

    def replace(self, item: Any) -> bool:
        """Keep the item instead of the one that is waiting, if any; False where it is no longer wanted."""
        with self._changed:
            if self._refuses(self._taken):
                return False
            self.dropped += self._taken in self._items
            self._items[self._taken] = item
            self._changed.notify_all()
            return True

    def take(self) -> tuple[int, Any] | None:
        """Wait for the next item and return it with its number; None after the last one."""
        with self._changed:
            self._changed.wait_for(lambda: self._refuses(self._taken) or self._taken in self._items)
            if self._refuses(self._taken):
                return None
            number, self._taken = self._taken, self._taken + 1
            self._changed.notify_all()
            return number, self._items.pop(number)

    def end(self, count: int | None = None, error: BaseException | None = None) -> None:
        """Let the items end before number ``count``; None means after those that are there.

        After them ``error`` is raised. A call with a smaller number takes precedence over an earlier one.
        """
        with self._changed:
            count = max(self._items, default=self._taken - 1) + 1 if count is None else count
            if self.count is None or count < self.count:
                self.count, self.error = count, error
            self._changed.notify_all()

    def abandon(self) -> None:
        """Forget all items, and let nobody wait any longer."""
        with self._changed:
            self._abandoned = True
            self._items.clear()
            self._changed.notify_all()

    @property
    def abandoned(self) -> bool:
        return self._abandoned

    def _refuses(self, number: int) -> bool:
        return self._abandoned or (self.count is not None and number >= self.count)


class Pipeline(Iterator[Any]):
    """An iterator over the items of ``source`` after all ``workers``, in order; a context manager, too.

    ``source`` is read by a thread of its own, named ``reading`` in `timings`. With ``newest``, for sources
    that do not wait, such as a camera, it is never made to wait: an item that no worker has taken is dropped
    for the next one, and ``dropped`` counts these.

    An error of the source or of a worker ends everything. It is raised by ``next`` in the place of its item,
    so all items before it still come. Leaving the ``with`` block ends the threads.
    """

    def __init__(
        self,
        source: Iterable[Any],
        workers: Sequence[Worker],
        *,
        reading: str = "read",
        room: int = ROOM,
        newest: bool = False,
    ) -> None:
        self._source, self._workers, self._newest = source, list(workers), newest
        rooms = [room, *(max(room, worker.threads) for worker in workers)]
        self._between = [_HandOver(size) for size in rooms]
        self._lock = threading.Lock()
        self.timings = [
            Timing(name=reading),
            *(Timing(name=worker.name, threads=worker.threads) for worker in workers),
        ]
        self._started = time.perf_counter()
        self._ended: float | None = None
        self._threads = [threading.Thread(target=self._read, name=reading, daemon=True)]
        self._threads += [
            threading.Thread(target=self._work, args=(place,), name=worker.name, daemon=True)
            for place, worker in enumerate(workers)
            for _ in range(worker.threads)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def dropped(self) -> int:
        """How many items of the source were dropped for newer ones."""
        return self._between[0].dropped

    @property
    def seconds(self) -> float:
        """Seconds from the start until the last item, or until now."""
        return (self._ended or time.perf_counter()) - self._started

    def __next__(self) -> Any:
        taken = self._between[-1].take()
        if taken is not None:
            return taken[1]
        self._ended = self._ended or time.perf_counter()
        error = self._between[-1].error
        self.close()
        if error is not None:
            raise error
        raise StopIteration

    def stop(self) -> None:
        """Take nothing more from the source; the items that it has given still come."""
        self._between[0].end()

    def close(self) -> None:
        """End the threads without finishing what they have, waiting up to `CLOSE_SECONDS` for them."""
        for between in self._between:
            between.abandon()
        until = time.monotonic() + CLOSE_SECONDS
        for thread in self._threads:
            thread.join(max(until - time.monotonic(), 0.0))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read(self) -> None:
        """Give the items of the source to the first worker."""
        first, count, error, kept = self._between[0], 0, None, True
        try:
            items = iter(self._source)
            try:
                while kept:
                    start = time.perf_counter()
                    item = next(items, _Nothing)
                    if item is _Nothing:
                        break
                    read = time.perf_counter()
                    kept = first.replace(item) if self._newest else first.put(count, item)
                    count += kept
                    del item
                    self._record(0, 0.0, read - start, time.perf_counter() - read)
            finally:
                if hasattr(items, "close"):
                    items.close()
        except BaseException as raised:  # also MemoryError: it is raised where the items are used
            error = raised
        first.end(None if self._newest else count, error)

    def _work(self, place: int) -> None:
        """Do the work of one thread of the worker at ``place``."""
        before, after = self._between[place], self._between[place + 1]
        while True:
            start = time.perf_counter()
            taken = before.take()
            if taken is None:
                break
            number, item = taken
            begin = time.perf_counter()
            try:
                made = self._workers[place].work(item)
            except BaseException as error:
                after.end(number, error)
                for between in self._between[: place + 1]:
                    between.abandon()
                return
            done = time.perf_counter()
            after.put(number, made)
            self._record(place + 1, begin - start, done - begin, time.perf_counter() - done)
            del taken, item, made  # freed when its user is done with it, not at the next item
        if not before.abandoned:
            after.end(before.count, before.error)

    def _record(self, place: int, starved: float, busy: float, blocked: float) -> None:
        with self._lock:
            timing = self.timings[place]
            timing.items += 1
            timing.starved += starved
            timing.busy += busy
            timing.blocked += blocked


class _Nothing:
    """Stands for the end of the source."""
