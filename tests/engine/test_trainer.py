"""The loop with a toy model: hooks at their steps, signals, and losses that are no longer finite."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from detector.core.errors import InputError
from detector.core.structures import Batch, ImageMeta, Proposals, Targets
from detector.engine.optim import build_schedule
from detector.engine.trainer import StopRequested, Trainer, training_state

Events = list[tuple[Any, ...]]


def batches(start: int = 0) -> Iterator[Batch]:
    """Two images a batch, named by their place in the run."""
    number = start
    while True:
        ids = [f"image_{2 * number + place}" for place in range(2)]
        yield Batch(
            images=torch.full((2, 3, 2, 2), float(number)),
            proposals=[Proposals(boxes=torch.zeros(0, 4))] * 2,
            rois_per_image=[torch.zeros(0, 4)] * 2,
            targets=[Targets.empty()] * 2,
            metas=[ImageMeta(image_id=name, original_size=(2, 2), input_size=(2, 2)) for name in ids],
        )
        number += 1


class Toy(nn.Module):
    """One weight; the losses of step n (from 0) are weight * n / 100 and 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.modes: list[bool] = []
        self.before: Callable[[int], None] = lambda _: None

    def step(self, batch: Batch) -> dict[str, Tensor]:
        number = int(batch.images[0, 0, 0, 0])
        self.before(number)
        self.modes.append(self.training)
        return {"loss_cls": self.weight * number / 100, "loss_box": self.weight * 0 + 1}


def make_trainer(toy: Toy, events: Events, steps: int = 10, **settings: Any) -> Trainer:
    optimizer = torch.optim.SGD([{"params": toy.parameters(), "lr": 0.5, "initial_lr": 0.5}], lr=0.5)
    hooks = {
        "on_step": lambda trainer: events.append(("step", trainer.step)),
        "on_record": lambda trainer, record: events.append(("record", trainer.step, record)),
        "on_save": lambda trainer: events.append(("save", trainer.step)),
        "on_evaluate": lambda trainer: (toy.eval(), events.append(("evaluate", trainer.step))),
    }
    given: dict[str, Any] = {
        "model": toy,
        "optimizer": optimizer,
        "schedule": build_schedule(steps, kind="step", milestones=(0.5,)),
        "batches": batches(settings.get("step", 0)),
        "training_step": toy.step,
        "steps": steps,
    }
    return Trainer(**{**given, **hooks, **settings})


def happened(events: Events, kind: str) -> list[int]:
    return [event[1] for event in events if event[0] == kind]


def test_hooks_come_at_their_steps_and_all_at_the_last() -> None:
    events: Events = []
    toy = Toy()
    make_trainer(toy, events, log_every=3, checkpoint_every=4, evaluate_every=6).run()
    assert happened(events, "step") == list(range(1, 11))
    assert happened(events, "record") == [3, 6, 9, 10]
    assert happened(events, "save") == [4, 8, 10, 10]
    assert happened(events, "evaluate") == [6, 10]
    # Saved before the evaluation, which may fail, and after it, with what it found.
    assert [event[0] for event in events][-5:] == ["step", "record", "save", "evaluate", "save"]
    assert toy.modes == [True] * 10  # evaluation's mode does not stay


def test_without_an_interval_evaluation_is_at_the_end_alone() -> None:
    events: Events = []
    make_trainer(Toy(), events).run()
    assert happened(events, "evaluate") == happened(events, "record") == [10]
    assert happened(events, "save") == [10, 10]


def test_records_hold_the_means_since_the_last_and_the_rate() -> None:
    events: Events = []
    toy = Toy()
    toy.weight.requires_grad_(True)
    trainer = make_trainer(toy, events, log_every=5)
    trainer.run()
    weight, losses = 1.0, []
    for number in range(10):
        losses.append(weight * number / 100)
        weight -= (0.5 if number < 5 else 0.05) * number / 100
    first, second = (event[2] for event in events if event[0] == "record")
    assert (first["step"], second["step"]) == (5, 10)
    for record, part, rate in ((first, losses[:5], 0.5), (second, losses[5:], 0.05)):
        assert record["loss_cls"] == pytest.approx(sum(part) / 5, rel=1e-5)
        assert record["loss_box"] == pytest.approx(1.0)
        assert record["loss"] == pytest.approx(sum(part) / 5 + 1, rel=1e-5)
        assert record["learning_rate"] == pytest.approx(rate)
        assert record["images_per_second"] == pytest.approx(2 / record["seconds_per_step"])
    assert toy.weight.item() == pytest.approx(weight, rel=1e-5)


def test_gradients_are_clipped_to_their_norm() -> None:
    toy = Toy()
    make_trainer(toy, [], steps=4, clip_gradient_norm=0.01, schedule=lambda _: 1.0).run()
    # The gradients 0, .01, .02 and .03 become 0, .01, .01 and .01.
    assert toy.weight.item() == pytest.approx(1 - 0.5 * 0.03, rel=1e-4)


