"""Dividing fc6, fc7 and so on of a trained network by truncated SVD, and the search for their ranks.

Fast R-CNN, section 3.1. The result is a checkpoint like any other, with the ranks in ``model.head.rank``.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from detector.config import Config
from detector.config.files import value_at
from detector.config.load import parse_config
from detector.core.errors import InputError
from detector.core.progress import note, track
from detector.core.structures import Embedded
from detector.engine.checkpoint import weights_to_use
from detector.engine.run import UNSCORED
from detector.factory.loaders import inference_views, naming
from detector.factory.model import build_normalization, build_predictor
from detector.models.detector import RegionDetector
from detector.models.heads import BoxHead
from detector.models.low_rank import Factors, check_rank, largest_rank, whole_layers
from detector.models.shared_features import ImageMemory, Remembered, SharingDetector
from detector.tasks.scoring import Evaluation, Scorer, headline

Ranks = tuple[int | None, ...]
"""A rank per layer, fc6 first; None for a layer that stays as it is in the checkpoint."""

FRACTIONS = (3 / 4, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 1 / 64)
"""The ranks that a search tries in each layer, as fractions of the largest rank that saves anything."""
MAX_NETWORKS = 512
"""The most networks of a search: the usual ranks of three layers. Each is scored on all images."""
TIMED_IMAGES = 3
TIMED_ROUNDS = 5
TIMED_BYTES = 1_000_000_000
"""How many images' pooled regions the heads are timed on, how often, and the most memory for the regions."""
_PREFIX = "box_head.layers."


def factorize(model: RegionDetector, source: str) -> dict[str, Factors]:
    """Return fc6, fc7 and so on of the checkpoint ``source``, by name, in order; no SVD is computed yet.

    Raises:
        InputError: the network has no such layers.
    """
    if type(model.box_head) is not BoxHead:
        raise InputError(
            f"{source}: model.head.kind names layers of your own; only this project's fc6, fc7 and so on can "
            "be compressed"
        )
    layers = whole_layers(model.box_head.layers)
    if not layers:
        raise InputError(
            f"{source}: the network has no fc6 to compress: its model.head.kind has none, or "
            "model.head.hidden is []"
        )
    return {name: Factors.of(*layer) for name, layer in layers.items()}


def compute_factors(factors: Mapping[str, Factors], choices: Sequence[Sequence[int | None]]) -> None:
    """Compute the SVD of the layers that have a rank among their ``choices``, with a progress bar."""
    needed = [own for own, ranks in zip(factors.values(), choices, strict=True) if set(ranks) - {None}]
    for own in track(needed, len(needed), "computing the SVD"):
        _ = own.svd


def chosen_ranks(
    factors: Mapping[str, Factors], given: Mapping[str, Sequence[int | None]], *, searching: bool = False
) -> list[list[int | None]]:
    """Return the ranks to choose from of each layer: those ``given`` for it by name, else only None.

    With ``searching``, layers for which none are given have the usual ones.

    Raises:
        InputError: a name that is not a layer's, a rank at which the layer is no smaller, or more than
            `MAX_NETWORKS` combinations.
    """
    for name, ranks in given.items():
        if name not in factors:
            raise InputError(f"--rank {name}: the network has no such layer; it has {', '.join(factors)}")
        for rank in ranks:
            if rank is not None:
                check_rank(name, *factors[name].size, rank)
    usual = {name: usual_ranks(own) if searching else [None] for name, own in factors.items()}
    choices = [list(given.get(name, usual[name])) for name in factors]
    number = math.prod(map(len, choices))
    if number > MAX_NETWORKS:
        layers = ", ".join(f"{name} {len(ranks)}" for name, ranks in zip(factors, choices, strict=True))
        raise InputError(
            f"--search: {number} networks, one for each combination of ranks ({layers}), are more than the "
            f"{MAX_NETWORKS} that a search scores; give fewer ranks to some layers with --rank, such as "
            f"--rank {list(factors)[-1]}=whole"
        )
    return choices


def usual_ranks(factors: Factors) -> list[int | None]:
    """Return the ranks that a search tries for a layer, the whole layer (None) first."""
    most = largest_rank(*factors.size)
    ranks = {max(round(most * fraction), 1) for fraction in FRACTIONS} if most else set()
    return [None, *sorted(ranks, reverse=True)]


