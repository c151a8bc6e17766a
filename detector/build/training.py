"""A training run: everything a config asks for, put together around the loop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from detector.build import data as data_parts
from detector.build import model as model_parts
from detector.build import proposals as proposal_parts
from detector.build.evaluation import Evaluation, evaluate, headline, open_test_set
from detector.config import Config
from detector.data.images import read_image
from detector.engine import checkpoint as checkpoints
from detector.engine.memory import PeakMemory
from detector.engine.optim import build_schedule, build_sgd
from detector.engine.run_log import RunLog
from detector.engine.trainer import Record, Trainer, training_state
from detector.errors import InputError
from detector.files import write_text
from detector.models.box_coder import BoxCoder, measured_coder
from detector.models.detector import RegionDetector
from detector.models.roi_sampler import trained_objects
from detector.progress import TrainingProgress, note
from detector.proposals.store import ProposalStore
from detector.structures import Batch, ImageRecord
from detector.visualize import draw_detections


class TrainingRun:
    """One run in one folder, from the start or from a checkpoint, to its last evaluation."""

    def __init__(
        self, config: Config, folder: Path, device: str, state: dict[str, Any] | None = None
    ) -> None:
        """Read the data, build the network and, with ``state``, go back to where a checkpoint stands."""
        self.config = config
        self.folder = folder
        self.device = device
        self.memory = PeakMemory()
        self.evaluation: Evaluation | None = None
        self.best: dict[str, float] = {}
        start = state["step"] if state else 0
        split = config.train.evaluate_split or config.data.test_split
        self.test_set = open_test_set(config, split, state["classes"] if state else None)
        records, store = self._training_data()
        coder = None
        if state is None and config.model.box.normalize == "dataset":
            coder = self._measure_targets(records, store)
        self.model = self._build_model(coder, state)
        self.roi_sampler = model_parts.build_roi_sampler(config, self.model.box_coder)
        self.loss = model_parts.build_loss(config)
        self.model.to(device)
        self.trainer = self._build_trainer(records, store, start)
        if state is not None:
            self._restore(state)
        self.log = RunLog(folder, start)
        if state is None:
            self.log.write("data", {"step": 0, "images": len(records), "dropped_boxes": self.dropped})
        write_text(folder / "config.yaml", yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))

    def run(self) -> Evaluation:
        """Train to the end and return the last evaluation."""
        with TrainingProgress(self.config.train.steps, self.trainer.step) as self.progress:
            try:
                self.trainer.run()
            finally:
                self.log.close()
        if self.evaluation is None:  # a finished run that was resumed
            self.evaluation = self._score()
        return self.evaluation

    def _training_data(self) -> tuple[list[ImageRecord], ProposalStore]:
        config, split = self.config, self.config.data.train_split
        dataset = data_parts.load_split(config, split, self.test_set.classes, training=True)
        self.dropped = dataset.dropped
        faults = ", ".join(f"{count} {reason}" for reason, count in sorted(dataset.dropped.items()))
        objects = sum(len(record.targets) for record in dataset.records)
        note(
            f"{split}: {len(dataset.records)} images, {objects} objects of {len(dataset.classes)} classes; "
            f"boxes dropped or clipped: {faults or 'none'}"
        )
        store = proposal_parts.open_proposals(config, dataset.records)
        records = proposal_parts.with_proposals(config, dataset.records, store)
        if not sum(len(record.targets) for record in records):
            raise InputError(
                f"{config.data.root}: nothing to train on in {split}: of {len(dataset.records)} images, "
                f"{len(records)} have proposals in {store.path} and none of these has an object that may be "
                f"trained on; boxes dropped: {faults or 'none'}"
            )
        proposal_parts.report_recall(records, store, config, split)
        return records, store

    def _build_model(self, coder: BoxCoder | None, state: dict[str, Any] | None) -> RegionDetector:
        """Return the network with the weights of the resumed run, of another checkpoint, or published."""
        config, count = self.config, len(self.test_set.classes)
        torch.manual_seed(config.seed)
        if state is not None:
            return model_parts.restore_model(config, state, str(self.folder))
        if config.train.initial_weights is None:
            return model_parts.build_model(config, count, coder)
        source = checkpoints.load_checkpoint(config.train.initial_weights)
        return model_parts.restore_model(config, source, config.train.initial_weights)

    def _measure_targets(self, records: list[ImageRecord], store: ProposalStore) -> BoxCoder:
        source = proposal_parts.StoredProposals(
            store, self.config.proposals.top_k_train, self.config.proposals.min_size
        )
        difficult = self.config.data.difficult == "train"
        objects = (trained_objects(record.targets, use_difficult=difficult) for record in records)
        images = (
            (source(record).boxes, targets.boxes, targets.labels)
            for record, targets in zip(records, objects, strict=True)
        )
        threshold = self.config.train.sampling.foreground_iou
        return measured_coder(images, len(self.test_set.classes), threshold)

    def _build_trainer(self, records: list[ImageRecord], store: ProposalStore, start: int) -> Trainer:
        settings = self.config.train
        optimizer = build_sgd(
            self.model,
            learning_rate=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
            bias_lr_factor=settings.bias_lr_factor,
            bias_decay=settings.bias_decay,
        )
        batches: Iterator[Batch] = data_parts.training_batches(self.config, records, store, start)
        return Trainer(
            model=self.model,
            optimizer=optimizer,
            schedule=build_schedule(settings.steps, **settings.schedule.model_dump()),
            batches=batches,
            training_step=self._training_step,
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

    def _training_step(self, batch: Batch) -> dict[str, Tensor]:
        sampled = self.roi_sampler(batch).to(self.device)
        batch = batch.to(self.device)
        half = self.config.train.precision == "bfloat16"
        with torch.autocast(torch.device(self.device).type, dtype=torch.bfloat16, enabled=half):
            output = self.model(batch.images, sampled.rois, sampled.roi_levels)
        return self.loss(output, sampled)

    def _record(self, trainer: Trainer, record: Record) -> None:
        self.memory.sample()
        self.log.write("train", record)
        self.progress.record(record)

    def _evaluate(self, trainer: Trainer) -> None:
        self.evaluation = self._score()
        figures = {name: self.evaluation.figures[name] for name in ("voc07_mAP", "voc_mAP")}
        self.log.write("evaluate", {"step": trainer.step, **figures})
        self.log.images("detections", self._drawn(self.evaluation), trainer.step)
        note(f"step {trainer.step}: " + ", ".join(f"{name} {value:.4f}" for name, value in figures.items()))
        metric = headline(self.config, self.evaluation.figures)
        if metric > self.best.get("metric", -1.0):
            self.best = {"metric": metric, "step": float(trainer.step)}
            checkpoints.save_checkpoint(self._checkpoint_path("best"), self._state(trainer))

    def _score(self) -> Evaluation:
        return evaluate(self.config, self.model, self.test_set, self.device, self.memory)

    def _drawn(self, evaluation: Evaluation) -> list[Any]:
        shown = self.test_set.records[: self.config.train.draw_images]
        return [
            draw_detections(
                read_image(record.path, (record.height, record.width)),
                evaluation.detections[record.image_id],
                self.test_set.classes,
            )
            for record in shown
        ]

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
            "classes": list(self.test_set.classes),
            "sampler": self.roi_sampler.state_dict(),
            "random": checkpoints.random_states(),
            "best": self.best,
        }

    def _restore(self, state: dict[str, Any]) -> None:
        """Take over everything but the weights, which are loaded already."""
        groups = self.trainer.optimizer.param_groups
        rates = [group["initial_lr"] for group in groups]
        self.trainer.optimizer.load_state_dict(state["optimizer"])
        for group, rate in zip(self.trainer.optimizer.param_groups, rates, strict=True):
            group["initial_lr"] = rate  # the config's, which the user may have changed
        self.roi_sampler.load_state_dict(state["sampler"])
        self.best = dict(state["best"])
        self.trainer.evaluated = state["evaluated"]
        checkpoints.set_random_states(state["random"])


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
    state = checkpoints.load_checkpoint(found[-1])
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
