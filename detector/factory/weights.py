"""Weights of a network, published or from another run: what fits is copied, and every tensor is reported."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor, nn

from detector.config import Config
from detector.config.files import value_at
from detector.core.errors import InputError, listed
from detector.core.progress import console, note
from detector.engine.checkpoint import load_checkpoint, weights_to_use
from detector.evaluation.report import plain
from detector.models.backbones import Backbone
from detector.models.published import FEATURES, FULLY_CONNECTED, HEAD, our_names
from detector.models.transfer import HEADS, Row, Transfer, plan_transfer
from detector.models.weights import DEFAULT, default_weights, read_state_dict

_INPUT_KEYS = ("convention", "pixel_mean", "pixel_std", "feature_scale")


def check_weights(config: Config) -> None:
    """Raise InputError for weights files that cannot be read, before hours are spent on proposals."""
    if config.train.initial_weights is not None:
        load_checkpoint(config.train.initial_weights)
    elif config.model.backbone.weights is not None:
        read_state_dict(weights_file(config))


def weights_file(config: Config) -> Path:
    """Return the file of ``model.backbone.weights``, which is not null; "default" may be downloaded."""
    chosen = config.model.backbone
    assert chosen.weights is not None
    return default_weights(chosen.name) if chosen.weights == DEFAULT else Path(chosen.weights)


def load_published(config: Config, backbone: Backbone, head: nn.Module | None = None) -> None:
    """Copy the weights of ``model.backbone.weights`` into ``backbone``, and into ``head``, its fc6 and fc7.

    Raises:
        InputError: no such file, not a state dict, or made for another network, unless
            ``model.backbone.allow_partial`` accepts what fits.
    """
    chosen = config.model.backbone
    if head is not None and chosen.name not in FULLY_CONNECTED:
        raise InputError(f"model.head.weights: {chosen.name} has no fc6 and fc7; set it to false")
    wanted: dict[str, Tensor] = backbone.features.state_dict(prefix=FEATURES)
    if head is not None:
        wanted |= head.state_dict(prefix=HEAD)
    source = weights_file(config)
    tensors, spare = our_names(chosen.name, read_state_dict(source), wanted)
    transfer = plan_transfer(wanted, tensors, spare=spare)
    report(transfer, str(source), "model.backbone.allow_partial", chosen.allow_partial)
    for name, tensor in transfer.tensors.items():
        wanted[name].copy_(tensor)


def load_initial(config: Config, model: nn.Module, classes: Sequence[str]) -> None:
    """Copy the weights of the checkpoint ``train.initial_weights`` into ``model``, which was just built.

    These are the averaged weights if its run kept an average (``train.ema``).

    Backbone and box head have to fit by name and shape, whatever the checkpoint was trained for. The
    predictor and the constants of the box targets are copied if task, classes and shapes are the same;
    otherwise they stay as they are in ``model``, with the constants of the new data. With
    ``train.head_only`` only the backbone is copied: the head is what is trained, from scratch.

    Raises:
        InputError: not a checkpoint, another input convention, or a backbone or box head that does not fit,
            unless ``train.allow_partial`` accepts what fits.
    """
    source = config.train.initial_weights
    assert source is not None
    checkpoint = load_checkpoint(source)
    if not config.train.allow_partial:
        _check_input(config, checkpoint["config"], source)
    reason = _other_purpose(config, checkpoint, classes)
    if reason is not None and not config.train.head_only:
        note(f"{source}: {reason}: predictor and box targets start from scratch")
    wanted = {_common_name(name): tensor for name, tensor in model.state_dict().items()}
    remake: tuple[str, ...] = HEADS if reason is not None else ()
    if config.train.head_only:
        remake = (*HEADS, "box_head.")
    transfer = plan_transfer(
        wanted,
        {_common_name(name): tensor for name, tensor in weights_to_use(checkpoint).items()},
        remake=remake,
    )
    if config.train.head_only:  # what is left out on purpose needs no table
        kept = tuple(row for row in transfer.rows if row.outcome not in ("re-made", "left out"))
        transfer = replace(transfer, rows=kept)
    made_with = differences(config, checkpoint["config"], predictor=False)
    report(transfer, source, "train.allow_partial", config.train.allow_partial, made_with)
    for name, tensor in transfer.tensors.items():
        wanted[name].copy_(tensor)


def _common_name(name: str) -> str:
    """Return the same name for a tensor of the convolutions, which in R-CNN belong to the pool."""
    return name.replace("region_pool.convolutions.", "backbone.", 1)


def _check_input(config: Config, before: Any, source: str) -> None:
    """Refuse weights that were trained on another kind of input: they would fit, but compute nonsense."""
    now = config.model.backbone.model_dump(mode="json")
    for key in _INPUT_KEYS:
        for trained in value_at(before, ("model", "backbone", key)):
            if trained == now[key]:
                continue
            raise InputError(
                f"{source}: trained with model.backbone.{key} = {trained!r:.80}, the config has "
                f"{now[key]!r}; use the same, or set train.allow_partial to true"
            )


def check_scores(config: Config, checkpoint: dict[str, Any], source: str) -> None:
    """Raise InputError if logits trained as independent scores would be read otherwise, or the reverse.

    They would fit, but mean something else. ``source`` is named.
    """
    scores = _other_scores(config, checkpoint)
    if scores is not None:
        raise InputError(
            f"{source}: trained with model.head.scores: {scores}, the config says "
            f"{config.model.head.scores}; use the config that the checkpoint was trained with"
        )


def _other_scores(config: Config, checkpoint: dict[str, Any]) -> str | None:
    """Return the checkpoint's ``model.head.scores`` if either its or the config's is sigmoid, but not both.

    Checkpoints of softmax scores and of SVMs are not distinguished, since staged training starts SVMs from
    softmax scores. Classifiers of whole images have no use for the key.
    """
    if config.task == "classification":
        return None
    stored = next(iter(value_at(checkpoint.get("config"), ["model", "head", "scores"])), "softmax")
    differs = (stored == "sigmoid") != (config.model.head.scores == "sigmoid")
    return f"{stored!s:.40}" if differs else None


def _other_purpose(config: Config, checkpoint: dict[str, Any], classes: Sequence[str]) -> str | None:
    """Return why the predictor of a checkpoint cannot be used here, or None if it can."""
    task = checkpoint["config"].get("task", "detection")
    if task != config.task:
        return f"trained for {task}, not {config.task}"
    scores = _other_scores(config, checkpoint)
    if scores is not None:
        return f"trained with model.head.scores: {scores}, not {config.model.head.scores}"
    before = list(checkpoint["classes"])
    if before != list(classes):
        return f"trained for other classes ({listed(before)}) than this data set's ({listed(classes)})"
    return None


def report(transfer: Transfer, source: str, key: str, allow_partial: bool, made_with: str = "") -> None:
    """Print what is taken from ``source``: one line if everything fits, else also a table of the tensors.

    ``made_with`` says in the error how the settings of a checkpoint differ.

    Raises:
        InputError: nothing fits, or not everything does and the config's ``key`` does not allow that.
    """
    if made_with and transfer.faults and not allow_partial:
        raise InputError(
            f"{source}: {made_with}; change the config to the network of the checkpoint, or set {key} to "
            "true to take what fits"
        )
    counts = Counter(row.outcome for row in transfer.rows)
    note(f"{source}: tensors " + ", ".join(f"{outcome} {count}" for outcome, count in counts.items()))
    shown = [row for row in transfer.rows if row.outcome not in ("loaded", "left out")]
    if shown and console.is_terminal:
        console.print(_table(transfer.rows, source))
    elif shown:
        for row in transfer.rows:
            note(f"{source}: {row.outcome}: {_line(row)}")
    faults = transfer.faults
    if not transfer.tensors:
        raise InputError(f"{source}: nothing in it fits the configured network: {_listed(faults)}")
    if faults and not allow_partial:
        raise InputError(
            f"{source}: does not fit the configured network: {_listed(faults)}; change the config to the "
            f"network of the file, or set {key} to true to take what fits"
        )


_SHAPING = (
    "task",
    "model.backbone.name",
    "model.backbone.stage",
    "model.backbone.reduce_channels",
    "model.neck",
    "model.fpn.channels",
    "model.pool.kind",
    "model.pool.options",
    "model.pool.output_size",
    "model.pool.levels",
    "model.head.kind",
    "model.head.hidden",
    "model.head.rank",
    "model.head.options",
    "model.head.class_agnostic",
    "model.head.background_prototypes",
    "model.box.regression",
)
"""The keys that decide which tensors a network has."""
_OF_PREDICTOR = {
    *("task", "model.head.kind", "model.head.class_agnostic", "model.head.background_prototypes"),
    "model.box.regression",
}


def differences(config: Config, stored: Any, *, predictor: bool = True) -> str:
    """Return in which keys the ``stored`` config of a checkpoint describes another network; "" for none.

    For instance ``made with model.backbone.name = 'vgg16', the config says 'small'``. With ``predictor``
    False, keys that only change cls_score and bbox_pred are not compared.
    """
    now = config.model_dump(mode="json")
    differing = [
        f"{key} = {before!r:.80}, the config says {wanted!r:.80}"
        for key in _SHAPING
        if predictor or key not in _OF_PREDICTOR
        for before in value_at(stored, key.split("."))
        for wanted in value_at(now, key.split("."))
        if before != wanted
    ]
    return f"made with {'; with '.join(differing)}" if differing else ""


def _listed(faults: Sequence[Row]) -> str:
    more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
    return "; ".join(f"{row.outcome} {_line(row)}" for row in faults[:5]) + more


def _line(row: Row) -> str:
    match row.wanted, row.stored:
        case None, stored:
            return f"{row.name} {stored}"
        case wanted, None:
            return f"{row.name} {wanted}"
        case wanted, stored:
            return f"{row.name} {stored}" + ("" if wanted == stored else f" where {wanted} is needed")


def _table(rows: Sequence[Row], source: str) -> Table:
    table = Table(title=plain(f"weights from {source}"))
    for title in ("name", "outcome", "network", "file"):
        table.add_column(title, overflow="fold")
    for row in rows:
        shapes = ["" if shape is None else str(list(shape)) for shape in (row.wanted, row.stored)]
        table.add_row(*(plain(text) for text in (row.name, row.outcome, *shapes)))
    return table
