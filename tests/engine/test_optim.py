"""Schedules against closed formulas, and the solver's groups."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from detector.core.errors import InputError
from detector.engine.checkpoint import check_content
from detector.engine.optim import (
    build_optimizer,
    build_schedule,
    clip_gradients,
    load_optimizer_state,
    set_learning_rate,
)
from tests.devices import on_cuda
from tests.typed import gradient

Make = Callable[[nn.Module], torch.optim.SGD]


def test_step_schedule_is_the_papers() -> None:
    factor = build_schedule(40_000, kind="step", milestones=(0.75,), gamma=0.1)
    assert [factor(step) for step in (0, 29_999)] == [1.0, 1.0]
    assert [factor(step) for step in (30_000, 39_999)] == [0.1, 0.1]


def test_every_milestone_multiplies() -> None:
    factor = build_schedule(100, kind="step", milestones=(0.5, 0.5, 0.8), gamma=0.5)
    assert [factor(step) for step in (49, 50, 79, 80)] == [1.0, 0.25, 0.25, 0.125]


def test_cosine_falls_from_one_to_its_final_value() -> None:
    factor = build_schedule(200, kind="cosine", final=0.1)
    for step in range(0, 201, 7):
        expected = 0.1 + 0.9 * (1 + math.cos(math.pi * step / 200)) / 2
        assert factor(step) == pytest.approx(expected)
    assert factor(0) == 1.0
    assert factor(200) == pytest.approx(0.1)


@pytest.mark.parametrize("kind", ["step", "cosine"])
def test_warm_up_rises_linearly_and_then_leaves_the_schedule_alone(kind: str) -> None:
    plain = build_schedule(1000, kind=kind, milestones=(0.9,))
    warm = build_schedule(1000, kind=kind, milestones=(0.9,), warmup=0.05, warmup_start=0.2)
    for step in range(50):
        assert warm(step) == pytest.approx(plain(step) * (0.2 + 0.8 * step / 50))
    assert all(warm(step) == plain(step) for step in range(50, 1000, 10))


def test_a_schedule_stretches_with_its_steps() -> None:
    settings: dict[str, Any] = {"kind": "step", "milestones": (0.25, 0.5), "warmup": 0.1}
    short, long = build_schedule(40, **settings), build_schedule(4000, **settings)
    assert [short(step) for step in range(40)] == [long(100 * step) for step in range(40)]


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="schedule 'linear' is unknown; known: step, cosine"):
        build_schedule(10, kind="linear")(0)


def network() -> nn.Sequential:
    layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    layers[0].requires_grad_(False)
    return layers


def sgd(model: nn.Module, *, bias_decay: bool = False) -> torch.optim.Optimizer:
    return build_optimizer(
        "sgd",
        model,
        learning_rate=0.01,
        momentum=0.9,
        weight_decay=5e-4,
        bias_lr_factor=2.0,
        bias_decay=bias_decay,
    )


@pytest.mark.parametrize("bias_decay", [False, True])
def test_biases_and_norms_have_their_own_rate_and_decay(bias_decay: bool) -> None:
    model = network()
    weights, biases = sgd(model, bias_decay=bias_decay).param_groups
    assert [id(p) for p in weights["params"]] == [id(model[3].weight)]
    assert [id(p) for p in biases["params"]] == [id(p) for p in (*model[1].parameters(), model[3].bias)]
    assert (weights["lr"], biases["lr"]) == (0.01, 0.02)
    assert (weights["weight_decay"], biases["weight_decay"]) == (5e-4, 5e-4 if bias_decay else 0.0)
    assert weights["momentum"] == biases["momentum"] == 0.9


def test_rates_follow_the_factor_in_every_group() -> None:
    optimizer = sgd(network())
    assert set_learning_rate(optimizer, 0.1) == pytest.approx(0.001)
    assert set_learning_rate(optimizer, 0.5) == pytest.approx(0.005)  # from the initial rate, not the last
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.005, 0.01])


def test_a_step_is_that_of_the_formula() -> None:
    """v = momentum * v + gradient + decay * w; w = w - rate * v."""
    model = nn.Linear(1, 1)
    with torch.no_grad():
        model.weight.fill_(2.0)
        model.bias.fill_(3.0)
    optimizer = sgd(model)
    weight, bias, weight_speed, bias_speed = 2.0, 3.0, 0.0, 0.0
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.tensor([[5.0]])).sum().backward()  # gradients 5 and 1
        optimizer.step()
        weight_speed = 0.9 * weight_speed + 5 + 5e-4 * weight
        bias_speed = 0.9 * bias_speed + 1
        weight, bias = weight - 0.01 * weight_speed, bias - 0.02 * bias_speed
    assert model.weight.item() == pytest.approx(weight, rel=1e-6)
    assert model.bias.item() == pytest.approx(bias, rel=1e-6)


def two_steps(optimizer: torch.optim.Optimizer) -> None:
    for _ in range(2):
        for group in optimizer.param_groups:
            for number, parameter in enumerate(group["params"]):
                parameter.grad = (
                    torch.linspace(-1, number + 1, parameter.numel()).view_as(parameter).to(parameter.device)
                )
        optimizer.step()


def fused(model: nn.Module) -> torch.optim.SGD:
    """Return what ``build_optimizer`` gives on a GPU; torch has the fused kernel for the CPU as well."""
    plain = sgd(model)
    return torch.optim.SGD(plain.param_groups, lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True)


@pytest.mark.parametrize(("before", "after"), [(sgd, fused), (fused, sgd), (sgd, sgd)])
def test_momenta_move_between_implementations_and_settings_stay(before: Make, after: Make) -> None:
    source, target = network(), network()
    saved = before(source)
    two_steps(saved)
    target.load_state_dict(source.state_dict())
    resumed = after(target)
    for group in resumed.param_groups:
        group.update(initial_lr=0.5, momentum=0.8)  # of a config that was changed
    implementation = [(group["fused"], group["foreach"]) for group in resumed.param_groups]
    load_optimizer_state(resumed, deepcopy(saved.state_dict()), "a.pt")  # torch would share the tensors
    assert [(group["fused"], group["foreach"]) for group in resumed.param_groups] == implementation
    assert [(group["initial_lr"], group["momentum"]) for group in resumed.param_groups] == [(0.5, 0.8)] * 2
    for mine, theirs in zip(resumed.state.values(), saved.state.values(), strict=True):
        assert torch.equal(mine["momentum_buffer"], theirs["momentum_buffer"])
    for group, other in zip(resumed.param_groups, saved.param_groups, strict=True):
        group.update(momentum=0.9, lr=other["lr"])
    two_steps(saved)
    two_steps(resumed)
    for mine, theirs in zip(target.parameters(), source.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("factor", [0.5, 1.0, 1.5, math.inf])
def test_gradients_are_clipped_to_the_bits_that_torch_gives(factor: float) -> None:
    models = [network() for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    norm = 0.0
    for model in models:
        model(torch.linspace(-3, 3, 12).view(4, 3, 1, 1)).square().sum().backward()
        norm = float(nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
    clip_gradients(sgd(models[0]), norm * factor)
    in_order = [parameter for group in sgd(models[1]).param_groups for parameter in group["params"]]
    nn.utils.clip_grad_norm_(in_order, norm * factor)  # the order decides on the norm's last bit
    for mine, theirs in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert (mine.grad is None) == (theirs.grad is None)
        assert mine.grad is None or torch.equal(gradient(mine), gradient(theirs))


def test_a_gradient_that_is_not_finite_stays_so() -> None:
    model = network()
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, math.nan)
    clip_gradients(sgd(model), 1.0)
    assert all(gradient(parameter).isnan().all() for parameter in model.parameters())


def test_the_step_is_that_of_the_papers_rule() -> None:
    """v <- momentum * v + (gradient + decay * w); w <- w - rate * v, against float64."""
    weight = nn.Parameter(torch.randn(1000, generator=torch.Generator().manual_seed(0)))
    optimizer = sgd(nn.ParameterList([weight]))
    group = optimizer.param_groups[0]
    expected, velocity = weight.detach().double(), torch.zeros(1000, dtype=torch.float64)
    for step in range(4):
        weight.grad = torch.sin(torch.arange(1000.0) * (step + 1))
        velocity = group["momentum"] * velocity + weight.grad.double() + group["weight_decay"] * expected
        expected = expected - group["lr"] * velocity
        optimizer.step()
    torch.testing.assert_close(weight.detach(), expected.float(), rtol=1e-6, atol=1e-7)


def test_the_state_of_other_parameters_is_refused() -> None:
    model = network()
    saved = sgd(model).state_dict()
    model[3].requires_grad_(False)
    with pytest.raises(InputError, match=r"trained 4 parameters and this run trains 2; .*train\.trainable"):
        load_optimizer_state(sgd(model), saved, "a.pt")


def test_momenta_of_other_shapes_are_refused() -> None:
    optimizer = sgd(network())
    two_steps(optimizer)
    saved = optimizer.state_dict()
    for number, momentum in ((0, torch.zeros(7)), (99, torch.zeros(2))):
        changed = {**saved, "state": {**saved["state"], number: {"momentum_buffer": momentum}}}
        with pytest.raises(InputError, match=r"a\.pt: .* a momentum that fits no parameter of this run"):
            load_optimizer_state(sgd(network()), changed, "a.pt")


def adamw(model: nn.Module) -> torch.optim.Optimizer:
    return build_optimizer(
        "adamw",
        model,
        learning_rate=0.01,
        momentum=0.9,
        weight_decay=0.05,
        bias_lr_factor=2.0,
        bias_decay=False,
    )


def test_adamw_takes_the_step_of_its_paper() -> None:
    """w <- w - rate * (m / (sqrt(v) + eps) + decay * w), m and v: the corrected means of g and g^2."""
    model = network()
    optimizer = adamw(model)
    assert optimizer.param_groups[0]["fused"]
    groups = [(group["lr"], group["weight_decay"], group["params"]) for group in optimizer.param_groups]
    assert [(rate, decay) for rate, decay, _ in groups] == [(0.01, 0.05), (0.02, 0.0)]
    expected = {id(p): p.detach().double() for _, _, parameters in groups for p in parameters}
    first, second = ({key: torch.zeros_like(w) for key, w in expected.items()} for _ in range(2))
    for step in range(1, 5):
        for _, _, parameters in groups:
            for parameter in parameters:
                grad = torch.sin(torch.arange(float(parameter.numel())) * step).view_as(parameter)
                parameter.grad = grad
        for rate, decay, parameters in groups:
            for parameter in parameters:
                key, g = id(parameter), gradient(parameter).double()
                first[key] = 0.9 * first[key] + 0.1 * g
                second[key] = 0.999 * second[key] + 0.001 * g**2
                mean, square = first[key] / (1 - 0.9**step), second[key] / (1 - 0.999**step)
                change = mean / (square.sqrt() + 1e-8) + decay * expected[key]
                expected[key] = expected[key] - rate * change
        optimizer.step()
    for _, _, parameters in groups:
        for parameter in parameters:
            torch.testing.assert_close(
                parameter.detach(), expected[id(parameter)].float(), rtol=1e-5, atol=1e-7
            )


def test_adamw_goes_on_exactly_from_its_state() -> None:
    source, target = network(), network()
    whole, resumed = adamw(source), adamw(target)
    two_steps(whole)
    target.load_state_dict(source.state_dict())
    saved = deepcopy(whole.state_dict())
    check_content({"optimizer": saved, "model": {}}, "a.pt")
    load_optimizer_state(resumed, saved, "a.pt")
    two_steps(whole)
    two_steps(resumed)
    assert all(map(torch.equal, source.parameters(), target.parameters()))


@pytest.mark.parametrize(
    ("before", "after", "names"), [(sgd, adamw, ("sgd", "adamw")), (adamw, sgd, ("adamw", "sgd"))]
)
@pytest.mark.parametrize("steps", [0, 2])
def test_the_state_of_the_other_optimizer_is_refused(
    before: Callable[[nn.Module], torch.optim.Optimizer],
    after: Callable[[nn.Module], torch.optim.Optimizer],
    names: tuple[str, str],
    steps: int,
) -> None:
    optimizer = before(network())
    if steps:
        two_steps(optimizer)
    wanted = (
        rf"a\.pt: .* of train\.optimizer: {names[0]}, with which {names[1]} cannot .*train\.initial_weights"
    )
    with pytest.raises(InputError, match=wanted):
        load_optimizer_state(after(network()), optimizer.state_dict(), "a.pt")


def test_moments_of_adamw_that_do_not_fit_are_refused() -> None:
    optimizer = adamw(network())
    two_steps(optimizer)
    saved = deepcopy(optimizer.state_dict())
    entry = saved["state"][0]
    wrong = ({**entry, "exp_avg": torch.zeros(7)}, {**entry, "step": torch.zeros(2)}, {"step": entry["step"]})
    for values in wrong:
        changed = {**saved, "state": {**saved["state"], 0: values}}
        with pytest.raises(InputError, match=r"a\.pt: .* a momentum that fits no parameter of this run"):
            load_optimizer_state(adamw(network()), changed, "a.pt")


@on_cuda
def test_a_gpu_has_the_fused_step_and_its_state_goes_to_the_cpu_and_back(device: str, tmp_path: Path) -> None:
    first, second, on_cpu = network().to(device), network().to(device), network()
    second.load_state_dict(first.state_dict())
    on_cpu.load_state_dict(first.state_dict())
    optimizers = [sgd(model) for model in (first, second, on_cpu)]
    assert [optimizer.param_groups[0]["fused"] for optimizer in optimizers] == [True, True, True]
    for optimizer in optimizers:
        two_steps(optimizer)
    assert all(map(torch.equal, first.parameters(), second.parameters()))  # the same bits
    torch.save(optimizers[0].state_dict(), tmp_path / "state.pt")
    load_optimizer_state(optimizers[2], torch.load(tmp_path / "state.pt", map_location="cpu"), "a.pt")
    torch.save(optimizers[2].state_dict(), tmp_path / "state.pt")
    load_optimizer_state(optimizers[1], torch.load(tmp_path / "state.pt", map_location="cpu"), "a.pt")
    for optimizer in optimizers:
        two_steps(optimizer)
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    for mine, theirs in zip(on_cpu.parameters(), first.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs.cpu())