def compressed_checkpoint(
    checkpoint: Mapping[str, Any],
    config: Config,
    factors: Mapping[str, Factors],
    ranks: Ranks,
    **changes: Any,
) -> dict[str, Any]:
    """Return the checkpoint with layers of ``ranks`` (None keeps what it has), for all uses but resuming.

    Its weights are the averaged ones where there are any. ``changes`` replace other keys, such as
    ``score_threshold``. ``config`` is the checkpoint's.
    """
    weights = dict(weights_to_use(checkpoint))
    stored: Sequence[int | None] = stored_ranks(checkpoint, len(factors))
    for (name, factored), rank in zip(factors.items(), ranks, strict=True):
        if rank is not None:
            for old in (f"{name}.", f"{name}_u.", f"{name}_v."):
                for tensor in [one for one in weights if one.startswith(_PREFIX + old)]:
                    del weights[tensor]
            weights |= {_PREFIX + key: value for key, value in factored.truncated(name, rank).items()}
    values = config.model_dump(mode="json")
    own = [before if rank is None else rank for before, rank in zip(stored, ranks, strict=True)]
    divided = any(rank is not None for rank in own)
    values["model"]["head"] |= {"rank": own, "weights": False} if divided else {}
    kept = {key: checkpoint[key] for key in ("step", "classes", "score_threshold") if key in checkpoint}
    return {**kept, "config": values, "model": weights, **changes}


def stored_ranks(checkpoint: Mapping[str, Any], layers: int) -> list[int | None]:
    """Return the rank of each layer of a checkpoint whose network could be built, None for whole ones."""
    stored = next(iter(value_at(checkpoint["config"], ["model", "head", "rank"])), None)
    return [None] * layers if stored is None else list(stored)


@dataclass(frozen=True)
class Candidate:
    """A network of the search; ``weights`` counts those of its hidden layers, without biases.

    ``score`` is the headline metric on the validation images. ``seconds`` is the time of the head per image,
    and ``ratio`` that time divided by the uncompressed head's, the median of pairs; None where not measured.
    ``on_front`` marks those with a higher score than all smaller ones.
    """

    ranks: Ranks
    weights: int
    score: float
    on_front: bool = False
    seconds: float | None = None
    ratio: float | None = None


@dataclass(frozen=True)
class Search:
    """The candidates, the uncompressed one first, and the evaluation of the ``picked`` one, or None."""

    candidates: list[Candidate]
    picked: Candidate | None
    evaluation: Evaluation[Any] | None
    metric: str
    split: str
    images: int
    seconds: float

    @property
    def whole(self) -> Candidate:
        """The checkpoint as it is."""
        return self.candidates[0]


def search(
    config: Config,
    model: RegionDetector,
    factors: Mapping[str, Factors],
    choices: Sequence[Sequence[int | None]],
    scorer: Scorer[Any],
    max_loss: float,
) -> Search:
    """Score every combination of the ``choices`` of each layer on the scorer's images, and pick one.

    The pick has the fewest weights of those whose headline metric is at most ``max_loss`` (absolute) below
    that of the checkpoint; of several with as many, the best. Features and pooled regions of an image are
    computed once for all, and the output of a layer once for all that follow it.

    Raises:
        InputError: the images have no annotations, or no object that counts.
    """
    began = time.perf_counter()
    heads = Heads(model.box_head, factors, choices)
    whole: Ranks = (None,) * len(factors)
    every = [whole, *(ranks for ranks in itertools.product(*choices) if ranks != whole)]
    results, samples = _predict(config, model, heads, every, scorer)
    before = sum(heads.weights(name, None) for name in factors)
    scored = {ranks: _score(config, scorer, results[ranks]) for ranks in every}
    candidates = [
        Candidate(ranks, sum(map(heads.weights, factors, ranks)) if ranks != whole else before, scored[ranks])
        for ranks in every
    ]
    candidates = _with_front(candidates)
    picked = pick(candidates, max_loss)
    times = _times(model, heads, [one.ranks for one in candidates if one.on_front], whole, samples)
    candidates = [_timed(one, times.get(one.ranks)) for one in candidates]
    chosen = next((one for one in candidates if picked is not None and one.ranks == picked.ranks), None)
    return Search(
        candidates=candidates,
        picked=chosen,
        evaluation=None if chosen is None else scorer.compare(results[chosen.ranks]),
        metric=config.test.metric,
        split=scorer.test_set.split,
        images=len(scorer.test_set.records),
        seconds=time.perf_counter() - began,
    )


