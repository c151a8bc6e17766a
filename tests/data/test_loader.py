"""A pool of threads: the same items in the same order, and nothing is left when it ends."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from detector.core.errors import InputError
from detector.core.structures import Batch, DrawnRegions, ImageRecord, Proposals, Targets
from detector.data import loader as loader_module
from detector.data.loader import AHEAD, LoaderFailed, load, on_device
from detector.data.samples import InferenceViews, TrainingSamples, collate
from detector.data.transforms import ImageTransform

SIZES = [0, 1, 3]
"""Numbers of threads that the results must not depend on."""


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader-")]


def eventually(holds: Callable[[], bool]) -> bool:
    """Wait until ``holds``, as threads need a moment; False after 20 seconds."""
    until = time.monotonic() + 20
    while not holds():
        if time.monotonic() > until:
            return False
        time.sleep(0.001)
    return True


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert not loader_threads()


def square(key: int) -> int:
    return key * key


@pytest.mark.parametrize("workers", SIZES)
@pytest.mark.parametrize("count", [0, 1, AHEAD, AHEAD + 1, 100])
def test_every_key_is_made_once_and_in_order(workers: int, count: int) -> None:
    made: list[int] = []

    def make(key: int) -> int:
        made.append(key)  # appending is atomic
        return square(key)

    assert list(load(range(count), make, workers)) == [square(key) for key in range(count)]
    assert sorted(made) == list(range(count))


def test_items_that_take_different_times_stay_in_order() -> None:
    def make(key: int) -> int:
        time.sleep(0.004 if key % 3 == 0 else 0.0)
        return key

    assert list(load(range(40), make, 3)) == list(range(40))


@pytest.mark.parametrize("workers", SIZES)
def test_keys_may_be_endless(workers: int) -> None:
    items = load(itertools.count(), square, workers)
    assert [next(items) for _ in range(50)] == [square(key) for key in range(50)]
    items.close()


def test_threads_work_at_the_same_time() -> None:
    meeting = threading.Barrier(3, timeout=20)  # breaks unless three threads are in it together

    def make(key: int) -> int:
        meeting.wait()
        return key

    assert list(load(range(9), make, 3)) == list(range(9))


@pytest.mark.parametrize("workers", SIZES)
@pytest.mark.parametrize("error", [InputError("a.jpg: broken"), MemoryError(), TimeoutError("the drive")])
def test_an_error_is_raised_in_the_place_of_its_item(workers: int, error: Exception) -> None:
    def make(key: int) -> int:
        if key == 5:
            raise error
        return key

    items = load(range(100), make, workers)
    assert [next(items) for _ in range(5)] == list(range(5))
    with pytest.raises(type(error)) as caught:
        next(items)
    assert caught.value is error
    assert not loader_threads()
    assert list(items) == []


def test_an_error_of_the_keys_ends_the_threads() -> None:
    def keys() -> Iterator[int]:
        yield from range(20)
        raise ValueError("no more keys")

    with pytest.raises(ValueError, match="no more keys"):
        list(load(keys(), square, 2))


def test_closing_ends_the_threads_and_starts_nothing_more() -> None:
    started: list[int] = []
    go_on = threading.Event()

    def make(key: int) -> int:
        started.append(key)
        if key:
            assert go_on.wait(20)
        return key

    items = load(range(100), make, 2)
    assert next(items) == 0
    assert len(loader_threads()) == 2
    assert eventually(lambda: len(started) == 3)
    threading.Timer(0.05, go_on.set).start()
    items.close()
    assert not loader_threads()
    assert sorted(started) == [0, 1, 2]  # the two that were being made when it was closed


def test_no_thread_starts_before_the_first_item_is_asked_for() -> None:
    items = load(range(3), square, 2)
    assert not loader_threads()
    items.close()


@pytest.mark.parametrize(("workers", "ahead", "wanted"), [(1, 4, 4), (2, 4, 4), (3, 1, 3), (0, 4, 0)])
def test_only_so_many_items_are_made_ahead(workers: int, ahead: int, wanted: int) -> None:
    """At least one per thread, so that none is idle."""
    keys, made = itertools.count(), []

    def make(key: int) -> int:
        made.append(key)
        return key

    items = load(keys, make, workers, ahead=ahead)
    for number in range(5):
        assert next(items) == number
        assert eventually(lambda number=number: len(made) >= number + 1 + wanted)  # type: ignore[misc]
        time.sleep(0.005)  # more would be made now
        assert len(made) == number + 1 + wanted
    items.close()
    assert next(keys) == 5 + wanted  # nor was a key taken that is not needed


class Item:
    """Unlike a number, it can be referred to weakly."""


@pytest.mark.parametrize("workers", SIZES)
def test_an_item_is_freed_when_it_has_been_used(workers: int) -> None:
    """Also the last one of a thread that has nothing more to do and waits."""
    known: dict[int, weakref.ref[Item]] = {}

    def make(key: int) -> Item:
        item = Item()
        known[key] = weakref.ref(item)
        return item

    with closing(load(range(20), make, workers, ahead=3)) as items:
        for key in range(20):
            item = next(items)
            assert known[key]() is item
            del item
            assert eventually(lambda key=key: known[key]() is None)  # type: ignore[misc]
        assert len(loader_threads()) == workers


@pytest.mark.parametrize("workers", SIZES)
def test_closing_frees_the_items_that_were_made_ahead(workers: int) -> None:
    known: list[weakref.ref[Item]] = []

    def make(_key: int) -> Item:
        item = Item()
        known.append(weakref.ref(item))
        return item

    with closing(load(itertools.count(), make, workers)) as items:
        next(items)
        assert eventually(lambda: len(known) == 1 + AHEAD * bool(workers))
    assert all(one() is None for one in known)


def test_an_item_that_never_comes_is_one_error_and_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "WAIT_SECONDS", 0.05)
    answers = threading.Event()

    def make(key: int) -> int:
        if key == 2:
            answers.wait(20)
        return key

    items = load(range(100), make, 2)
    assert [next(items), next(items)] == [0, 1]
    with pytest.raises(LoaderFailed, match=r"^no image was read within 0 seconds; a network drive .*disk"):
        next(items)
    assert list(items) == []
    threads = loader_threads()
    assert all(thread.daemon for thread in threads)  # so that the program can end without them
    answers.set()
    for thread in threads:
        thread.join(20)  # and they end when the drive answers again, those that waited for work included


def test_a_program_ends_although_a_drive_does_not_answer() -> None:
    code = """
