"""Training of a softmax head with gradients, on stored features instead of images.

A step is one of the optimizer, as in training on images: the same number of regions, the same shares of
foreground and background, the same losses, optimizer and schedule. But its regions come from all images of
the split, and are features on the disk, so a step costs little more than the arithmetic of the layers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from detector.config import Config
from detector.config.schema import RandomSamplingConfig
from detector.core.devices import sent
from detector.core.errors import InputError
from detector.core.progress import TrainingProgress
from detector.core.structures import Embedded, HeadOutput, SampledRoIs
from detector.data.loader import load
from detector.engine.ema import AveragedWeights
from detector.engine.optim import build_schedule, clip_gradients, load_optimizer_state, set_learning_rate
from detector.engine.run_log import open_log
from detector.factory.model import build_loss, build_optimizer
from detector.models.detector import RegionDetector
from detector.models.heads import BoxHead, BoxPredictor
from detector.staged.linear_fit import Standardization
from detector.staged.region_rows import RegionRows, draw_background, draw_sample

STEPS_AT_ONCE = 16
"""Steps whose features are read together: the file is then read in rising order, and in longer parts. The
features of three times as many steps are in memory."""
WEIGHTS_PER_THREAD = 2**21
"""A step on a CPU takes one thread per so many weights. Smaller layers take a few milliseconds, in
which threads hardly help; where another program takes one of two cores, waiting for the second thread
makes a step of 0.9 million weights up to ten times as long."""
STANDARDIZED_ON = 4000
"""Regions per class, and of background, on which the means and deviations of features are measured."""


class Draw(NamedTuple):
    """The regions of one step: ``rows`` (R,), the first of them foreground, as numbers in ``foreground``."""

    foreground: NDArray[np.int64]
    rows: NDArray[np.int64]


class StepData(NamedTuple):
    """What one step is made with: features (R, D), targets, and the noise of each dropout layer (R, F)."""

    pooled: Tensor
    sampled: SampledRoIs
    noise: list[Tensor]


class HeadLayers(nn.Module):
    """fc6, fc7, ..., cls_score and bbox_pred, of which training changes those that read hidden features."""

    def __init__(self, box_head: BoxHead, predictor: BoxPredictor) -> None:
        super().__init__()
        self.box_head = box_head
        self.predictor = predictor

    def forward(self, pooled: Tensor) -> HeadOutput:
        """Return the output for pooled features (R, D), without boxes where ridge regression fits them."""
        output: HeadOutput = self.predictor(Embedded(pooled, self.box_head(pooled)))
        return HeadOutput(output.class_logits, None) if self.predictor.reads_pooled else output

    def first_layers(self) -> list[nn.Linear]:
        """Return the trained layers that read pooled features: fc6, or without it cls_score and bbox_pred."""
        hidden = [layer for layer in self.box_head.layers if isinstance(layer, nn.Linear)]
        if hidden:
            return hidden[:1]
        layers = [self.predictor.cls_score, self.predictor.bbox_pred]
        trained = layers[:1] if self.predictor.reads_pooled else layers
        return [layer for layer in trained if isinstance(layer, nn.Linear)]

    def second_layer(self) -> nn.Linear:
        """Return the layer that reads the output of fc6_v, where ``model.head.rank`` divides fc6."""
        return [layer for layer in self.box_head.layers if isinstance(layer, nn.Linear)][1]


class SoftmaxFit:
    """Trains the head of ``model`` on the regions of ``rows`` and puts the result into it.

    The layers that read pooled features see them standardised, so the learning rate does not depend on the
    backbone; the standardisation is folded into them at the end. Published weights of fc6 and fc7 expect the
    features as they are, and get them so.

    ``save`` stores the state of the unfinished training every ``train.checkpoint_every`` steps; ``state`` is
    what was stored last, or None. Everything random depends on the seed and the step only, so a training that
    was stopped ends with the same weights. The losses go to the log in ``folder``.
    """

    def __init__(
        self,
        config: Config,
        model: RegionDetector,
        rows: RegionRows,
        device: str,
        folder: Path,
        save: Callable[[dict[str, Any]], None],
        state: dict[str, Any] | None,
        steps: int,
    ) -> None:
        self.config, self.rows, self.device, self.folder = config, rows, device, folder
        self.save = save
        self.layers = HeadLayers(model.box_head, model.predictor).to(device)
        self.coder = model.box_coder.to(device)
        self.loss = build_loss(config)
        self.optimizer = build_optimizer(config, self.layers)
        self.steps = steps
        self.schedule = build_schedule(self.steps, **config.train.schedule.model_dump())
        ema = config.train.ema
        self.averaged = None if ema is None else AveragedWeights(self.layers, ema)
        self.step = 0
        self.noise = DropoutNoise(model.box_head) if device == "cpu" else None
        self.standard = self._standardization()
        if state is not None:
            self._load(state)

    def run(self) -> None:
        """Train to the last step, with as many threads as the size of the layers is worth.

        Raises:
            InputError: a loss that is not finite.
        """
        train = self.config.train
        self.layers.train()
        recent: list[dict[str, Tensor]] = []
        since = time.perf_counter()
        with (
            closing(open_log(self.folder, self.step)) as log,
            TrainingProgress(self.steps, self.step) as progress,
            compute_threads(sum(one.numel() for one in self.layers.parameters()) // WEIGHTS_PER_THREAD),
            nullcontext() if self.noise is None else self.noise.applied(),
            closing(self._batches()) as batches,
        ):
            for batch in batches:
                rate, losses = self._advance(batch)
                recent.append(losses)
                progress.step(self.step)
                last = self.step == self.steps
                if self.step % train.log_every == 0 or last:
                    record = self._record(recent, rate, time.perf_counter() - since)
                    log.write("train", record)
                    progress.record(record)
                    recent, since = [], time.perf_counter()
                if self.step % train.checkpoint_every == 0 and not last:
                    self.save(self.state_dict())
        self._finish()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that changes from step to step."""
        return {
            "step": self.step,
            "layers": {name: value.cpu() for name, value in self.layers.state_dict().items()},
            "ema": None if self.averaged is None else self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }

    def _load(self, state: dict[str, Any]) -> None:
        self.step = state["step"]
        self.layers.load_state_dict(state["layers"])
        load_optimizer_state(self.optimizer, state["optimizer"], str(self.folder / "fit.pt"))
        if self.averaged is not None and state.get("ema") is not None:
            self.averaged.load_state_dict(state["ema"])

    def _standardization(self) -> Standardization | None:
        if self.config.model.published_head:
            return None
        every = self.rows.foreground
        sample = draw_sample(
            self.rows,
            int(every.labels.max(initial=0)) if every.label_sets is None else every.label_sets.shape[1] - 1,
            max_examples=STANDARDIZED_ON,
            max_background=STANDARDIZED_ON,
            far=self._sampling.far_background_fraction,
            seed=self.config.seed,
        )
        return Standardization.of(sample.features)

    @property
    def _sampling(self) -> RandomSamplingConfig:
        sampling = self.config.train.sampling
        assert isinstance(sampling, RandomSamplingConfig)  # the schema refuses others for a head
        return sampling

    def _batches(self) -> Generator[StepData, None, None]:
        """Yield what each step that is left is made with.

        On a CPU a second thread makes the next steps' data meanwhile; with a GPU the CPU has time for it.
        """
        starts = range(self.step, self.steps, STEPS_AT_ONCE)
        with closing(
            load(starts, self._block, int(self.device == "cpu"), ahead=1, reads="feature")
        ) as blocks:
            for block in blocks:
                yield from block

    def _block(self, start: int) -> list[StepData]:
        """Return the data of the steps from ``start`` on, `STEPS_AT_ONCE` of them or up to the last one."""
        steps = range(start, min(start + STEPS_AT_ONCE, self.steps))
        draws = [self.draw(step) for step in steps]
        features = self.rows.read(np.concatenate([draw.rows for draw in draws]))
        if self.standard is not None:
            mean, factor = (torch.from_numpy(one).float() for one in self.standard)
            features.sub_(mean).mul_(factor)
        parts = features.split([len(draw.rows) for draw in draws])
        return [
            StepData(
                sent(part, self.device),
                self._targets(draw),
                [] if self.noise is None else self.noise.draw(len(part), self._dropout_seed(step)),
            )
            for step, draw, part in zip(steps, draws, parts, strict=True)
        ]

    def _dropout_seed(self, step: int) -> int:
        return self.config.seed * 1_000_003 + step

    def draw(self, step: int) -> Draw:
        """Return the regions of a step: foreground and background in the shares of ``train.sampling``."""
        sampling, rng = self._sampling, np.random.default_rng((self.config.seed, 1, step))
        count = sampling.rois_per_image * self.config.train.images_per_batch
        every = self.rows.foreground.rows
        most = min(round(count * sampling.foreground_fraction), len(every))
        foreground = rng.choice(len(every), most, replace=False) if most else np.zeros(0, np.int64)
        background = draw_background(
            self.rows, count - len(foreground), sampling.far_background_fraction, rng
        )
        return Draw(foreground, np.concatenate((every[foreground], background)))

    def _targets(self, draw: Draw) -> SampledRoIs:
        chosen = self.rows.foreground.take(draw.foreground)
        labels = torch.zeros(len(draw.rows), dtype=torch.int64)
        labels[: len(chosen.rows)] = torch.from_numpy(chosen.labels)
        rois = torch.zeros(len(draw.rows), 5, device=self.device)  # losses do not read the boxes
        if chosen.label_sets is not None:
            label_sets = torch.zeros(len(draw.rows), chosen.label_sets.shape[1], dtype=torch.bool)
            label_sets[: len(chosen.rows)] = torch.from_numpy(chosen.label_sets)
            boxes, objects = torch.zeros(2, len(draw.rows), 4)
            boxes[:] = objects[:] = torch.tensor((0.0, 0.0, 1.0, 1.0))  # of the background: not used
            boxes[: len(chosen.rows)] = torch.from_numpy(chosen.boxes)
            objects[: len(chosen.rows)] = torch.from_numpy(chosen.objects)
            sets = sent(label_sets, self.device)
            targets = self.coder.encode_sets(sent(boxes, self.device), sent(objects, self.device), sets)
            return SampledRoIs(
                rois=rois, labels=sent(labels, self.device), box_targets=targets, label_sets=sets
            )
        deltas = torch.zeros(len(draw.rows), 4)
        deltas[: len(chosen.rows)] = chosen.deltas()
        labels = sent(labels, self.device)
        targets = (sent(deltas, self.device) - self.coder.means[labels]) / self.coder.deviations[labels]
        targets = torch.where(labels[:, None] > 0, targets, 0.0)
        return SampledRoIs(rois=rois, labels=labels, box_targets=targets)

    def _advance(self, data: StepData) -> tuple[float, dict[str, Tensor]]:
        rate = set_learning_rate(self.optimizer, self.schedule(self.step))
        _seed_dropout(self._dropout_seed(self.step), self.device)
        if self.noise is not None:
            self.noise.current = data.noise
        losses: dict[str, Tensor] = self.loss(self.layers(data.pooled), data.sampled)
        self.optimizer.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        if self.config.train.clip_gradient_norm is not None:
            clip_gradients(self.optimizer, self.config.train.clip_gradient_norm)
        self.optimizer.step()
        if self.averaged is not None:
            self.averaged.update()
        self.step += 1
        return rate, {name: value.detach() for name, value in losses.items()}

    def _record(self, recent: list[dict[str, Tensor]], rate: float, seconds: float) -> dict[str, float]:
        means = {name: float(torch.stack([one[name] for one in recent]).mean()) for name in recent[0]}
        loss = sum(means.values())
        if not math.isfinite(loss):
            raise InputError(
                f"the loss is not finite at step {self.step} of the head; lower train.learning_rate, or set "
                "train.clip_gradient_norm"
            )
        images = len(recent) * self.config.train.images_per_batch
        return {
            "step": self.step,
            "loss": loss,
            **means,
            "learning_rate": rate,
            "images_per_second": images / max(seconds, 1e-9),
            "seconds_per_step": seconds / len(recent),
        }

    def _finish(self) -> None:
        """Take the averaged weights if there are any, and fold the standardisation into the first layers."""
        if self.averaged is not None:
            self.layers.load_state_dict(self.averaged.state_dict())
        if self.standard is None:
            return
        with torch.no_grad():
            for layer in self.layers.first_layers():
                low_rank = layer.bias is None  # the first of two layers, of which the second has the bias
                biases = layer.weight.new_zeros(layer.out_features) if low_rank else layer.bias
                folded = self.standard.fold(
                    layer.weight.double().cpu().numpy(), biases.double().cpu().numpy()
                )
                layer.weight.copy_(torch.from_numpy(folded.weights))
                shift = torch.from_numpy(folded.biases)
                if low_rank:
                    second = self.layers.second_layer()
                    second.bias.add_(second.weight @ shift.to(second.weight))
                else:
                    layer.bias.copy_(shift)


