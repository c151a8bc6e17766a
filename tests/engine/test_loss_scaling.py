"""The loss scale of float16, on the CPU, which has torch's kernels for it too."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import nn

from detector.engine.checkpoint import check_content
from detector.engine.loss_scaling import LossScaler
from detector.engine.optim import build_optimizer, clip_gradients, load_optimizer_state

SETTINGS: dict[str, Any] = {
    "learning_rate": 0.1,
    "weight_decay": 1e-3,
    "bias_lr_factor": 2.0,
    "bias_decay": False,
}


def network() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 2)


def step(model: nn.Linear, scaler: LossScaler, factor: float, limit: float | None = None) -> None:
    scaler.optimizer.zero_grad()
    scaler.backward(model(torch.arange(8.0).view(2, 4)).square().mean() * factor)
    scaler.unscale()
    if limit is not None:
        clip_gradients(scaler.optimizer, limit)
    scaler.apply()


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
@pytest.mark.parametrize("limit", [None, 0.5])
def test_steps_are_those_without_a_scale(kind: str, limit: float | None) -> None:
    """Scales are powers of two, so nothing is rounded."""
    scaled, plain = network(), network()
    scaler = LossScaler(build_optimizer(kind, scaled, momentum=0.9, **SETTINGS), "cpu")
    optimizer = build_optimizer(kind, plain, momentum=0.9, **SETTINGS)
    for _ in range(3):
        step(scaled, scaler, 1.0, limit)
        optimizer.zero_grad()
        plain(torch.arange(8.0).view(2, 4)).square().mean().backward()
        if limit is not None:
            clip_gradients(optimizer, limit)
        optimizer.step()
    assert all(map(torch.equal, scaled.parameters(), plain.parameters()))
    assert scaler.record() == {"loss_scale": 65536.0, "skipped_steps": 0.0}


@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_a_step_that_overflows_is_skipped_counted_and_lowers_the_scale(kind: str) -> None:
    """Also where it is the very first one, before which the optimizer has no momenta."""
    skipping, plain = network(), network()
    scalers = [
        LossScaler(build_optimizer(kind, model, momentum=0.9, **SETTINGS), "cpu")
        for model in (skipping, plain)
    ]
    before = deepcopy(skipping.state_dict())
    step(skipping, scalers[0], 1e38)  # times the scale it is infinite
    assert all(torch.equal(before[name], value) for name, value in skipping.state_dict().items())
    for model, scaler in zip((skipping, plain), scalers, strict=True):
        step(model, scaler, 1.0)
        step(model, scaler, 1.0)
    assert all(map(torch.equal, skipping.parameters(), plain.parameters()))
    assert scalers[0].record() == {"loss_scale": 32768.0, "skipped_steps": 1.0}
    assert scalers[0].record() == {"loss_scale": 32768.0, "skipped_steps": 0.0}


def test_goes_on_from_its_state() -> None:
    whole, resumed = network(), network()
    first = LossScaler(build_optimizer("sgd", whole, momentum=0.9, **SETTINGS), "cpu")
    first.load_state({"scale": 4.0, "steps": 1997})  # the scale is doubled after 2000 steps
    step(whole, first, 1.0)
    state, kept = first.state(), deepcopy(first.optimizer.state_dict())
    assert state == {"scale": 4.0, "steps": 1998}
    check_content({"scaler": state, "model": {}}, "a.pt")
    resumed.load_state_dict(whole.state_dict())
    second = LossScaler(build_optimizer("sgd", resumed, momentum=0.9, **SETTINGS), "cpu")
    load_optimizer_state(second.optimizer, kept, "a.pt")
    second.load_state(state)
    for _ in range(2):
        step(whole, first, 1.0)
        step(resumed, second, 1.0)
    assert first.state() == second.state() == {"scale": 8.0, "steps": 0}
    assert all(map(torch.equal, whole.parameters(), resumed.parameters()))
