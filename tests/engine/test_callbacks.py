"""Which calls callbacks get, in which order, and that a failing one does not end the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detector.config import Config
from detector.core import distributed
from detector.core.errors import InputError
from detector.core.files import read_json
from detector.engine.callbacks import Callback, Callbacks, RunFacts
from detector.engine.checkpoint import load_checkpoint
from detector.engine.run import Run, StopRequested
from detector.engine.run_log import read_log
from detector.tasks.start import start_run

Load = Callable[..., Config]
EVALUATED = ("train.evaluate_every=6", "train.validation_fraction=0.3")


class Recorder(Callback):
    """Keeps every call with its arguments."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def on_start(self, facts: RunFacts) -> None:
        self.events.append(("start", facts))

    def on_log(self, kind: str, values: Mapping[str, Any]) -> None:
        self.events.append(("log", {"kind": kind, **values}))

    def on_images(self, name: str, images: Sequence[np.ndarray], step: int) -> None:
        self.events.append(("images", (name, images, step)))

    def on_checkpoint(self, path: Path, step: int) -> None:
        assert load_checkpoint(path)["step"] == step
        self.events.append(("checkpoint", (path.name, step)))

    def on_finish(self, metrics: Mapping[str, Any], folder: Path) -> None:
        self.events.append(("finish", (metrics, folder)))

    def on_error(self, error: BaseException) -> None:
        self.events.append(("error", error))

    def close(self) -> None:
        self.events.append(("close", None))

    def calls(self, kind: str) -> list[Any]:
        return [what for event, what in self.events if event == kind]

    def names(self) -> list[str]:
        return [event for event, _ in self.events]


class Failing(Recorder):
    """Fails in the methods that are named."""

    def __init__(self, *methods: str) -> None:
        super().__init__()
        for name in methods:
            setattr(self, name, self.fail)

    def fail(self, *_: Any) -> None:
        self.events.append(("failed", None))
        raise ConnectionError("the server\ndoes not answer")


def begin(config: Config, folder: Path, *callbacks: Callback, resume: bool = False) -> Run[Any]:
    folder.mkdir(exist_ok=True)
    return start_run(config, folder, "cpu", resume=resume, callbacks=callbacks)


def test_a_callback_is_told_what_the_folder_holds(tiny: Load, tmp_path: Path) -> None:
    config, folder, recorder = tiny(*EVALUATED), tmp_path / "run", Recorder()
    run = begin(config, folder, recorder)
    assert not recorder.events  # nothing before the run
    run.run()
    run.finish()
    assert recorder.calls("log") == read_log(folder / "log.jsonl")
    facts = recorder.calls("start")[0]
    assert (facts.folder, facts.step) == (folder, 0)
    assert facts.config == config.model_dump(mode="json")
    assert facts.environment == read_json(folder / "environment.json")[0]
    assert [(name, step) for name, _, step in recorder.calls("images")] == [
        ("trainval images", 6),
        ("trainval images", 12),
    ]
    assert all(image.dtype == np.uint8 for _, images, _ in recorder.calls("images") for image in images)
    names = {f"step_{step}.pt" for step in (4, 8, 12)}
    assert names <= {name for name, _ in recorder.calls("checkpoint")} <= names | {"best.pt"}
    assert recorder.calls("finish") == [(read_json(folder / "metrics.json"), folder)]
    assert recorder.names()[:2] == ["start", "log"]
    assert recorder.names()[-2:] == ["finish", "close"]
    assert recorder.names().count("close") == recorder.names().count("start") == 1


