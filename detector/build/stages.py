"""A staged training: the stages of a config one after another, each going on where it was stopped.

A stage has the folder ``stages/NN_NAME`` of the run's, which ends with a checkpoint and ``done.json``. The
finished detector is the run's own ``checkpoints/step_N.pt``.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from detector.build.evaluation import Evaluation, evaluate, known_classes, open_test_set, write_evaluation
from detector.build.fine_tuning import FineTuningTask
from detector.build.model import initial_model, restore_model
from detector.build.report import finish_figures, print_figures, write_report
from detector.build.ridge_stage import RidgeFit
from detector.build.svm_stage import SVMFit
from detector.build.tasks import build_task
from detector.build.training import TrainingRun, find_state
from detector.config import Config, stage_config
from detector.config.sections.training import StageConfig
from detector.engine import checkpoint as checkpoints
from detector.engine.determinism import cuda_algorithms
from detector.engine.memory import PeakMemory
from detector.engine.run_log import read_log
from detector.errors import InputError
from detector.files import read_json, write_text
from detector.models.detector import RegionDetector
from detector.progress import note

CACHE = "cache"
"""The folder of a run's cached features, which may be deleted when the run is done."""


@dataclass(frozen=True)
class Done:
    """A finished stage: its checkpoint and the optimizer steps of all stages up to it."""

    checkpoint: Path
    steps: int


