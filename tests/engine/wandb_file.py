"""A reader of what Weights & Biases writes offline: records of protobuf, in the format of LevelDB's log."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK = 32768
_HEADER = 7
"""Bytes before the first record, and before each part of one: checksum, length, type."""


def chunks(path: Path) -> Iterator[bytes]:
    """Yield the records of a ``.wandb`` file as bytes."""
    content = path.read_bytes()
    assert content[:4] == b":W&B"
    at, record = _HEADER, b""
    while at + _HEADER <= len(content):
        if _BLOCK - at % _BLOCK < _HEADER:  # too little of a block is left for a part
            at += _BLOCK - at % _BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + _HEADER])
        if kind == 0:
            return
        part = content[at + _HEADER : at + _HEADER + length]
        at += _HEADER + length
        record = part if kind in (1, 2) else record + part
        if kind in (1, 4):  # whole, or the last part
            yield record


class WandbFile:
    """What one file holds: the run's record, the config, the rows in order, the summary and the exit code."""

    def __init__(self, path: Path) -> None:
        from wandb.proto.wandb_internal_pb2 import Record

        self.run: Any = None
        self.config: dict[str, Any] = {}
        self.rows: list[dict[str, Any]] = []
        self.summary: dict[str, Any] = {}
        self.exit_code: int | None = None
        self.kinds: set[str] = set()
        for content in chunks(path):
            record = Record()
            record.ParseFromString(content)
            kind = record.WhichOneof("record_type")
            self.kinds.add(kind)
            if kind == "run":
                self.run = record.run
                self.config |= {item.key: json.loads(item.value_json) for item in record.run.config.update}
            elif kind == "history":
                self.rows.append(values(record.history.item))
            elif kind == "summary":
                self.summary |= values(record.summary.update)
            elif kind == "exit":
                self.exit_code = record.exit.exit_code


def values(items: Any) -> dict[str, Any]:
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}
