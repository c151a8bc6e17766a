"""The folder of a run while a process works in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detector.core.errors import InputError
from detector.engine.run_files import check_place, holds_work, remove_start, snapshot
from detector.engine.run_lock import run_lock


@contextmanager
def run_folder(folder: Path, *, go_on: bool, overwrite: bool) -> Iterator[None]:
    """Make a run's folder and hold its lock inside the block; a start that fails in it leaves nothing.

    A start has failed where the block raises before anything is there that a run can go on from. The caller
    deletes the earlier run when the user asked to ``overwrite`` it.

    Raises:
        InputError: another process works there; a run is there and neither ``go_on`` nor ``overwrite`` is
            set; files of others have the names of a run's; the folder cannot be written.
    """
    check_place(folder, go_on=go_on)
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot write the run's folder: {error.strerror}") from None
    try:
        with run_lock(folder):
            if holds_work(folder) and not (go_on or overwrite):
                raise InputError(
                    f"{folder}: holds a run already; go on with --resume, start over with --overwrite, or "
                    "give another --output"
                )
            before = snapshot(folder)
            try:
                yield
            except BaseException:
                remove_start(folder, before)
                raise
    finally:
        for place in made:
            if place.is_dir() and not any(place.iterdir()):
                place.rmdir()
