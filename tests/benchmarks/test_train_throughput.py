"""How the time of a step is divided into parts and compared, without any network of real size."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from benchmarks.train_throughput import WARM_UP, Clock, Seconds, in_turns, summary


class Slow(nn.Module):
    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.seconds = seconds

    def forward(self, numbers: Tensor) -> Tensor:
        time.sleep(self.seconds)
        return numbers


def test_a_part_within_another_counts_for_itself_only() -> None:
    clock, outer, inner = Clock("cpu"), Slow(0.02), Slow(0.06)
    clock.watch(inner, "pooling")
    for _ in range(2):
        for module in (inner, copy.deepcopy(inner)):  # inference makes copies of networks
            with clock.part("head"):
                outer(module(torch.zeros(1)))
        seconds = clock.take()
        assert set(seconds) == {"head", "pooling", "all"}
        assert seconds["pooling"] >= 0.12 > 0.04 <= seconds["head"]
        assert seconds["head"] < seconds["pooling"]
        assert seconds["all"] == pytest.approx(seconds["head"] + seconds["pooling"])


def test_each_function_comes_first_in_turn_and_pairs_stay_together() -> None:
    calls: list[str] = []

    def side(name: str, factor: float) -> Callable[[int], Seconds]:
        def call(item: int) -> Seconds:
            calls.append(f"{name}{item}")
            return {"all": factor * (item + 1)}

        return call

    pairs = in_turns(range(4), side("a", 1.0), side("b", 3.0))
    assert calls == ["b0", "a0", "a1", "b1", "b2", "a2", "a3", "b3"]
    assert pairs == [({"all": n + 1.0}, {"all": 3.0 * (n + 1)}) for n in range(WARM_UP, 4)]
    assert len(in_turns([0], side("a", 1.0), side("b", 3.0))) == 1


def test_ratios_are_those_of_pairs() -> None:
    pairs = [
        ({"head": a, "all": a}, {"head": b, "all": 2 * b}) for a, b in ((1.0, 2.0), (2.0, 10.0), (4.0, 4.0))
    ]
    assert summary(pairs, ["head"]) == {
        "head": {"ours_ms": 2000.0, "peer_ms": 4000.0, "peer_over_ours": 2.0},
        "all": {"ours_ms": 2000.0, "peer_ms": 8000.0, "peer_over_ours": 4.0},
    }
