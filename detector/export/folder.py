"""The folder of an export: complete or not there at all, and never in the place of anything else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from detector.core.errors import InputError
from detector.core.files import make_folder

FORMAT = "region-detector export"
"""What ``model.json`` has under "format"; an overwritten folder must have it."""
OURS = frozenset(
    {"model.json", "run.py", "selective_search.py", "check.json"}
    | {"model.onnx", "model.xml", "model.bin", "model.pt2"}
)
"""The names of all files that an export can have."""


def check_free(folder: Path, *, overwrite: bool) -> None:
    """Raise InputError unless an export may be written to ``folder``.

    It may be missing or empty; with ``overwrite`` it may be an export that has no other files in it.
    """
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise InputError(f"--output {folder}: is not a folder; give the name of a new one")
    try:
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    except OSError as error:
        raise InputError(f"--output {folder}: cannot read the folder: {error.strerror}") from None
    if not names:
        return
    if not overwrite:
        raise InputError(f"--output {folder}: the folder is not empty; give another one, or --overwrite")
    if not _is_export(folder):
        raise InputError(
            f"--output {folder}: --overwrite replaces only an earlier export, and this folder has none; give "
            "another one"
        )
    if names - OURS:
        raise InputError(
            f"--output {folder}: {sorted(names - OURS)[0]!r} is not a file of an export and would be "
            "lost; move it away, or give another folder"
        )


def _is_export(folder: Path) -> bool:
    try:
        about = json.loads((folder / "model.json").read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(about, dict) and about.get("format") == FORMAT


@contextmanager
def whole_folder(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """Provide an empty folder beside ``folder``, and give it this name when the block ends.

    If the block raises, ``folder`` stays as it was and nothing is left beside it.

    Raises:
        InputError: as `check_free`, or the folder cannot be written.
    """
    check_free(folder, overwrite=overwrite)
    folder = folder.absolute()
    unfinished = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    make_folder(folder.parent)
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        unfinished.mkdir()
        yield unfinished
        check_free(folder, overwrite=overwrite)
        _put(unfinished, folder)
    except OSError as error:
        raise InputError(f"{folder}: cannot write the export: {error.strerror or error}") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _put(unfinished: Path, folder: Path) -> None:
    """Give the finished folder its name; an earlier export is removed only after that."""
    earlier = folder.with_name(f".{folder.name}.{os.getpid()}.old")
    if folder.exists():
        folder.rename(earlier)
    try:
        unfinished.rename(folder)
    except OSError:
        if earlier.exists():
            earlier.rename(folder)
        raise
    shutil.rmtree(earlier, ignore_errors=True)
