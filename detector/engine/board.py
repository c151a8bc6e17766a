"""TensorBoard's file of a run: a single one, however many processes wrote it and whatever their clocks said.

TensorBoard reads the files of a folder in the order of the times in their names, and drops what an earlier file
has at the steps of a later one. With a clock that was set back, or a run that was killed and resumed, values would
be lost or doubled. So a run that is resumed puts what is still valid into its new file and removes the old ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from torch.utils.tensorboard import SummaryWriter

from detector.core.files import require_regular
from detector.core.progress import note

FILES = "events.out.tfevents.*"
Keep = Callable[[str, int], bool]
"""Says of a value, by its tag and step, whether it is kept."""


class Board:
    """Writes TensorBoard's values into ``folder``; what earlier processes wrote stays where ``keep`` holds.

    When a method returns, its values are with the system: a killed process does not lose them.

    Raises:
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, keep: Keep = lambda _tag, _step: False) -> None:
        earlier = sorted(folder.glob(FILES))
        events = _events(earlier, keep)
        self._writer = SummaryWriter(str(folder))
        event_writer = self._writer.file_writer.event_writer
        for event in events:
            event_writer.add_event(event)
        self._writer.flush()
        for path in earlier:
            path.unlink(missing_ok=True)

    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Add a number per tag."""
        for tag, value in values.items():
            self._writer.add_scalar(tag, value, step)
        self._writer.flush()

    def images(self, name: str, images: Iterable[np.ndarray], step: int) -> None:
        """Add images, each (H, W, 3) uint8 RGB, under the tags ``name/0``, ``name/1``, ..."""
        for number, image in enumerate(images):
            self._writer.add_image(f"{name}/{number}", image, step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def _events(paths: Iterable[Path], keep: Keep) -> list[Any]:
    """Return the events of ``paths`` with a value to ``keep``, one per tag and step, in the order of the steps."""
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
        note(f"warning: {path}: the rest of TensorBoard's file cannot be read ({error!s:.100}) and is left out")
