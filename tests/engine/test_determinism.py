"""CUDA's algorithms are chosen within the context and as before after it; no GPU is needed to choose."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn
from torch.backends import cudnn

from detector.core.errors import InputError
from detector.engine.determinism import cuda_algorithms
from detector.models.backbones import ChannelNorm, build_backbone
from detector.models.crops import CropPooling
from tests.devices import on_cuda
from tests.typed import present

VARIABLE = "CUBLAS_WORKSPACE_CONFIG"


@pytest.fixture(autouse=True)
def own_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take away what conftest.py has set, for the time of a test."""
    monkeypatch.delenv(VARIABLE)


def chosen() -> tuple[int, bool, bool, bool]:
    return (
        torch.get_deterministic_debug_mode(),
        cudnn.deterministic,
        cudnn.benchmark,
        torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]  # added at run time
    )


def test_algorithms_are_chosen_within_the_context_alone() -> None:
    before = chosen()
    with cuda_algorithms("cuda", deterministic=True):
        assert chosen() == (2, True, False, False)
        assert os.environ[VARIABLE] == ":4096:8"
        with cuda_algorithms("cuda:1", deterministic=False):
            assert chosen() == (0, False, True, False)
        assert chosen() == (2, True, False, False)
    assert chosen() == before
    with pytest.raises(KeyError), cuda_algorithms("cuda", deterministic=True):
        raise KeyError
    assert chosen() == before


def test_the_cpu_and_what_the_user_has_set_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = chosen()
    with cuda_algorithms("cpu", deterministic=True):
        assert chosen() == before
        assert VARIABLE not in os.environ
    monkeypatch.setenv(VARIABLE, ":16:8")
    with cuda_algorithms("cuda", deterministic=True):
        assert os.environ[VARIABLE] == ":16:8"


def without_a_deterministic_algorithm() -> None:
    torch.zeros(3).put_(torch.tensor([1, 1]), torch.ones(2))  # not even on the CPU


def test_an_operation_without_a_deterministic_algorithm_is_named_with_the_key_to_set() -> None:
    with (
        pytest.raises(InputError, match=r"train\.deterministic: put_ does not.*set train\.deterministic to"),
        cuda_algorithms("cuda", deterministic=True),
    ):
        without_a_deterministic_algorithm()
    with cuda_algorithms("cuda", deterministic=False):
        without_a_deterministic_algorithm()
    with pytest.raises(RuntimeError, match="another fault"), cuda_algorithms("cuda", deterministic=True):
        raise RuntimeError("another fault")


@on_cuda
@pytest.mark.parametrize("layer", [ChannelNorm(5, alpha=1e-2, beta=0.75), nn.MaxPool2d(3, 2, 1)])
def test_layers_have_one_gradient_on_cuda(device: str, layer: nn.Module) -> None:
    images = torch.randn(2, 96, 75, 75, device=device).contiguous(memory_format=torch.channels_last)

    def gradient() -> torch.Tensor:
        start = images.clone().requires_grad_()
        layer(start).square().sum().backward()
        return present(start.grad)

    with cuda_algorithms(device, deterministic=True):
        first = gradient()
        assert all(torch.equal(gradient(), first) for _ in range(5))


@on_cuda
def test_crops_have_one_gradient_on_cuda(device: str) -> None:
    pool = CropPooling(build_backbone("small"), 3, crop_size=44, context=4).to(device).eval()
    images = torch.randn(2, 3, 96, 96, device=device)
    rois = torch.tensor([[0.0, 4, 4, 60, 40], [1, 0, 0, 60, 90]], device=device).repeat(40, 1)

    def gradients() -> list[torch.Tensor]:
        pool.zero_grad()
        pool([images], rois).square().sum().backward()
        return [present(parameter.grad).clone() for parameter in pool.parameters()]

    with cuda_algorithms(device, deterministic=True):
        first = gradients()
        for _ in range(5):
            assert all(map(torch.equal, gradients(), first))
