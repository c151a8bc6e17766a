"""Files: written whole or not at all, and read within bounds."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal

from detector.core.errors import UNPRINTABLE, InputError

MAX_JSON_BYTES = 2**30  # the annotations of COCO train2017 take 0.45 GiB
MAX_JSON_CONTAINERS = 2**25  # empty ones take over twenty times the memory of their text
MAX_TEXT_BYTES = 2**26  # a list of some millions of image ids
MAX_FLOAT32 = 3.4028235e38  # the largest number that a file of boxes or scores may hold
ASCII_SPACE = " \t\r\n"
"""Characters that are stripped from both ends of a name in a list; a name may have no-break spaces there."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
"""The suffixes of image files, in lower case; a file's own suffix may be in any case."""
LONGEST_NAME = 150  # bytes; file systems allow 255, and prefixes and suffixes are added

_TEMPORARY = re.compile(r"\.(.+)\.\d+\.tmp", re.DOTALL)  # of `atomic_write`: NAME and the process's number
_DEVICE = r"(?:con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]) *(?:\.|\Z)"  # Windows's, whatever the suffix
_RESERVED = re.compile(
    rf"""{UNPRINTABLE.pattern}|[%/\\:*?"<>|]|\A[. ]|[. ]\Z|\A(?={_DEVICE})[a-z]""", re.IGNORECASE
)


def file_name_of(name: str, longest: int = LONGEST_NAME) -> str:
    """Return a name from the data, such as a class or an image id, as a file name or a part of one.

    A character that `printable` escapes, or that Linux, Windows or macOS forbid or treat specially at that
    place, becomes %XX for each byte of its UTF-8, as in URLs; so "CON" becomes "%43ON". Different
    names give different file names. A result over ``longest`` bytes is cut and ends with "%~" and a digest of
    the name; from any other result, `urllib.parse.unquote` restores the name.
    """
    escaped = _RESERVED.sub(lambda match: _percent(match[0]), name)
    whole = escaped.encode()
    if len(whole) <= longest:
        return escaped
    end = "%~" + hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=16).hexdigest()
    return whole[: longest - len(end)].decode(errors="ignore") + end


def _percent(character: str) -> str:
    return "".join(f"%{byte:02X}" for byte in character.encode(errors="surrogatepass"))


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def require_regular(path: Path) -> None:
    """Raise InputError unless ``path`` is a regular file, or a link to one.

    Must be called before a user's file is opened: opening a named pipe can wait forever, and a device can
    have any length.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{str(path)!r}: cannot open the file: {reason}") from None
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "not a regular file")
        raise InputError(f"{path}: is {kind}; expected a regular file")


def refuse_overwriting(written: Iterable[Path], sources: Iterable[Path], fix: str) -> None:
    """Raise InputError where a file that is to be written would take the place of one of ``sources``.

    Links are followed, and a name in another case is recognised where the file system does not distinguish
    it. ``fix`` ends the message.
    """
    known: dict[Path | tuple[int, int], Path] = {}
    for source in sources:
        known.update(dict.fromkeys(_identities(source), source))
    for path in written:
        for identity in _identities(path):
            if identity in known:
                raise InputError(f"{known[identity]}: {path} would overwrite this file; {fix}")


def _identities(path: Path) -> list[Path | tuple[int, int]]:
    """Return what a path has in common with all others of the same file."""
    try:
        found = path.stat()
    except (OSError, ValueError):
        return [path.resolve()]
    return [path.resolve(), (found.st_dev, found.st_ino)]


def is_hidden(path: Path, folder: Path) -> bool:
    """Say whether the name of ``path``, or of a folder between it and ``folder``, begins with a dot.

    macOS, editors and notebooks put such files beside a user's own.
    """
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def file_hash(path: Path) -> str:
    """Return the BLAKE2b hash of the file's content, 32 hexadecimal digits. Raises InputError."""
    require_regular(path)
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot read the file: {error.strerror or error}") from error


@contextmanager
def atomic_write(path: Path, mode: Literal["wb", "w"] = "wb", *, durable: bool = True) -> Iterator[IO[Any]]:
    """Open a temporary file beside ``path`` for writing, and rename it to ``path`` when the block ends.

    A reader of ``path`` sees either the whole old content or the whole new content, even after a crash. With
    ``durable`` the content and then the new name are forced to the disk. If the block raises, ``path`` stays
    as it was and the temporary file is removed. A killed process leaves its temporary file behind,
    ``.NAME.PID.tmp``, which `remove_abandoned` removes. Text ("w") is written as UTF-8, with a lone surrogate
    as ``\\udcXX``.

    Raises:
        InputError: the folder cannot be made or written, or the disk is full; gives the system's reason.
    """
    encoding, errors = (None, None) if mode == "wb" else ("utf-8", "backslashreplace")
    with _replacing(path) as temporary:
        with temporary.open(mode, encoding=encoding, errors=errors) as file:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # until the file is closed
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
        if durable:
            sync_folder(path.parent)