class StagedTraining:
    """Runs the ``stages`` of a config in one folder."""

    def __init__(self, config: Config, folder: Path, device: str) -> None:
        self.config = config
        self.folder = folder
        self.device = device
        self.memory = PeakMemory(device)
        write_text(folder / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))

    def run(self, only: str | None = None) -> Evaluation | None:
        """Do what is not done yet and score the detector; with ``only``, do that one stage and no more.

        Raises:
            InputError: a stage that was made with other settings, or ``only`` needs one that is not done.
            StopRequested: after a signal; the same call goes on.
        """
        names = [stage.name for stage in self.config.stages]
        if only is not None and only not in names:
            raise InputError(f"--stage {only}: the config's stages are {', '.join(names)}")
        with cuda_algorithms(self.device, deterministic=self.config.train.deterministic):
            return self._run_stages(only)

    def _run_stages(self, only: str | None) -> Evaluation | None:
        before: Done | None = None
        for number, stage in enumerate(self.config.stages):
            done = self._finished(number)
            if done is None:
                if only not in (None, stage.name):
                    raise InputError(f"--stage {only}: needs the stage {stage.name}, which is not done yet")
                note(f"stage {number + 1} of {len(self.config.stages)}: {stage.name} ({stage.kind})")
                done = self._run_stage(number, stage, before)
            if only == stage.name:
                note(f"stage {only} is done: {done.checkpoint}")
                return None
            before = done
        assert before is not None  # the schema's staged configs have a stage
        return self._score(before)

    def finish(self, evaluation: Evaluation, seconds: float) -> None:
        """Write result files, pictures, ``metrics.json`` and ``run.png``, and print the figures."""
        write_evaluation(self.folder, self.test_set, evaluation)
        figures = finish_figures(evaluation.figures, seconds, self.memory)
        write_report(self.config, self.folder, self.test_set, evaluation, figures)
        print_figures(figures)

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

    def _finished(self, number: int) -> Done | None:
        record = self._place(number) / "done.json"
        if not record.is_file():
            return None
        found = read_json(record)
        self._check_key(number, found, record)
        return Done(self._place(number) / found["checkpoint"], found["steps"])

    def _check_key(self, number: int, found: Any, path: Path) -> None:
        """Refuse what a stage left in ``path`` when another config made it."""
        if not isinstance(found, dict) or found.get("key") != self._key(number):
            raise InputError(
                f"{path}: this stage was made with another config; train into another folder, or start "
                "over with --overwrite"
            )

    def _run_stage(self, number: int, stage: StageConfig, before: Done | None) -> Done:
        place = self._place(number)
        place.mkdir(parents=True, exist_ok=True)
        config = stage_config(self.config, stage)
        if before is not None:
            start = {"initial_weights": str(before.checkpoint)}
            config = config.model_copy(update={"train": config.train.model_copy(update=start)})
        started = time.perf_counter()
        if stage.kind in ("train", "fine_tune"):
            checkpoint, steps = self._train(config, stage, place)
        else:
            checkpoint, steps = self._fit(config, number, place, before), 1
        steps += before.steps if before else 0
        record = {
            "key": self._key(number),
            "checkpoint": str(checkpoint.relative_to(place)),
            "steps": steps,
            "seconds": round(time.perf_counter() - started, 1),
        }
        write_text(place / "done.json", json.dumps(record, indent=1) + "\n")
        return Done(checkpoint, steps)

    def _train(self, config: Config, stage: StageConfig, place: Path) -> tuple[Path, int]:
        state = find_state(config, place)
        task = (
            FineTuningTask(config, self.device, self.folder / CACHE, state)
            if stage.kind == "fine_tune"
            else build_task(config, self.device, state)
        )
        run = TrainingRun(config, place, task, state)
        run.run()
        return checkpoints.numbered_checkpoints(place / "checkpoints")[-1], config.train.steps

    def _fit(self, config: Config, number: int, place: Path, before: Done | None) -> Path:
        stage = self.config.stages[number]
        if before is None:
            raise InputError(f"stages: {stage.name}: a stage of kind {stage.kind} needs one before it")
        classes = known_classes(config)
        model = initial_model(config, classes)
        kept = place / "fit.pt"
        state = self._unfinished_fit(kept, number)

        def save(fit: dict[str, Any]) -> None:
            checkpoints.save_checkpoint(kept, {**fit, "key": self._key(number)})

        cache = self.folder / CACHE
        if stage.kind == "svm":
            SVMFit(config, model, classes, cache, self.device, save, state).fit(stage.svm)
        else:
            RidgeFit(config, model, classes, cache, self.device, save, state).fit(stage.ridge)
        target = place / "checkpoints" / "step_1.pt"
        checkpoints.save_checkpoint(target, _state(config, model, classes, 1))
        kept.unlink(missing_ok=True)
        return target

    def _unfinished_fit(self, path: Path, number: int) -> dict[str, Any] | None:
        """Return what a fit that was stopped had kept, or None."""
        if not path.is_file():
            return None
        try:
            state: dict[str, Any] = checkpoints.read_saved(path)
        except InputError as error:
            raise InputError(f"{error}; delete {path}, and the stage starts again") from None
        self._check_key(number, state, path)
        return state

    def _score(self, last: Done) -> Evaluation:
        """Keep the finished detector as the run's checkpoint and score it."""
        config = self.config
        state = checkpoints.load_checkpoint(last.checkpoint)
        model = restore_model(config, state, str(last.checkpoint))
        classes = tuple(state["classes"])
        target = self.folder / "checkpoints" / f"step_{last.steps}.pt"
        checkpoints.save_checkpoint(target, _state(config, model, classes, last.steps))
        note(f"the finished detector is {target}")
        self._write_log()
        split = config.train.evaluate_split or config.data.test_split
        self.test_set = open_test_set(config, split, classes)
        return evaluate(config, model.to(self.device), self.test_set, self.device, self.memory)

    def _write_log(self) -> None:
        """Put the stages' losses into one log, whose steps run on from stage to stage."""
        lines: list[str] = []
        offset = 0
        for number, stage in enumerate(self.config.stages):
            log = self._place(number) / "log.jsonl"
            for record in read_log(log) if log.is_file() else []:
                if record["kind"] == "train":
                    shifted = {**record, "step": record["step"] + offset, "stage": stage.name}
                    lines.append(json.dumps(shifted))
            done = self._finished(number)
            offset = done.steps if done else offset
        write_text(self.folder / "log.jsonl", "\n".join(lines) + "\n")


def _state(config: Config, model: RegionDetector, classes: tuple[str, ...], step: int) -> dict[str, Any]:
    return {
        "step": step,
        "config": config.model_dump(mode="json"),
        "classes": list(classes),
        "model": {name: value.cpu() for name, value in model.state_dict().items()},
    }
