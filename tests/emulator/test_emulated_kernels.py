"""The CUDA kernels of csrc/cuda on an emulator, against the CPU operators; `make emulate` runs more of it."""

from __future__ import annotations

import pytest
import torch

from detector.ops import spp_pool
from tests.emulator.build import why_not
from tests.emulator.compare import Emulator
from tests.emulator.fuzz import Fuzz

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

CALLS = 150


@pytest.fixture(scope="module")
def emulator() -> Emulator:
    return Emulator()


@pytest.fixture
def fuzz(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Fuzz:
    yield Fuzz(emulator)
    torch.use_deterministic_algorithms(False)


def test_random_calls_equal_the_cpu_operators(fuzz: Fuzz, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(CALLS):
        fuzz.random(0, number)
    assert fuzz.faulty == 0, capsys.readouterr().out
    assert fuzz.tally["gradient values"] > 0
    assert fuzz.tally["calls compared with torchvision"] > 0


def test_calls_that_chance_seldom_makes(fuzz: Fuzz, capsys: pytest.CaptureFixture[str]) -> None:
    fuzz.special(slow=False)
    assert fuzz.faulty == 0, capsys.readouterr().out


def test_more_levels_than_kernels_hold_are_refused_in_words(emulator: Emulator) -> None:
    features, rois = torch.randn(1, 1, 9, 9), torch.tensor([[0.0, 0, 0, 8, 8]])
    with emulator.kernels, pytest.raises(RuntimeError, match="at most 16 levels"):
        spp_pool(features, rois, levels=range(1, 18))
