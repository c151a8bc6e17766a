"""A replay names the first value that is not finite, wherever in the step it appears."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Generator
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detector.engine.replay import Finding, Outcome, Values, replay

INFINITY = float("inf")


class Exploding(torch.autograd.Function):
    """The identity, with an infinite gradient."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0] * INFINITY


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(3, 4)
        self.act = nn.ReLU(inplace=True)
        self.second = nn.Linear(4, 2)

    def forward(self, values: Tensor) -> Tensor:
        output: Tensor = self.second(self.act(self.first(values)))
        return output


class TinyRun:
    """What a replay needs of a run; ``spoil`` may change the network before a step, or its loss."""

    def __init__(self, spoil: Callable[[int, Net, Tensor], Tensor] = lambda _step, _net, loss: loss) -> None:
        self.step = 0
        self.model = Net()
        self.settings = SimpleNamespace(accumulate=1)
        self.scaler: object | None = None
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.01)
        self.spoil = spoil
        self.task: Any = SimpleNamespace(
            model=self.model, computing=nullcontext, batches=self.batches, step=self.losses
        )

    def batches(self, start: int) -> Generator[Any, None, None]:
        for number in itertools.count(start):
            values = torch.arange(6.0).reshape(2, 3) + number
            yield SimpleNamespace(values=values, metas=[SimpleNamespace(image_id=f"image_{number}")])

    def losses(self, batch: Any, _count: float) -> dict[str, Tensor]:
        loss = self.model(batch.values).square().mean()
        return {"loss_cls": loss, "loss_box": self.spoil(self.step, self.model, loss)}

    def advance(self, parts: Any) -> None:
        self.optimizer.zero_grad()
        for batch in parts:
            torch.stack(list(self.task.step(batch, 1.0).values())).sum().backward()
        self.optimizer.step()
        self.step += 1


def found(run: TinyRun, until: int = 6) -> Finding:
    outcome = replay(run, until)
    assert outcome.finding is not None
    assert outcome.step == 4
    assert outcome.image_ids == ["image_3"]
    return outcome.finding


def test_steps_without_a_fault_are_those_of_a_run() -> None:
    inspected, plain = TinyRun(), TinyRun()
    seen: list[int] = []
    outcome = replay(inspected, 5, lambda step, _: seen.append(step))
    assert outcome == Outcome(5, None, ["image_4"])
    assert seen == [1, 2, 3, 4, 5]
    for batch in itertools.islice(plain.batches(0), 5):
        plain.advance([batch])
    for one, other in zip(inspected.model.parameters(), plain.model.parameters(), strict=True):
        assert torch.equal(one, other)
    assert not torch.is_anomaly_enabled()
    assert not inspected.model.first._forward_hooks  # nothing stays
    assert inspected.task.step == inspected.losses


def test_a_layer_is_named_with_its_input_and_parameters() -> None:
    run = TinyRun()
    step = run.task.step

    def overflow(batch: Any, count: float) -> dict[str, Tensor]:
        if run.step == 3:
            with torch.no_grad():
                run.model.second.weight.fill_(3e38)
        losses: dict[str, Tensor] = step(batch, count)
        return losses

    run.task.step = overflow
    finding = found(run)
    assert (finding.part, finding.name, finding.kind) == ("layer", "second", "Linear")
    assert finding.values is not None
    assert finding.values.not_finite > 0
    (given,) = finding.inputs
    assert given.shape == (2, 4)
    assert given.not_finite == 0
    assert finding.parameters["weight"].maximum == pytest.approx(3e38)
    assert finding.parameters.keys() == {"weight", "bias"}


def test_a_loss_is_named_where_all_layers_are_finite() -> None:
    finding = found(TinyRun(lambda step, _, loss: loss * (INFINITY if step == 3 else 1)))
    assert (finding.part, finding.name) == ("loss", "loss_box")


def at_step_4(changed: Callable[[Net, Tensor], Tensor]) -> TinyRun:
    return TinyRun(lambda step, net, loss: changed(net, loss) if step == 3 else loss)


def test_an_operation_of_backpropagation_is_named() -> None:
    """The gradient of sqrt(0) is infinite, and 0 times that is not a number."""
    finding = found(at_step_4(lambda _, loss: (loss * 0).sqrt() * 0))
    assert (finding.part, finding.name) == ("operation", "SqrtBackward0")
    assert re.fullmatch(r"called in .*test_replay\.py, line \d+", finding.kind)


def test_a_gradient_of_a_layer_is_named() -> None:
    finding = found(at_step_4(lambda _, loss: Exploding.apply(loss)))
    assert (finding.part, finding.name, finding.kind) == ("gradient of a layer", "second", "Linear")


def test_a_gradient_of_a_parameter_is_named() -> None:
    finding = found(at_step_4(lambda net, loss: loss + Exploding.apply(net.first.bias).sum()))
    assert (finding.part, finding.name) == ("gradient of a parameter", "first.bias")
    assert finding.values is not None
    assert finding.values.not_finite == 4
    assert finding.parameters["first.bias"].not_finite == 0


def test_a_parameter_that_a_step_makes_infinite_is_named() -> None:
    run = TinyRun()

    def advance(parts: Any) -> None:
        run.optimizer.param_groups[0]["lr"] = 3e38 if run.step == 3 else 0.01
        TinyRun.advance(run, parts)

    run.advance = advance  # type: ignore[method-assign]
    finding = found(run)
    assert finding.part == "parameter"
    assert finding.name.startswith(("first", "second"))


def test_scaled_gradients_may_be_infinite(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in float16, where the step is then left out."""
    run = at_step_4(lambda net, loss: loss + Exploding.apply(net.first.bias).sum())
    run.scaler = object()
    monkeypatch.setattr(run.optimizer, "step", lambda: None)
    assert replay(run, 6).finding is None


def test_values_describe_a_tensor() -> None:
    values = Values.of(torch.tensor([[1.0, INFINITY], [float("nan"), 3.0]]))
    assert values == Values((2, 2), 2, 1.0, 3.0, 2.0)
    assert str(values) == "2x2, 2 not finite, the others 1 to 3, mean 2"
    assert str(Values.of(torch.tensor(0.5))) == "a number, 0.5 to 0.5, mean 0.5"
    assert str(Values.of(torch.tensor([INFINITY]))) == "1, no finite value"
    assert str(Values.of(torch.zeros(0))) == "0, no finite value"


def test_another_error_of_torch_stays_one() -> None:
    def fail(*_: Any) -> Tensor:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        replay(TinyRun(fail), 3)
