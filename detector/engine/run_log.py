"""The log of a run: one JSON line per record, and TensorBoard."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from detector.core.distributed import is_main
from detector.core.errors import InputError
from detector.core.files import write_text
from detector.core.progress import note
from detector.engine.board import Board

_LONGEST_LINE = 2**20
_LARGEST_STEP = 2**53  # as a float it is still exact
_NO_EVALUATIONS = ("data", "train")
"""The kinds of records, and the beginnings of TensorBoard's tags, that come with steps."""


class RunLog:
    """Writes ``log.jsonl`` and ``tensorboard/`` in a run's folder.

    A resumed run starts at a ``step`` that may come before the last lines, and its last evaluation, at the
    step ``evaluated``, may be an earlier one; later lines and values are removed, since they will be written
    again. None stands for ``step``.

    Raises:
        InputError: the folder cannot be written.
    """

    def __init__(self, folder: Path, step: int = 0, evaluated: int | None = None) -> None:
        self.path = folder / "log.jsonl"
        last = step if evaluated is None else min(evaluated, step)

        def stays(kind: str, at: float) -> bool:
            return bool(step) and at <= (step if kind in _NO_EVALUATIONS else last)

        before = read_log(self.path) if step else []
        kept = [record for record in before if stays(record["kind"], record["step"])]
        try:
            write_text(self.path, "".join(json.dumps(record) + "\n" for record in kept))
            self._file = self.path.open("a", encoding="utf-8")
            self._board = Board(
                folder / "tensorboard", step, lambda tag, at: stays(tag.partition("/")[0], at)
            )
        except OSError as error:
            raise InputError(f"{folder}: cannot write the run's log: {error.strerror}") from None

    def write(self, kind: str, values: Mapping[str, Any]) -> None:
        """Add a line ``{"kind": kind, ...}``; numbers also go to TensorBoard as ``kind/name``."""
        with self._errors():
            self._file.write(json.dumps({"kind": kind, **values}) + "\n")
            self._file.flush()
            numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
            numbers.pop("step", None)
            self._board.scalars(
                {f"{kind}/{name}": value for name, value in numbers.items()}, int(values["step"])
            )

    def images(self, name: str, images: list[np.ndarray], step: int) -> None:
        """Add drawn images, each (H, W, 3) uint8 RGB, to TensorBoard."""
        with self._errors():
            self._board.images(name, images, step)

    def close(self) -> None:
        with self._errors():
            self._file.close()
            self._board.close()

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn an error of the disk into one clear error."""
        try:
            yield
        except OSError as error:
            raise InputError(f"{self.path.parent}: cannot write the run's log: {error.strerror}") from None


class NoLog:
    """The log of a process that writes none."""

    def write(self, kind: str, values: Mapping[str, Any]) -> None:
        pass

    def images(self, name: str, images: list[np.ndarray], step: int) -> None:
        pass

    def close(self) -> None:
        pass


def open_log(folder: Path, step: int = 0, evaluated: int | None = None) -> RunLog | NoLog:
    """Return the log of a run, which only rank 0 writes; the arguments are those of `RunLog`."""
    return RunLog(folder, step, evaluated) if is_main() else NoLog()


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the records of a run's log: dicts with a text ``kind`` and a number ``step``.

    A last line that was truncated by a crash is left out; so are damaged lines before it, with a warning.

    Raises:
        InputError: the file cannot be read.
    """
    if not path.is_file():
        return []
    records: list[dict[str, Any]] = []
    damaged: list[int] = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                record = _record(line)
                if record is not None:
                    records.append(record)
                elif line.endswith(b"\n"):
                    damaged.append(number)
    except OSError as error:
        raise InputError(f"{path}: cannot read the run's log: {error.strerror}") from None
    if damaged:
        shown = ", ".join(map(str, damaged[:5])) + (", ..." if len(damaged) > 5 else "")
        note(f"warning: {path}: {len(damaged)} damaged lines are left out: {shown}")
    return records


def _record(line: bytes) -> dict[str, Any] | None:
    if len(line) > _LONGEST_LINE:
        return None
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(record, dict) or not isinstance(record.get("kind"), str):
        return None
    step = record.get("step")
    if isinstance(step, bool) or not isinstance(step, int | float) or not 0 <= step < _LARGEST_STEP:
        return None
    return record
