"""TensorBoard's file of a run: a single one, however many processes wrote it and whatever their clocks said.

TensorBoard's own writer gives every process a file with the time in its name. TensorBoard reads the files in
the order of these times and drops what an earlier file has at the steps of a later one: after a clock was set
back, values would be lost. So a resumed run puts what is still valid into its own file, which is named by the
step, and removes the others. Values are written at once and by the caller's thread, which sees an error of
the disk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.summary.writer.record_writer import RecordWriter
from torch.utils.tensorboard import summary

from detector.core.files import atomic_write, require_regular
from detector.core.progress import note

FILES = "events.out.tfevents.*"
Keep = Callable[[str, int], bool]
"""Says of a value, by its tag and step, whether it is kept."""
_VERSION = "brain.Event:2"  # that of TensorFlow's own files


class Board:
    """Writes TensorBoard's values into ``folder``, from ``step`` on.

    What earlier processes wrote stays where ``keep`` holds. When a method returns, its values are with the
    system, so a killed process does not lose them.

    Raises:
        InputError, OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, step: int = 0, keep: Keep = lambda _tag, _step: False) -> None:
        earlier = sorted(folder.glob(FILES))
        events = events_to_keep(earlier, keep)
        path = folder / f"events.out.tfevents.{step:010d}"
        with atomic_write(path, durable=False) as file:
            records = RecordWriter(file)
            # A running TensorBoard then drops what it has read of the earlier file.
            first = Event(wall_time=time.time(), session_log=SessionLog(status=SessionLog.START))
            for event in (Event(wall_time=time.time(), file_version=_VERSION), first, *events):
                records.write(event.SerializeToString())
        for other in earlier:
            if other != path:
                other.unlink(missing_ok=True)
        self._file = path.open("ab")
        self._records = RecordWriter(self._file)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add a number per tag."""
        self._write((summary.scalar(tag, value) for tag, value in values.items()), step)

    def images(self, name: str, images: Iterable[np.ndarray], step: int) -> None:
        """Add images, each (H, W, 3) uint8 RGB, under the tags ``name/0``, ``name/1``, ..."""
        self._write(
            (summary.image(f"{name}/{at}", image, dataformats="HWC") for at, image in enumerate(images)), step
        )

    def close(self) -> None:
        self._file.close()

    def _write(self, summaries: Iterable[Any], step: int) -> None:
        for one in summaries:
            self._records.write(Event(wall_time=time.time(), step=step, summary=one).SerializeToString())
        self._file.flush()


def events_to_keep(paths: Iterable[Path], keep: Keep) -> list[Any]:
    """Return the events of ``paths`` with a value to ``keep``, one per tag and step, in that order."""
    found: dict[tuple[int, str], Any] = {}
    for path in paths:
        for event in _read(path):
            for value in event.summary.value:
                if keep(value.tag, event.step):
                    single = Event(wall_time=event.wall_time, step=event.step)
                    single.summary.value.append(value)
                    found[event.step, value.tag] = single
    return [found[key] for key in sorted(found)]


def _read(path: Path) -> Iterator[Any]:
    """Yield the events of a file; a damaged record, such as one that a crash cut off, ends it."""
    try:
        require_regular(path)
        for record in RawEventFileLoader(str(path)).Load():
            yield Event.FromString(record)
    except Exception as error:  # tensorboard raises many kinds for damaged files
        note(
            f"warning: {path}: the rest of TensorBoard's file cannot be read ({error!s:.100}) and is left out"
        )
