"""A staged training: the stages of a config one after another, each resumed where it was stopped.

Each stage has a folder ``stages/NN_NAME`` in the folder of the run. Once the stage is finished, it holds a
checkpoint and ``done.json``. The finished detector is the run's own ``checkpoints/step_N.pt``.

Where ``torchrun`` has started several processes, they share the steps of the stages that train, the
convolutions of all images, and the final evaluation. A layer is fitted by rank 0 while the others wait.
"""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from detector.config import Config, require_stage, stage_config
from detector.config.schema import HeadStageConfig, StageConfig
from detector.core import distributed
from detector.core.errors import InputError
from detector.core.files import read_json, write_text
from detector.core.machine import process_seconds
from detector.core.progress import note, said_once
from detector.core.structures import Detections
from detector.engine import checkpoint as checkpoints
from detector.engine.determinism import cuda_algorithms
from detector.engine.environment import record_environment
from detector.engine.run_folder import holds_work
from detector.engine.run_log import RunLog, read_log
from detector.factory.model import initial_model, restore_model
from detector.factory.weights import check_weights
from detector.models.detector import RegionDetector
from detector.staged.box_ridge import RidgeFit
from detector.staged.fine_tune import FineTuningTask
from detector.staged.head_fit import HeadFit
from detector.staged.layer_fit import LayerFit, fault_of_fit, feature_width
from detector.staged.region_features import RegionFeatures
from detector.staged.svm import SVMFit
from detector.tasks.resume import ACCEPTED, changed_settings, check_fingerprint
from detector.tasks.scoring import Evaluation, known_classes
from detector.tasks.start import MakeTask, build_scorer, build_task, present_environment, start_run

CACHE = "cache"
"""The folder of a run's cached features, which may be deleted when the run is done."""


class StageRecord(BaseModel):
    """The content of a finished stage's ``done.json``."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    key: str
    """A digest of the settings that the stage was made with."""
    checkpoint: Annotated[str, Field(pattern=r"^checkpoints/step_[0-9]{1,15}\.pt$")]
    """Path in the stage's folder."""
    steps: Annotated[int, Field(ge=1, lt=2**53)]
    """Optimizer steps of all stages up to this one."""
    seconds: Annotated[float, Field(ge=0, lt=2**53)]
    """Time that this stage took, without the stages before it."""
    data_fingerprint: dict[str, str] = Field(default_factory=dict)
    """Digests of the data that the stage used, by role and split."""
    features: str | None = None
    """The folder of the stored region features that the stage used, if it is of kind ``head``."""

    def write(self, path: Path) -> None:
        """Write the record; InputError where the disk refuses, and ``path`` is then as it was."""
        write_text(path, json.dumps(self.model_dump(), indent=1) + "\n")


def read_record(path: Path) -> StageRecord:
    """Read the record of a finished stage.

    Raises:
        InputError: missing, damaged, or with values of other types; names the file and the key.
    """
    try:
        return StageRecord.model_validate(read_json(path))
    except ValidationError as error:
        fault = error.errors()[0]
        where = "".join(f"{key!s:.40}: " for key in fault["loc"])
        raise InputError(f"{path}: not the record of a finished stage: {where}{fault['msg']}") from None


class _Outcome(NamedTuple):
    """What a stage that was just run reports: its own steps, its data, the seconds of earlier processes."""

    steps: int
    data_fingerprint: dict[str, str]
    earlier: float
    features: str | None = None


