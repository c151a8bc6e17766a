"""A training run: the loop, its logs and its checkpoints around a task."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import yaml

from detector.build.evaluation import COURSE, headline
from detector.build.tasks import Task, build_task
from detector.build.weights import check_weights
from detector.config import Config
from detector.engine import checkpoint as checkpoints
from detector.engine.determinism import cuda_algorithms
from detector.engine.memory import PeakMemory
from detector.engine.optim import build_schedule, build_sgd, load_optimizer_state
from detector.engine.run_log import RunLog
from detector.engine.trainer import Record, Trainer, training_state
from detector.errors import InputError
from detector.files import write_text
from detector.progress import TrainingProgress, note


class TrainingRun:
    """One run in one folder, from the start or from a checkpoint, to its last evaluation."""

    def __init__(self, config: Config, folder: Path, task: Task, state: dict[str, Any] | None = None) -> None:
        """Put loop and logs around ``task``; with ``state``, go back to where a checkpoint stands."""
        self.config = config
        self.folder = folder
        self.task = task
        self.memory = PeakMemory(task.device)
        self.evaluation: Any = None
        self.best: dict[str, float] = {}
        start = state["step"] if state else 0
        self.trainer = self._build_trainer(start)
        if state is not None:
            self._restore(state)
        self.log = RunLog(folder, start)
        if state is None:
            self.log.write("data", {"step": 0, **task.facts()})
        write_text(folder / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))

    def run(self) -> Any:
        """Train to the end and return the last evaluation."""
        with (
            cuda_algorithms(self.task.device, deterministic=self.config.train.deterministic),
            TrainingProgress(self.config.train.steps, self.trainer.step) as self.progress,
            closing(self.log),
            closing(self.trainer.batches),  # ends its worker processes, at once
        ):
            self.trainer.run()
            if self.evaluation is None:  # a finished run that was resumed
                self.evaluation = self.task.evaluate(self.memory)
        return self.evaluation

    def _build_trainer(self, start: int) -> Trainer:
        settings = self.config.train
        optimizer = build_sgd(
            self.task.model,
            learning_rate=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            bias_lr_factor=settings.bias_lr_factor,
            bias_decay=settings.bias_decay,
        )
        return Trainer(
            model=self.task.model,
            optimizer=optimizer,
            schedule=build_schedule(settings.steps, **settings.schedule.model_dump()),
            batches=self.task.batches(start),
            training_step=self.task.step,
            steps=settings.steps,
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

    def _evaluate(self, trainer: Trainer) -> None:
        self.evaluation = self.task.evaluate(self.memory)
        figures = {name: value for name, value in self.evaluation.figures.items() if name in COURSE}
        self.log.write("evaluate", {"step": trainer.step, **figures})
        self.log.images("test images", self.task.pictures(self.evaluation), trainer.step)
        note(f"step {trainer.step}: " + ", ".join(f"{name} {value:.4f}" for name, value in figures.items()))
        metric = headline(self.config, self.evaluation.figures)
        if metric > self.best.get("metric", -1.0):
            self.best = {"metric": metric, "step": float(trainer.step)}
            checkpoints.save_checkpoint(self._checkpoint_path("best"), self._state(trainer))

    def _save(self, trainer: Trainer) -> None:
        checkpoints.save_checkpoint(self._checkpoint_path(f"step_{trainer.step}"), self._state(trainer))
        keep = self.config.train.keep_checkpoints
        if keep is not None:
            for old in checkpoints.numbered_checkpoints(self.folder / "checkpoints")[:-keep]:
                old.unlink()

    def _checkpoint_path(self, name: str) -> Path:
        return self.folder / "checkpoints" / f"{name}.pt"

    def _state(self, trainer: Trainer) -> dict[str, Any]:
        return {
            **training_state(trainer),
            "config": self.config.model_dump(mode="json"),
            "classes": list(self.task.classes),
            **self.task.state(),
            "random": checkpoints.random_states(),
            "best": self.best,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        """Take over everything but what the task has taken already."""
        load_optimizer_state(self.trainer.optimizer, state["optimizer"], state["file"])
        self.best = dict(state["best"])
        self.trainer.evaluated = state["evaluated"]
        checkpoints.set_random_states(state["random"])


def start_run(config: Config, folder: Path, device: str, state: dict[str, Any] | None = None) -> TrainingRun:
    """Read the data, build the network and return the run, new or where ``state`` stands."""
    if state is None:
        check_weights(config)
    return TrainingRun(config, folder, build_task(config, device, state), state)


def find_state(config: Config, folder: Path) -> dict[str, Any] | None:
    """Return the last checkpoint of the run in ``folder``, or None where there is none yet.

    Raises:
        InputError: the run was made with another data set, model or seed, or has gone further.
    """
    found = checkpoints.numbered_checkpoints(folder / "checkpoints")
    if not found:
        note(f"{folder}: no checkpoint to go on from, starting at step 0")
        return None
    for unfinished in (folder / "checkpoints").glob(".*.tmp"):
        unfinished.unlink()  # a run killed while it saved leaves one
    state = checkpoints.load_resumable(found[-1])
    before, now = _flat(state["config"]), _flat(config.model_dump(mode="json"))
    changed = [key for key in sorted(before | now) if before.get(key) != now.get(key)]
    fixed = [key for key in changed if not key.startswith(("train.", "test.", "data.workers"))]
    if fixed:
        key = fixed[0]
        raise InputError(
            f"{found[-1]}: made with {key} = {before.get(key)!r}, now {now.get(key)!r}; a resumed run keeps "
            "its data, proposals, model and seed: train into another folder"
        )
    if state["step"] > config.train.steps:
        raise InputError(
            f"{found[-1]}: the run has done {state['step']} steps, train.steps is {config.train.steps}"
        )
    for key in changed:
        note(f"resuming with {key} = {now.get(key)!r} instead of {before.get(key)!r}")
    note(f"resuming after step {state['step']} from {found[-1]}")
    return state


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(values, dict):
        return {prefix: json.dumps(values)}
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= _flat(value, f"{prefix}.{key}" if prefix else key)
    return found
