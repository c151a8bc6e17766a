"""A replay of the steps up to one whose loss was not finite, in search of the first value that is not finite.

Every step is inspected while it is computed: the outputs of the layers in the order of their computation, the
losses, the gradients in the order of backpropagation (also with torch's anomaly detection, which names the
operation), the gradients of the parameters, and the parameters after the step.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from detector.core.tensor_files import walk
from detector.engine.faults import as_plain


@dataclass(frozen=True)
class Values:
    """What a tensor holds: its shape, how many values are not finite, range and mean of the others."""

    shape: tuple[int, ...]
    not_finite: int
    minimum: float | None = None
    maximum: float | None = None
    mean: float | None = None

    @classmethod
    def of(cls, tensor: Tensor) -> Values:
        values = tensor.detach().double().flatten()
        finite = values[values.isfinite()]
        bad = len(values) - len(finite)
        if not len(finite):
            return cls(tuple(tensor.shape), bad)
        return cls(tuple(tensor.shape), bad, float(finite.min()), float(finite.max()), float(finite.mean()))

    def __str__(self) -> str:
        shape = "x".join(map(str, self.shape)) or "a number"
        if self.minimum is None:
            return f"{shape}, no finite value"
        bad = f"{self.not_finite} not finite, the others " if self.not_finite else ""
        return f"{shape}, {bad}{self.minimum:.4g} to {self.maximum:.4g}, mean {self.mean:.4g}"


@dataclass(frozen=True)
class Finding:
    """The first value that is not finite.

    ``part`` says of what: ``layer`` (its output), ``loss``, ``gradient of a layer`` (with respect to its
    output), ``operation`` (of backpropagation), ``gradient of a parameter`` or ``parameter`` (after the
    step). ``name`` is the name of the layer, loss, operation or parameter; ``values`` are those found there.
    ``inputs`` are a layer's inputs, and ``parameters`` its parameters.
    """

    part: str
    name: str
    kind: str = ""
    values: Values | None = None
    inputs: list[Values] = field(default_factory=list)
    parameters: dict[str, Values] = field(default_factory=dict)


class Replayable(Protocol):
    """What a replay needs of a run (`detector.engine.run.Run`)."""

    step: int
    task: Any
    optimizer: torch.optim.Optimizer

    def advance(self, batch: Any) -> dict[str, Tensor]:
        """Do one step of the optimizer and return its losses."""


class _Found(Exception):
    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.name)
        self.finding = finding


@dataclass(frozen=True)
class Outcome:
    """The end of a replay: the last ``step`` that was computed, and what was found in it."""

    step: int
    finding: Finding | None
    image_ids: list[str]


def replay(
    run: Replayable, until: int, on_batch: Callable[[int, Any], None] = lambda _step, _batch: None
) -> Outcome:
    """Compute the steps of ``run`` up to step ``until``, or up to the first value that is not finite.

    ``on_batch`` gets each step's number and its batch as plain values.
    """
    image_ids: list[str] = []
    with run.task.computing(), closing(run.task.batches(run.step)) as batches, _inspected(run):
        run.task.model.train()
        while run.step < until:
            step, batch = run.step + 1, next(batches)
            image_ids = [meta.image_id for meta in batch.metas]
            on_batch(step, as_plain(batch))
            try:
                run.advance(batch)
                _check_parameters(run.task.model)
            except _Found as found:
                return Outcome(step, found.finding, image_ids)
            except RuntimeError as error:
                operation = re.search(r"Function '(\w+)' returned nan values", str(error))
                if operation is None:
                    raise
                return Outcome(step, Finding("operation", operation[1], "backpropagation"), image_ids)
    return Outcome(run.step, None, image_ids)


@contextmanager
def _inspected(run: Replayable) -> Iterator[None]:
    """Raise `_Found` inside the block as soon as a value of a step is not finite."""
    model, step = run.task.model, run.task.step

    def checked(batch: Any) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = step(batch)
        for name, loss in losses.items():
            _check(loss, lambda values, name=name: Finding("loss", name, values=values))
        return losses

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if not any(True for _ in module.children()):
                handle = module.register_forward_hook(_Hook(name))
                stack.callback(handle.remove)
        before = run.optimizer.register_step_pre_hook(lambda *_: _check_gradients(model))
        stack.callback(before.remove)
        run.task.step = checked
        stack.callback(setattr, run.task, "step", step)
        stack.enter_context(torch.autograd.set_detect_anomaly(True))
        yield


class _Hook:
    """Inspects what a layer returns, and later the gradient with respect to that."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, module: nn.Module, given: Any, output: Any) -> None:
        kind = type(module).__name__
        for tensor in _tensors(output):
            _check(
                tensor,
                lambda values: Finding(
                    "layer",
                    self.name,
                    kind,
                    values,
                    [Values.of(one) for one in _tensors(given)],
                    {name: Values.of(one) for name, one in module.named_parameters()},
                ),
            )
            if tensor.requires_grad:
                tensor.register_hook(
                    lambda grad: _check(
                        grad, lambda values: Finding("gradient of a layer", self.name, kind, values)
                    )
                )


def _check(tensor: Tensor, finding: Callable[[Values], Finding]) -> None:
    if not tensor.isfinite().all():
        raise _Found(finding(Values.of(tensor)))


def _check_gradients(model: nn.Module) -> None:
    """Look at the parameters from the last layer to the first, as backpropagation does."""
    for name, parameter in reversed(list(model.named_parameters())):
        if parameter.grad is not None:
            shown = {name: Values.of(parameter)}
            _check(
                parameter.grad,
                lambda values, name=name, shown=shown: Finding(
                    "gradient of a parameter", name, values=values, parameters=shown
                ),
            )


def _check_parameters(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        _check(parameter.detach(), lambda values, name=name: Finding("parameter", name, values=values))


def _tensors(value: Any) -> list[Tensor]:
    """Return the floating-point tensors in the input or output of a layer."""
    plain = dict(value) if isinstance(value, Mapping) else value
    return [item for _, item in walk(plain) if isinstance(item, Tensor) and item.is_floating_point()]
