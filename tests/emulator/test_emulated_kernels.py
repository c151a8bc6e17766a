"""The CUDA kernels on the emulator against the CPU operators; `make emulate` makes more calls."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest
import torch

from detector.ops import spp_pool
from tests.emulator.build import why_not
from tests.emulator.calls import Call
from tests.emulator.compare import Emulator
from tests.emulator.fuzz import Fuzz

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

CALLS = 150


@pytest.fixture(scope="module")
def emulator() -> Emulator:
    return Emulator()


@pytest.fixture
def fuzz(emulator: Emulator, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fuzz]:
    yield Fuzz(emulator)
    torch.use_deterministic_algorithms(False)


def test_random_calls_equal_the_cpu_operators(fuzz: Fuzz, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(CALLS):
        fuzz.random(0, number)
    assert fuzz.faulty == 0, capsys.readouterr().out
    assert fuzz.tally["gradient values"] > 0
    assert fuzz.tally["values of network inputs"] > 0
    assert fuzz.tally["calls compared with torchvision"] > 0


@pytest.mark.slow
def test_calls_that_chance_seldom_makes(fuzz: Fuzz, capsys: pytest.CaptureFixture[str]) -> None:
    fuzz.special(slow=False)
    assert fuzz.faulty == 0, capsys.readouterr().out


@pytest.mark.parametrize(
    ("shape", "levels", "message"),
    [
        ((9, 9), range(1, 18), "at most 16 levels, not 17"),
        ((9, 9), [513], "at most 1024 bin edges, not 1026"),
        ((32768, 1), [1], "at most 32767 cells a side, not 32768 x 1"),
    ],
)
def test_more_than_kernels_hold_is_refused_in_words(
    emulator: Emulator, shape: tuple[int, int], levels: Sequence[int], message: str
) -> None:
    features, rois = torch.randn(1, 1, *shape), torch.tensor([[0.0, 0, 0, 8, 8]])
    with emulator.kernels, pytest.raises(RuntimeError, match=message):
        spp_pool(features, rois, levels=levels)


@pytest.mark.slow
def test_the_most_edges_and_the_longest_side(fuzz: Fuzz, capsys: pytest.CaptureFixture[str]) -> None:
    rois = torch.tensor([[0.0, 0, 0, 8, 8]])
    for shape, size in (((9, 9), (1023, 1)), ((32767, 1), (2, 1)), ((1, 32767), (1, 2))):
        options = {"output_size": size, "spatial_scale": 1.0}
        call = Call("roi_pool", torch.randn(1, 1, *shape), rois, options)
        call.grad_seed = 1 if shape[0] < 100 else None  # it would take seconds
        fuzz.make(f"{size} of {shape}", call, random.Random(0))
    assert fuzz.faulty == 0, capsys.readouterr().out
