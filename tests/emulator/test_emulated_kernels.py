"""The CUDA kernels on the emulator against the CPU operators; `make emulate` makes more calls."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from detector.ops import spp_pool
from detector.ops.masked_pooling import MODES, masked_roi_pool
from tests.emulator.build import why_not
from tests.emulator.calls import Call
from tests.emulator.compare import Emulator
from tests.emulator.fuzz import Fuzz
from tests.emulator.masked import random_masks

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


@pytest.mark.parametrize("samples", [-1, 0])
@pytest.mark.parametrize("cover", [torch.ones(12), torch.ones(12, dtype=torch.bool)], ids=["float", "bool"])
def test_windows_without_their_cells_give_zeros(emulator: Emulator, cover: Tensor, samples: int) -> None:
    features, rois = torch.rand(1, 3, 5, 6) + 1, torch.tensor([[0.0, 0, 0, 2, 3]]).repeat(6, 1)
    first = [[0, 0, 3, 4, 0], [0, 0, 3, 4, 1], [0, 0, 3, 4, -1], [0, 0, 2**62, 2**62, 0]]
    windows = torch.tensor([*first, [-(2**63), 0, 2**63 - 1, 4, 0], [0, 0, 3, 4, 2**63 - 1]])
    settings = ([2], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0], 0, samples)
    with emulator.kernels:
        pooled, kept = torch.ops.detector.masked_pool(features, rois, windows, cover, *settings, True)
        grad = torch.ops.detector.masked_pool_backward(
            torch.ones_like(pooled), rois, windows, cover, kept, *settings, *features.shape
        )
    assert pooled[0].all()
    assert not pooled[1:].any()
    expected = torch.ops.detector.masked_pool(features, rois[:1], windows[:1], cover, *settings, True)
    assert torch.equal(pooled[:1], expected[0])
    one = torch.ops.detector.masked_pool_backward(
        torch.ones(1, 12), rois[:1], windows[:1], cover, expected[1], *settings, *features.shape
    )
    assert torch.equal(grad, one)


@pytest.mark.parametrize("mode", MODES)
def test_masked_pooling_of_more_than_kernels_hold_is_refused(emulator: Emulator, mode: str) -> None:
    rois = torch.tensor([[0.0, 0, 0, 8, 8]])
    masks = random_masks(random.Random(0), 1, 9, 9)
    with emulator.kernels, pytest.raises(RuntimeError, match="at most 1024 bin edges, not 1026"):
        masked_roi_pool(torch.randn(1, 1, 9, 9), rois, masks, 513, 1.0, mode)


@pytest.mark.slow
def test_the_most_edges_and_the_longest_side(fuzz: Fuzz, capsys: pytest.CaptureFixture[str]) -> None:
    rois = torch.tensor([[0.0, 0, 0, 8, 8]])
    for shape, size in (((9, 9), (1023, 1)), ((32767, 1), (2, 1)), ((1, 32767), (1, 2))):
        options = {"output_size": size, "spatial_scale": 1.0}
        call = Call("roi_pool", torch.randn(1, 1, *shape), rois, options)
        call.grad_seed = 1 if shape[0] < 100 else None  # it would take seconds
        fuzz.make(f"{size} of {shape}", call, random.Random(0))
    assert fuzz.faulty == 0, capsys.readouterr().out
