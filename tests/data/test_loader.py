"""Loading in worker processes: nothing leaks, and what goes wrong there is one clear error."""

from __future__ import annotations

import os
import pickle
import signal
import weakref
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from detector.core.errors import InputError
from detector.core.structures import Batch, ImageRecord, Normalization, Proposals, Targets
from detector.data import loader as loader_module
from detector.data.loader import (
    LoaderFailed,
    collate_or_error,
    load,
    needed_memory,
    quiet_worker,
    views_or_error,
    workers_that_fit,
    workers_watched,
)
from detector.data.samples import InferenceDataset, TrainingDataset, collate
from detector.data.transforms import ImageTransform
from tests.typed import present

TINY = ImageTransform(
    normalization=Normalization(mean=(0.0,) * 3, deviation=(1.0,) * 3, maximum=255.0, bgr=False),
    scales=(8,),
    max_size=8,
)
IMAGES = 150


@pytest.fixture
def records(tmp_path: Path) -> list[ImageRecord]:
    """Many records, each with tensors of its own, of one small image."""
    cv2.imwrite(str(tmp_path / "a.png"), np.zeros((8, 8, 3), np.uint8))
    return [
        ImageRecord(
            image_id=str(number),
            path=tmp_path / "a.png",
            height=8,
            width=8,
            targets=Targets.make(torch.tensor([[1.0, 1.0, 5.0, 6.0]]), torch.tensor([1])),
        )
        for number in range(IMAGES)
    ]


def proposals(record: ImageRecord) -> Proposals:
    return Proposals(boxes=torch.tensor([[0.0, 0.0, 4.0, 4.0]]), scores=torch.ones(1))


def training(records: list[ImageRecord], batch: int) -> DataLoader:
    keys = [[(at, at) for at in range(start, start + batch)] for start in range(0, IMAGES, batch)]
    dataset = TrainingDataset(records, proposals, TINY, seed=0)
    return DataLoader(
        dataset,
        batch_sampler=keys,
        collate_fn=collate_or_error,
        num_workers=1,
        worker_init_fn=quiet_worker,
        timeout=loader_module.TRY_SECONDS,
    )


def inference(records: list[ImageRecord], _batch: int) -> DataLoader:
    return DataLoader(
        InferenceDataset(records, proposals, [TINY, TINY]),
        batch_size=None,
        collate_fn=views_or_error,
        num_workers=1,
        worker_init_fn=quiet_worker,
    )


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))  # noqa: PTH208


def worker_pid() -> int:
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    return max(map(int, children))


@pytest.mark.parametrize("make", [training, inference])
@pytest.mark.parametrize("batch", [1, 50])
def test_no_descriptor_stays_open(records: list[ImageRecord], make: object, batch: int) -> None:
    """Tensors of the records would stay in shared memory: 4 descriptors per image in the worker."""
    items = load(make(records, batch))  # type: ignore[operator]
    before = open_files(os.getpid())
    most = []
    for _ in items:
        most.append((open_files(os.getpid()), open_files(worker_pid())))
    ours, workers = (max(column) for column in zip(*most, strict=True))
    assert ours <= before + 30
    assert workers <= before + 30


def test_a_sample_shares_no_memory_with_its_record(records: list[ImageRecord]) -> None:
    sample = TrainingDataset(records, proposals, TINY, seed=0)[3, 3]
    assert not isinstance(sample, InputError)
    for name in ("boxes", "labels", "difficult", "crowd", "area"):
        mine, kept = getattr(sample.targets, name), getattr(records[3].targets, name)
        assert mine.untyped_storage().data_ptr() != kept.untyped_storage().data_ptr()


def test_boxes_travel_between_processes_as_they_are(records: list[ImageRecord]) -> None:
    dataset = TrainingDataset(records, proposals, TINY, seed=0)
    samples = [sample for sample in (dataset[0, 0], dataset[1, 1]) if not isinstance(sample, InputError)]
    assert len(samples) == 2
    batch = collate(samples)
    again: Batch = pickle.loads(pickle.dumps(batch))
    assert torch.equal(again.images, batch.images)
    assert again.metas == batch.metas
    for one, other in zip(again.rois_per_image, batch.rois_per_image, strict=True):
        assert torch.equal(one, other)
    assert again.targets[1].crowd.dtype == torch.bool
    assert torch.equal(present(again.proposals[0].scores), present(batch.proposals[0].scores))
    again.targets[0].boxes.add_(1)  # writable


