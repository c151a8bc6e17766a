"""How the network of a checkpoint differs from a config's, in words of the config."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from detector.config import Config

_SHAPING = (
    "task",
    "model.backbone.name",
    "model.backbone.stage",
    "model.backbone.reduce_channels",
    "model.pool.kind",
    "model.pool.output_size",
    "model.pool.levels",
    "model.head.hidden",
    "model.head.class_agnostic",
    "model.box.regression",
)
"""The keys that decide which tensors a network has."""
_OF_PREDICTOR = {"task", "model.head.class_agnostic", "model.box.regression"}


def differences(config: Config, stored: Any, *, predictor: bool = True) -> str:
    """Return in which keys the ``stored`` config of a checkpoint asks for another network; "" for none.

    Without ``predictor``, what only decides on cls_score and bbox_pred does not count. For instance
    ``made with model.backbone.name = 'vgg16', the config says 'small'``.
    """
    now = config.model_dump(mode="json")
    found = [
        f"{key} = {before!r:.80}, the config says {wanted!r:.80}"
        for key in _SHAPING
        if predictor or key not in _OF_PREDICTOR
        for before in value_at(stored, key)
        for wanted in value_at(now, key)
        if before != wanted
    ]
    return f"made with {'; with '.join(found)}" if found else ""


def value_at(values: Any, key: str) -> Iterator[Any]:
    """Give the value at a key such as ``model.pool.kind``, or nothing where there is none."""
    for name in key.split("."):
        if not isinstance(values, Mapping) or name not in values:
            return
        values = values[name]
    yield values