@pytest.mark.slow
@pytest.mark.parametrize("method", ["on_start", "on_log", "on_images", "on_checkpoint", "on_finish", "close"])
def test_a_failing_callback_is_switched_off_and_the_run_goes_on(
    tiny: Load, tmp_path: Path, capfd: pytest.CaptureFixture[str], method: str
) -> None:
    config, failing, recorder = tiny(*EVALUATED), Failing(method), Recorder()
    run = begin(config, tmp_path / "run", failing, recorder)
    run.run()
    run.finish()
    said = capfd.readouterr().err
    assert said.count("warning: Failing is switched off, the run goes on") == 1
    assert f"{method}: ConnectionError: the server (test_callbacks.py, line " in said
    assert failing.names().count("failed") == 1  # nothing but close is called after it
    assert failing.names()[failing.names().index("failed") + 1 :] in ([], ["close"])
    assert recorder.calls("log") == read_log(tmp_path / "run" / "log.jsonl")
    assert recorder.names()[-2:] == ["finish", "close"]


def test_a_callback_changes_nothing_of_the_training(tiny: Load, tmp_path: Path) -> None:
    weights = []
    for name, callbacks in (("with", [Recorder(), Failing("on_log")]), ("without", [])):
        begin(tiny(), tmp_path / name, *callbacks).run()
        weights.append(load_checkpoint(tmp_path / name / "checkpoints" / "step_12.pt")["model"])
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


class Stopping(Recorder):
    """Does something once the log has a line of step 5."""

    def __init__(self, action: Callable[[Run[Any]], None]) -> None:
        super().__init__()
        self.action = action
        self.run: Run[Any]

    def on_log(self, kind: str, values: Mapping[str, Any]) -> None:
        super().on_log(kind, values)
        if values["step"] == 5:
            self.action(self.run)


def stop(run: Run[Any]) -> None:
    run._stop.number = 15


def break_the_disk(run: Run[Any]) -> None:
    def write(*_: Any) -> None:
        raise InputError("the disk is full")

    run.log.write = write  # type: ignore[method-assign,assignment]


@pytest.mark.parametrize(
    ("action", "error"), [(stop, StopRequested), (break_the_disk, InputError)], ids=["signal", "error"]
)
def test_a_run_that_ends_early_says_why(
    tiny: Load, tmp_path: Path, action: Callable[[Run[Any]], None], error: type[Exception]
) -> None:
    callback = Stopping(action)
    callback.run = begin(tiny(), tmp_path / "run", callback)
    with pytest.raises(error) as ended:
        callback.run.run()
    assert callback.names()[-2:] == ["error", "close"]
    assert callback.calls("error") == [ended.value]


def test_a_resumed_run_says_how_many_steps_are_done(tiny: Load, tmp_path: Path) -> None:
    begin(tiny("train.steps=4", "train.schedule.kind=cosine"), tmp_path / "run").run()
    recorder = Recorder()
    begin(tiny("train.schedule.kind=cosine"), tmp_path / "run", recorder, resume=True).run()
    assert recorder.calls("start")[0].step == 4
    assert {line["step"] for line in recorder.calls("log") if line["kind"] == "train"} == set(range(5, 13))
    assert recorder.names()[-1] != "close"  # the run is done, and may still be finished


def test_only_rank_0_calls_callbacks(tiny: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, recorder = tiny("train.steps=2"), Recorder()
    begin(config, tmp_path / "first", Recorder())  # only rank 0 makes proposals
    monkeypatch.setattr(distributed, "is_main", lambda: False)
    run = begin(config, tmp_path / "run", recorder)
    run.run()
    run.finish()
    assert not recorder.events
    assert not (tmp_path / "run" / "environment.json").exists()


def test_every_method_does_nothing_by_default(tmp_path: Path) -> None:
    callbacks = Callbacks([Callback()])
    callbacks.on_start(RunFacts(folder=tmp_path, config={}, environment={}, step=0))
    callbacks.on_log("train", {"step": 1})
    callbacks.on_images("test images", [], 1)
    callbacks.on_checkpoint(tmp_path, 1)
    callbacks.on_finish({}, tmp_path)
    callbacks.on_error(ValueError())
    assert callbacks
    callbacks.close()
    assert not callbacks


def test_ctrl_c_inside_a_callback_ends_the_run() -> None:
    class Interrupted(Callback):
        def on_checkpoint(self, path: Path, step: int) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Callbacks([Interrupted()]).on_checkpoint(Path("step_1.pt"), 1)
