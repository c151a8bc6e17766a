"""The loop with a toy task: what happens at which step, signals, and losses that are not finite."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor, nn

from detector.core.errors import InputError
from detector.core.structures import Batch, ImageMeta, ImageRecord, Proposals, Targets
from detector.data.loader import load
from detector.engine.checkpoint import load_checkpoint
from detector.engine.optim import build_schedule
from detector.engine.run import UNSCORED, Assessment, Run, RunSettings, StopRequested
from detector.engine.run_log import read_log

Events = list[tuple[str, int]]


def batches(start: int = 0) -> Generator[Batch, None, None]:
    """Two images a batch, named by their place in the run."""
    for number in itertools.count(start):
        ids = [f"image_{2 * number + place}" for place in range(2)]
        yield Batch(
            images=torch.full((2, 2, 2, 3), number, dtype=torch.uint8),
            proposals=[Proposals(boxes=torch.zeros(0, 4))] * 2,
            rois_per_image=[torch.zeros(0, 4)] * 2,
            targets=[Targets.empty()] * 2,
            metas=[ImageMeta(image_id=name, original_size=(2, 2), input_size=(2, 2)) for name in ids],
        )


class Toy(nn.Module):
    """One weight; the losses of step n (from 0) are weight * n / 100 and 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.modes: list[bool] = []
        self.before: Callable[[int], None] = lambda _: None
        self.nan_at: int | None = None

    def losses(self, batch: Batch, count: float) -> dict[str, Tensor]:
        number = int(batch.images[0, 0, 0, 0])
        self.before(number)
        self.modes.append(self.training)
        box = self.weight * 0 + (float("nan") if number == self.nan_at else 1)
        return {"loss_cls": self.weight * number / 100, "loss_box": box}


class Scored:
    """An evaluation of the toy."""

    metrics: ClassVar[dict[str, str]] = {"split": "toys"}

    def history(self) -> dict[str, float]:
        return {"voc_mAP": 0.5}

    def summary(self) -> str:
        return "voc_mAP 0.5"


class ToyTask:
    """A task without images; tests replace what they need."""

    device = "cpu"
    classes: tuple[str, ...] = ("toy",)

    def __init__(self, model: Toy) -> None:
        self.model = self.trained = model
        self.data_fingerprint: dict[str, str] = {}
        self.records: Sequence[ImageRecord] = []
        self.step = model.losses
        self.computing = nullcontext[None]
        self.batches: Callable[[int], Generator[Batch, None, None]] = batches
        self.finished: list[Any] = []
        self.scorer = self  # it evaluates the toy too

    def assess(self, model: Any, *, last: bool, raw: Any = None) -> Assessment[Scored]:
        model.eval()
        scored = Scored()
        return Assessment(chosen_by=scored, test=scored, headline=0.5, score_threshold=None)

    def count(self, batch: Batch) -> int:
        return 1

    def counted(self) -> dict[str, int]:
        return {}

    def facts(self) -> dict[str, Any]:
        return {"images": 0}

    def validation_losses(self, model: Any) -> dict[str, float]:
        return {}

    def pictures(self, evaluation: Any) -> list[np.ndarray]:
        return []

    def finish(self, *given: Any) -> None:
        self.finished.append(given)


class ToyRun(Run[Scored]):
    """A run that also lists its steps, records, checkpoints and evaluations."""

    task: ToyTask
    events: Events

    def _update(self) -> None:
        super()._update()
        self.events.append(("step", self.step + 1))

    def _record(self, rate: float) -> None:
        super()._record(rate)
        self.events.append(("record", self.step))

    def _save(self) -> None:
        super()._save()
        self.events.append(("save", self.step))

    def _evaluate(self) -> None:
        super()._evaluate()
        self.events.append(("evaluate", self.step))

    def happened(self, kind: str) -> list[int]:
        return [step for event, step in self.events if event == kind]


