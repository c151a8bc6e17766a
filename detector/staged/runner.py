"""A staged training: the stages of a config one after another, each going on where it was stopped.

A stage has the folder ``stages/NN_NAME`` of the run's, which ends with a checkpoint and ``done.json``. The
finished detector is the run's own ``checkpoints/step_N.pt``.
"""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from detector.config import Config, require_stage, stage_config
from detector.config.sections.training import StageConfig
from detector.core.errors import InputError
from detector.core.files import write_text
from detector.core.machine import process_seconds
from detector.core.progress import note
from detector.data.loader import workers_watched
from detector.engine import checkpoint as checkpoints
from detector.engine.determinism import cuda_algorithms
from detector.engine.memory import PeakMemory
from detector.engine.run_log import RunLog, read_log
from detector.factory.data import evaluated_split
from detector.factory.model import initial_model, restore_model
from detector.factory.weights import check_weights
from detector.models.detector import RegionDetector
from detector.staged.fine_tune import FineTuningTask
from detector.staged.kept_fit import fault_of_fit
from detector.staged.record import StageRecord, read_record, write_record
from detector.staged.ridge_stage import RidgeFit
from detector.staged.svm_stage import SVMFit
from detector.tasks.base import build_task
from detector.tasks.evaluation import (
    COURSE,
    Evaluation,
    evaluate,
    known_classes,
    open_test_set,
    open_validation,
    write_evaluation,
)
from detector.tasks.operating import choose_point, say_point, with_point
from detector.tasks.report import finish_figures, print_figures, write_report
from detector.tasks.resuming import ACCEPTED, changed_settings, check_fingerprint
from detector.tasks.training import TrainingRun, find_state

CACHE = "cache"
"""The folder of a run's cached features, which may be deleted when the run is done."""


@dataclass(frozen=True)
class Done:
    """A finished stage: its checkpoint, the optimizer steps of all stages up to it, and the data it saw."""

    checkpoint: Path
    steps: int
    data_fingerprint: dict[str, str] = field(default_factory=dict)


