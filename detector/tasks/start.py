"""From a config to a run or to a scorer: every caller starts here."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detector.config import Config
from detector.core import distributed
from detector.core.errors import InputError
from detector.core.progress import note, said_once
from detector.core.structures import Batch
from detector.engine.callbacks import Callback
from detector.engine.environment import environment
from detector.engine.optim import build_schedule
from detector.engine.run import Run, RunSettings, Task
from detector.factory.callbacks import build_callbacks
from detector.factory.data import ensure_data
from detector.factory.model import build_optimizer, check_network
from detector.factory.resources import worker_count
from detector.factory.weights import check_weights
from detector.tasks.base import BaseTask
from detector.tasks.classification import ClassificationTask
from detector.tasks.detection import DetectionTask
from detector.tasks.resume import evaluates_differently, find_state, schedule_changed
from detector.tasks.scoring import Scorer, known_classes
from detector.tasks.weak_detection import WeakDetectionTask

MakeTask = Callable[[Config, str, dict[str, Any] | None], Task[Any]]
"""Builds a task for a device, new or from a checkpoint's state."""


def task_class(config: Config) -> type[BaseTask[Batch]]:
    """Return the class of the config's task."""
    match config.task:
        case "detection":
            return DetectionTask
        case "weak_detection":
            return WeakDetectionTask
        case "classification":
            return ClassificationTask


def build_task(config: Config, device: str, state: dict[str, Any] | None = None) -> BaseTask[Batch]:
    """Return the config's task with a new network, or with that of ``state``, a checkpoint.

    Raises:
        InputError: data or weights are missing or faulty.
    """
    return task_class(config)(config, device, state)


def build_scorer(
    config: Config,
    device: str = "cpu",
    *,
    classes: Sequence[str] | None = None,
    split: str | None = None,
    only_validation: bool = False,
) -> Scorer[Any]:
    """Return a scorer for the config's task on ``split``, or on all images that a run is scored on.

    ``only_validation`` takes only the run's validation images.

    Raises:
        InputError: data are missing, or ``classes``, those of a checkpoint, are not the data set's.
    """
    with distributed.main_first():
        ensure_data(config)
        names = known_classes(config, classes)
    scorer = task_class(config).scorer_class
    return scorer(config, device, names, split, only_validation=only_validation)


def start_run(
    config: Config,
    folder: Path,
    device: str,
    *,
    resume: bool = False,
    accept_changed_data: bool = False,
    make_task: MakeTask = build_task,
    ignored: Sequence[str] = (),
    loading: float = 0.0,
    callbacks: Sequence[Callback] = (),
) -> Run[Any]:
    """Return the run of a config in ``folder``, from its first step or, with ``resume``, its last checkpoint.

    A new run writes nothing into the folder before `Run.run`. ``ignored`` names settings that a resumed run
    may change; ``loading`` is the time in seconds that the process has already taken. ``callbacks`` are
    called beside those of ``train.callbacks``.

    Raises:
        InputError: a package that ``train.callbacks`` needs is missing; the network cannot be built or its
            weights cannot be read, which is checked before hours are spent on proposals; data are missing or
            faulty; or the run in ``folder`` was made with other data or settings.
    """
    began = time.perf_counter()
    state = None
    callbacks = [*build_callbacks(config), *callbacks]
    with said_once():
        if resume:
            state = find_state(config, folder, accept_changed_data=accept_changed_data, ignored=ignored)
        _same_start(folder, state)
        if state is None:
            check_network(config)
            check_weights(config)
        task = make_task(config, device, state)
        settings = run_settings(config, len(task.records))
    run = Run(
        task,
        folder,
        settings,
        optimizer=build_optimizer(config, task.model),
        schedule=build_schedule(settings.steps, **config.train.schedule.model_dump()),
        config=config.model_dump(mode="json"),
        loading=loading + time.perf_counter() - began,
        callbacks=callbacks,
    )
    if state is not None:
        with said_once():
            _restore(run, state, config)
    if distributed.is_main():
        run.environment = present_environment(config, device, run.step, task.data_fingerprint)
    return run


def present_environment(
    config: Config, device: str, step: int, data_fingerprint: Mapping[str, str]
) -> dict[str, Any]:
    """Return what ``environment.json`` records of this process after ``step`` steps of a run."""
    return environment(
        step=step,
        seed=config.seed,
        data_fingerprint=data_fingerprint,
        device=device,
        loader_threads=worker_count(config, device),
        processes={"world_size": distributed.world_size()},
    )


def _same_start(folder: Path, state: dict[str, Any] | None) -> None:
    """Raise InputError unless every process has found the same checkpoint in the run's folder."""
    steps = distributed.gather_texts(str(state["step"]) if state else "no checkpoint")
    if len(set(steps)) > 1:
        found = ", ".join(f"rank {number}: {step}" for number, step in enumerate(steps))
        raise InputError(
            f"{folder}: the processes would resume from different steps ({found}); --output has to be a "
            "folder that all machines share"
        )


def run_settings(config: Config, images: int) -> RunSettings:
    """Return how long a run over ``images`` training images is, and when it logs, saves and evaluates."""
    train, steps = config.train, config.train.steps
    if steps is None:
        assert train.epochs is not None  # the schema requires exactly one of the two
        steps = math.ceil(train.epochs * images / train.images_per_batch)
        note(
            f"train.epochs {train.epochs:g} of {images} images in batches of {train.images_per_batch}: "
            f"{steps} steps"
        )
    return RunSettings(
        steps=steps,
        log_every=train.log_every,
        checkpoint_every=train.checkpoint_every,
        evaluate_every=train.evaluate_every,
        keep_checkpoints=train.keep_checkpoints,
        clip_gradient_norm=train.clip_gradient_norm,
        accumulate=train.accumulate,
        ema=train.ema,
        early_stopping=train.early_stopping,
        scale_loss=train.precision == "float16",
    )


def _restore(run: Run[Any], state: dict[str, Any], config: Config) -> None:
    steps = run.settings.steps
    if state["step"] > steps:
        raise InputError(
            f"{run.folder}: the run has done {state['step']} steps, and train.epochs {config.train.epochs:g} "
            f"means {steps} steps"
        )
    changed = evaluates_differently(state, config, run.task.data_fingerprint)
    run.load_state_dict(state, same_evaluations=not changed)
    if schedule_changed(state, config) and run.step < steps:
        rate = config.train.learning_rate * run.schedule(run.step)
        note(
            f"the learning rate is a function of the step, the number of steps, train.learning_rate and "
            f"train.schedule: step {run.step + 1} of {steps} has {rate:.3g}, as if the run had begun with "
            "these settings; earlier steps are not repeated"
        )
