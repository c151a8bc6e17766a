"""The record of a finished stage: ``done.json`` in its folder."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from detector.core.errors import InputError
from detector.core.files import read_json, write_text


@dataclass(frozen=True)
class StageRecord:
    """A finished stage.

    ``key`` says which settings made it; ``checkpoint`` is the file's place in the stage's folder; ``steps``
    are the optimizer steps of all stages up to it; ``seconds`` is the time that only this stage took;
    ``data_fingerprint`` says which data it saw.
    """

    key: str
    checkpoint: str
    steps: int
    seconds: float
    data_fingerprint: dict[str, str] = field(default_factory=dict)


def write_record(path: Path, record: StageRecord) -> None:
    """Write ``record`` whole or not at all; InputError where the disk refuses."""
    write_text(path, json.dumps(asdict(record), indent=1) + "\n")


def read_record(path: Path) -> StageRecord:
    """Read a record.

    Raises:
        InputError: missing, damaged, or with values of other types; names the file and the key.
    """
    found = read_json(path)
    if not isinstance(found, dict):
        raise InputError(f"{path}: not the record of a finished stage")
    for name, is_right in _CHECKS.items():
        if name not in found or not is_right(found[name]):
            raise InputError(
                f"{path}: not the record of a finished stage: {name} is missing or no {_WHAT[name]}"
            )
    fingerprint = found.get("data_fingerprint", {})
    if not isinstance(fingerprint, dict) or not all(isinstance(value, str) for value in fingerprint.values()):
        raise InputError(
            f"{path}: not the record of a finished stage: data_fingerprint is no mapping of texts"
        )
    return StageRecord(**{name: found[name] for name in _CHECKS}, data_fingerprint=fingerprint)


def _is_number(value: Any, low: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value < 2**53


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "key": lambda value: isinstance(value, str),
    "checkpoint": lambda value: (
        isinstance(value, str) and re.fullmatch(r"checkpoints/step_\d{1,15}\.pt", value) is not None
    ),
    "steps": lambda value: isinstance(value, int) and _is_number(value, 1),
    "seconds": lambda value: _is_number(value, 0),
}
_WHAT = {
    "key": "text",
    "checkpoint": "checkpoints/step_N.pt",
    "steps": "positive number of steps",
    "seconds": "number of seconds",
}