MakeRun = Callable[..., ToyRun]
SETTINGS: dict[str, Any] = {
    "steps": 10,
    "log_every": 20,
    "checkpoint_every": 1000,
    "evaluate_every": None,
    "keep_checkpoints": None,
    "clip_gradient_norm": None,
}


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Make runs of a toy, each in a folder of its own, at a rate of 0.5 that becomes 0.05 at half-time."""
    numbers = itertools.count()

    def make(toy: Toy | None = None, **settings: Any) -> ToyRun:
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        toy = toy or Toy()
        optimizer = torch.optim.SGD([{"params": toy.parameters(), "lr": 0.5, "initial_lr": 0.5}], lr=0.5)
        schedule = build_schedule(10, kind="step", milestones=(0.5,))
        chosen = RunSettings(**{**SETTINGS, **settings})
        config = {"task": "classification", "seed": 3}
        run = ToyRun(ToyTask(toy), folder, chosen, optimizer=optimizer, schedule=schedule, config=config)
        run.events = []
        return run

    return make


def resumed_at(run: ToyRun, step: int, evaluated: int) -> ToyRun:
    """Let a run stand where a checkpoint of ``step`` does."""
    run.step, run.evaluated = step, evaluated
    return run


def test_all_comes_at_its_steps_and_everything_at_the_last(make_run: MakeRun) -> None:
    toy = Toy()
    run = make_run(toy, log_every=3, checkpoint_every=4, evaluate_every=6)
    run.run()
    assert run.happened("step") == list(range(1, 11))
    assert run.happened("record") == [3, 6, 9, 10]
    assert run.happened("save") == [4, 8, 10, 10]
    assert run.happened("evaluate") == [6, 10]
    # Saved before the evaluation, which may fail, and after it, with its outcome.
    assert [event for event, _ in run.events][-5:] == ["step", "record", "save", "evaluate", "save"]
    assert toy.modes == [True] * 10  # evaluation's mode does not stay
    kinds = [record["kind"] for record in read_log(run.folder / "log.jsonl")]
    assert kinds == ["data", "train", "train", "evaluate", "train", "train", "evaluate"]
    assert yaml.safe_load((run.folder / "config.yaml").read_text()) == run.config


def test_without_an_interval_evaluation_is_only_at_the_end(make_run: MakeRun) -> None:
    run = make_run()
    run.run()
    assert run.happened("evaluate") == run.happened("record") == [10]
    assert run.happened("save") == [10, 10]


def test_a_new_run_writes_nothing_before_it_runs(make_run: MakeRun) -> None:
    assert list(make_run().folder.iterdir()) == []


def test_the_task_finishes_with_the_best_checkpoint_and_the_last_evaluation(make_run: MakeRun) -> None:
    run = make_run()
    evaluation = run.run()
    run.finish()
    folder, checkpoint, finished, costs = run.task.finished[0]
    assert (folder, checkpoint) == (run.folder, run.folder / "checkpoints/best.pt")
    assert finished is evaluation
    assert costs.keys() == {"seconds", "data_wait_share"}
    assert costs["seconds"] >= 0


def test_records_hold_the_means_since_the_last_and_the_rate(make_run: MakeRun) -> None:
    toy = Toy()
    run = make_run(toy, log_every=5)
    run.run()
    weight, losses = 1.0, []
    for number in range(10):
        losses.append(weight * number / 100)
        weight -= (0.5 if number < 5 else 0.05) * number / 100
    first, second = (one for one in read_log(run.folder / "log.jsonl") if one["kind"] == "train")
    assert (first["step"], second["step"]) == (5, 10)
    for record, part, rate in ((first, losses[:5], 0.5), (second, losses[5:], 0.05)):
        assert record["loss_cls"] == pytest.approx(sum(part) / 5, rel=1e-5)
        assert record["loss_box"] == pytest.approx(1.0)
        assert record["loss"] == pytest.approx(sum(part) / 5 + 1, rel=1e-5)
        assert record["learning_rate"] == pytest.approx(rate)
        assert record["images_per_second"] == pytest.approx(2 / record["seconds_per_step"])
    assert toy.weight.item() == pytest.approx(weight, rel=1e-5)


def test_gradients_are_clipped_to_their_norm(make_run: MakeRun) -> None:
    toy = Toy()
    make_run(toy, steps=4, clip_gradient_norm=0.01).run()
    # The gradients 0, .01, .02 and .03 become 0, .01, .01 and .01.
    assert toy.weight.item() == pytest.approx(1 - 0.5 * 0.03, rel=1e-4)


def test_a_run_goes_on_from_its_state(make_run: MakeRun) -> None:
    whole, part = Toy(), Toy()
    make_run(whole).run()
    first = make_run(part, steps=6)
    first.run()
    state = load_checkpoint(first.folder / "checkpoints/step_6.pt")
    assert state["step"] == 6
    resumed = Toy()
    resumed.load_state_dict(state["model"])
    run = make_run(resumed)
    run.load_state_dict(state, same_evaluations=False)
    run.run()
    assert torch.equal(resumed.weight, whole.weight)
    assert run.happened("step") == [7, 8, 9, 10]


def test_a_checkpoint_holds_the_whole_state(make_run: MakeRun) -> None:
    run = make_run(steps=2)
    run.run()
    saved = load_checkpoint(run.folder / "checkpoints/step_2.pt")
    assert saved.keys() - {"format", "file"} == run.state_dict().keys()
    assert (saved["best"], saved["evaluated"]) == ({"metric": 0.5, "step": 2.0}, 2)


def test_a_finished_run_is_only_evaluated_again(make_run: MakeRun) -> None:
    run = make_run()
    run.run()
    again = resumed_at(make_run(), 10, evaluated=10)
    again.run()
    assert again.events == [("save", 10)]
    assert again.evaluation is not None


@pytest.mark.parametrize(("step", "expected"), [(10, [10]), (6, [6, 10]), (5, [6, 10])])
def test_an_evaluation_that_a_stop_prevented_is_made_up_for(
    make_run: MakeRun, step: int, expected: list[int]
) -> None:
    run = resumed_at(make_run(evaluate_every=6), step, evaluated=3)
    run.run()
    assert run.happened("evaluate") == expected
    if step == 6:
        assert run.events[:2] == [("evaluate", 6), ("save", 6)]


def test_a_failing_evaluation_comes_after_the_checkpoint(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> Assessment[Scored]:
        raise InputError("a test image is gone")

    run = make_run()
    monkeypatch.setattr(run.task, "assess", fail)
    with pytest.raises(InputError, match="a test image is gone"):
        run.run()
    assert run.happened("save") == [10]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(make_run: MakeRun, number: signal.Signals) -> None:
    toy = Toy()
    toy.before = lambda step: os.kill(os.getpid(), number) if step == 3 else None
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    run = make_run(toy)
    with pytest.raises(StopRequested, match=f"stopped by {number.name} after step 4") as caught:
        run.run()
    assert caught.value.exit_status == 128 + number
    assert run.happened("step") == [1, 2, 3, 4]
    assert run.happened("save") == [4]  # once
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_second_signal_stops_at_once(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    toy = Toy()

    def signals(step: int) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    toy.before = signals
    run = make_run(toy)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert run.happened("step") == [1, 2, 3]
    assert capsys.readouterr().err.count("stopping after this step") == 1
    assert run.happened("save") == []


def loaded(workers: int, make: Callable[[int], Batch], start: int = 0) -> Generator[Batch, None, None]:
    """The batches of the toy, made by threads."""
    return load(itertools.count(start), make, workers)


def batch_of(number: int) -> Batch:
    return next(batches(number))


def loader_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("loader-")]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_of_a_batch_comes_at_its_step_and_ends_the_threads(make_run: MakeRun, workers: int) -> None:
    def make(number: int) -> Batch:
        if number == 4:
            raise InputError("image_8: broken")
        return batch_of(number)

    run = make_run(checkpoint_every=2)
    run.task.batches = lambda start: loaded(workers, make, start)
    with pytest.raises(InputError, match="image_8: broken"):
        run.run()
    assert run.happened("step") == [1, 2, 3, 4]
    assert run.happened("save") == [2, 4]
    assert not loader_threads()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_a_step_waits_for_data_still_saves(
    make_run: MakeRun, workers: int, number: signal.Signals
) -> None:
    def make(step: int) -> Batch:
        if step == 3:
            os.kill(os.getpid(), number)
            time.sleep(0.02)
        return batch_of(step)

    run = make_run(steps=1000)
    # With threads the signal comes some steps earlier, as they make batches ahead.
    run.task.batches = lambda start: loaded(workers, make, start)
    with pytest.raises(StopRequested) as caught:
        run.run()
    last = run.happened("step")[-1]
    assert 1 <= last <= 4
    assert str(caught.value) == f"stopped by {number.name} after step {last}"
    assert run.happened("save") == [last]
    assert not loader_threads()


def test_a_second_signal_ends_the_wait_for_data(make_run: MakeRun) -> None:
    waiting = threading.Event()

    def make(step: int) -> Batch:
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)
            waiting.wait(0.05)
            os.kill(os.getpid(), signal.SIGINT)
            waiting.wait(0.05)
        return batch_of(step)

    run = make_run()
    run.task.batches = lambda start: loaded(0, make, start)
    with pytest.raises(KeyboardInterrupt):
        run.run()
    assert run.happened("step") == [1, 2, 3]
    assert run.happened("save") == []


def train_records(run: ToyRun) -> list[dict[str, Any]]:
    return [one for one in read_log(run.folder / "log.jsonl") if one["kind"] == "train"]


def test_the_time_that_steps_wait_for_data_is_logged(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    """By a clock of the test's own: batches take 0.3 s and losses 0.1 s, evaluations a minute."""
    clock = Clock()
    toy = Toy()
    toy.before = lambda _: clock.sleep(0.1)

    def make(step: int) -> Batch:
        clock.sleep(0.3 if step < 6 else 0.0)
        return batch_of(step)

    with clock.installed():
        run = make_run(toy, log_every=3, evaluate_every=4)
        run.task.batches = lambda start: loaded(0, make, start)
        assess = run.task.assess

        def slowly(*given: Any, **named: Any) -> Assessment[Scored]:
            clock.sleep(60)
            return assess(*given, **named)

        run.task.assess = slowly  # type: ignore[method-assign]
        run.run()
        run.finish()
    records = train_records(run)
    assert [record["step"] for record in records] == [3, 6, 9, 10]
    assert [record["data_wait"] for record in records] == pytest.approx([0.3, 0.3, 0.0, 0.0])
    costs = run.task.finished[0][3]
    assert costs["data_wait_share"] == pytest.approx(1.8 / 2.8, abs=1e-4)
    said = capsys.readouterr().err
    assert "steps waited for data 64.3% of their time: 180.0 of 280.0 ms per step" in said


