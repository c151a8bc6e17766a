"""Which tensors of a state dict a network takes over, layer by layer, and the outcome for every name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

Outcome = Literal["loaded", "missing", "other shape", "unexpected", "re-made", "left out"]
FAULTS: tuple[Outcome, ...] = ("missing", "other shape", "unexpected")
"""Outcomes that show that the file was made for another network."""

HEADS = ("predictor.", "box_coder.")
"""The parts that depend on the classes of a data set. The coder's constants belong to bbox_pred's weights."""


class Row(NamedTuple):
    """The outcome for one name, and its shapes in the network (``wanted``) and in the file (``stored``).

    A shape is None where the name does not exist.
    """

    outcome: Outcome
    name: str
    wanted: tuple[int, ...] | None
    stored: tuple[int, ...] | None


@dataclass(frozen=True)
class Transfer:
    """One row per name, the network's first, and the tensors to load, all in the network's own shapes."""

    rows: tuple[Row, ...]
    tensors: dict[str, Tensor]

    @property
    def faults(self) -> list[Row]:
        return [row for row in self.rows if row.outcome in FAULTS]


def plan_transfer(
    wanted: Mapping[str, Tensor],
    stored: Mapping[str, Tensor],
    *,
    remake: tuple[str, ...] = (),
    optional: tuple[str, ...] = HEADS,
    spare: Collection[str] = (),
) -> Transfer:
    """Choose the tensors of a file (``stored``) that a network takes over; nothing is loaded yet.

    ``wanted`` is the state dict of the network. A layer (a module with tensors of its own, such as
    ``box_head.layers.fc6``) is taken over if the file has each of its tensors, in the same shape, and
    otherwise not at all: a bias is of no use without its weights. ``predictor.bbox_pred`` and ``box_coder``
    count as one layer, since bbox_pred is trained in the units of the box coder.

    The outcome of each name:

    - "loaded": taken over.
    - "missing", "other shape": the file does not have this tensor of the network, or has it in another shape.
      These are faults.
    - "unexpected": the network does not have this tensor of the file. This is a fault too: a deeper network
      of the same family fits by names and shapes, and computes something else.
    - "re-made": stays as the network was built, which is not a fault. These are the names that start with a
      prefix of ``remake``, those that start with one of ``optional`` and do not fit, and the other tensors of
      a layer with a fault.
    - "left out": a tensor of the file that the network is known not to have: its name is in ``spare``, or
      starts with a prefix of ``remake`` or ``optional``.
    """

    def outcome_of(name: str) -> Outcome:
        if name.startswith(remake):
            return "re-made"
        if name not in stored:
            return "re-made" if name.startswith(optional) else "missing"
        own, other = wanted[name], stored[name]
        if other.shape != own.shape or other.is_floating_point() != own.is_floating_point():
            return "re-made" if name.startswith(optional) else "other shape"
        return "loaded"

    outcomes = {name: outcome_of(name) for name in wanted}
    broken = {_layer(name) for name, outcome in outcomes.items() if outcome != "loaded"}
    for name, outcome in outcomes.items():
        if outcome == "loaded" and _layer(name) in broken:
            outcomes[name] = "re-made"
    rows = [Row(outcomes[name], name, _shape(wanted, name), _shape(stored, name)) for name in wanted]
    for name in stored:
        if name not in wanted:
            known = name in spare or name.startswith((*remake, *optional))
            rows.append(Row("left out" if known else "unexpected", name, None, _shape(stored, name)))
    taken = {name: stored[name] for name, outcome in outcomes.items() if outcome == "loaded"}
    return Transfer(tuple(rows), taken)


def _layer(name: str) -> str:
    if name.startswith("box_coder."):
        return "predictor.bbox_pred"
    return name.rpartition(".")[0]


def _shape(state: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(state[name].shape) if name in state else None