def remove_abandoned(folder: Path, named: Callable[[str], object]) -> None:
    """Remove the temporary files of `atomic_write` in ``folder`` whose writers have ended.

    ``named`` says by the name of the file that was to be written whether it belongs to the caller. A writer
    holds a lock on its file for as long as it lives, on whatever machine; no clock is asked.
    """
    for path in folder.glob(".*.tmp"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and named(match[1]) and _is_abandoned(path):
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _is_abandoned(path: Path) -> bool:
    try:
        handle = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return stat.S_ISREG(os.fstat(handle).st_mode)
    except OSError:
        return False
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` by `atomic_write`, without waiting for the disk."""
    with atomic_write(path, "w", durable=False) as file:
        file.write(text)


def link_or_copy(source: Path, target: Path) -> None:
    """Make ``target`` a hard link to the file ``source``, or a copy where the file system has no links.

    ``target`` changes in one step or not at all, and stays when ``source`` is removed or replaced.

    Raises:
        InputError: the folder cannot be written, or the disk is full.
    """
    with _replacing(target) as temporary:
        if target.exists() and source.samefile(target):
            return  # renaming a link over another link to the same file would do nothing
        try:
            temporary.hardlink_to(source)
        except OSError:
            with source.open("rb") as read, atomic_write(target) as written:
                shutil.copyfileobj(read, written, 2**20)
        else:
            temporary.replace(target)


def make_folder(folder: Path) -> None:
    """Make ``folder`` and its parents where they are missing; InputError if that is impossible."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make the folder {folder}: {error.strerror}") from error


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Provide a temporary path beside ``path``; remove the file there if the block raises."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)  # opening a pipe of this name would wait forever
        yield temporary
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        reason = _system_reason(error, temporary)
        if reason is None:
            raise
        raise InputError(
            f"{path}: cannot write the file: {reason}; free space on the disk or choose another folder"
        ) from error


def _system_reason(error: BaseException | None, temporary: Path) -> str | None:
    """Return the reason of the OSError that caused ``error``, or None if there was none.

    A file other than ``temporary`` is named. Where the disk is full, torch.save raises a RuntimeError about
    its own bookkeeping.
    """
    while isinstance(error, RuntimeError):
        error = error.__context__
    if not isinstance(error, OSError):
        return None
    reason = error.strerror or str(error)
    return reason if error.filename in (None, str(temporary)) else f"{reason}: {error.filename}"


def sync_folder(folder: Path) -> None:
    """Force the names in ``folder`` to the disk: without it a rename can be lost. Windows cannot do it."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_limited_bytes(path: Path, what: str, limit: int) -> bytes:
    """Return the bytes of ``path``; ``what`` is its content's name in messages.

    Raises InputError for a file that cannot be read, or is over ``limit`` bytes.
    """
    require_regular(path)
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot read {what}: {error.strerror}") from None
    if len(content) > limit:
        size = f"{limit >> 20} MiB" if limit >> 20 else f"{limit} bytes"
        raise InputError(f"{path}: larger than {size}, which {what} cannot need; refused")
    return content


def read_short_text(path: Path, what: str, limit: int = MAX_TEXT_BYTES) -> str:
    """Return the text of ``path`` without a byte-order mark; ``what`` is its content's name in messages.

    Raises InputError for a file that cannot be read, is not UTF-8, or is over ``limit`` bytes. The message
    repeats nothing of the content.
    """
    try:
        require_regular(path)
        if path.stat().st_size > limit:
            raise InputError(f"{path}: over {limit} bytes")
        return path.read_text(encoding="utf-8-sig")
    except InputError as error:
        reason = str(error).removeprefix(f"{path}: ")
    except UnicodeDecodeError as error:
        reason = f"byte {error.start} is not UTF-8"
    except OSError as error:
        reason = error.strerror or str(error)
    raise InputError(f"{path}: cannot read {what}: {reason}")


def read_json(path: Path) -> Any:
    """Return the content of the JSON file ``path``.

    Raises InputError for a file that cannot be read, is over 1 GiB, has over 33 million objects and lists, is
    nested too deeply, or is not JSON. NaN and Infinity, which Python's reader accepts, are not JSON.
    """
    content = read_json_bytes(path)
    try:
        return json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {error}; correct or replace the file") from None


def read_json_bytes(path: Path) -> bytes:
    """Return the bytes of the JSON file ``path``, not yet decoded.

    Raises InputError for a file that cannot be read, is over 1 GiB, or has over 33 million objects and lists.
    """
    require_regular(path)
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise InputError(f"{path}: {size} bytes; JSON over {MAX_JSON_BYTES} bytes is refused")
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot read the file: {error.strerror}") from None
    if content.count(b"{") + content.count(b"[") > MAX_JSON_CONTAINERS:
        raise InputError(f"{path}: JSON with over {MAX_JSON_CONTAINERS} objects and lists is refused")
    return content


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
