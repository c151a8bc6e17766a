"""The training loop: a visible sequence of calls around a ``training_step`` that is handed in."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from detector.core.errors import InputError
from detector.core.structures import Batch
from detector.engine.optim import Schedule, set_learning_rate

Record = dict[str, float]
Result = TypeVar("Result")


class StopRequested(Exception):
    """SIGINT or SIGTERM came; the run is saved and can be resumed."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}")
        self.exit_status = 128 + number


@dataclass(kw_only=True)
class Trainer:
    """Trains ``model`` from ``step`` to ``steps``; a step is a completed optimizer step.

    ``batches`` goes on where the run stands; ``training_step`` returns named scalar losses, whose sum is
    minimised; ``evaluated`` is the last step that was evaluated.
    The hooks are called after a step, with the trainer: ``on_record`` with the mean losses since the last
    record, ``on_save`` when a checkpoint is due, ``on_evaluate`` when an evaluation is; ``on_stop`` when
    a signal has come, whose second coming stops at once.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
    batches: Generator[Batch, None, None]
    training_step: Callable[[Batch], dict[str, Tensor]]
    steps: int
    step: int = 0
    evaluated: int = 0
    log_every: int = 20
    checkpoint_every: int = 1000
    evaluate_every: int | None = None
    clip_gradient_norm: float | None = None
    on_step: Callable[[Trainer], None] = lambda _: None
    on_record: Callable[[Trainer, Record], None] = lambda _, __: None
    on_save: Callable[[Trainer], None] = lambda _: None
    on_evaluate: Callable[[Trainer], None] = lambda _: None
    on_stop: Callable[[], None] = lambda: None
    _losses: list[dict[str, Tensor]] = field(default_factory=list)
    _image_ids: list[list[str]] = field(default_factory=list)
    _since: float = field(default_factory=time.perf_counter)
    _stop: int | None = None

    def run(self) -> None:
        """Train to the end.

        Raises:
            StopRequested: after SIGINT or SIGTERM, once the current step is done and saved.
            InputError: a loss is no longer finite; names the step and the images.
        """
        previous = {number: signal.signal(number, self._note_signal) for number in _STOP_SIGNALS}
        try:
            self._loop()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    @property
    def saves_here(self) -> bool:
        """Whether a checkpoint of the current step is due, before and after an evaluation."""
        return self._due(self.checkpoint_every)

    def _loop(self) -> None:
        self.model.train()
        self._since = time.perf_counter()
        if self.step and self._due(self.evaluate_every) and self.evaluated != self.step:
            self._evaluate()  # the run was stopped before it could
            self._save()
        while self.step < self.steps:
            rate = set_learning_rate(self.optimizer, self.schedule(self.step))
            batch = self._unless_stopped(lambda: next(self.batches))
            if batch is None:
                break
            losses = self.training_step(batch)
            self._update(losses)
            self.step += 1
            self._collect(losses, batch)
            self.on_step(self)
            if self._due(self.log_every):
                self.on_record(self, self._record(rate))
            if self.saves_here:
                self._save()  # before the evaluation, which may fail and must not take the training with it
            if self._due(self.evaluate_every):
                self._evaluate()
                if self.saves_here and self.evaluated == self.step:
                    self._save()
            if self._stop is not None:
                break
        if self._stop is not None:
            self._save()
            raise StopRequested(self._stop, self.step)

    def _unless_stopped(self, call: Callable[[], Result]) -> Result | None:
        """Return what ``call`` returns; None where a signal has taken its DataLoader workers away."""
        try:
            return call()
        except RuntimeError:
            if self._stop is None:
                raise
            return None

    def _update(self, losses: dict[str, Tensor]) -> None:
        self.optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        if self.clip_gradient_norm is not None:
            trained = [p for group in self.optimizer.param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(trained, self.clip_gradient_norm)
        self.optimizer.step()

    def _collect(self, losses: dict[str, Tensor], batch: Batch) -> None:
        # Kept as tensors until a record is due: reading them every step would stall a GPU.
        self._losses.append({name: loss.detach() for name, loss in losses.items()})
        self._image_ids.append([meta.image_id for meta in batch.metas])

    def _evaluate(self) -> None:
        self._finite_losses()

        def evaluate() -> bool:
            self.on_evaluate(self)
            return True

        if self._unless_stopped(evaluate):
            self.evaluated = self.step
        self.model.train()
        self._since = time.perf_counter()

    def _save(self) -> None:
        self._finite_losses()
        self.on_save(self)

    def _finite_losses(self) -> dict[str, Tensor]:
        """Return the losses since the last record, (n,) a name, on the CPU; a GPU is waited for once.

        Refuses to go on, and to save, where one of them is not finite.
        """
        if not self._losses:
            return {}
        names = list(self._losses[0])
        table = torch.stack([torch.stack([losses[name] for losses in self._losses]) for name in names]).cpu()
        good = table.isfinite().all(dim=0).tolist()
        if all(good):
            return dict(zip(names, table, strict=True))
        first = good.index(False)
        values = dict(zip(names, table[:, first].tolist(), strict=True))
        raise InputError(
            f"the loss is no longer finite at step {self.step - len(good) + first + 1}: {values}; the images "
            f"were {', '.join(self._image_ids[first])}. Lower train.learning_rate, lengthen the warm-up, or "
            "set train.clip_gradient_norm"
        )

    def _record(self, rate: float) -> Record:
        means = {name: float(losses.mean()) for name, losses in self._finite_losses().items()}
        seconds = max(time.perf_counter() - self._since, 1e-9)
        images, steps = sum(map(len, self._image_ids)), len(self._losses)
        self._losses, self._image_ids, self._since = [], [], time.perf_counter()
        return {
            "step": self.step,
            "loss": sum(means.values()),
            **means,
            "learning_rate": rate,
            "images_per_second": images / seconds,
            "seconds_per_step": seconds / steps,
        }

    def _due(self, every: int | None) -> bool:
        return self.step == self.steps or (every is not None and self.step % every == 0)

    def _note_signal(self, number: int, _frame: FrameType | None) -> None:
        if self._stop is not None:
            raise KeyboardInterrupt  # asked twice: stop here, the last checkpoint is there
        self._stop = number
        self.on_stop()


_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def training_state(trainer: Trainer) -> dict[str, Any]:
    """Return the part of a checkpoint that the loop owns: step, weights and optimizer."""
    return {
        "step": trainer.step,
        "evaluated": trainer.evaluated,
        "model": trainer.model.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
    }