class DropoutNoise:
    """Draws the noise of a head's dropout layers before their step: on a CPU it takes a fifth of the step.

    The numbers are those that the layers would draw after `torch.manual_seed`. ``current`` has the noise of
    the present step, one tensor per layer. Layers of a user's own head draw theirs themselves.
    """

    def __init__(self, head: BoxHead) -> None:
        self.layers: list[tuple[nn.Dropout, int]] = []
        self.current: list[Tensor] = []
        width = 0
        for layer in head.layers if type(head) is BoxHead else ():
            width = layer.out_features if isinstance(layer, nn.Linear) else width
            if isinstance(layer, nn.Dropout):
                self.layers.append((layer, width))

    def draw(self, rows: int, seed: int) -> list[Tensor]:
        """Return what each layer multiplies its input (``rows``, F) by, as `torch.nn.functional.dropout`."""
        generator = torch.Generator().manual_seed(seed)
        return [
            torch.empty(rows, width).bernoulli_(1 - layer.p, generator=generator).div_(1 - layer.p)
            for layer, width in self.layers
        ]

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the layers multiply by ``current`` instead of drawing; afterwards they draw again."""
        handles = [
            layer.eval().register_forward_hook(partial(self._multiplied, number))
            for number, (layer, _) in enumerate(self.layers)
        ]
        try:
            yield
        finally:
            for handle, (layer, _) in zip(handles, self.layers, strict=True):
                handle.remove()
                layer.train()

    def _multiplied(self, number: int, _layer: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return output * self.current[number]


@contextmanager
def compute_threads(most: int) -> Iterator[None]:
    """Let torch use at most ``most`` threads, and at least one, and afterwards as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, max(most, 1)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _seed_dropout(seed: int, device: str) -> None:
    """Seed the generator of ``device``.

    On a CPU this does what `torch.manual_seed` does, which also formats a stack trace for a GPU that is not
    in use: half a millisecond per step.
    """
    if device == "cpu":
        torch.default_generator.manual_seed(seed)
    else:
        torch.manual_seed(seed)


def head_steps(config: Config, images: int) -> int:
    """Return the number of steps in which a softmax head is trained on ``images`` images."""
    train = config.train
    if train.steps is not None:
        return train.steps
    assert train.epochs is not None  # the schema requires exactly one of the two
    return math.ceil(train.epochs * images / train.images_per_batch)