def test_a_run_goes_on_from_its_step() -> None:
    whole, part = Toy(), Toy()
    make_trainer(whole, []).run()
    first = make_trainer(part, [], schedule=build_schedule(10, kind="step", milestones=(0.5,)), steps=6)
    first.run()
    state = training_state(first)
    assert state["step"] == 6
    resumed = Toy()
    resumed.load_state_dict(state["model"])
    events: Events = []
    trainer = make_trainer(resumed, events, step=6)
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.run()
    assert torch.equal(resumed.weight, whole.weight)
    assert happened(events, "step") == [7, 8, 9, 10]


def test_a_finished_run_does_nothing() -> None:
    events: Events = []
    make_trainer(Toy(), events, step=10, evaluated=10).run()
    assert events == []


@pytest.mark.parametrize(("step", "expected"), [(10, [10]), (6, [6, 10]), (5, [6, 10])])
def test_an_evaluation_that_a_stop_prevented_is_made_up_for(step: int, expected: list[int]) -> None:
    events: Events = []
    make_trainer(Toy(), events, step=step, evaluated=3, evaluate_every=6).run()
    assert happened(events, "evaluate") == expected
    if step == 6:
        assert events[:2] == [("evaluate", 6), ("save", 6)]


def test_a_failing_evaluation_comes_after_the_checkpoint() -> None:
    def fail(_: Trainer) -> None:
        raise InputError("a test image is gone")

    events: Events = []
    with pytest.raises(InputError, match="a test image is gone"):
        make_trainer(Toy(), events, on_evaluate=fail).run()
    assert happened(events, "save") == [10]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(number: signal.Signals) -> None:
    events: Events = []
    toy = Toy()
    toy.before = lambda step: os.kill(os.getpid(), number) if step == 3 else None
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(StopRequested, match=f"stopped by {number.name} after step 4") as caught:
        make_trainer(toy, events).run()
    assert caught.value.exit_status == 128 + number
    assert happened(events, "step") == [1, 2, 3, 4]
    assert happened(events, "save") == [4]  # once
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_signal_stops_at_once() -> None:
    events: Events = []
    toy = Toy()

    def signals(step: int) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    toy.before = signals
    with pytest.raises(KeyboardInterrupt):
        make_trainer(toy, events, on_stop=lambda: events.append(("stop", 3))).run()
    assert happened(events, "step") == [1, 2, 3]
    assert happened(events, "stop") == [3]  # reported once
    assert happened(events, "save") == []


def test_a_signal_that_takes_the_workers_too_still_saves() -> None:
    """Ctrl-C goes to the whole group: the DataLoader may fail while it waits for the next batch."""

    def failing() -> Iterator[Batch]:
        source = batches()
        for _ in range(3):
            yield next(source)
        os.kill(os.getpid(), signal.SIGINT)
        raise RuntimeError("DataLoader worker exited unexpectedly")

    events: Events = []
    with pytest.raises(StopRequested, match="after step 3"):
        make_trainer(Toy(), events, batches=failing()).run()
    assert happened(events, "save") == [3]


def test_errors_without_a_signal_stay_errors() -> None:
    def failing() -> Iterator[Batch]:
        yield next(batches())
        raise RuntimeError("a real fault")

    with pytest.raises(RuntimeError, match="a real fault"):
        make_trainer(Toy(), [], batches=failing()).run()


def nan_at(toy: Toy, step: int) -> Callable[[Batch], dict[str, Tensor]]:
    def training_step(batch: Batch) -> dict[str, Tensor]:
        losses = toy.step(batch)
        if int(batch.images[0, 0, 0, 0]) == step:
            losses["loss_box"] = losses["loss_box"] * float("nan")
        return losses

    return training_step


@pytest.mark.parametrize(
    ("settings", "saved"),
    [
        ({"log_every": 2}, []),
        ({"log_every": 100, "checkpoint_every": 3}, [3]),
        ({"log_every": 100, "evaluate_every": 6}, []),
        ({"log_every": 4, "checkpoint_every": 1}, [1, 2, 3, 4]),
    ],
)
def test_a_loss_that_is_not_finite_names_step_and_images_and_is_never_saved(
    settings: dict[str, int], saved: list[int]
) -> None:
    events: Events = []
    toy = Toy()
    trainer = make_trainer(toy, events, training_step=nan_at(toy, 4), **settings)
    with pytest.raises(InputError) as caught:
        trainer.run()
    message = str(caught.value)
    assert "no longer finite at step 5: {'loss_cls': 0.0" in message
    assert "'loss_box': nan}; the images were image_8, image_9. Lower train.learning_rate" in message
    assert happened(events, "save") == saved
    assert happened(events, "evaluate") == []


def test_a_signal_does_not_save_what_is_not_finite() -> None:
    events: Events = []
    toy = Toy()
    toy.before = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 5 else None
    with pytest.raises(InputError, match="no longer finite at step 5"):
        make_trainer(toy, events, training_step=nan_at(toy, 4), log_every=100).run()
    assert happened(events, "save") == []
