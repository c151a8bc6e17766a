"""Files in and out: written whole or not at all, read within bounds."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from detector.core.errors import UNPRINTABLE, InputError

MAX_JSON_BYTES = 2**30  # the annotations of COCO train2017 take 0.45 GiB
MAX_JSON_CONTAINERS = 2**25  # empty ones take over twenty times the memory of their text
MAX_TEXT_BYTES = 2**26  # a list of some millions of image ids
ASCII_SPACE = " \t\r\n"
"""What is cut off the ends of a listed name; a no-break space may be a part of it."""
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
"""The endings by which image files are known, in any case of their letters."""
LONGEST_NAME = 150  # bytes; with what stands before and behind it, the file systems' 255 are not reached

_DEVICE = r"(?:con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³]) *(?:\.|\Z)"  # Windows's, whatever the suffix
_RESERVED = re.compile(
    rf"""{UNPRINTABLE.pattern}|[%/\\:*?"<>|]|\A[. ]|[. ]\Z|\A(?={_DEVICE})[a-z]""", re.IGNORECASE
)


def file_name_of(name: str, longest: int = LONGEST_NAME) -> str:
    """Return a name from the data, such as a class or an image id, as a file name or a part of one.

    Characters that `printable` escapes, and those that Linux, Windows or macOS refuse or read as something
    else where they stand, become %XX for each byte of their UTF-8, as in addresses of the web; so "CON" is
    "%43ON". Different names give different file names. A name that takes over ``longest`` bytes ends with
    "%~" and a digest of the whole name; every shorter one comes back from `urllib.parse.unquote`.
    """
    escaped = _RESERVED.sub(lambda found: _percent(found[0]), name)
    whole = escaped.encode()
    if len(whole) <= longest:
        return escaped
    end = "%~" + hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=16).hexdigest()
    return whole[: longest - len(end)].decode(errors="ignore") + end


def _percent(letter: str) -> str:
    return "".join(f"%{byte:02X}" for byte in letter.encode(errors="surrogatepass"))


_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe (FIFO)",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def require_regular(path: Path) -> None:
    """Raise InputError unless ``path`` is a regular file; links are followed.

    To be called before a user's file is opened: a named pipe would be waited for without end, and a device
    can have any length.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # the last: a null character, which no file system takes
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{str(path)!r}: cannot open the file: {reason}") from None
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "no regular file")
        raise InputError(f"{path}: is {kind}; expected a regular file, nothing else is opened")


def is_hidden(path: Path, folder: Path) -> bool:
    """Say whether ``path``, which lies in ``folder`` or below, or a folder between them begins with a dot.

    So do the files that macOS, editors and notebooks put beside a user's own.
    """
    return any(part.startswith(".") for part in path.relative_to(folder).parts)


def write_text(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` through a temporary neighbour, making the folder if need be.

    Raises InputError if the folder or the disk refuses; ``path`` is then as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # for surrogates
        temporary.replace(path)
    except OSError as error:
        if temporary.is_file():
            temporary.unlink()
        raise InputError(f"cannot write {path}: {error.strerror or error}; choose another folder") from error


def read_short_text(path: Path, what: str) -> str:
    """Return the text of ``path``, ``what`` for messages, without a byte-order mark.

    Raises InputError for a file that cannot be read, is no UTF-8, or is over 64 MiB.
    """
    try:
        require_regular(path)
    except InputError as error:
        raise InputError(f"{path}: cannot read {what}: {str(error).removeprefix(f'{path}: ')}") from None
    try:
        if path.stat().st_size > MAX_TEXT_BYTES:
            raise InputError(f"{path}: over {MAX_TEXT_BYTES} bytes, too large for {what}")
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot read {what}: {error}") from None


def read_json(path: Path) -> Any:
    """Return what the JSON file holds.

    Raises InputError for a file that cannot be read, is over 1 GiB or has over 33 million objects and lists,
    is nested too deep, or is not JSON (NaN and Infinity, which Python's reader would let through, are not).
    """
    require_regular(path)
    try:
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise InputError(f"{path}: {size} bytes; JSON over {MAX_JSON_BYTES} bytes is refused")
        content = path.read_bytes()
        if content.count(b"{") + content.count(b"[") > MAX_JSON_CONTAINERS:
            raise InputError(f"{path}: JSON with over {MAX_JSON_CONTAINERS} objects and lists is refused")
        return json.loads(content, parse_constant=_refuse_constant)
    except OSError as error:
        raise InputError(f"{path}: cannot read the file: {error.strerror}") from None
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON: {error}; correct or replace the file") from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")
