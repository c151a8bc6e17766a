"""Peak memory counts what this process and its workers held at their fullest."""

from __future__ import annotations

import multiprocessing
from multiprocessing.synchronize import Event

import numpy as np
import pytest
import torch

from detector.engine.memory import PeakMemory
from tests.devices import on_cuda

MIB = 1 << 20


def hold(mib: int, ready: Event, leave: Event) -> None:
    block = np.ones(mib * MIB, np.uint8)
    ready.set()
    leave.wait(60)
    del block


def test_the_peak_holds_at_least_what_workers_allocated() -> None:
    memory = PeakMemory()
    alone = memory.mib()
    context = multiprocessing.get_context("fork")
    ready, leave = [context.Event() for _ in range(2)], context.Event()
    workers = [context.Process(target=hold, args=(100, event, leave)) for event in ready]
    for worker in workers:
        worker.start()
    assert all(event.wait(60) for event in ready)
    memory.sample()
    during = memory.mib()
    leave.set()
    for worker in workers:
        worker.join(60)
    assert during - alone >= 200
    memory.sample()
    assert memory.mib() >= during  # the peak stays when the workers have gone


def test_the_own_peak_rises_with_what_is_held() -> None:
    memory = PeakMemory()
    before = memory.mib()
    block = np.ones((int(before) + 64) * MIB, np.uint8)
    assert memory.mib() >= len(block) / MIB


def test_a_gpu_has_a_figure_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device] = []
    monkeypatch.setattr(
        torch.cuda, "max_memory_allocated", lambda device: asked.append(device) or 3 * MIB // 2
    )
    assert PeakMemory().gpu_figures() == {}
    assert PeakMemory("cpu").figures().keys() == {"peak_rss_mib"}
    memory = PeakMemory("cuda:1")
    assert memory.gpu_figures() == {"peak_gpu_memory_mib": 1.5}
    assert memory.figures().keys() == {"peak_rss_mib", "peak_gpu_memory_mib"}
    assert set(asked) == {torch.device("cuda:1")}


@on_cuda
def test_the_peak_of_a_gpu_holds_what_was_allocated(device: str) -> None:
    memory = PeakMemory(device)
    block = torch.empty(64 * MIB, dtype=torch.uint8, device=device)
    del block
    assert memory.gpu_figures()["peak_gpu_memory_mib"] >= 64