import threading
from detector.data import loader
loader.WAIT_SECONDS = 0.05
for item in loader.load(range(9), lambda key: threading.Event().wait() if key == 1 else key, 2):
    print(item, flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "0\n"
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("detector.data.loader.LoaderFailed: no image was read")


def test_an_interrupt_while_it_waits_ends_the_threads() -> None:
    interrupted = threading.Event()

    def interrupt(*_: object) -> None:
        interrupted.set()
        raise KeyboardInterrupt

    def make(key: int) -> int:
        if key == 3:
            threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGINT)).start()
            interrupted.wait(10)
        return key

    items = load(range(100), make, 2)
    before = signal.signal(signal.SIGINT, interrupt)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(items)
    finally:
        signal.signal(signal.SIGINT, before)
    assert not loader_threads()
    assert list(items) == []


def test_batches_on_the_cpu_pass_unchanged(records: list[ImageRecord]) -> None:
    batch = collate([TrainingSamples(records, proposals, TINY, seed=0)(1, 1)])
    (moved,) = on_device(iter([batch]), "cpu")
    assert moved.images.data_ptr() == batch.images.data_ptr()
    assert moved.metas == batch.metas


# With images:

TINY = ImageTransform(scales=(8,), max_size=8)
IMAGES = 150


@pytest.fixture
def records(tmp_path: Path) -> list[ImageRecord]:
    """Many records, each with tensors of its own, of one small image."""
    cv2.imwrite(str(tmp_path / "a.jpg"), np.zeros((8, 8, 3), np.uint8))
    return [
        ImageRecord(
            image_id=str(number),
            path=tmp_path / "a.jpg",
            height=8,
            width=8,
            targets=Targets.make(torch.tensor([[1.0, 1.0, 5.0, 6.0]]), torch.tensor([1])),
        )
        for number in range(IMAGES)
    ]


def proposals(_record: ImageRecord) -> Proposals:
    return Proposals(boxes=torch.tensor([[0.0, 0.0, 4.0, 4.0]]), scores=torch.ones(1))


def draw(rois: torch.Tensor, targets: Targets, rng: np.random.Generator) -> DrawnRegions:
    rows = torch.from_numpy(rng.permutation(len(rois)))
    return DrawnRegions(rois[rows], targets.labels[:1].expand(len(rows)), torch.zeros(len(rows), 4), rows)


def training(records: list[ImageRecord]) -> Generator[Batch, None, None]:
    sample = TrainingSamples(records, proposals, TINY, seed=0, draw_regions=draw)
    keys = ([(at % IMAGES, at), ((at + 1) % IMAGES, at + 1)] for at in itertools.count(step=2))
    return load(keys, lambda pair: collate([sample(*key) for key in pair]), 2)


def inference(records: list[ImageRecord]) -> Generator[list[Batch], None, None]:
    views = InferenceViews(records, proposals, [TINY, TINY])
    keys = (at % IMAGES for at in itertools.count())
    return load(keys, lambda index: [collate([sample]) for sample in views(index)], 2)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


@pytest.mark.parametrize("make", [training, inference])
def test_no_descriptor_and_no_thread_stays(
    records: list[ImageRecord], make: Callable[[list[ImageRecord]], Generator[object, None, None]]
) -> None:
    before = open_files()
    most = 0
    with closing(make(records)) as items:
        for _ in range(300):
            next(items)
            most = max(most, open_files())
    assert most <= before + 4  # numpy opens the file that a thread reads twice
    assert open_files() == before
    assert not loader_threads()
