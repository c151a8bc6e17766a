"""A training run: one loop around a task, from the first step or a checkpoint to the last evaluation.

A `Run` owns its folder, log, checkpoints and the loop. What is trained, and how it is scored, is the task's.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
import yaml
from torch import Tensor, nn

from detector.core import distributed
from detector.core.errors import InputError
from detector.core.files import link_or_copy, read_json, write_text
from detector.core.progress import TrainingProgress, note
from detector.core.structures import ImageRecord
from detector.engine import checkpoint as checkpoints
from detector.engine import faults
from detector.engine.callbacks import Callback, Callbacks, RunFacts
from detector.engine.early_stopping import EarlyStopping
from detector.engine.ema import AveragedWeights
from detector.engine.environment import record_environment
from detector.engine.faults import LossNotFinite
from detector.engine.loss_scaling import LossScaler
from detector.engine.memory import peak_gpu_memory
from detector.engine.optim import Schedule, clip_gradients, load_optimizer_state, set_learning_rate
from detector.engine.run_log import open_log

UNSCORED = -1.0
"""The headline of an evaluation without a metric; of such checkpoints the newest is kept as the best."""

AnyEvaluation = TypeVar("AnyEvaluation", bound="Evaluation")


class Evaluation(Protocol):
    """What a run logs of one evaluation of the network."""

    @property
    def metrics(self) -> Mapping[str, Any]:
        """All that metrics.json records of it; ``split`` names the images."""

    def history(self) -> dict[str, float]:
        """Return the metrics that are followed over a run."""

    def summary(self) -> str:
        """Return these metrics as a line of text."""


@dataclass(frozen=True, kw_only=True)
class Assessment(Generic[AnyEvaluation]):
    """The evaluations after one step, and what they decide."""

    chosen_by: AnyEvaluation
    """The evaluation that chooses best.pt: on the validation images, or without any on the test images."""
    test: AnyEvaluation | None
    """The evaluation on the test images; None where they were not evaluated at this step."""
    headline: float
    """The metric that chooses best.pt, higher is better; `UNSCORED` where nothing could be scored."""
    score_threshold: float | None
    """The threshold at which the network is used, where one could be chosen."""
    raw: AnyEvaluation | None = None
    """The raw weights on the images of ``chosen_by``, where the averaged ones were evaluated."""


class Scorer(Protocol[AnyEvaluation]):
    """What evaluates the network of a run."""

    def assess(self, model: Any, *, last: bool, raw: Any = None) -> Assessment[AnyEvaluation]:
        """Evaluate on the validation images and, if ``last`` or without any, on the test images.

        ``raw`` is the network with the raw weights where ``model`` has averaged ones.
        """

    def pictures(self, evaluation: AnyEvaluation) -> list[np.ndarray]:
        """Return a few of the images that chose best.pt with the network's results, (H, W, 3) uint8 RGB."""

    def finish(
        self, folder: Path, checkpoint: Path, evaluation: AnyEvaluation, costs: Mapping[str, float]
    ) -> None:
        """Write the results of a finished run and print them; ``checkpoint`` is the one to use.

        ``costs`` are metrics of the run itself, such as ``seconds``.
        """