class StagedTraining:
    """Runs the ``stages`` of a config, or that of ``train.head_only``, in one folder."""

    def __init__(
        self,
        config: Config,
        folder: Path,
        device: str,
        *,
        accept_changed_data: bool = False,
        features: RegionFeatures | None = None,
    ) -> None:
        """Given ``features`` are what a stage of kind ``head`` works on; then no image is opened and the
        detector is not scored.
        """
        self.features = features
        self.config = config
        self.stages = config.all_stages
        self.folder = folder
        self.device = device
        self.accept_changed_data = accept_changed_data
        self._done: list[StageRecord] = []
        self._in_stages = 0.0  # seconds of this process that the stages' own records hold

    def run(self, only: str | None = None) -> Evaluation[Detections] | None:
        """Run the stages that are not done yet and score the detector; with ``only``, run just that stage.

        Raises:
            InputError: a stage was made with other settings, or ``only`` needs one that is not done.
            StopRequested: after a signal; the same call resumes the training.
        """
        names = [stage.name for stage in self.stages]
        if only is not None:
            require_stage(self.config, only)
        with said_once():
            self._done = self._finished_stages()
            self._same_start()
            if not self._done:
                self.check_start()
        if only is not None and names.index(only) > len(self._done):
            raise InputError(
                f"--stage {only}: needs the stage {names[len(self._done)]}, which is not done yet"
            )
        text = yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)
        if distributed.is_main():
            write_text(self.folder / "config.yaml", text)
            self._record_environment()
        with cuda_algorithms(self.device, deterministic=self.config.train.deterministic):
            return self._run_stages(only)

    def _record_environment(self) -> None:
        step = self._done[-1].steps if self._done else 0
        known = self._done[-1].data_fingerprint if self._done else {}
        entry = present_environment(self.config, self.device, step, known)
        record_environment(self.folder, entry, resumed=holds_work(self.folder))

    def _same_start(self) -> None:
        """Raise InputError unless every process has found the same finished stages."""
        counts = distributed.gather_texts(str(len(self._done)))
        if len(set(counts)) > 1:
            found = ", ".join(f"rank {number}: {count}" for number, count in enumerate(counts))
            raise InputError(
                f"{self.folder}: the processes have found different numbers of finished stages ({found}); "
                "--output has to be a folder that all machines share"
            )

    def check_start(self, *, overwrite: bool = False) -> None:
        """Refuse weights that the first stage cannot read; each later stage starts from the one before it.

        With ``overwrite``, also refuse weights that are part of the run, which will be deleted first.
        """
        config = stage_config(self.config, self.stages[0])
        check_weights(config)
        weights = config.train.initial_weights
        if overwrite and weights is not None and self.folder.resolve() in Path(weights).resolve().parents:
            raise InputError(
                f"train.initial_weights: {weights} is part of the run that --overwrite deletes; give another "
                "--output"
            )

    def _run_stages(self, only: str | None) -> Evaluation[Detections] | None:
        for number, stage in enumerate(self.stages):
            if number == len(self._done):
                note(f"stage {number + 1} of {len(self.stages)}: {stage.name} ({stage.kind})")
                self._done.append(self._run_stage(number, stage))
            if only == stage.name:
                note(f"stage {only} is done: {self._checkpoint(number)}")
                return None
        return self._score()

    def finish(self, evaluation: Evaluation[Detections]) -> None:
        """Write result files, pictures, ``metrics.json`` and ``run.png``, and print the metrics."""
        if not distributed.is_main():
            return
        self.scorer.finish(self.folder, self.detector, evaluation, {"seconds": round(self.seconds(), 1)})

    def seconds(self) -> float:
        """Return the seconds of all stages, and those of this process outside of them."""
        return sum(done.seconds for done in self._done) + max(process_seconds() - self._in_stages, 0.0)

    def _place(self, number: int) -> Path:
        return self.folder / "stages" / f"{number + 1:02d}_{self.stages[number].name}"

    def _checkpoint(self, number: int) -> Path:
        return self._place(number) / self._done[number].checkpoint

    def _key(self, number: int) -> str:
        """Return a digest of the settings that decide the result of a stage, also those of earlier stages.

        Settings of evaluations are not among them.
        """
        config = self.config
        left_out: dict[str, Any] = {
            "stages": True,
            "test": True,
            "data": {"workers"},
            "train": {"deterministic", "callbacks", "features_folder"},
        }
        whole = config.model_dump(mode="json", exclude=left_out)
        stages = [stage.model_dump(mode="json") for stage in self.stages[: number + 1]]
        of_views = {"resize", "scales", "max_size", "scale_rule"}  # cached features are made and pooled so
        views = config.test.model_dump(mode="json", include=of_views)
        text = json.dumps([whole, stages, views], sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def _finished_stages(self) -> list[StageRecord]:
        """Return the stages that are done, up to the last one whose checkpoint can be read."""
        finished: list[StageRecord] = []
        for number in range(len(self.stages)):
            if (record := self._finished(number)) is None:
                break
            finished.append(record)
        while finished:
            number = len(finished) - 1
            try:
                checkpoints.load_checkpoint(self._place(number) / finished[-1].checkpoint)
                break
            except InputError as error:
                note(f"warning: {error}; the stage {self.stages[number].name} is done again")
                finished.pop()
        return finished

    def _finished(self, number: int) -> StageRecord | None:
        """Return what a stage's record says, or None where there is no record that can be read."""
        path = self._place(number) / "done.json"
        if not path.is_file():
            return None
        try:
            record = read_record(path)
        except InputError as error:
            note(f"warning: {error}; the stage continues from its own checkpoints")
            return None
        self._check_key(number, record.key, path, self._place(number) / record.checkpoint)
        return record

    def _check_key(self, number: int, key: str, path: Path, checkpoint: Path | None = None) -> None:
        """Refuse the file ``path`` of a stage if it was made with another config."""
        if key != self._key(number):
            difference = self._difference(number, checkpoint) or " or by another version of this program"
            raise InputError(
                f"{path}: this stage was made with another config{difference}; "
                "train into another folder, or start over with --overwrite"
            )

    def _difference(self, number: int, checkpoint: Path | None) -> str:
        """Return in words the first setting that differs from those in a stage's checkpoint, or ""."""
        if checkpoint is None or not checkpoint.is_file():
            return ""
        config = stage_config(self.config, self.stages[number])
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

    def _run_stage(self, number: int, stage: StageConfig) -> StageRecord:
        place = self._place(number)
        if distributed.is_main():
            place.mkdir(parents=True, exist_ok=True)
        config = stage_config(self.config, stage)
        if number:
            start = {"initial_weights": str(self._checkpoint(number - 1))}
            config = config.model_copy(update={"train": config.train.model_copy(update=start)})
        started = time.perf_counter()
        run = self._train if stage.kind in ("train", "fine_tune") else self._fit
        outcome = run(config, number)
        took = time.perf_counter() - started
        self._in_stages += took
        record = StageRecord(
            key=self._key(number),
            checkpoint=f"checkpoints/step_{outcome.steps}.pt",
            steps=outcome.steps + (self._done[-1].steps if number else 0),
            seconds=round(outcome.earlier + took, 1),
            data_fingerprint=outcome.data_fingerprint,
            features=outcome.features,
        )
        if distributed.is_main():
            record.write(place / "done.json")
        distributed.barrier()  # until the stage's checkpoint is there, from which the next stage starts
        return record

    def _train(self, config: Config, number: int) -> _Outcome:
        stage = self.stages[number]
        run = start_run(
            config,
            self._place(number),
            self.device,
            resume=True,
            accept_changed_data=self.accept_changed_data,
            make_task=fine_tuning_in(self.folder) if stage.kind == "fine_tune" else build_task,
            # `_run_stage` sets it, and the run's folder may have moved.
            ignored=["train.initial_weights"] if number else [],
        )
        self._check_data(run.task.data_fingerprint)
        run.run()
        run.callbacks.close()
        return _Outcome(run.step, run.task.data_fingerprint, run.seconds_before)

    def _check_data(self, fingerprint: dict[str, str]) -> None:
        """Refuse data that have changed since the stage before was done, unless the user accepts that."""
        if self._done:
            known = {"data_fingerprint": self._done[-1].data_fingerprint, ACCEPTED: self.accept_changed_data}
            check_fingerprint(fingerprint, known)

    def _fit(self, config: Config, number: int) -> _Outcome:
        stage = self.stages[number]
        if number == 0 and stage.kind != "head":
            raise InputError(f"stages: {stage.name}: a stage of kind {stage.kind} needs one before it")
        classes = known_classes(config)
        model = initial_model(config, classes)
        kept = self._place(number) / "fit.pt"
        with said_once():
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

        layer: LayerFit[Any] | HeadFit
        with said_once():
            if isinstance(stage, HeadStageConfig):
                place = self._place(number)
                layer = HeadFit(
                    config, model, classes, place, self.device, save, state, stage.ridge, self.features
                )
                fit = layer.fit
            else:
                kind, settings = self._layer(number)
                layer = kind(config, model, classes, self.folder / CACHE, self.device, save, state)
                fit = partial(layer.fit, settings)
            self._check_data(layer.data_fingerprint)
        if distributed.is_main():
            with distributed.busy(), distributed.alone():
                fit()
            target = self._place(number) / "checkpoints" / f"step_{layer.steps}.pt"
            checkpoints.save_checkpoint(target, _state(config, model, classes, layer.steps))
            kept.unlink(missing_ok=True)
        features = str(layer.features.folder) if isinstance(layer, HeadFit) else None
        return _Outcome(layer.steps, layer.data_fingerprint, earlier, features)

    def _layer(self, number: int) -> tuple[type[LayerFit[Any]], Any]:
        """Return what fits the layer of a stage, and its settings."""
        stage = self.stages[number]
        if stage.kind == "svm":
            return SVMFit, stage.svm
        assert stage.kind == "box_ridge"  # the other kinds are trained
        return RidgeFit, stage.ridge

    def _unfinished_fit(
        self, path: Path, number: int, model: RegionDetector, num_classes: int
    ) -> dict[str, Any] | None:
        """Return the saved state of a fit that was stopped, or None where it is missing or damaged."""
        if not path.is_file():
            return None
        if self.stages[number].kind == "head":
            find_fault = partial(HeadFit.find_fault, model=model)
        else:
            kind, settings = self._layer(number)
            width = feature_width(model, pooled=kind.reads_pooled(settings))
            find_fault = partial(kind.find_fault, num_classes=num_classes, width=width)
        try:
            state = checkpoints.read_saved(path)
            fault = fault_of_fit(state, find_fault)
        except InputError as error:
            fault = str(error)
        if fault is not None:
            note(
                f"warning: {path}: not the state of an unfinished fit: {fault}; the stage "
                f"{self.stages[number].name} starts again from the beginning"
            )
            return None
        self._check_key(number, state["key"], path)
        return {**dict(state), ACCEPTED: self.accept_changed_data}

    def _score(self) -> Evaluation[Detections] | None:
        """Keep the finished detector as the run's checkpoint, score it, and store its score threshold.

        Where region features were given, it is not scored, and None is returned.
        """
        path, steps = self._checkpoint(len(self._done) - 1), self._done[-1].steps
        state = checkpoints.load_checkpoint(path)
        model = restore_model(self.config, state, str(path))
        self.detector = self.folder / "checkpoints" / f"step_{steps}.pt"
        finished = _state(self.config, model, tuple(state["classes"]), steps)
        if distributed.is_main():
            checkpoints.save_checkpoint(self.detector, finished)
        if self.features is not None:
            self._write_log(None)
            return None
        with said_once():
            self.scorer = build_scorer(self.config, self.device, classes=state["classes"])
        assessment = self.scorer.assess(model.to(self.device), last=True)
        assert assessment.test is not None  # last=True scores it
        if distributed.is_main():
            if assessment.score_threshold is not None:
                stored = {**finished, "score_threshold": assessment.score_threshold}
                checkpoints.save_checkpoint(self.detector, stored)
            self._write_log(assessment.test)
        return assessment.test

    def _write_log(self, evaluation: Evaluation[Detections] | None) -> None:
        """Put the stages' losses and the detector's metrics into one log, with consecutive steps."""
        with closing(RunLog(self.folder)) as log:
            steps = 0
            for number, stage in enumerate(self.stages):
                for record in read_log(self._place(number) / "log.jsonl"):
                    if record["kind"] == "train":
                        values = {name: value for name, value in record.items() if name != "kind"}
                        shifted = {"step": record["step"] + steps, "stage": stage.name}
                        log.write("train", {**values, **shifted})
                steps = self._done[number].steps
            if evaluation is not None:
                log.write("evaluate", {"step": steps, **evaluation.history()})


def fine_tuning_in(folder: Path) -> MakeTask:
    """Return what builds the task of a fine-tuning stage of the staged training in ``folder``."""

    def fine_tuning(config: Config, device: str, state: dict[str, Any] | None) -> FineTuningTask:
        return FineTuningTask(config, device, folder / CACHE, state)

    return fine_tuning


def _state(config: Config, model: RegionDetector, classes: tuple[str, ...], step: int) -> dict[str, Any]:
    return {
        "step": step,
        "config": config.model_dump(mode="json"),
        "classes": list(classes),
        "model": {name: value.cpu() for name, value in model.state_dict().items()},
    }
