"""Results that take long to compute, kept beside the proposals that they were computed from.

A result is a JSON file in the folder of the store, ``kept_KIND_DIGEST.json``. The digest is of everything
that the result depends on, so that a file never has to be brought up to date, and of the version of this
format. The file repeats these facts and has a checksum. The store itself does not need the files: they may
be copied with it or deleted.
"""

from __future__ import annotations

import hashlib
import json
import re
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from detector.core.distributed import main_first
from detector.core.errors import InputError
from detector.core.files import atomic_write, read_json, remove_abandoned
from detector.core.progress import note

Result = TypeVar("Result")
_VERSION = 1
_MOST = 32  # files in one folder; each training config with its own limits needs three
_NAME = re.compile(r"kept_\w+_[0-9a-f]{32}\.json")
_noted: set[Path] = set()


@main_first()
def kept(
    folder: Path,
    kind: str,
    depends_on: Callable[[], Mapping[str, Any]],
    compute: Callable[[], Any],
    read: Callable[[Any], Result],
) -> Result:
    """Return the result that ``folder`` keeps, or what ``compute`` returns, which is then kept.

    ``depends_on`` returns the facts that the result depends on, all of them, as JSON can hold them; a result
    is not kept if they change while it is computed. ``compute`` returns what JSON can hold, and ``read``
    turns that into the result; it raises ValueError, TypeError or KeyError for anything else. A damaged file
    is reported by one note and replaced. Where ``folder`` cannot be written, one note says so.

    Where there are several processes, all of them call this alike: rank 0 computes, and the others read.
    """
    given = depends_on()
    facts = {"kind": kind, "version": _VERSION, **given}
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True).encode(), digest_size=16).hexdigest()
    path = folder / f"kept_{kind}_{digest}.json"
    remove_abandoned(folder, _NAME.fullmatch)
    if path.exists():
        try:
            return read(_load(path, facts))
        except (InputError, ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
            note(f"{path} is damaged ({error}): its content is computed again")
    content = compute()
    if depends_on() == given:
        _save(path, facts, content)
    return read(content)


def _load(path: Path, facts: Mapping[str, Any]) -> Any:
    whole = read_json(path)
    if not isinstance(whole, dict) or set(whole) != {"facts", "result", "crc32"}:
        raise ValueError("other keys than facts, result and crc32")
    if whole["crc32"] != _checksum(whole["facts"], whole["result"]):
        raise ValueError("its checksum does not fit")
    if json.dumps(whole["facts"], sort_keys=True) != json.dumps(facts, sort_keys=True):
        raise ValueError("it is of other data")
    return whole["result"]


def _save(path: Path, facts: Mapping[str, Any], result: Any) -> None:
    content = {"facts": facts, "result": result, "crc32": _checksum(facts, result)}
    try:
        with atomic_write(path, "w", durable=False) as file:
            file.write(json.dumps(content) + "\n")
    except InputError as error:
        if path.parent not in _noted:
            _noted.add(path.parent)
            note(f"recall and target statistics are computed again at each start: {error}")
        return
    _remove_old(path)


def _remove_old(written: Path) -> None:
    """Remove the oldest files beside the one just ``written``, which stays whatever the clock says."""
    with suppress(OSError):
        others = [path for path in written.parent.iterdir() if _NAME.fullmatch(path.name) and path != written]
        by_age = sorted(others, key=lambda path: path.stat().st_mtime_ns)
        for path in by_age[: max(len(by_age) + 1 - _MOST, 0)]:
            path.unlink(missing_ok=True)


def _checksum(facts: Any, result: Any) -> int:
    return zlib.crc32(json.dumps([facts, result], sort_keys=True).encode())