class Failing(Dataset[int]):
    """Ends its worker process in the way that its number says."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> int:
        if index == 3:
            match self.kind:
                case "killed":
                    os.kill(os.getpid(), signal.SIGKILL)
                case "bus error":
                    os.kill(os.getpid(), signal.SIGBUS)
                case "exit":
                    os._exit(3)
                case "silence":
                    signal.pause()
        return index


@pytest.mark.parametrize("kind", ["killed", "bus error", "exit"])
def test_a_worker_that_dies_is_one_clear_error(kind: str) -> None:
    loader = DataLoader(Failing(kind), batch_size=None, num_workers=1, timeout=loader_module.TRY_SECONDS)
    with pytest.raises(LoaderFailed) as caught, workers_watched("; go on with --resume"):
        list(load(loader))
    text = str(caught.value)
    assert text.startswith("a process that loads images died")
    for word in ("memory", "data.workers", "--shm-size", "--resume"):
        assert word in text
    assert "\n" not in text


def test_other_errors_keep_their_traceback() -> None:
    with pytest.raises(RuntimeError, match="sizes of tensors"), workers_watched():
        raise RuntimeError("sizes of tensors differ")


def test_silence_ends_with_an_error_that_names_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "WAIT_SECONDS", 2)
    monkeypatch.setattr(loader_module, "TRY_SECONDS", 1)
    loader = DataLoader(Failing("silence"), batch_size=None, num_workers=1, timeout=1)
    items = load(loader)
    assert [next(items) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(LoaderFailed, match=r"no images for 2 seconds.*shared memory.*--shm-size.*workers=0"):
        next(items)


def test_closing_lets_go_of_the_loader_at_once() -> None:
    """Python 3.12.3 seems to keep what a closed generator held, unless it ends by an exception."""
    iterator = iter(DataLoader(TensorDataset(torch.zeros(4, 1)), batch_size=None))
    known = weakref.ref(iterator)

    class Loader:
        def __iter__(self) -> Iterator[torch.Tensor]:
            nonlocal iterator
            found = iterator
            del iterator
            return found

    batches = load(Loader())
    next(batches)
    assert known() is not None
    batches.close()
    assert known() is None


def test_a_slow_image_is_waited_for() -> None:
    """A time-out is tried again: this process may have been stopped itself."""

    class Late:
        def __iter__(self) -> Iterator[int]:
            return self

        calls = 0

        def __next__(self) -> int:
            self.calls += 1
            if self.calls % 40:
                raise RuntimeError("DataLoader timed out after 5 seconds")
            if self.calls > 100:
                raise StopIteration
            return self.calls

    assert list(load(Late())) == [40, 80]


def test_full_shared_memory_is_reported_by_the_worker(
    records: list[ImageRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_tensor: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("unable to allocate shared memory(shm) for file <1>: No space left on device")

    monkeypatch.setattr(torch.Tensor, "share_memory_", full)  # the worker is forked with it
    for make in (training, inference):
        with pytest.raises(LoaderFailed, match=r"no shared memory.*No space left.*--shm-size=1g.*workers=0"):
            next(load(make(records, 2)))


def test_the_room_in_shared_memory_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    mib = 2**20
    assert needed_memory(2, 10 * mib) == 50 * mib  # two batches ready in each worker, one in use
    assert needed_memory(2, 10 * mib, 30 * mib) == 70 * mib
    assert needed_memory(0, 10 * mib) == 0
    monkeypatch.setattr(loader_module, "free_shared_memory", lambda: 64 * mib)
    assert workers_that_fit(2, 10 * mib) == 2
    assert workers_that_fit(4, 10 * mib, fixed=False) == 2
    assert workers_that_fit(4, 40 * mib, fixed=False) == 0
    with pytest.raises(LoaderFailed) as caught:
        workers_that_fit(4, 10 * mib)
    assert str(caught.value) == (
        "data.workers=4: the images that they prepare ahead may take 90.0 MiB of shared memory, and /dev/shm "
        "has 64.0 MiB free; give the container more shared memory (docker run --shm-size=1g), or set "
        "data.workers=0, which needs none"
    )
    monkeypatch.setattr(loader_module, "free_shared_memory", lambda: None)
    assert workers_that_fit(100, 10 * mib) == 100