def test_a_source_that_is_fast_enough_is_not_waited_for(make_run: MakeRun) -> None:
    """Threads make batches during the steps, so only the first ones may be waited for."""
    toy = Toy()
    toy.before = lambda _: time.sleep(0.01)
    run = make_run(toy, steps=20, log_every=5)
    run.task.batches = lambda start: loaded(2, batch_of, start)
    run.run()
    run.finish()
    waits = [record["data_wait"] for record in train_records(run)]
    assert len(waits) == 4
    assert all(wait >= 0 for wait in waits)
    assert 0 <= run.task.finished[0][3]["data_wait_share"] < 0.5


def test_a_slow_source_is_waited_for_in_spite_of_threads(make_run: MakeRun) -> None:
    def slow(number: int) -> Batch:
        time.sleep(0.02)
        return batch_of(number)

    run = make_run(steps=6, log_every=2)
    run.task.batches = lambda start: loaded(1, slow, start)
    run.run()
    run.finish()
    waits = [record["data_wait"] for record in train_records(run)]
    assert sum(waits) / len(waits) > 0.01
    assert run.task.finished[0][3]["data_wait_share"] > 0.5


def test_a_run_without_a_step_has_no_share(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = resumed_at(make_run(), 10, evaluated=10)
    run.run()
    run.finish()
    assert run.task.finished[0][3].keys() == {"seconds"}
    assert "waited for data" not in capsys.readouterr().err


class Clock:
    """Time that passes only by `sleep`."""

    def __init__(self) -> None:
        self.now = 1000.0

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    @contextmanager
    def installed(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("detector.engine.run.time", SimpleNamespace(perf_counter=lambda: self.now))
            yield


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
    make_run: MakeRun, settings: dict[str, int], saved: list[int]
) -> None:
    toy = Toy()
    toy.nan_at = 4
    run = make_run(toy, **settings)
    with pytest.raises(InputError) as caught:
        run.run()
    message = str(caught.value)
    assert "no longer finite at step 5: {'loss_cls': 0.0" in message
    assert "'loss_box': nan}; the images were image_8, image_9. Lower train.learning_rate" in message
    assert run.happened("save") == saved
    assert run.happened("evaluate") == []


def test_a_signal_does_not_save_what_is_not_finite(make_run: MakeRun) -> None:
    toy = Toy()
    toy.nan_at = 4
    toy.before = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == 5 else None
    run = make_run(toy, log_every=100)
    with pytest.raises(InputError, match="no longer finite at step 5"):
        run.run()
    assert run.happened("save") == []


Headlines = Callable[[int], float]


def with_headlines(run: ToyRun, headline: Headlines) -> list[tuple[int, bool]]:
    """Let the evaluation of each step have its headline; the test images are scored only at the end.

    Returns the list of (step, whether it was the last evaluation), which grows.
    """
    assessed: list[tuple[int, bool]] = []

    def assess(model: Any, *, last: bool, raw: Any = None) -> Assessment[Scored]:
        model.eval()
        assessed.append((run.step, last))
        test = Scored() if last else None
        return Assessment(chosen_by=Scored(), test=test, headline=headline(run.step), score_threshold=None)

    run.task.assess = assess  # type: ignore[method-assign]
    return assessed


RISES_UNTIL_3 = (0.0, 0.1, 0.2, 0.4, 0.3, 0.4, 0.2, 0.3, 0.4, 0.4, 0.4)
PATIENT = {"evaluate_every": 1, "early_stopping": 3}


def test_a_run_without_gain_ends_early_and_as_usual(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(**PATIENT)
    assessed = with_headlines(run, RISES_UNTIL_3.__getitem__)
    run.run()
    run.finish()
    assert run.happened("step") == [1, 2, 3, 4, 5, 6]
    assert assessed == [*((step, False) for step in range(1, 7)), (6, True)]
    assert run.happened("save") == [6]
    records = read_log(run.folder / "log.jsonl")
    assert [one for one in records if one["kind"] == "early_stopping"] == [
        {"kind": "early_stopping", "step": 6, "evaluations_without_gain": 3}
    ]
    assert [one["step"] for one in records if one["kind"] == "test"] == [6]
    assert "early stopping: step 6 is the last one, after 3 evaluations" in capsys.readouterr().err
    assert run.task.finished[0][3]["stopped_at_step"] == 6
    assert load_checkpoint(run.folder / "checkpoints/best.pt")["step"] == 3


@pytest.mark.parametrize("stop", [2, 4, 5, 6])
def test_an_early_end_does_not_depend_on_a_stop_before_it(make_run: MakeRun, stop: int) -> None:
    first = make_run(**PATIENT, checkpoint_every=1)
    with_headlines(first, RISES_UNTIL_3.__getitem__)
    first.task.model.before = lambda step: os.kill(os.getpid(), signal.SIGTERM) if step == stop - 1 else None
    with pytest.raises(StopRequested):
        first.run()
    run = make_run(**PATIENT, checkpoint_every=1)
    run.folder = first.folder
    run.load_state_dict(load_checkpoint(first.folder / f"checkpoints/step_{stop}.pt"))
    with_headlines(run, RISES_UNTIL_3.__getitem__)
    run.run()
    assert (run.step, run.best["step"]) == (6, 3)
    ends = [one for one in read_log(run.folder / "log.jsonl") if one["kind"] in ("early_stopping", "test")]
    assert [(one["kind"], one["step"]) for one in ends] == [("early_stopping", 6), ("test", 6)]


def test_a_run_that_would_end_at_its_last_step_anyway_has_not_ended_early(make_run: MakeRun) -> None:
    run = make_run(**PATIENT, steps=6)
    with_headlines(run, RISES_UNTIL_3.__getitem__)
    run.run()
    run.finish()
    assert (run.step, run.patience.reached) == (6, True)
    assert "stopped_at_step" not in run.task.finished[0][3]
    assert not [one for one in read_log(run.folder / "log.jsonl") if one["kind"] == "early_stopping"]


def test_a_run_that_ended_early_is_evaluated_again_or_goes_on(make_run: MakeRun) -> None:
    ended = make_run(**PATIENT)
    with_headlines(ended, RISES_UNTIL_3.__getitem__)
    ended.run()
    state = load_checkpoint(ended.folder / "checkpoints/step_6.pt")
    again, on = make_run(**PATIENT), make_run(**{**PATIENT, "early_stopping": 5})
    for run in (again, on):
        run.folder = ended.folder
        run.load_state_dict(state)
    assessed = with_headlines(again, RISES_UNTIL_3.__getitem__)
    again.run()
    assert (again.happened("step"), assessed) == ([], [(6, True)])
    with_headlines(on, RISES_UNTIL_3.__getitem__)
    on.run()
    assert on.happened("step") == [7, 8]


def test_evaluations_that_score_nothing_end_no_run(make_run: MakeRun) -> None:
    run = make_run(**PATIENT)
    with_headlines(run, lambda _: UNSCORED)
    run.run()
    assert run.step == 10


def test_the_loss_scale_and_skipped_steps_are_logged(make_run: MakeRun) -> None:
    """Float32 is the same with a scale, and a gradient that is too large for it skips its step."""
    plain, scaled = Toy(), Toy()
    make_run(plain).run()
    run = make_run(scaled, log_every=5, scale_loss=True)
    run.run()
    assert torch.equal(plain.weight, scaled.weight)
    assert [(one["loss_scale"], one["skipped_steps"]) for one in train_records(run)] == [(65536.0, 0.0)] * 2
    assert load_checkpoint(run.folder / "checkpoints/step_10.pt")["scaler"] == {"scale": 65536.0, "steps": 10}

    toy = Toy()
    losses = toy.losses

    def steep(batch: Batch, count: float) -> dict[str, Tensor]:
        found = losses(batch, count)
        large = int(batch.images[0, 0, 0, 0]) == 2
        return {**found, "loss_cls": found["loss_cls"] * 1e38 if large else found["loss_cls"]}

    run = make_run(toy, log_every=5, scale_loss=True)
    run.task.step = steep
    run.run()
    assert [(one["loss_scale"], one["skipped_steps"]) for one in train_records(run)] == [
        (32768.0, 1.0),
        (32768.0, 0.0),
    ]


def test_the_averaged_weights_follow_every_step(make_run: MakeRun) -> None:
    toy = Toy()
    run = make_run(toy, ema=0.75)
    weights: list[float] = []
    toy.before = lambda _: weights.append(toy.weight.item())
    run.run()
    average = weights[0]
    for weight in [*weights[1:], toy.weight.item()]:
        average = 0.75 * average + 0.25 * weight
    saved = load_checkpoint(run.folder / "checkpoints/step_10.pt")
    assert saved["ema"]["weight"].item() == pytest.approx(average, rel=1e-6)
    assert saved["model"]["weight"].item() == toy.weight.item()
