"""The folder of a run: one process works in it at a time, and only files of runs are ever removed from it."""

from __future__ import annotations

import fcntl
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from detector.core.errors import InputError
from detector.core.files import write_text

LOCK = ".run.lock"
PICTURE_FOLDERS = ("detections", "classified")
PICTURES = ".pictures.json"
"""Beside pictures that are named by their images: the list of the names that were written."""

_STAGE = r"stages/\d\d_[a-z][a-z0-9_]*"
_TEMPORARY = r"\.(step_\d+|best|fit)\.pt\.\d+\.tmp"
_PATTERNS = [
    re.compile(pattern)
    for pattern in (
        rf"({_STAGE}/)?(log\.jsonl|log\.tmp|config\.yaml|metrics\.json|run\.png)",
        rf"({_STAGE}/)?(environment|trackers)\.json|refit\.json",
        rf"({_STAGE}/)?wandb/((offline-)?run-\d{{8}}_\d{{6}}-[^/]+/.+|latest-run|debug(-internal)?\.log)",
        rf"({_STAGE}/)?checkpoints/((step_\d+|best)\.pt|{_TEMPORARY})",
        rf"({_STAGE}/)?tensorboard/events\.out\.tfevents\.[^/]+",
        rf"{_STAGE}/(done\.json|fit\.pt|{_TEMPORARY})",
        r"results/(comp4_det|comp2_cls)_[^/]+\.txt",
        r"results/coco_[^/]+\.json",
        r"cache/[0-9a-f]{16}/(maps\.bin|done\.bin|cache\.json)",
        rf"({_STAGE}/)?faults/(step_\d+\.pt|{_TEMPORARY})",
        rf"({_STAGE}/)?((results|detections|classified|tensorboard|cache/[0-9a-f]{{16}})/)?\.[^/]+\.\d+\.tmp",
        rf"({'|'.join(PICTURE_FOLDERS)})/{re.escape(PICTURES)}",
    )
]
_ROOTS = (
    *("checkpoints", "tensorboard", "results", *PICTURE_FOLDERS, "stages", "cache", "faults", "wandb"),
    *("log.jsonl", "config.yaml", "metrics.json", "run.png", "environment.json", "trackers.json"),
    "refit.json",
)
_CONFIG_KEYS = (b"data:", b"model:", b"train:")


@contextmanager
def run_folder(folder: Path, *, go_on: bool, overwrite: bool) -> Iterator[None]:
    """Make a run's folder and hold its lock inside the block; a failed start leaves no files.

    A start has failed if the block raises before the folder holds anything that a run can be resumed from.
    The caller deletes the earlier run if the user asked to ``overwrite`` it.

    Raises:
        InputError: another process works in the folder; it holds a run and neither ``go_on`` nor
            ``overwrite`` is set; it holds other files with names that runs use; or it cannot be written.
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
            remove_unfinished(folder)
            before = snapshot(folder)
            try:
                yield
            except BaseException:
                remove_start(folder, before)
                raise
    finally:
        _remove_empty(made)


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's ``folder``, which must exist, inside the block.

    The lock belongs to this process and not to its children, so the system releases it when the process
    ends for any reason, even if a child process lives longer.

    Raises:
        InputError: another process holds the lock, which is named; or the folder cannot be written.
    """
    path = folder / LOCK
    handle = _open_locked(path)
    try:
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()} {os.uname().nodename}\n".encode(), 0)
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held, so that others notice that their file is gone
        os.close(handle)


def _open_locked(path: Path) -> int:
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
        except OSError as error:
            raise InputError(f"{path.parent}: cannot write the run's folder: {error.strerror}") from None
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            raise InputError(f"{path}: not a regular file; remove it, the run's lock needs its name")
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.read(handle, 200).decode(errors="replace").split()
            os.close(handle)
            raise InputError(_refusal(path.parent, error, holder)) from None
        if _is_file_of(handle, path):
            return handle
        os.close(handle)  # its holder has ended and removed it between opening and locking


def _refusal(folder: Path, error: OSError, holder: list[str]) -> str:
    if not isinstance(error, BlockingIOError | PermissionError):
        return (
            f"{folder}: cannot lock the run's folder: {error.strerror}; give --output on another file system"
        )
    number, host = [*holder, "unknown", "unknown"][:2] if holder else ("unknown", "unknown")
    where = "" if host in (os.uname().nodename, "unknown") else f" on {host}"
    return (
        f"{folder}: process {number}{where} is training in this folder; wait until it ends, or stop it "
        "(it saves and can be resumed), or give another --output"
    )


