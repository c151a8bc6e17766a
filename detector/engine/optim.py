"""The solver: SGD or AdamW with a separate rate and decay for biases, and a learning rate per step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from detector.core.errors import InputError

Schedule = Callable[[int], float]
"""From a step (0-based) to the factor on every group's initial learning rate."""


ADAMW_BETA2 = 0.999
"""AdamW's decay of the squared gradients: the value that its paper and torch use."""
NAMES: dict[type[torch.optim.Optimizer], str] = {torch.optim.SGD: "sgd", torch.optim.AdamW: "adamw"}
"""The optimizers by their names in the config."""
_STATE = {"sgd": {"momentum_buffer"}, "adamw": {"step", "exp_avg", "exp_avg_sq"}}
"""What each optimizer keeps of every parameter."""


def build_optimizer(
    kind: str,
    model: nn.Module,
    *,
    learning_rate: float,
    momentum: float,
    weight_decay: float,
    bias_lr_factor: float,
    bias_decay: bool,
) -> torch.optim.SGD | torch.optim.AdamW:
    """Return the optimizer ``kind``, "sgd" or "adamw", over the parameters that train (`parameter_groups`).

    For AdamW (Loshchilov and Hutter, 2019), ``momentum`` is beta1, and weights decay by ``learning_rate *
    weight_decay`` of their value per step, independently of the gradient. The update reads and writes every
    number once (``fused``), where torch's default takes a pass over memory for each term.
    """
    groups = parameter_groups(model, learning_rate, weight_decay, bias_lr_factor, bias_decay=bias_decay)
    shared: dict[str, Any] = {
        "lr": learning_rate,
        "weight_decay": weight_decay,
        "fused": True if any(group["params"] for group in groups) else None,
    }
    match kind:
        case "sgd":
            return torch.optim.SGD(groups, momentum=momentum, **shared)
        case "adamw":
            return torch.optim.AdamW(groups, betas=(momentum, ADAMW_BETA2), **shared)
        case _:
            raise ValueError(f"optimizer {kind!r} is unknown; known: sgd, adamw")


def parameter_groups(
    model: nn.Module, learning_rate: float, weight_decay: float, bias_lr_factor: float, *, bias_decay: bool
) -> list[dict[str, Any]]:
    """Return the parameters that train in two groups: weights, and biases with a rate and decay of their own.

    Parameters of batch normalisation count as biases: neither should decay towards zero.
    """
    biases = {
        id(parameter)
        for module in model.modules()
        for name, parameter in module.named_parameters(recurse=False)
        if name == "bias" or isinstance(module, nn.BatchNorm2d)
    }
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trained if id(p) not in biases], "lr": learning_rate},
        {
            "params": [p for p in trained if id(p) in biases],
            "lr": learning_rate * bias_lr_factor,
            "weight_decay": weight_decay if bias_decay else 0.0,
        },
    ]
    for group in groups:
        group["initial_lr"] = group["lr"]
    return groups


def clip_gradients(optimizer: torch.optim.Optimizer, limit: float) -> None:
    """Scale all gradients of the optimizer's parameters so that their common L2 norm is at most ``limit``.

    The result is that of ``torch.nn.utils.clip_grad_norm_``, which multiplies by 1 where the norm is within
    the limit. On the CPU that pass is left out; on a GPU, finding out would mean to wait for it.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if norm.device.type != "cpu" or not limit / (norm + 1e-6) >= 1.0:  # torch's rule; NaN is passed on
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)


def load_optimizer_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any], source: str) -> None:
    """Load the moments of ``saved``, a state dict; learning rates and all other settings stay as they are.

    So a resumed run uses the config's settings, and a checkpoint can move between a GPU and the CPU, whose
    optimizers are implemented differently.

    Raises:
        InputError: the state is that of the other kind of optimizer, or belongs to other parameters; names
            ``source``, the checkpoint's file.
    """
    _check_kind(optimizer, saved, source)
    own = optimizer.state_dict()["param_groups"]
    if [group["params"] for group in own] != [group["params"] for group in saved["param_groups"]]:
        before, now = (
            sum(len(group["params"]) for group in groups) for groups in (saved["param_groups"], own)
        )
        raise InputError(
            f"{source}: the checkpoint's optimizer trained {before} parameters and this run trains {now}; a "
            "resumed run keeps train.trainable"
        )
    _check_moments(optimizer, saved["state"], source)
    optimizer.load_state_dict({"state": saved["state"], "param_groups": own})


def _check_kind(optimizer: torch.optim.Optimizer, saved: dict[str, Any], source: str) -> None:
    own = NAMES[type(optimizer)]
    of_adam = any("betas" in group for group in saved["param_groups"])
    kept = {name for entry in saved["state"].values() for name in entry}
    before = "adamw" if of_adam or kept & _STATE["adamw"] else "sgd"
    if before != own:
        raise InputError(
            f"{source}: the checkpoint has the state of train.optimizer: {before}, with which {own} cannot "
            f"continue; a resumed run keeps train.optimizer. Set it to {before}, or name the checkpoint in "
            "train.initial_weights of a new run"
        )


def _check_moments(optimizer: torch.optim.Optimizer, state: dict[int, Any], source: str) -> None:
    """Check that every kept tensor has the shape of its parameter; AdamW's count of steps is one number."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    names = _STATE[NAMES[type(optimizer)]]
    for number, entry in state.items():
        fits = number < len(parameters) and all(
            value.numel() == 1 if name == "step" else value.shape == parameters[number].shape
            for name, value in entry.items()
            if name in names and value is not None
        )
        complete = not isinstance(optimizer, torch.optim.AdamW) or all(
            entry.get(name) is not None for name in names
        )
        if not (fits and complete):
            raise InputError(
                f"{source}: the checkpoint's optimizer has a momentum that fits no parameter of this run; "
                "use another checkpoint"
            )


def build_schedule(
    steps: int,
    *,
    kind: str,
    milestones: Sequence[float] = (),
    gamma: float = 0.1,
    final: float = 0.0,
    warmup: float = 0.0,
    warmup_start: float = 0.1,
) -> Schedule:
    """Return the learning rate's factor over a run of ``steps``.

    Milestones and warm-up are fractions of ``steps``, so another number of steps stretches the whole
    schedule.
    """

    def factor(step: int) -> float:
        done = step / steps
        ramp = 1.0
        if done < warmup:
            ramp = warmup_start + (1 - warmup_start) * done / warmup
        match kind:
            case "step":
                return ramp * gamma ** sum(done >= milestone for milestone in milestones)
            case "cosine":
                return ramp * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done)))
            case _:
                raise ValueError(f"schedule {kind!r} is unknown; known: step, cosine")

    return factor


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set every group to ``factor`` times its initial rate; return the first group's rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])
