"""DataLoaders with worker processes; full shared memory, a time-out or a dead worker raises one clear error.

Workers send images through shared memory, ``/dev/shm``, and everything else through pipes.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import cv2
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from detector.core.errors import InputError
from detector.core.structures import Batch, ImageRecord, Sample
from detector.data.samples import collate
from detector.data.transforms import ImageTransform

Item = TypeVar("Item")

PREFETCH = 2
"""Batches that each worker prepares ahead."""
TRY_SECONDS = 5
"""After this time without a batch the loader checks whether its workers are alive."""
WAIT_SECONDS = 300
"""A loader that yields nothing for this time has failed."""

_SHARED_MEMORY = Path("/dev/shm")
_MORE = (
    "give the container more shared memory (docker run --shm-size=1g), or set data.workers=0, which needs "
    "none"
)


class LoaderFailed(InputError):
    """The worker processes that load images cannot continue."""


def make_loader(
    dataset: Dataset[Any], workers: int, collate_fn: Callable[[Any], Any], **batches: Any
) -> DataLoader[Any]:
    """Return a DataLoader with ``workers`` processes, to be read through `load`.

    ``batches`` are its arguments about batches. Its workers' seeds come from a separate generator, so
    that torch's global one stays untouched.
    """
    with_workers: dict[str, Any] = {"timeout": TRY_SECONDS, "prefetch_factor": PREFETCH} if workers else {}
    return DataLoader(
        dataset,
        collate_fn=collate_fn,
        num_workers=workers,
        worker_init_fn=quiet_worker,
        generator=torch.Generator().manual_seed(0),
        **with_workers,
        **batches,
    )


def quiet_worker(_worker: int) -> None:
    """Set up a DataLoader worker: one thread, and signals to the process group are left to the main process.

    On SIGTERM a worker exits without an error: with an error, torch would raise in the middle of a step of
    the main process, which then could not save.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    cv2.setNumThreads(0)
    torch.set_num_threads(1)


def collate_or_error(samples: Sequence[Sample | InputError]) -> Batch | InputError:
    """Return the batch of ``samples``, or the first error among them.

    In a worker process the images are put into shared memory.
    """
    good = [sample for sample in samples if isinstance(sample, Sample)]
    errors = [sample for sample in samples if isinstance(sample, InputError)]
    if errors:
        return errors[0]
    batch = collate(good)
    return _share([batch.images]) or batch


def views_or_error(views: list[Sample] | InputError) -> list[Sample] | InputError:
    """Return the views of one image, in shared memory as in `collate_or_error`, or an error."""
    return views if isinstance(views, InputError) else _share([view.image for view in views]) or views


def _share(images: Sequence[Tensor]) -> LoaderFailed | None:
    """Move ``images`` into shared memory if this is a worker process; return an error where it is full.

    Torch would move them when it sends them, in a thread of its own whose errors are never reported.
    """
    if get_worker_info() is None:
        return None
    for image in images:
        try:
            image.share_memory_()
        except RuntimeError as error:
            size, reason = image.numel() * image.element_size(), str(error).splitlines()[0]
            return LoaderFailed(f"no shared memory (/dev/shm) for images of {_mib(size)}: {reason}; {_MORE}")
    return None


def needed_memory(workers: int, batch_bytes: int, largest_bytes: int | None = None) -> int:
    """Return the bytes of shared memory that batches of up to ``batch_bytes`` occupy at the same time.

    Each worker has ``PREFETCH`` batches ready, and the main process works on one more. ``largest_bytes`` is
    the size of rare batches, of which only one at a time is counted.
    """
    return workers * PREFETCH * batch_bytes + max(batch_bytes, largest_bytes or 0) if workers else 0


def batch_bytes(records: Sequence[ImageRecord], transform: ImageTransform, count: int) -> tuple[int, int]:
    """Return the most bytes that the images of a batch of ``count`` occupy, in two cases.

    The first is a batch of one group, as `detector.data.samplers.aspect_groups` makes them; the second a
    batch in which landscape and portrait images are mixed.
    """
    scale = max(transform.scales) * max(transform.scale_jitter or (1.0,))
    sizes = [transform.size_of((record.height, record.width), scale) for record in one_per_size(records)]
    portrait = [size for size in sizes if size[0] > size[1]]
    landscape = [size for size in sizes if size[0] <= size[1]]
    groups = [[size] for size in sizes] if count == 1 else [portrait, landscape]
    usual = max(map(_padded, groups), default=0)
    mixed = usual if count == 1 else _padded(sizes)
    return 12 * count * usual, 12 * count * mixed  # three channels of four bytes


def _padded(sizes: Sequence[tuple[int, int]]) -> int:
    return max((height for height, _ in sizes), default=0) * max((width for _, width in sizes), default=0)


def one_per_size(records: Sequence[ImageRecord]) -> list[ImageRecord]:
    """Return one record of each image size."""
    return list({(record.height, record.width): record for record in records}.values())


def free_shared_memory() -> int | None:
    """Return the free bytes of ``/dev/shm``; None where the system has no such folder."""
    try:
        status = os.statvfs(_SHARED_MEMORY)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize


def workers_that_fit(
    workers: int, batch_bytes: int, largest_bytes: int | None = None, *, fixed: bool = True
) -> int:
    """Return the largest number up to ``workers`` for which shared memory is large enough.

    A ``fixed`` number is not reduced. Raises LoaderFailed where shared memory is too small for it.
    """
    free = free_shared_memory()
    for count in [workers] if fixed else range(workers, -1, -1):  # 0 needs none
        if free is None or needed_memory(count, batch_bytes, largest_bytes) <= free:
            return count
    raise LoaderFailed(
        f"data.workers={workers}: the images that they prepare ahead may take "
        f"{_mib(needed_memory(workers, batch_bytes, largest_bytes))} of shared memory, and /dev/shm has "
        f"{_mib(free or 0)} free; {_MORE}"
    )


def load(loader: Iterable[Item | InputError]) -> Generator[Item, None, None]:
    """Yield the items of a DataLoader whose time-out is ``TRY_SECONDS``, and raise the errors of its workers.

    Closing the generator ends the loader's processes.

    Raises:
        InputError: a worker returned it.
        LoaderFailed: no item came for ``WAIT_SECONDS``. Time during which this process itself was stopped
            counts as one try at most.
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
        del items  # Python 3.12.3 seems to keep the variables of a closed generator


@contextmanager
def workers_watched(advice: str = "") -> Iterator[None]:
    """Raise one LoaderFailed, whose message ends with ``advice``, when a worker process dies.

    Torch's own error can come at any place in the main process.
    """
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
        f"the worker processes delivered no images for {WAIT_SECONDS} seconds. Either reading takes that "
        f"long, as from a network drive that does not answer, or shared memory is full{left}: {_MORE}"
    )


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"