class Task(Protocol[AnyEvaluation]):
    """What a run trains: data, a network, its losses, and its evaluations."""

    device: str
    classes: tuple[str, ...]
    data_fingerprint: dict[str, str]
    """Digests of the images and annotations, by role and split."""
    records: Sequence[ImageRecord]
    """The images that are trained on."""

    @property
    def model(self) -> nn.Module: ...
    @property
    def trained(self) -> nn.Module:
        """The part of the network that `step` uses: all of its parameters get gradients."""

    @property
    def scorer(self) -> Scorer[AnyEvaluation]: ...

    def facts(self) -> dict[str, Any]:
        """Return what the log records of the data."""

    def counted(self) -> dict[str, int]:
        """Return what the log records of the steps since the last call, besides their losses."""

    def computing(self) -> AbstractContextManager[None]:
        """Return the context in which everything is computed."""

    def batches(self, start: int) -> Generator[Any, None, None]:
        """Return the endless training batches from step ``start`` on; they have ``metas``, one per image.

        Each step has ``accumulate`` of them.
        """

    def count(self, batch: Any) -> int:
        """Return over how many losses, of RoIs or images, a batch is to be averaged."""

    def step(self, batch: Any, count: float) -> dict[str, Tensor]:
        """Return the named scalar losses of one batch, whose sum is minimised.

        They are sums divided by ``count``, that of all batches that the step consists of.
        """

    def validation_losses(self, model: Any) -> dict[str, float]:
        """Return what the log records of the losses on the validation images; nothing where they are not due.

        ``model`` is the network that is evaluated.
        """


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How long a run trains and when it logs, saves and evaluates; a step is a completed optimizer step.

    All three also happen after the last step. ``evaluate_every`` None evaluates only then;
    ``keep_checkpoints`` None keeps every ``step_N.pt``; ``clip_gradient_norm`` None clips nothing;
    ``accumulate`` is the number of batches per step whose gradients are added. ``ema`` is the decay of the
    averaged weights, None for none; ``early_stopping`` the number of evaluations without a gain that end the
    run, None for no end. ``scale_loss`` is for training in float16.
    """

    steps: int
    log_every: int
    checkpoint_every: int
    evaluate_every: int | None
    keep_checkpoints: int | None
    clip_gradient_norm: float | None
    accumulate: int = 1
    ema: float | None = None
    early_stopping: int | None = None
    scale_loss: bool = False


class StopRequested(Exception):
    """SIGINT or SIGTERM came; the run is saved and can be resumed."""

    in_every_process = True

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}")
        self.exit_status = 128 + number


class Run(Generic[AnyEvaluation]):
    """One run in one folder; a new run writes nothing there before `run`."""

    def __init__(
        self,
        task: Task[AnyEvaluation],
        folder: Path,
        settings: RunSettings,
        *,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        config: dict[str, Any],
        loading: float = 0.0,
        callbacks: Sequence[Callback] = (),
    ) -> None:
        """``config`` is the resolved config as plain values, which config.yaml and the checkpoints keep.

        ``loading`` is the time in seconds already spent on reading the data and building the network.
        ``callbacks`` are called by rank 0 only.
        """
        self.started = time.perf_counter() - loading
        self.seconds_before = 0.0  # those of the processes before this one
        self.task = task
        self.folder = folder
        self.settings = settings
        self.optimizer = optimizer
        self.schedule = schedule
        self.config = config
        self.callbacks = Callbacks(callbacks if distributed.is_main() else ())
        self.environment: dict[str, Any] = {}  # what `run` adds to environment.json, if anything
        self.step = 0
        self.evaluated = 0  # the last step that was evaluated
        self.best: dict[str, float] = {}  # the best headline so far as "metric", and its "step"
        self.score_threshold: float | None = None
        self.evaluation: AnyEvaluation | None = None  # the last one on the test images
        self.averaged = None if settings.ema is None else AveragedWeights(task.model, settings.ema)
        self.scaler = LossScaler(optimizer, task.device) if settings.scale_loss else None
        self.patience = EarlyStopping(settings.early_stopping)
        self._losses = _RecentLosses()
        self._waited = _Waiting()
        self._stop = _StopSignal()

    def run(self) -> AnyEvaluation:
        """Train to the end and return the last evaluation on the test images.

        Raises:
            StopRequested: after SIGINT or SIGTERM, once the current step is done and saved.
            LossNotFinite: names the step, the images, and the file for a replay; no checkpoint has this loss.
            InputError: the folder cannot be written.
        """
        # First of all, since it makes the folder a run's: a process that is killed right after it can resume.
        if distributed.is_main():
            write_text(self.folder / "config.yaml", yaml.safe_dump(self.config, sort_keys=False))
        with (
            self.callbacks.told_of_errors(),
            self.task.computing(),
            closing(self.task.batches(self.step)) as batches,  # closing ends its threads
            closing(open_log(self.folder, self.step, self.evaluated)) as self.log,
            TrainingProgress(self.settings.steps, self.step) as self.progress,
        ):
            self._describe()
            if self.step == 0:
                self._log("data", {"step": 0, **self.task.facts(), "steps": self.settings.steps})
            with self._stop, faults.kept(self):
                self._train(batches)
            if self._waited.steps:
                note(self._waited.summary())
            if self.evaluation is None:  # a finished run that was resumed
                self._evaluate_again()
        assert self.evaluation is not None  # the last step is always evaluated
        return self.evaluation

    def finish(self) -> None:
        """Write result files, pictures, ``metrics.json`` and ``run.png``, and print the metrics."""
        assert self.evaluation is not None  # there is one after `run`
        if not distributed.is_main():
            return
        best = self._path("best")
        costs = {"seconds": round(self.seconds(), 1), **self._waited.metrics()}
        if self._ended_early:
            costs["stopped_at_step"] = self.step
        with self.callbacks.told_of_errors():
            self.task.scorer.finish(self.folder, best, self.evaluation, costs)
            if self.callbacks:
                self.callbacks.on_finish(read_json(self.folder / "metrics.json"), self.folder)
        self.callbacks.close()

    def seconds(self) -> float:
        """Return the seconds that the run has taken, those of the processes before this one included."""
        return self.seconds_before + time.perf_counter() - self.started

    def _describe(self) -> None:
        """Write the environment into the folder, and tell the callbacks that the run starts."""
        if not distributed.is_main():
            return
        if self.environment:
            record_environment(self.folder, self.environment, resumed=self.step > 0)
        self.callbacks.on_start(
            RunFacts(folder=self.folder, config=self.config, environment=self.environment, step=self.step)
        )

    def _log(self, kind: str, values: Mapping[str, Any]) -> None:
        self.log.write(kind, values)
        self.callbacks.on_log(kind, dict(values))

    def _train(self, batches: Generator[Any, None, None]) -> None:
        settings = self.settings
        if self.patience.reached:
            return  # the run had ended before it was resumed
        self.task.model.train()
        self._losses.restart_clock()
        if self.step and self._due(settings.evaluate_every) and self.evaluated != self.step:
            self._evaluate()  # the run was stopped before it could
            self._save()
        while self.step < settings.steps and not self.patience.reached:
            with self._waited.for_data():
                parts = [next(batches) for _ in range(settings.accumulate)]
            rate, losses = self.advance(parts)
            self._losses.add(losses, [meta.image_id for batch in parts for meta in batch.metas])
            self._waited.end_step()
            self.progress.step(self.step)
            if self._due(settings.log_every):
                self._record(rate)
            if self._due(settings.checkpoint_every):
                self._save()  # before the evaluation, which may fail and must not take the training with it
            if self._due(settings.evaluate_every):
                self._evaluate()
                if self._due(settings.checkpoint_every) and self.evaluated == self.step:
                    self._save()
            if self._stop.agreed:
                break
        if self._stop.agreed:
            self._save()
            raise StopRequested(self._stop.agreed, self.step)
        if self._ended_early:
            self._save()

    @property
    def _ended_early(self) -> bool:
        return self.patience.reached and self.step < self.settings.steps

    def advance(self, parts: Sequence[Any]) -> tuple[float, dict[str, Tensor]]:
        """Do a step of the optimizer with its batches; return the learning rate and this process's losses."""
        rate = set_learning_rate(self.optimizer, self.schedule(self.step))
        count = self._agree(parts)
        distributed.draw_apart(self.config["seed"], self.step)
        losses = self._backward(parts, count)
        self._update()
        self.step += 1
        return rate, losses

    @cached_property
    def _losses_of(self) -> Callable[[Any, float], dict[str, Tensor]]:
        return distributed.data_parallel(self.task.trained, self.task.step)

    def _agree(self, parts: Sequence[Any]) -> float:
        """Return the number of losses of the step in all processes, and agree on whether it is the last one.

        Every process stops after the same step, that in which the last of them has noticed the signal.
        """
        count, signals = distributed.total(sum(map(self.task.count, parts)), self._stop.number > 0)
        if signals and distributed.world_size() > 1:
            self._stop.agreed = self._stop.number or signal.SIGTERM
        return count

    def _backward(self, parts: Sequence[Any], count: float) -> dict[str, Tensor]:
        """Compute the gradient of the step's losses, and return those of this process."""
        self.optimizer.zero_grad()
        summed: dict[str, Tensor] = {}
        for number, batch in enumerate(parts):
            last = number == len(parts) - 1
            with nullcontext() if last else distributed.without_averaging(self._losses_of):
                losses = self._losses_of(batch, count)
                # The processes' gradients are averaged, and they are to be added.
                loss = torch.stack(list(losses.values())).sum() * distributed.world_size()
                if self.scaler is None:
                    loss.backward()
                else:
                    self.scaler.backward(loss)
            for name, value in losses.items():
                summed[name] = summed[name] + value.detach() if name in summed else value.detach()
        return summed

    def _due(self, every: int | None) -> bool:
        return self.step == self.settings.steps or (every is not None and self.step % every == 0)

    def _update(self) -> None:
        if self.scaler is not None:
            self.scaler.unscale()
        if self.settings.clip_gradient_norm is not None:
            clip_gradients(self.optimizer, self.settings.clip_gradient_norm)
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.apply()
        if self.averaged is not None:
            self.averaged.update()

    def _record(self, rate: float) -> None:
        record = self._losses.record(self.step, rate) | self._waited.record()
        record |= self.task.counted()
        record |= peak_gpu_memory(self.task.device) | (self.scaler.record() if self.scaler else {})
        self._log("train", record)
        self.progress.record(record)

    def _evaluate(self) -> None:
        self._losses.finite(self.step)
        assessment = self._assess(last=self.step == self.settings.steps)
        self._log_evaluation(assessment, self.task.validation_losses(self._used()))
        gained = self._keep_if_best(assessment.headline)
        self.evaluated = self.step
        self.patience.count(gained=gained)
        if self._ended_early:
            self._end_early()
        distributed.barrier()  # until rank 0 has logged and drawn
        self.task.model.train()
        self._losses.restart_clock()

    def _evaluate_again(self) -> None:
        """Evaluate the last step of a finished run, and save it again with the score threshold chosen now.

        ``best.pt`` stays the checkpoint that was chosen while the run was trained, if that can be read.
        """
        assessment = self._assess(last=True)
        if self._step_of_best() in (None, self.step):
            self._keep_if_best(assessment.headline)
        self._save()

    def _end_early(self) -> None:
        """Say why the run ends, and evaluate the test images where only validation images were so far.

        This comes before the checkpoint, so a run whose checkpoint says that it has ended has logged it all.
        """
        count = self.patience.without_gain
        note(
            f"early stopping: step {self.step} is the last one, after {count} evaluations without a gain; "
            f"the best one was at step {self.best['step']:.0f}"
        )
        self._log("early_stopping", {"step": self.step, "evaluations_without_gain": count})
        if self.evaluation is None:
            evaluation = self._assess(last=True).test
            assert evaluation is not None  # last=True scores it
            self._log("test", {"step": self.step, **evaluation.history()})

    def _used(self) -> Any:
        """Return the network that is evaluated: with the averaged weights where there are any."""
        return self.task.model if self.averaged is None else self.averaged.network

    def _assess(self, *, last: bool) -> Assessment[AnyEvaluation]:
        raw = None if self.averaged is None else self.task.model
        assessment = self.task.scorer.assess(self._used(), last=last, raw=raw)
        self.score_threshold = assessment.score_threshold
        if assessment.test is not None:
            self.evaluation = assessment.test
        return assessment

    def _log_evaluation(
        self, assessment: Assessment[AnyEvaluation], validation_losses: Mapping[str, float]
    ) -> None:
        evaluation, raw = assessment.chosen_by, assessment.raw
        split = evaluation.metrics["split"]
        if not distributed.is_main():
            return
        values = evaluation.history() | dict(validation_losses)
        if raw is not None:
            values |= {f"raw_{name}": value for name, value in raw.history().items()}
        self._log("evaluate", {"step": self.step, **values, "split": split})
        if assessment.test is not None and assessment.test is not evaluation:
            self._log("test", {"step": self.step, **assessment.test.history()})
        name, pictures = f"{split} images", self.task.scorer.pictures(evaluation)
        self.log.images(name, pictures, self.step)
        self.callbacks.on_images(name, pictures, self.step)
        note(f"step {self.step}: {evaluation.summary()}")

    def _keep_if_best(self, headline: float) -> bool:
        """Keep the step as the best one if it is; return whether it is."""
        if headline == UNSCORED or headline > self.best.get("metric", UNSCORED):  # nothing scored: the last
            self.best = {"metric": headline, "step": float(self.step)}
            # Where a checkpoint is due, it becomes the best one.
            if distributed.is_main() and not self._due(self.settings.checkpoint_every):
                checkpoints.save_checkpoint(self._path("best"), self.state_dict())
                self.callbacks.on_checkpoint(self._path("best"), self.step)
        return self.best.get("step") == self.step

    def _save(self) -> None:
        """Write ``step_N.pt``, link ``best.pt`` to it if it is the best, and remove the oldest ones."""
        self._losses.finite(self.step)
        if distributed.is_main():
            self._write_checkpoint()
        distributed.barrier()  # a disk may be slow

    def _write_checkpoint(self) -> None:
        saved = self._path(f"step_{self.step}")
        checkpoints.save_checkpoint(saved, self.state_dict())
        if self.best.get("step") == self.step:
            link_or_copy(saved, self._path("best"))
        keep = self.settings.keep_checkpoints
        if keep is not None:
            known = checkpoints.numbered_checkpoints(self.folder / "checkpoints")
            # A later one is damaged, or the run would have resumed from it; it is written again.
            for old in known[: known.index(saved) + 1][:-keep]:
                old.unlink()
        self.callbacks.on_checkpoint(saved, self.step)

    def _path(self, name: str) -> Path:
        return self.folder / "checkpoints" / f"{name}.pt"

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds (`detector.engine.checkpoint`)."""
        return {
            "step": self.step,
            "evaluated": self.evaluated,
            "model": self.task.model.state_dict(),
            "ema": None if self.averaged is None else self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": None if self.scaler is None else self.scaler.state(),
            "config": self.config,
            "classes": list(self.task.classes),
            "random": checkpoints.random_states(),
            "threads": torch.get_num_threads(),
            "best": self.best,
            "without_gain": self.patience.without_gain,
            "seconds": self.seconds(),
            "data_fingerprint": self.task.data_fingerprint,
            "score_threshold": self.score_threshold,
        }

    def load_state_dict(self, state: Mapping[str, Any], *, same_evaluations: bool = True) -> None:
        """Restore the run from ``state``, a checkpoint that the task was already built from.

        Without ``same_evaluations`` later evaluations cannot be compared with earlier ones, so best.pt is
        chosen again among the later ones.

        Raises:
            InputError: the optimizer's state is that of other parameters.
        """
        self.step, self.evaluated = state["step"], state["evaluated"]
        self.seconds_before = float(state.get("seconds", 0.0))
        load_optimizer_state(self.optimizer, state["optimizer"], state["file"])
        if self.averaged is not None and state.get("ema") is not None:  # else it starts from here
            self.averaged.load_state_dict(state["ema"])
        if self.scaler is not None and state.get("scaler") is not None:
            self.scaler.load_state(state["scaler"])
        self.patience.without_gain = state.get("without_gain", 0) if same_evaluations else 0
        self.best = self._best_of(state) if same_evaluations else self._forget_best(state)
        self._note_threads(state.get("threads"))
        checkpoints.set_random_states(state["random"])
        if self.step:  # a finished run is saved again without a step that would set it
            set_learning_rate(self.optimizer, self.schedule(self.step - 1))

    def _best_of(self, state: Mapping[str, Any]) -> dict[str, float]:
        """Return the best step so far if ``best.pt`` holds it or can be restored, otherwise nothing."""
        best = dict(state["best"])
        if not best:
            return {}
        path, source = self._path("best"), self._path(f"step_{best['step']:.0f}")
        if best["step"] == state["step"] and path.exists() and source.exists() and path.samefile(source):
            return best  # it has just been read
        if self._step_of_best() == best["step"]:
            return best
        try:
            checkpoints.load_checkpoint(source)
        except InputError:
            note(f"{path.name} is chosen again among the evaluations to come")
            return {}
        if distributed.is_main():
            link_or_copy(source, path)
        note(f"{path.name} is restored from {source.name}")
        return best

    def _forget_best(self, state: Mapping[str, Any]) -> dict[str, float]:
        if state["best"]:
            finished = self.settings.steps == state["step"] == state["evaluated"]
            outcome = (
                "stays the checkpoint that was chosen before"
                if finished
                else "is chosen again among those to come"
            )
            note(f"later evaluations cannot be compared with the earlier ones: best.pt {outcome}")
        return {}

    def _step_of_best(self) -> int | None:
        """Return the step that ``best.pt`` holds, or None, with a warning, where it cannot be read."""
        try:
            return int(checkpoints.load_checkpoint(self._path("best"))["step"])
        except InputError as error:
            note(f"warning: {error}")
            return None

    def _note_threads(self, before: int | None) -> None:
        now = torch.get_num_threads()
        if before not in (None, now):
            note(
                f"warning: the run used {before} compute threads before and uses {now} now: sums are added "
                "up in another order, so results may differ in their last bits from those of an "
                f"uninterrupted run; set OMP_NUM_THREADS={before} to continue exactly"
            )


class _RecentLosses:
    """The losses since the last record; as tensors, because reading them every step would stall a GPU."""

    def __init__(self) -> None:
        self._losses: list[dict[str, Tensor]] = []
        self._image_ids: list[list[str]] = []
        self.restart_clock()

    def restart_clock(self) -> None:
        self._since = time.perf_counter()

    def add(self, losses: Mapping[str, Tensor], image_ids: list[str]) -> None:
        self._losses.append({name: loss.detach() for name, loss in losses.items()})
        self._image_ids.append(image_ids)

    def finite(self, step: int) -> dict[str, Tensor]:
        """Return the losses up to ``step`` by name, (n,) on the CPU, after waiting once for the GPU.

        Raises:
            LossNotFinite: one of them is not finite; so nothing is evaluated or saved after it.
        """
        if not self._losses:
            return {}
        names = list(self._losses[0])
        table = torch.stack([torch.stack([losses[name] for losses in self._losses]) for name in names]).cpu()
        table = distributed.summed(table)  # each process has the losses of its own images
        good = table.isfinite().all(dim=0).tolist()
        if all(good):
            return dict(zip(names, table, strict=True))
        first = good.index(False)
        of_all = distributed.gather_texts(json.dumps(self._image_ids[first]))
        image_ids = [image_id for text in of_all for image_id in json.loads(text)]
        values = dict(zip(names, table[:, first].tolist(), strict=True))
        raise LossNotFinite(step - len(good) + first + 1, values, image_ids)

    def record(self, step: int, rate: float) -> dict[str, float]:
        """Return the means up to ``step`` with the learning rate and the speed, and start again."""
        means = {name: float(losses.mean()) for name, losses in self.finite(step).items()}
        seconds = max(time.perf_counter() - self._since, 1e-9)
        images = sum(map(len, self._image_ids)) * distributed.world_size()
        steps = len(self._losses)
        self._losses, self._image_ids = [], []
        self.restart_clock()
        return {
            "step": step,
            "loss": sum(means.values()),
            **means,
            "learning_rate": rate,
            "images_per_second": images / seconds,
            "seconds_per_step": seconds / steps,
        }


class _Waiting:
    """The time that steps wait for their data, as a part of the time of all steps.

    On a GPU, the time of a step is the time in which the CPU issues its work, which in the long run is the
    time that the GPU needs for it. Evaluations and checkpoints do not count.
    """

    def __init__(self) -> None:
        self.steps = 0
        self._waited = self._total = 0.0
        self._recorded = 0, 0.0  # steps and waiting time in the records so far

    @contextmanager
    def for_data(self) -> Iterator[None]:
        """Count the time inside as waiting; a step begins here."""
        self._began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - self._began

    def end_step(self) -> None:
        self.steps += 1
        self._total += time.perf_counter() - self._began

    def record(self) -> dict[str, float]:
        """Return ``data_wait``, the mean time in seconds that a step waited since the last record."""
        steps, waited = self._recorded
        self._recorded = self.steps, self._waited
        return {"data_wait": (self._waited - waited) / max(self.steps - steps, 1)}

    def metrics(self) -> dict[str, float]:
        """Return ``data_wait_share``, the part of the steps' time, or nothing where this process did none."""
        return {"data_wait_share": round(self._waited / self._total, 4)} if self.steps else {}

    def summary(self) -> str:
        wait, step = (1e3 * seconds / self.steps for seconds in (self._waited, self._total))
        return f"steps waited for data {wait / step:.1%} of their time: {wait:.1f} of {step:.1f} ms per step"


class _StopSignal:
    """Notes the first SIGINT or SIGTERM inside its context.

    A second one interrupts at once; but not one of several processes, which ``torchrun`` sends the signal
    that a terminal or a job scheduler has sent them already.
    """

    number = 0
    """The signal that came; 0 for none."""
    _agreed = 0

    @property
    def agreed(self) -> int:
        """The signal after which every process stops; 0 for none."""
        return self.number if distributed.world_size() == 1 else self._agreed

    @agreed.setter
    def agreed(self, number: int) -> None:
        self._agreed = number

    def __enter__(self) -> None:
        self._previous = {
            number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)
        }

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if not self.number:
            self.number = number
            again = "; interrupt again to stop at once" if distributed.world_size() == 1 else ""
            note(f"stopping after this step{again}")
        elif distributed.world_size() == 1:
            raise KeyboardInterrupt  # asked twice: stop here, the last checkpoint is there
