"""A training run: the loop, its logs and its checkpoints around a task."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
import yaml

from detector.config import Config
from detector.core.errors import InputError
from detector.core.files import link_or_copy, write_text
from detector.core.progress import TrainingProgress, note
from detector.data.loader import workers_watched
from detector.engine import checkpoint as checkpoints
from detector.engine.determinism import cuda_algorithms
from detector.engine.memory import PeakMemory
from detector.engine.optim import build_schedule, load_optimizer_state
from detector.engine.run_log import RunLog
from detector.engine.trainer import Record, Trainer, training_state
from detector.evaluation.operating_point import OperatingPoint
from detector.evaluation.report import NOTHING_SCORED
from detector.factory.model import build_optimizer
from detector.factory.resources import thread_note
from detector.tasks.base import Task, build_task
from detector.tasks.evaluation import COURSE, UNSCORED, headline
from detector.tasks.resuming import ACCEPTED, check_changes, evaluates_differently, schedule_changed


class TrainingRun:
    """One run in one folder, from the start or from a checkpoint, to its last evaluation."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        task: Task,
        state: dict[str, Any] | None = None,
        *,
        loading: float = 0.0,
    ) -> None:
        """Put loop and logs around ``task``; with ``state``, go back to where a checkpoint stands.

        ``loading`` are the seconds that reading the data and building the network took.
        """
        self.started = time.perf_counter() - loading
        self.config = config
        self.folder = folder
        self.task = task
        self.memory = PeakMemory(task.device)
        self.evaluation: Any = None
        self.point: OperatingPoint | None = None
        self.steps = run_length(config, len(task.records))
        self.best: dict[str, float] = {}
        self.seconds_before = float(state.get("seconds", 0.0)) if state else 0.0
        start = state["step"] if state else 0
        if start > self.steps:
            raise InputError(
                f"{folder}: the run has done {start} steps, and train.epochs {config.train.epochs:g} means "
                f"{self.steps} steps"
            )
        self.trainer = self._build_trainer(start)
        if state is not None:
            self._restore(state)
        self.log = RunLog(folder, start, report=note)
        if state is None:
            self.log.write("data", {"step": 0, **task.facts(), "steps": self.steps})
        write_text(folder / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))

    def run(self) -> Any:
        """Train to the end and return the last evaluation."""
        with (
            cuda_algorithms(self.task.device, deterministic=self.config.train.deterministic),
            TrainingProgress(self.steps, self.trainer.step) as self.progress,
            closing(self.log),
            closing(self.trainer.batches),  # ends its worker processes, at once
            workers_watched("; go on from the last checkpoint with --resume"),
        ):
            self.trainer.run()
            if self.evaluation is None:  # a finished run that was resumed
                self._score_again()
        return self.evaluation

    def seconds(self) -> float:
        """Return the seconds that the run has taken, those of the processes before this one included."""
        return self.seconds_before + time.perf_counter() - self.started

    def _build_trainer(self, start: int) -> Trainer:
        settings = self.config.train
        return Trainer(
            model=self.task.model,
            optimizer=build_optimizer(self.config, self.task.model),
            schedule=build_schedule(self.steps, **settings.schedule.model_dump()),
            batches=self.task.batches(start),
            training_step=self.task.step,
            steps=self.steps,
            step=start,
            log_every=settings.log_every,
            checkpoint_every=settings.checkpoint_every,
            evaluate_every=settings.evaluate_every,
            clip_gradient_norm=settings.clip_gradient_norm,
            on_step=lambda trainer: self.progress.step(trainer.step),
            on_record=self._record,
            on_save=self._save,
            on_evaluate=self._evaluate,
            on_stop=lambda: note("stopping after this step; once more to stop at once"),
        )

    def _record(self, trainer: Trainer, record: Record) -> None:
        self.memory.sample()
        record = {**record, **self.memory.gpu_figures()}
        self.log.write("train", record)
        self.progress.record(record)

    def _score(self, *, last: bool) -> Any:
        """Return the evaluation that chooses between checkpoints: on validation images, where there are any.

        Then the split that is kept for the end is scored only when ``last``, into ``evaluation``.
        """
        validation = self.task.validate(self.memory)
        self.point = self.task.choose_point(validation)
        if last or validation is None:
            evaluation = self.task.evaluate(self.memory)
            self.evaluation = self.task.with_point(evaluation, validation, self.point)
        if last:
            self.task.say_point(self.point, validation)
        return self.evaluation if validation is None else validation

    def _score_again(self) -> None:
        """Score the last step of a finished run, and save it again with the score threshold found now.

        ``best.pt`` stays the checkpoint that was chosen while the run was trained, if that can be read.
        """
        figures = self._score(last=True).figures
        if self._step_of_best() in (None, self.trainer.step):
            self._keep_if_best(self.trainer, figures)
        self._save(self.trainer)

    def _evaluate(self, trainer: Trainer) -> None:
        chosen = self._score(last=trainer.step == self.steps)
        figures = _course(chosen)
        self.log.write("evaluate", {"step": trainer.step, **figures, "split": chosen.figures["split"]})
        if self.evaluation is not None and self.evaluation is not chosen:
            self.log.write("test", {"step": trainer.step, **_course(self.evaluation)})
        self.log.images(f"{chosen.figures['split']} images", self.task.pictures(chosen), trainer.step)
        shown = ", ".join(f"{name} {value:.4f}" for name, value in figures.items())
        note(f"step {trainer.step}: {shown or NOTHING_SCORED}")
        self._keep_if_best(trainer, figures=chosen.figures)

    def _keep_if_best(self, trainer: Trainer, figures: dict[str, Any]) -> None:
        metric = headline(self.config, figures)
        if metric == UNSCORED or metric > self.best.get("metric", UNSCORED):  # nothing scored: the last one
            self.best = {"metric": metric, "step": float(trainer.step)}
            if not trainer.saves_here:  # otherwise the step's own checkpoint becomes the best one
                checkpoints.save_checkpoint(self._checkpoint_path("best"), self._state(trainer))

    def _save(self, trainer: Trainer) -> None:
        saved = self._checkpoint_path(f"step_{trainer.step}")
        checkpoints.save_checkpoint(saved, self._state(trainer))
        self._link_best(trainer.step)
        keep = self.config.train.keep_checkpoints
        if keep is not None:
            known = checkpoints.numbered_checkpoints(self.folder / "checkpoints")
            # A later one is damaged, or the run would have gone on from there; it is written again.
            for old in known[: known.index(saved) + 1][:-keep]:
                old.unlink()

    def _link_best(self, step: int) -> None:
        """Make ``best.pt`` a second name for the checkpoint of ``step`` where that is the best one."""
        saved = self._checkpoint_path(f"step_{step}")
        if self.best.get("step") == step and saved.is_file():  # or best.pt alone was there to go on from
            link_or_copy(saved, self._checkpoint_path("best"))

    def _checkpoint_path(self, name: str) -> Path:
        return self.folder / "checkpoints" / f"{name}.pt"

    def _state(self, trainer: Trainer) -> dict[str, Any]:
        return {
            **training_state(trainer),
            "config": self.config.model_dump(mode="json"),
            "classes": list(self.task.classes),
            **self.task.state(),
            "random": checkpoints.random_states(),
            "threads": torch.get_num_threads(),
            "best": self.best,
            "seconds": self.seconds(),
            "data_fingerprint": self.task.data_fingerprint,
            "score_threshold": self.point.score_threshold if self.point else None,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        """Take over everything but what the task has taken already."""
        load_optimizer_state(self.trainer.optimizer, state["optimizer"], state["file"])
        self.trainer.evaluated = state["evaluated"]
        self.best = self._restored_best(state)
        if (changed := thread_note(state.get("threads"), self.task.device)) is not None:
            note(changed)
        checkpoints.set_random_states(state["random"])
        if schedule_changed(state, self.config):
            self._note_rate()

    def _restored_best(self, state: dict[str, Any]) -> dict[str, float]:
        """Return the best figure so far; nothing where ``best.pt`` has to be chosen again."""
        best = dict(state["best"])
        if not best:
            return {}
        if evaluates_differently(state, self.config, self.task.data_fingerprint):
            finished = self.steps == state["step"] == state["evaluated"]
            choice = (
                "stays the checkpoint that was chosen before"
                if finished
                else "is chosen again among those to come"
            )
            note(f"evaluations are made in another way from here on: best.pt {choice}")
            return {}
        path = self._checkpoint_path("best")
        source = self._checkpoint_path(f"step_{best['step']:.0f}")
        if best["step"] == state["step"] and path.exists() and source.exists() and path.samefile(source):
            return best  # it has just been read
        if self._step_of_best() == best["step"]:
            return best
        try:
            checkpoints.load_checkpoint(source)
        except InputError:
            note(f"{path.name} is chosen again among the evaluations to come")
            return {}
        link_or_copy(source, path)
        note(f"{path.name} is {source.name} again")
        return best

    def _step_of_best(self) -> int | None:
        """Return the step that ``best.pt`` holds, or None, with a warning, where it cannot be read."""
        try:
            return int(checkpoints.load_checkpoint(self._checkpoint_path("best"))["step"])
        except InputError as error:
            note(f"warning: {error}")
            return None

    def _note_rate(self) -> None:
        trainer = self.trainer
        if trainer.step >= trainer.steps:
            return
        rate = self.config.train.learning_rate * trainer.schedule(trainer.step)
        note(
            f"the learning rate is a function of the step, the number of steps, train.learning_rate and "
            f"train.schedule: step {trainer.step + 1} of {trainer.steps} has {rate:.3g}, as if the run had "
            "begun with these settings; the steps that are done stay as they are"
        )


def _course(evaluation: Any) -> dict[str, float]:
    return {name: value for name, value in evaluation.figures.items() if name in COURSE}


def run_length(config: Config, images: int) -> int:
    """Return the steps of a run over ``images`` training images, from ``train.steps`` or ``train.epochs``."""
    settings = config.train
    if settings.steps is not None:
        return settings.steps
    assert settings.epochs is not None  # the schema's: exactly one of the two
    steps = math.ceil(settings.epochs * images / settings.images_per_batch)
    note(
        f"train.epochs {settings.epochs:g} of {images} images in batches of {settings.images_per_batch}: "
        f"{steps} steps"
    )
    return steps


def start_run(config: Config, folder: Path, device: str, state: dict[str, Any] | None = None) -> TrainingRun:
    """Read the data, build the network and return the run, new or where ``state`` stands."""
    return TrainingRun(config, folder, build_task(config, device, state), state)


def find_state(
    config: Config, folder: Path, *, accept_changed_data: bool = False, ignored: Sequence[str] = ()
) -> dict[str, Any] | None:
    """Return the newest sound checkpoint of the run in ``folder``, or None where there is none yet.

    Where none of the numbered ones can be read, that is ``best.pt``.
    ``ignored`` names settings that may differ. With ``accept_changed_data`` the task that goes on from the
    state takes data that are not those of the checkpoint.

    Raises:
        InputError: every checkpoint is damaged, or the run was made with another data set, model or seed,
            or has gone further.
    """
    best = folder / "checkpoints" / "best.pt"
    found = [*([best] if best.is_file() else []), *checkpoints.numbered_checkpoints(folder / "checkpoints")]
    if not found:
        note(f"{folder}: no checkpoint to go on from, starting at step 0")
        return None
    for unfinished in (folder / "checkpoints").glob(".*.tmp"):
        unfinished.unlink()  # a run killed while it saved leaves one
    path, state = _newest_sound(found)
    check_changes(state, config, str(path), ignored=ignored)
    if config.train.steps is not None and state["step"] > config.train.steps:
        raise InputError(
            f"{path}: the run has done {state['step']} steps, train.steps is {config.train.steps}"
        )
    note(f"resuming after step {state['step']} from {path}")
    return {**state, ACCEPTED: accept_changed_data}


def _newest_sound(found: Sequence[Path]) -> tuple[Path, dict[str, Any]]:
    """Return the last of the checkpoints ``found`` that can be read, and say which ones cannot."""
    first: InputError | None = None
    for path in reversed(found):
        try:
            return path, checkpoints.load_resumable(path)
        except InputError as error:
            first = first or error
            note(f"warning: {error}")
    assert first is not None  # the caller's list has an entry
    raise InputError(
        f"{first}; none of the {len(found)} checkpoints there can be read: start over with --overwrite"
    )
