"""What a run records of itself: one JSON line a record, and TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from detector.errors import InputError


class RunLog:
    """Writes ``log.jsonl`` and ``tensorboard/`` in a run's folder.

    A resumed run starts at a step that may lie before the last line written; lines past it are taken
    out, since they will be written again.
    """

    def __init__(self, folder: Path, step: int = 0) -> None:
        self.path = folder / "log.jsonl"
        kept = [record for record in read_log(self.path) if record["step"] <= step] if step else []
        try:
            self._replace(kept)
            self._file = self.path.open("a", encoding="utf-8")
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        except OSError as error:
            raise InputError(f"{folder}: cannot write the run's log: {error.strerror}") from None

    def write(self, kind: str, values: Mapping[str, Any]) -> None:
        """Add a line ``{"kind": kind, ...}``; numbers also go to TensorBoard as ``kind/name``."""
        with self._errors():
            self._file.write(json.dumps({"kind": kind, **values}) + "\n")
            self._file.flush()
            for name, value in values.items():
                if name != "step" and isinstance(value, int | float):
                    self._board.add_scalar(f"{kind}/{name}", value, int(values["step"]))

    def images(self, name: str, images: list[np.ndarray], step: int) -> None:
        """Add drawn images, each (H, W, 3) uint8 RGB, to TensorBoard."""
        with self._errors():
            for number, image in enumerate(images):
                self._board.add_image(f"{name}/{number}", image, step, dataformats="HWC")

    def close(self) -> None:
        with self._errors():
            self._file.close()
            self._board.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what the disk refuses, also late from TensorBoard's thread, into one clear error."""
        try:
            yield
        except OSError as error:
            raise InputError(f"{self.path.parent}: cannot write the run's log: {error.strerror}") from None

    def _replace(self, records: list[dict[str, Any]]) -> None:
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
        temporary.replace(self.path)


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the records of a run's log; a last line that a crash cut off is left out."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records
