"""Peak memory counts what this process and its workers held at their fullest."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable
from multiprocessing.synchronize import Event
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from detector.engine.memory import PeakMemory, pss_mib
from tests.devices import on_cuda

MIB = 1 << 20


def hold(mib: int, ready: Event, leave: Event) -> None:
    block = np.ones(mib * MIB, np.uint8)
    ready.set()
    leave.wait(60)
    del block


def forked(blocks: int, hold: Callable[..., None], *arguments: object) -> tuple[float, PeakMemory]:
    """Return by how many MiB ``blocks`` processes that run ``hold`` raise the peak, and the peak."""
    memory = PeakMemory()
    alone = pss_mib(os.getpid())
    assert alone is not None
    context = multiprocessing.get_context("fork")
    ready, leave = [context.Event() for _ in range(blocks)], context.Event()
    workers = [context.Process(target=hold, args=(*arguments, event, leave)) for event in ready]
    for worker in workers:
        worker.start()
    assert all(event.wait(60) for event in ready)
    memory.sample()
    leave.set()
    for worker in workers:
        worker.join(60)
    return memory.mib() - alone, memory


@pytest.fixture
def no_own_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests of this process have had a peak of their own."""
    monkeypatch.setattr("detector.engine.memory._own_peak_mib", lambda: 0.0)


def test_the_peak_holds_at_least_what_workers_allocated(no_own_peak: None) -> None:
    more, memory = forked(2, hold, 100)
    assert more >= 200
    peak = memory.mib()
    memory.sample()
    assert memory.mib() == peak  # the peak stays when the workers have gone


def look(block: np.ndarray, ready: Event, leave: Event) -> None:
    assert block.sum(dtype=np.int64) == len(block)
    ready.set()
    leave.wait(60)


def test_a_page_that_workers_share_counts_once(no_own_peak: None) -> None:
    """Three processes with one block of 300 MiB had 900 MiB."""
    block = np.ones(300 * MIB, np.uint8)
    more, _ = forked(2, look, block)
    assert more < 150
    del block


def test_a_system_without_shares_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detector.engine.memory.pss_mib", lambda pid: None)
    memory = PeakMemory()
    metrics = memory.metrics()
    note, peak = metrics["peak_rss_note"], metrics["peak_rss_mib"]
    assert isinstance(note, str)
    assert note.startswith("shared pages are counted once per process: ")
    assert isinstance(peak, float)
    assert peak > 100


def test_steps_are_measured_at_intervals(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, taken = PeakMemory(), []
    monkeypatch.setattr(memory, "sample", lambda: taken.append(True))
    counts = []
    for now in (100.0, 100.25, 100.49, 100.5, 100.99, 102.0):
        monkeypatch.setattr("detector.engine.memory.time", SimpleNamespace(monotonic=lambda now=now: now))
        memory.sample_step()
        counts.append(len(taken))
    assert counts == [1, 1, 1, 2, 2, 3]


def test_the_own_peak_rises_with_what_is_held() -> None:
    memory = PeakMemory()
    before = memory.mib()
    block = np.ones((int(before) + 64) * MIB, np.uint8)
    assert memory.mib() >= len(block) / MIB


def test_a_gpu_has_a_figure_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []

    def allocated(device: torch.device) -> int:
        asked.append(device)
        return 3 * MIB // 2

    monkeypatch.setattr(torch.cuda, "max_memory_allocated", allocated)
    assert PeakMemory().gpu_metrics() == {}
    assert PeakMemory("cpu").metrics().keys() == {"peak_rss_mib"}
    memory = PeakMemory("cuda:1")
    assert memory.gpu_metrics() == {"peak_gpu_memory_mib": 1.5}
    assert memory.metrics().keys() == {"peak_rss_mib", "peak_gpu_memory_mib"}
    assert set(asked) == {torch.device("cuda:1")}


@on_cuda
def test_the_peak_of_a_gpu_holds_what_was_allocated(device: str) -> None:
    memory = PeakMemory(device)
    block = torch.empty(64 * MIB, dtype=torch.uint8, device=device)
    del block
    assert memory.gpu_metrics()["peak_gpu_memory_mib"] >= 64