class StagedTraining:
    """Runs the ``stages`` of a config in one folder."""

    def __init__(
        self, config: Config, folder: Path, device: str, *, accept_changed_data: bool = False
    ) -> None:
        self.config = config
        self.folder = folder
        self.device = device
        self.accept_changed_data = accept_changed_data
        self.memory = PeakMemory(device)
        self._in_stages = 0.0  # seconds of this process that the stages' own records hold

    @workers_watched("; go on from the last checkpoint with --resume")
    def run(self, only: str | None = None) -> Evaluation | None:
        """Do what is not done yet and score the detector; with ``only``, do that one stage and no more.

        Raises:
            InputError: a stage that was made with other settings, or ``only`` needs one that is not done.
            StopRequested: after a signal; the same call goes on.
        """
        names = [stage.name for stage in self.config.stages]
        if only is not None:
            require_stage(self.config, only)
        done = self._finished_stages()
        if not done:
            self.check_start()
        if only is not None and names.index(only) > len(done):
            raise InputError(f"--stage {only}: needs the stage {names[len(done)]}, which is not done yet")
        text = yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)
        write_text(self.folder / "config.yaml", text)
        with cuda_algorithms(self.device, deterministic=self.config.train.deterministic):
            return self._run_stages(done, only)

    def check_start(self, *, overwrite: bool = False) -> None:
        """Refuse weights that the first stage cannot read; later ones start from those of the one before.

        With ``overwrite`` also those that lie in the run that will be deleted first.
        """
        config = stage_config(self.config, self.config.stages[0])
        check_weights(config)
        weights = config.train.initial_weights
        if overwrite and weights is not None and self.folder.resolve() in Path(weights).resolve().parents:
            raise InputError(
                f"train.initial_weights: {weights} is part of the run that --overwrite deletes; give another "
                "--output"
            )

    def _run_stages(self, done: list[Done], only: str | None) -> Evaluation | None:
        for number, stage in enumerate(self.config.stages):
            if number == len(done):
                note(f"stage {number + 1} of {len(self.config.stages)}: {stage.name} ({stage.kind})")
                done.append(self._run_stage(number, stage, done[-1] if done else None))
            if only == stage.name:
                note(f"stage {only} is done: {done[number].checkpoint}")
                return None
        return self._score(done[-1])

    def finish(self, evaluation: Evaluation) -> Path:
        """Write result files, pictures, ``metrics.json`` and ``run.png``, and print the figures.

        Returns the finished detector's checkpoint.
        """
        write_evaluation(self.folder, self.test_set, evaluation)
        figures = finish_figures(evaluation.figures, self.seconds(), self.memory)
        write_report(self.config, self.folder, self.test_set, evaluation, figures)
        print_figures(figures)
        return self.detector

    def seconds(self) -> float:
        """Return the seconds of all stages, and of this process beside them."""
        records = [
            read_record(self._place(number) / "done.json") for number in range(len(self.config.stages))
        ]
        return sum(record.seconds for record in records) + max(process_seconds() - self._in_stages, 0.0)

    def _place(self, number: int) -> Path:
        return self.folder / "stages" / f"{number + 1:02d}_{self.config.stages[number].name}"

    def _key(self, number: int) -> str:
        """Return a digest of what decides what a stage makes: the config but for tests, stages up to it."""
        config = self.config
        left_out: dict[str, Any] = {
            "stages": True,
            "test": True,
            "data": {"workers"},
            "train": {"deterministic"},
        }
        whole = config.model_dump(mode="json", exclude=left_out)
        stages = [stage.model_dump(mode="json") for stage in config.stages[: number + 1]]
        seen_at = {"resize", "scales", "max_size", "scale_rule"}  # features are cached and pooled so
        views = config.test.model_dump(mode="json", include=seen_at)
        text = json.dumps([whole, stages, views], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def _finished_stages(self) -> list[Done]:
        """Return the stages that are done, up to the last one whose checkpoint can be read."""
        found: list[Done] = []
        for number in range(len(self.config.stages)):
            done = self._finished(number)
            if done is None:
                break
            found.append(done)
        while found:
            try:
                checkpoints.load_checkpoint(found[-1].checkpoint)
                break
            except InputError as error:
                note(f"warning: {error}; the stage {self.config.stages[len(found) - 1].name} is done again")
                found.pop()
        return found

    def _finished(self, number: int) -> Done | None:
        """Return a stage's record, or None where it has none that can be read."""
        path = self._place(number) / "done.json"
        if not path.is_file():
            return None
        try:
            found = read_record(path)
        except InputError as error:
            note(f"warning: {error}; the stage goes on from its own checkpoints")
            return None
        checkpoint = self._place(number) / found.checkpoint
        self._check_key(number, found.key, path, checkpoint)
        return Done(checkpoint, found.steps, found.data_fingerprint)

    def _check_key(self, number: int, key: str, path: Path, checkpoint: Path | None = None) -> None:
        """Refuse what a stage left in ``path`` when another config made it."""
        if key != self._key(number):
            raise InputError(
                f"{path}: this stage was made with another config{self._difference(number, checkpoint)}; "
                "train into another folder, or start over with --overwrite"
            )

    def _difference(self, number: int, checkpoint: Path | None) -> str:
        """Return in words the first setting that differs from those of a stage's checkpoint."""
        if checkpoint is None or not checkpoint.is_file():
            return ""
        config = stage_config(self.config, self.config.stages[number])
        try:
            state = checkpoints.load_checkpoint(checkpoint)
            changes = changed_settings(state["config"], config, str(checkpoint))
        except InputError:
            return ""
        changes.pop("train.initial_weights", None)
        for name, (before, now) in changes.items():
            if not (name.startswith("test.") or name == "data.workers"):
                return f", with {name} = {before}, now {now}"
        return ""

    def _run_stage(self, number: int, stage: StageConfig, before: Done | None) -> Done:
        place = self._place(number)
        place.mkdir(parents=True, exist_ok=True)
        config = stage_config(self.config, stage)
        if before is not None:
            start = {"initial_weights": str(before.checkpoint)}
            config = config.model_copy(update={"train": config.train.model_copy(update=start)})
        started = time.perf_counter()
        if stage.kind in ("train", "fine_tune"):
            done, earlier = self._train(config, stage, place, before)
        else:
            done, earlier = self._fit(config, number, place, before)
        took = time.perf_counter() - started
        self._in_stages += took
        record = StageRecord(
            key=self._key(number),
            checkpoint=str(done.checkpoint.relative_to(place)),
            steps=done.steps,
            seconds=round(earlier + took, 1),
            data_fingerprint=done.data_fingerprint,
        )
        write_record(place / "done.json", record)
        return done

    def _train(
        self, config: Config, stage: StageConfig, place: Path, before: Done | None
    ) -> tuple[Done, float]:
        """Train a stage; return it with the seconds that earlier processes took."""
        started = time.perf_counter()
        ignored = ["train.initial_weights"] if before else []  # ours, and the run's folder may have moved
        accept = self.accept_changed_data
        state = find_state(config, place, accept_changed_data=accept, ignored=ignored)
        task = (
            FineTuningTask(config, self.device, self.folder / CACHE, state)
            if stage.kind == "fine_tune"
            else build_task(config, self.device, state)
        )
        if before is not None:
            check_fingerprint(task.data_fingerprint, self._known_data(before))
        run = TrainingRun(config, place, task, state, loading=time.perf_counter() - started)
        run.run()
        checkpoint = place / "checkpoints" / f"step_{run.trainer.step}.pt"
        steps = run.trainer.step + (before.steps if before else 0)
        return Done(checkpoint, steps, task.data_fingerprint), run.seconds_before

    def _known_data(self, before: Done) -> dict[str, Any]:
        return {"data_fingerprint": before.data_fingerprint, ACCEPTED: self.accept_changed_data}

    def _fit(self, config: Config, number: int, place: Path, before: Done | None) -> tuple[Done, float]:
        """Fit a stage's layer; return it with the seconds that earlier processes took."""
        stage = self.config.stages[number]
        if before is None:
            raise InputError(f"stages: {stage.name}: a stage of kind {stage.kind} needs one before it")
        classes = known_classes(config)
        model = initial_model(config, classes)
        kept = place / "fit.pt"
        state = self._unfinished_fit(kept, number, model, len(classes))
        earlier = float(state.get("seconds", 0.0)) if state else 0.0
        started = time.perf_counter()

        def save(fit: dict[str, Any]) -> None:
            own = {
                "key": self._key(number),
                "seconds": earlier + time.perf_counter() - started,
                "data_fingerprint": layer.data_fingerprint,
            }
            checkpoints.save_checkpoint(kept, {**fit, **own})

        cache = self.folder / CACHE
        kind = SVMFit if stage.kind == "svm" else RidgeFit
        layer = kind(config, model, classes, cache, self.device, save, state)
        check_fingerprint(layer.data_fingerprint, self._known_data(before))
        if isinstance(layer, SVMFit):
            layer.fit(stage.svm)
        else:
            layer.fit(stage.ridge)
        target = place / "checkpoints" / "step_1.pt"
        checkpoints.save_checkpoint(target, _state(config, model, classes, 1))
        kept.unlink(missing_ok=True)
        return Done(target, before.steps + 1, layer.data_fingerprint), earlier

    def _unfinished_fit(
        self, path: Path, number: int, model: RegionDetector, num_classes: int
    ) -> dict[str, Any] | None:
        """Return what a fit that was stopped had kept, or None where there is nothing of use."""
        if not path.is_file():
            return None
        stage = self.config.stages[number]
        pooled = stage.kind == "box_ridge" or stage.svm.features == "pooled"
        width = model.region_pool.out_features if pooled else model.box_head.out_features
        try:
            state = checkpoints.read_saved(path)
            fault = fault_of_fit(stage.kind, state, num_classes, width)
        except InputError as error:
            fault = str(error)
        if fault is not None:
            note(
                f"warning: {path}: not what a stopped fit keeps: {fault}; the stage {stage.name} starts again"
            )
            return None
        self._check_key(number, state["key"], path)
        found: dict[str, Any] = {**state, ACCEPTED: self.accept_changed_data}
        return found

    def _score(self, last: Done) -> Evaluation:
        """Keep the finished detector as the run's checkpoint, score it, and store its score threshold."""
        config = self.config
        state = checkpoints.load_checkpoint(last.checkpoint)
        model = restore_model(config, state, str(last.checkpoint))
        classes = tuple(state["classes"])
        target = self.folder / "checkpoints" / f"step_{last.steps}.pt"
        finished = _state(config, model, classes, last.steps)
        checkpoints.save_checkpoint(target, finished)
        self.detector = target
        split = evaluated_split(config)
        self.test_set = open_test_set(config, split, classes)
        validation_set = open_validation(config, classes)
        model = model.to(self.device)
        validation = None
        if validation_set is not None:
            validation = evaluate(config, model, validation_set, self.device, self.memory)
        point = choose_point(validation)
        if point is not None:
            checkpoints.save_checkpoint(target, {**finished, "score_threshold": point.score_threshold})
        say_point(point, validation)
        evaluation = evaluate(config, model, self.test_set, self.device, self.memory)
        self._write_log(last.steps, evaluation)
        return with_point(evaluation, validation, point)

    def _write_log(self, steps: int, evaluation: Evaluation) -> None:
        """Put the stages' losses and the detector's figures into one log, whose steps run on."""
        with closing(RunLog(self.folder)) as log:
            offset = 0
            for number, stage in enumerate(self.config.stages):
                for record in read_log(self._place(number) / "log.jsonl", note):
                    if record["kind"] == "train":
                        values = {name: value for name, value in record.items() if name != "kind"}
                        shifted = {"step": record["step"] + offset, "stage": stage.name}
                        log.write("train", {**values, **shifted})
                offset = read_record(self._place(number) / "done.json").steps
            figures = {name: value for name, value in evaluation.figures.items() if name in COURSE}
            log.write("evaluate", {"step": steps, **figures})


def _state(config: Config, model: RegionDetector, classes: tuple[str, ...], step: int) -> dict[str, Any]:
    return {
        "step": step,
        "config": config.model_dump(mode="json"),
        "classes": list(classes),
        "model": {name: value.cpu() for name, value in model.state_dict().items()},
    }
