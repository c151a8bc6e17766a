"""Which tensors of a state dict a network takes over, layer by layer, and what became of every name."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor

Outcome = Literal["loaded", "missing", "other shape", "unexpected", "re-made", "left out"]
FAULTS: tuple[Outcome, ...] = ("missing", "other shape", "unexpected")
"""Outcomes that say the file was made for another network."""

HEADS = ("predictor.", "box_coder.")
"""The parts that belong to a data set's classes. The coder's constants belong to bbox_pred's weights."""


class Row(NamedTuple):
    """What became of one name; its shape in the network and in the file, None where it is not there."""

    outcome: Outcome
    name: str
    wanted: tuple[int, ...] | None
    found: tuple[int, ...] | None


@dataclass(frozen=True)
class Transfer:
    """A row a name, the network's first, and the tensors to load, all of the network's own shapes."""

    rows: tuple[Row, ...]
    tensors: dict[str, Tensor]

    @property
    def faults(self) -> list[Row]:
        return [row for row in self.rows if row.outcome in FAULTS]


def plan_transfer(
    wanted: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    *,
    remake: tuple[str, ...] = (),
    optional: tuple[str, ...] = HEADS,
    spare: Collection[str] = (),
) -> Transfer:
    """Choose what of ``found`` the network with the state dict ``wanted`` takes over; nothing is loaded yet.

    A layer (a module with tensors of its own, such as ``box_head.layers.fc6``) is taken when each of its
    tensors is there by name and shape, and otherwise not at all: a bias is no use without its weights.
    ``predictor.bbox_pred`` and ``box_coder`` count as one layer, since the one is trained in the units of
    the other.

    The outcome of each name:

    - "loaded": taken over.
    - "missing", "other shape": the network has it and the file has it not, or not so. These are faults.
    - "unexpected": the file has it and the network has no place for it. This is a fault too: a deeper
      network of the same family fits by names and shapes, and computes something else.
    - "re-made": stays as the network was built, which is no fault. So begin the names that start with
      ``remake``; those of ``optional`` where the file does not fit; and what shares a layer with a fault.
    - "left out": the file's own, known to have no place: named in ``spare``, or of ``remake``, ``optional``.
    """
    outcomes = {name: _outcome(name, wanted[name], found, remake, optional) for name in wanted}
    broken = {_layer(name) for name, outcome in outcomes.items() if outcome != "loaded"}
    for name, outcome in outcomes.items():
        if outcome == "loaded" and _layer(name) in broken:
            outcomes[name] = "re-made"
    rows = [Row(outcomes[name], name, _shape(wanted, name), _shape(found, name)) for name in wanted]
    for name in found:
        if name not in wanted:
            known = name in spare or name.startswith((*remake, *optional))
            rows.append(Row("left out" if known else "unexpected", name, None, _shape(found, name)))
    taken = {name: found[name] for name, outcome in outcomes.items() if outcome == "loaded"}
    return Transfer(tuple(rows), taken)


def _outcome(
    name: str, tensor: Tensor, found: Mapping[str, Tensor], remake: tuple[str, ...], optional: tuple[str, ...]
) -> Outcome:
    if name.startswith(remake):
        return "re-made"
    if name not in found:
        return "re-made" if name.startswith(optional) else "missing"
    other = found[name]
    if other.shape != tensor.shape or other.is_floating_point() != tensor.is_floating_point():
        return "re-made" if name.startswith(optional) else "other shape"
    return "loaded"


def _layer(name: str) -> str:
    if name.startswith("box_coder."):
        return "predictor.bbox_pred"
    return name.rpartition(".")[0]


def _shape(state: Mapping[str, Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(state[name].shape) if name in state else None
