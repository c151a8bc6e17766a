"""Peak memory counts what this process and the GPU held at their fullest."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detector.engine.memory import peak_gpu_memory, peak_memory
from tests.devices import on_cuda

MIB = 1 << 20


def test_the_peak_rises_with_what_is_held_and_stays() -> None:
    before = peak_memory("cpu")["peak_rss_mib"]
    block = np.ones((int(before) + 64) * MIB, np.uint8)
    peak = peak_memory("cpu")["peak_rss_mib"]
    assert peak >= len(block) / MIB
    del block
    assert peak_memory("cpu")["peak_rss_mib"] > peak - 4  # Linux adds up its counters with a small error


def test_without_the_kernels_file_the_peak_comes_from_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    known = peak_memory("cpu")["peak_rss_mib"]

    def missing(_: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr("detector.engine.memory.Path.read_text", missing)
    assert peak_memory("cpu")["peak_rss_mib"] == pytest.approx(known, rel=0.1)


def test_a_gpu_has_a_number_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.device | str] = []

    def allocated(device: torch.device | str) -> int:
        asked.append(device)
        return 3 * MIB // 2

    monkeypatch.setattr(torch.cuda, "max_memory_allocated", allocated)
    assert peak_gpu_memory("cpu") == {}
    assert peak_memory("cpu").keys() == {"peak_rss_mib"}
    assert asked == []
    assert peak_gpu_memory("cuda:1") == {"peak_gpu_memory_mib": 1.5}
    assert peak_memory("cuda:1").keys() == {"peak_rss_mib", "peak_gpu_memory_mib"}
    assert {torch.device(one) for one in asked} == {torch.device("cuda:1")}


@on_cuda
def test_the_peak_of_a_gpu_holds_what_was_allocated(device: str) -> None:
    block = torch.empty(64 * MIB, dtype=torch.uint8, device=device)
    del block
    assert peak_gpu_memory(device)["peak_gpu_memory_mib"] >= 64
