"""Files of ``torch.save``, checkpoints and weights: read without running code, verified, within bounds.

Before torch allocates anything, the archive's checksums are compared, compressed archives are refused, and
every storage is as large as the part of the file that it comes from. Afterwards every tensor lies within its
storage, so that no file becomes many times its size in memory.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from detector.core.tensor_files.archive import DamagedFile, checked_members, read_member
from detector.core.tensor_files.pickle_scan import ForeignContent, storage_bytes

MAX_PICKLE = 1 << 26
"""Bytes of names, numbers and shapes; the tensors' values come on top."""
MAX_VALUES = 500_000
MAX_DEPTH = 64
SHARED = 4
"""Tensors may share storages; all together they may be this many times as large as the file."""
_LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's magic number, pickled
_LEGACY_PICKLES = 5  # magic number, protocol, system, content, keys of the storages that follow


def read_tensor_file(path: Path, *, legacy: bool = False) -> Any:
    """Return what ``path`` holds, on the CPU; ``legacy`` also reads the form of torch before 1.6.

    Raises:
        DamagedFile: cut off, or with bytes that are not those that were written. The legacy form has no
            checksums but the one that published files carry in their name (``resnet18-f37072fd.pth``).
        ForeignContent: more than plain values and tensors, or what needs many times the memory of the file.
        OSError: cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(len(_LEGACY_START))
        if legacy and start == _LEGACY_START:
            _check_legacy(file, path.name)
        else:
            _check_archive(file)
        size = file.seek(0, 2)
        file.seek(0)
        try:
            content = torch.load(file, map_location="cpu", weights_only=True)
        except RuntimeError as error:  # of its own reader of archives
            raise DamagedFile(_first_line(error)) from None
        except Exception as error:  # torch raises many kinds for content that it does not take
            raise ForeignContent(_first_line(error)) from None
    _check_tensors(content, size)
    return content


def _first_line(error: Exception) -> str:
    """Return torch's reason in short, without its advice to run what the file holds."""
    if "weights_only" in str(error):
        return "it holds more than plain values and tensors"
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


def _check_archive(file: BinaryIO) -> None:
    """Compare all checksums, and the storages that the pickle describes with the archive's members."""
    members = checked_members(file)
    if not 0 < members.get("data.pkl", 0) <= MAX_PICKLE:
        raise ForeignContent("its archive is not one of torch.save")
    for key, size in _sizes(read_member(file, "data.pkl")).items():
        if members.get(f"data/{key}") != size:
            raise ForeignContent("it describes tensors of other sizes than it holds")


def _sizes(pickled: bytes | io.BytesIO) -> dict[str, int]:
    try:
        return storage_bytes(pickled)
    except ForeignContent:
        raise
    except Exception:  # pickletools raises many kinds for what is no pickle
        raise DamagedFile("its list of contents is not readable") from None


def _check_legacy(file: BinaryIO, name: str) -> None:
    """The storages follow the pickles, each after a number of 8 bytes, up to the end of the file."""
    file.seek(0)
    head = io.BytesIO(file.read(MAX_PICKLE))
    sizes = [_sizes(head) for _ in range(_LEGACY_PICKLES)][3]
    expected = head.tell() + sum(size + 8 for size in sizes.values())
    if expected != file.seek(0, 2):
        raise DamagedFile("it is longer or shorter than the tensors that it describes")
    digest = re.search(r"-([0-9a-f]{8,64})\.pth?$", name)
    if digest is not None:
        file.seek(0)
        found = hashlib.sha256()
        while block := file.read(1 << 22):
            found.update(block)
        if not found.hexdigest().startswith(digest[1]):
            raise DamagedFile("its checksum is not the one in its name; download it again")


def _check_tensors(content: Any, file_size: int) -> None:
    total = 0
    for place, value in walk(content):
        if not isinstance(value, Tensor) or value.layout != torch.strided or value.device.type != "cpu":
            continue
        size = value.numel() * value.element_size()
        total += size
        if size > value.untyped_storage().nbytes() or total > SHARED * file_size:
            raise ForeignContent(
                f"{place!a:.80} has the shape {str(tuple(value.shape))[:80]}, which is more than the file "
                "holds"
            )


def walk(content: Any) -> Iterator[tuple[str, Any]]:
    """Give every value within dicts, lists and tuples, with its keys joined by points.

    Raises:
        ForeignContent: too many values, or nested too deeply; a list that holds itself is both.
    """
    waiting: list[tuple[str, Any, int]] = [("", content, 0)]
    count = 0
    while waiting:
        place, value, depth = waiting.pop()
        count += 1
        if count + len(waiting) > MAX_VALUES or depth > MAX_DEPTH:
            raise ForeignContent("it holds too many values, or they are nested too deeply")
        yield place, value
        front = f"{place}." if place else ""
        if isinstance(value, dict):
            waiting += [(f"{front}{key!s:.100}", item, depth + 1) for key, item in value.items()]
        elif isinstance(value, list | tuple):
            waiting += [(f"{front}{number}", item, depth + 1) for number, item in enumerate(value)]