def _is_file_of(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def is_run(folder: Path) -> bool:
    """Whether a run of this project wrote ``folder``, by its config.yaml or the first line of its log."""
    config, log = folder / "config.yaml", folder / "log.jsonl"
    if config.is_file():
        lines = _start_of(config, 2**20).splitlines()
        if all(any(line.startswith(key) for line in lines) for key in _CONFIG_KEYS):
            return True
    if not log.is_file():
        return False
    try:
        first = json.loads((_start_of(log, 2**16).splitlines() or [b""])[0])
    except (ValueError, RecursionError):
        return False
    return isinstance(first, dict) and {"kind", "step"} <= first.keys()


def holds_work(folder: Path) -> bool:
    """Whether ``folder`` holds something to resume from: a checkpoint, or the record of a stage."""
    files = [path for start in ("", "stages/*/") for path in folder.glob(f"{start}checkpoints/*.pt")]
    if any(re.fullmatch(r"(step_\d+|best)\.pt", path.name) for path in files):
        return True
    return any(any(folder.glob(f"stages/*/{name}")) for name in ("done.json", "fit.pt"))


def check_place(folder: Path, *, go_on: bool = False) -> None:
    """Refuse a folder in which a run would mix its files with other files.

    A run may ``go_on`` in a folder into which only checkpoints were copied.

    Raises:
        InputError: the folder holds files with names that runs use, but not those of a run; names them.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: cannot write the run's folder: it is a file")
    present = [name for name in _ROOTS if (folder / name).exists()]
    copied = go_on and set(present) <= {"checkpoints", "stages"}
    if present and not copied and not is_run(folder):
        raise InputError(
            f"{folder}: holds {', '.join(present)}, which no run of this project wrote; give another --output"
        )


def remove_run(folder: Path) -> list[str]:
    """Delete the files of the run in ``folder``; return the other files in the run's folders, which stay.

    Nothing is deleted unless `is_run` holds, and only files with names that runs write.
    """
    if not is_run(folder):
        return []
    remove_files(folder, _own_files(folder))
    _remove_empty(place for place in snapshot(folder) if "wandb" in place.relative_to(folder).parts)
    return sorted(str(path.relative_to(folder)) for path in _files(folder))


def snapshot(folder: Path) -> set[Path]:
    """Return everything at and below the names that a run uses, folders included."""
    return {path for name in _ROOTS for path in (folder / name, *(folder / name).rglob("*")) if path.exists()}


def remove_start(folder: Path, before: set[Path]) -> None:
    """Delete the files that a failed start has added to ``before``, the snapshot taken at its beginning.

    Nothing is deleted if there are checkpoints, records of stages, cached features, a log with losses, or the
    batch of a loss that was not finite.
    """
    log = folder / "log.jsonl"
    trained = log.is_file() and log not in before and b'"kind": "train"' in _start_of(log, 2**16)
    kept = (
        *folder.glob("cache/*/done.bin"),
        *folder.glob("faults/*.pt"),
        *folder.glob("stages/*/faults/*.pt"),
    )
    if trained or holds_work(folder) or kept:
        return
    remove_files(folder, [path for path in _own_files(folder) if path not in before])
    _remove_empty(snapshot(folder) - before)


def remove_unfinished(folder: Path) -> None:
    """Delete the temporary files of a process that was killed in ``folder``, whose lock must be held."""
    remove_files(folder, [path for path in _own_files(folder) if path.suffix == ".tmp"])


def remove_files(folder: Path, files: Iterable[Path]) -> None:
    """Delete ``files`` and then each folder below ``folder`` that is empty without them."""
    parents: set[Path] = set()
    for path in list(files):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise InputError(f"{path}: cannot remove the file of the earlier run: {error.strerror}") from None
        parents |= {parent for parent in path.parents if folder in parent.parents}
    _remove_empty(parents)


def _remove_empty(places: Iterable[Path]) -> None:
    """Delete the empty folders among ``places``, the innermost first."""
    for place in sorted(places, key=lambda path: len(path.parts), reverse=True):
        if place.is_dir() and not place.is_symlink() and not any(place.iterdir()):
            place.rmdir()


def note_pictures(folder: Path, names: Iterable[str]) -> None:
    """Add ``names`` to the list of pictures that runs have written into ``folder``, which must exist."""
    known = sorted({*names, *_pictures(folder)})  # without those that have been removed since
    write_text(folder / PICTURES, json.dumps(known) + "\n")


def _pictures(folder: Path) -> list[str]:
    """Return the pictures in ``folder`` that runs are known to have written."""
    path = folder / PICTURES
    try:
        listed = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    except (OSError, ValueError, RecursionError):
        return []
    known = {name for name in listed if isinstance(name, str)} if isinstance(listed, list) else set()
    return sorted(one.name for one in folder.glob("*.jpg") if one.name in known)


def _own_files(folder: Path) -> Iterator[Path]:
    for path in _files(folder):
        name = path.relative_to(folder).as_posix()
        if any(pattern.fullmatch(name) for pattern in _PATTERNS):
            yield path
    for place in PICTURE_FOLDERS:
        for name in _pictures(folder / place):
            yield folder / place / name


def _files(folder: Path) -> Iterator[Path]:
    """Yield the files at and below the names that a run uses; links are not followed below them."""
    for name in _ROOTS:
        place = folder / name
        yield from folder.glob(f".{name}.*.tmp")  # of a process that was killed
        if place.is_dir():
            yield from (path for path in sorted(place.rglob("*")) if path.is_symlink() or not path.is_dir())
        elif place.exists():
            yield place


def _start_of(path: Path, count: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(count)
    except OSError:
        return b""
