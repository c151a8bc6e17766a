"""A replay of the steps up to one whose loss was not finite, in search of the first value that is not finite.

Every step is inspected while it is computed: the outputs of the layers in the order of their computation, the
losses, the gradients in the order of backpropagation (also with torch's anomaly detection, which names the
operation), the gradients of the parameters, and the parameters after the step. In float16, gradients are not
inspected: they are scaled, and where the scale is too large, they become infinite and the step is left out.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
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
    settings: Any

    @property
    def optimizer(self) -> torch.optim.Optimizer: ...
    @property
    def scaler(self) -> object | None: ...

    def advance(self, parts: Sequence[Any]) -> object:
        """Do one step of the optimizer with its batches."""


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
    run: Replayable, until: int, on_batches: Callable[[int, Any], None] = lambda _step, _parts: None
) -> Outcome:
    """Compute the steps of ``run`` up to step ``until``, or up to the first value that is not finite.

    ``on_batches`` gets each step's number and its batches as plain values.
    """
    image_ids: list[str] = []
    with (
        run.task.computing(),
        closing(run.task.batches(run.step)) as batches,
        _inspected(run),
        warnings.catch_warnings(record=True, category=UserWarning) as traces,  # of anomaly detection
    ):
        run.task.model.train()
        while run.step < until:
            step, parts = run.step + 1, [next(batches) for _ in range(run.settings.accumulate)]
            image_ids = [meta.image_id for batch in parts for meta in batch.metas]
            on_batches(step, as_plain(parts))
            try:
                run.advance(parts)
                _check_parameters(run.task.model)
            except _Found as found:
                return Outcome(step, found.finding, image_ids)
            except RuntimeError as error:
                operation = re.search(r"Function '(\w+)' returned nan values", str(error))
                if operation is None:
                    raise
                return Outcome(step, Finding("operation", operation[1], _caller(traces)), image_ids)
    return Outcome(run.step, None, image_ids)


@contextmanager
def _inspected(run: Replayable) -> Iterator[None]:
    """Raise `_Found` inside the block as soon as a value of a step is not finite."""
    model, step = run.task.model, run.task.step

    def checked(*given: Any) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = step(*given)
        for name, loss in losses.items():
            _check(loss, partial(_finding, "loss", name))
        return losses

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if not any(True for _ in module.children()):
                handle = module.register_forward_hook(_Hook(name, gradients=run.scaler is None))
                stack.callback(handle.remove)
        run.task.step = checked
        stack.callback(setattr, run.task, "step", step)
        if run.scaler is None:
            before = run.optimizer.register_step_pre_hook(lambda *_: _check_gradients(model))
            stack.callback(before.remove)
            stack.enter_context(torch.autograd.set_detect_anomaly(True))
        yield


def _caller(traces: Sequence[warnings.WarningMessage]) -> str:
    """Return where this project called the operation that anomaly detection has found, as it reports."""
    for trace in reversed(traces):
        places = re.findall(
            r'File "([^"]+)", line (\d+), in ', str(trace.message).partition("forward call")[2]
        )
        own = [place for place in places if "site-packages" not in place[0]] or places
        if own:
            return f"called in {own[-1][0]}, line {own[-1][1]}"
    return ""


class _Hook:
    """Inspects what a layer returns, and later the gradient with respect to that."""

    def __init__(self, name: str, *, gradients: bool) -> None:
        self.name = name
        self.gradients = gradients

    def __call__(self, module: nn.Module, given: Any, output: Any) -> None:
        kind = type(module).__name__

        def finding(values: Values) -> Finding:
            inputs = [Values.of(one) for one in _tensors(given)]
            parameters = {name: Values.of(one) for name, one in module.named_parameters()}
            return Finding("layer", self.name, kind, values, inputs, parameters)

        def gradient(values: Values) -> Finding:
            return Finding("gradient of a layer", self.name, kind, values)

        for tensor in _tensors(output):
            _check(tensor, finding)
            if self.gradients and tensor.requires_grad:
                tensor.register_hook(lambda grad: _check(grad, gradient))


def _check(tensor: Tensor, finding: Callable[[Values], Finding]) -> None:
    if not tensor.isfinite().all():
        raise _Found(finding(Values.of(tensor)))


def _check_gradients(model: nn.Module) -> None:
    """Look at the parameters from the last layer to the first, as backpropagation does."""
    for name, parameter in reversed(list(model.named_parameters())):
        if parameter.grad is not None:
            _check(parameter.grad, partial(_finding, "gradient of a parameter", name, of=parameter))


def _check_parameters(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        _check(parameter.detach(), partial(_finding, "parameter", name))


def _finding(part: str, name: str, values: Values, of: Tensor | None = None) -> Finding:
    return Finding(part, name, values=values, parameters={} if of is None else {name: Values.of(of)})


def _tensors(value: Any) -> list[Tensor]:
    """Return the floating-point tensors in the input or output of a layer."""
    plain = dict(value) if isinstance(value, Mapping) else value
    return [item for _, item in walk(plain) if isinstance(item, Tensor) and item.is_floating_point()]
