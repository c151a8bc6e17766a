"""Averaged weights against the formula."""

from __future__ import annotations

import torch
from torch import nn

from detector.engine.ema import AveragedWeights


def test_the_average_is_that_of_the_formula() -> None:
    """average <- decay * average + (1 - decay) * weights; buffers and frozen weights are copies."""
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    model[0].requires_grad_(False)
    expected = {name: value.double() for name, value in model.named_parameters()}
    averaged = AveragedWeights(model, 0.9)
    for step in range(1, 6):
        with torch.no_grad():
            for parameter in model[1].parameters():
                parameter.add_(torch.full_like(parameter, float(step)))
            model[1].running_mean.fill_(step)  # type: ignore[operator]
        for name, value in model.named_parameters():
            expected[name] = 0.9 * expected[name] + 0.1 * value.detach().double()
        averaged.update()
    for name, value in averaged.network.named_parameters():
        torch.testing.assert_close(value, expected[name].float())
        assert not value.requires_grad
    assert torch.equal(averaged.network[0].weight, next(model.parameters()))
    assert torch.equal(averaged.network[1].running_mean, torch.full((2,), 5.0))
    assert not averaged.network.training
    assert model.training


def test_goes_on_from_its_state_and_leaves_the_network_alone() -> None:
    models = [nn.Linear(3, 2) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    first = AveragedWeights(models[0], 0.5)
    with torch.no_grad():
        models[0].weight.add_(1.0)
    first.update()
    second = AveragedWeights(models[0], 0.5)
    second.load_state_dict(first.state_dict())
    assert list(first.state_dict()) == list(models[0].state_dict())
    for averaged in (first, second):
        averaged.update()
    assert torch.equal(first.network.weight, second.network.weight)
    assert torch.equal(models[0].weight, models[1].weight + 1.0)
