"""The DataLoader with worker processes: shared memory, time-outs and dead workers as one clear error each.

Workers hand images over in shared memory, ``/dev/shm``, and everything else through pipes.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from torch import Tensor
from torch.utils.data import get_worker_info

from detector.core.errors import InputError

Item = TypeVar("Item")

PREFETCH = 2
"""Batches that each worker prepares ahead."""
TRY_SECONDS = 5
"""After so long without a batch the loader looks whether its workers are alive."""
WAIT_SECONDS = 300
"""A loader that yields nothing for so long is given up."""

_SHARED_MEMORY = Path("/dev/shm")
_MORE = (
    "give the container more shared memory (docker run --shm-size=1g), or set data.workers=0, which needs "
    "none"
)


class LoaderFailed(InputError):
    """The worker processes that load images cannot go on."""


def share(images: Tensor) -> None:
    """Move ``images`` into shared memory where this is a worker process.

    Torch would do so when it sends them, in a thread of its own whose errors reach nobody.

    Raises LoaderFailed where shared memory is full.
    """
    if get_worker_info() is None:
        return
    try:
        images.share_memory_()
    except RuntimeError as error:
        size = images.numel() * images.element_size()
        raise LoaderFailed(
            f"no shared memory (/dev/shm) for images of {_mib(size)}: {str(error).splitlines()[0]}; {_MORE}"
        ) from None


def needed_memory(workers: int, batch_bytes: int, largest_bytes: int | None = None) -> int:
    """Return the bytes of shared memory that batches of up to ``batch_bytes`` take at a time.

    Each worker has ``PREFETCH`` batches ready, and the main process works on one more. ``largest_bytes`` is
    the size of rare batches, of which one at a time is counted.
    """
    return workers * PREFETCH * batch_bytes + max(batch_bytes, largest_bytes or 0) if workers else 0


def free_shared_memory() -> int | None:
    """Return the free bytes of ``/dev/shm``; None where the system has none."""
    try:
        found = os.statvfs(_SHARED_MEMORY)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def fitting_workers(
    workers: int, batch_bytes: int, largest_bytes: int | None = None, *, fixed: bool = True
) -> int:
    """Return ``workers``, or without ``fixed`` the largest smaller number that shared memory is enough for.

    Raises LoaderFailed where it is not enough for a number that is ``fixed``.
    """
    free = free_shared_memory()
    if free is None or needed_memory(workers, batch_bytes, largest_bytes) <= free:
        return workers
    if not fixed:
        enough = (
            n for n in range(workers - 1, 0, -1) if needed_memory(n, batch_bytes, largest_bytes) <= free
        )
        return next(enough, 0)
    raise LoaderFailed(
        f"data.workers={workers}: the images that they prepare ahead may take "
        f"{_mib(needed_memory(workers, batch_bytes, largest_bytes))} of shared memory, and /dev/shm has "
        f"{_mib(free)} free; {_MORE}"
    )


def load(loader: Iterable[Item | InputError]) -> Generator[Item, None, None]:
    """Yield what a DataLoader with a time-out of ``TRY_SECONDS`` yields, and raise what a worker refused.

    Closing the generator ends the loader's processes.

    Raises:
        InputError: from a worker.
        LoaderFailed: nothing came for ``WAIT_SECONDS``. Time in which this process was stopped itself counts
            as one try at most.
    """
    items, tries = iter(loader), 0
    try:
        while True:
            try:
                item = next(items)
            except StopIteration:
                return
            except RuntimeError as error:
                tries += 1
                if "DataLoader timed out" not in str(error):
                    raise
                if tries * TRY_SECONDS >= WAIT_SECONDS:
                    raise LoaderFailed(_late()) from None
                continue
            tries = 0
            if isinstance(item, InputError):
                raise item
            yield item
    finally:
        del items  # Python 3.12.3 seems to keep what a closed generator held


@contextmanager
def workers_watched(advice: str = "") -> Iterator[None]:
    """Turn the error of a worker process that dies, which can appear anywhere in the main process, into one
    LoaderFailed that ends with ``advice``."""
    try:
        yield
    except RuntimeError as error:
        text = str(error)
        if not text.startswith("DataLoader worker (pid"):
            raise
        reason = text.split(". ")[0].rstrip(". ")
        raise LoaderFailed(
            f"a process that loads images died ({reason}). Most often memory ran out: set data.workers to a "
            f"smaller number or 0, or lower the scales or train.images_per_batch; after a bus error, {_MORE}"
            f"{advice}"
        ) from None


def _late() -> str:
    free = free_shared_memory()
    left = "" if free is None else f" (/dev/shm has {_mib(free)} free)"
    return (
        f"the worker processes delivered no images for {WAIT_SECONDS} seconds. Either reading takes so long, "
        f"as from a network drive that does not answer, or shared memory is full{left}: {_MORE}"
    )


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