def pick(candidates: Sequence[Candidate], max_loss: float) -> Candidate | None:
    """Return the smallest candidate that loses at most ``max_loss`` against the first, the whole network.

    None if no smaller one does. A difference within 1e-9 counts as none: metrics are sums of many terms.
    """
    whole, *others = candidates
    good = [
        one for one in others if whole.score - one.score <= max_loss + 1e-9 and one.weights < whole.weights
    ]
    return min(good, key=lambda one: (one.weights, -one.score), default=None)


def _with_front(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Mark the candidates that score higher than all smaller ones; the first, the whole network, always."""
    front, best = {candidates[0].ranks}, -float("inf")
    for one in sorted(candidates, key=lambda one: (one.weights, -one.score)):
        if one.score > best:
            best = one.score
            front.add(one.ranks)
    return [replace(one, on_front=one.ranks in front) for one in candidates]


@dataclass
class Heads:
    """The heads of a search. They share their layers, which remember what they gave for an image."""

    whole: BoxHead
    factors: Mapping[str, Factors]
    choices: Sequence[Sequence[int | None]]
    units: dict[tuple[str, int | None], Remembered] = field(init=False)

    def __post_init__(self) -> None:
        device = next(self.whole.parameters()).device
        self.units = {
            (name, rank): self._unit(name, rank).to(device)
            for (name, _), ranks in zip(self.factors.items(), self.choices, strict=True)
            for rank in {None, *ranks}
        }

    def _unit(self, name: str, rank: int | None) -> Remembered:
        """Return fc6, or what takes its place, with its ReLU."""
        relu = nn.ReLU(inplace=True)
        if rank is None:
            own = [layer for key, layer in self.whole.layers.named_children() if key.split("_")[0] == name]
            return Remembered(*own, relu)
        tensors = self.factors[name].truncated(name, rank)
        layers = []
        for part in ("v", "u"):
            weight = tensors[f"{name}_{part}.weight"]
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=part == "u", device="meta")
            layer.weight = nn.Parameter(weight, requires_grad=False)
            layers.append(layer)
        layers[1].bias = nn.Parameter(tensors[f"{name}_u.bias"], requires_grad=False)
        return Remembered(*layers, relu)

    def head(self, ranks: Ranks, *, remember: bool = True) -> BoxHead:
        """Return the head of ``ranks``, in evaluation mode."""
        head = BoxHead(self.whole.out_features, ())
        units = [self.units[name, rank] for name, rank in zip(self.factors, ranks, strict=True)]
        head.layers = nn.Sequential(*(unit if remember else unit.layers for unit in units))
        return head.eval()

    def weights(self, name: str, rank: int | None) -> int:
        """Return how many weights a layer has in the candidates: as it is for None, else of ``rank``."""
        linear = [layer for layer in self.units[name, rank].layers if isinstance(layer, nn.Linear)]
        return sum(layer.weight.numel() for layer in linear)

    def forget(self) -> None:
        for unit in self.units.values():
            unit.forget()


def _predict(
    config: Config, model: RegionDetector, heads: Heads, every: Sequence[Ranks], scorer: Scorer[Any]
) -> tuple[dict[Ranks, dict[str, Any]], list[list[Tensor]]]:
    """Return the results of each candidate by image id, and the pooled regions of some images, for timing."""
    memory, device = ImageMemory(), scorer.device
    predictors = {
        ranks: build_predictor(config, _sharing(config, model, heads.head(ranks), memory), device)
        for ranks in every
    }
    records = scorer.test_set.records
    results: dict[Ranks, dict[str, Any]] = {ranks: {} for ranks in every}
    samples: list[list[Tensor]] = []
    views = inference_views(config, records, scorer.test_set.proposals, device)
    with closing(views), torch.inference_mode():
        named = f"testing {len(every)} networks on {scorer.test_set.split}"
        for record, image in zip(records, track(views, len(records), named), strict=True):
            with naming(image[0].metas):
                for number, (ranks, predict) in enumerate(predictors.items()):
                    results[ranks][record.image_id] = predict(image)
                    if number == 0 and len(samples) < TIMED_IMAGES:  # all that the whole head has read
                        pooled = [known.pooled for known in memory.regions]
                        fits = not samples or _bytes([*samples, pooled]) <= TIMED_BYTES
                        samples += [pooled] if pooled and fits else []
            memory.forget()
            heads.forget()
    return results, samples


def _bytes(samples: Sequence[Sequence[Tensor]]) -> int:
    return sum(one.numel() * one.element_size() for sample in samples for one in sample)


def _sharing(config: Config, model: RegionDetector, head: BoxHead, memory: ImageMemory) -> SharingDetector:
    """Return ``model`` with another head, which shares all else with other networks of the same memory."""
    network = SharingDetector(
        memory,
        backbone=model.backbone,
        neck=model.neck,
        region_pool=model.region_pool,
        box_head=head,
        predictor=model.predictor,
        box_coder=model.box_coder,
        roi_chunk=model.roi_chunk,
        normalization=build_normalization(config),
    )
    network.pixel_values = model.pixel_values
    return network.eval()


def _score(config: Config, scorer: Scorer[Any], results: dict[str, Any]) -> float:
    score = headline(config, scorer.compare(results).metrics)
    if score == UNSCORED:
        raise InputError(
            f"{scorer.test_set.split}: its images have no annotations, or no object that counts, so that no "
            "loss can be measured; name another split with --split"
        )
    return score


def _times(
    model: RegionDetector,
    heads: Heads,
    timed: Sequence[Ranks],
    whole: Ranks,
    samples: Sequence[Sequence[Tensor]],
) -> dict[Ranks, tuple[float, float]]:
    """Return the seconds per image and the ratio to the whole head's of each of the ``timed`` heads.

    A head is fc6 to bbox_pred, on the pooled regions of an image. Each is timed in turn with the whole one,
    in changing order.
    """
    if not samples:
        return {}
    runs = {ranks: _runner(model, heads.head(ranks, remember=False), samples) for ranks in timed}
    taken: dict[Ranks, tuple[float, float]] = {}
    with torch.inference_mode():
        for ranks in track(timed, len(timed), "timing"):
            pairs = []
            for number in range(TIMED_ROUNDS + 1):
                both = dict.fromkeys((whole, ranks) if number % 2 else (ranks, whole), 0.0)
                for one in both:
                    both[one] = _seconds(runs[one])
                pairs.append((both[ranks] / len(samples), both[ranks] / both[whole]))
            seconds, ratios = zip(*pairs[1:], strict=True)  # the first is for the caches
            taken[ranks] = statistics.median(seconds), statistics.median(ratios)
    return taken


def _timed(candidate: Candidate, times: tuple[float, float] | None) -> Candidate:
    return candidate if times is None else replace(candidate, seconds=times[0], ratio=times[1])


def _runner(model: RegionDetector, head: BoxHead, samples: Sequence[Sequence[Tensor]]) -> Callable[[], None]:
    def run() -> None:
        for pooled in samples:
            for part in pooled:
                model.predictor(Embedded(part, head(part)))
        if samples[0][0].is_cuda:
            torch.cuda.synchronize()

    return run


def _seconds(run: Callable[[], None]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def measured_in_float32(config: Config) -> Config:
    """Return ``config`` with ``test.precision`` float32, in which a search measures; print if it differs."""
    if config.test.precision == "float32":
        return config
    note(f"the search computes in float32, not in test.precision: {config.test.precision}")
    return config.model_copy(update={"test": config.test.model_copy(update={"precision": "float32"})})


def stored_config(checkpoint: Mapping[str, Any], source: str) -> Config:
    """Return the config that a checkpoint holds, without any override: that of the compressed one."""
    return parse_config(checkpoint["config"], source)
