"""Files of ``torch.save``, checkpoints and weights: read without running code, verified, within bounds.

Before torch allocates anything, the archive's checksums are compared, compressed archives are refused, and
every storage is checked to be as large as its part of the file. Afterwards every tensor is checked to lie
within its storage. So no file takes many times its size in memory.
"""

from __future__ import annotations

import hashlib
import itertools
import pickle
import re
import struct
import zipfile
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from detector.core.plain_pickle import (
    Builder,
    DamagedPickle,
    Instructions,
    PlainUnpickler,
    Refused,
    Stateful,
    from_pairs,
)

MAX_PICKLE = 1 << 26
"""Bytes of names, numbers and shapes; the tensors' values are not included."""
MAX_VALUES = 500_000
MAX_DEPTH = 64
SHARED = 4
"""Tensors may share storages: the sum of their sizes may be this many times the size of the file."""
_LEGACY_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # torch's magic number, pickled
_LEGACY_PICKLES = 5  # magic number, protocol, system, content, keys of the storages that follow
_END, _END_64, _LOCATOR = 22, 56, 20
"""Bytes of the records at the end of an archive."""
MAX_MEMBERS = 200_000
_ENCRYPTED = 0x1


class DamagedFile(ValueError):
    """The bytes of a file are not what ``torch.save`` writes; the message says how they differ."""


class ForeignContent(ValueError):
    """The file holds more than plain values and plain tensors; the message says what."""


def read_tensor_file(path: Path, *, legacy: bool = False) -> Any:
    """Return what ``path`` holds, on the CPU; ``legacy`` also reads the form of torch before 1.6.

    Raises:
        DamagedFile: the file is cut off, or its bytes have changed. The legacy form has no checksums except
            the one in the names of published files (``resnet18-f37072fd.pth``).
        ForeignContent: the file holds more than plain values and tensors, or would take many times its size
            in memory.
        OSError: the file cannot be read.
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
        except RuntimeError as error:  # from torch's own reader of archives
            raise DamagedFile(_first_line(error)) from None
        except Exception as error:  # torch raises many kinds for content that it does not accept
            raise ForeignContent(_first_line(error)) from None
    _check_tensors(content, size)
    return content


def _first_line(error: Exception) -> str:
    """Return torch's reason without its advice to allow the file to run code."""
    if "weights_only" in str(error):
        return "it holds more than plain values and tensors"
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


def _check_archive(file: BinaryIO) -> None:
    """Compare all checksums, and the storages in the pickle with the members of the archive.

    The archive's index must agree with the places of its parts, so that all readers of zip files see the same
    members.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            _check_end(file, archive)
            _check_packing(archive.infolist())
            damaged = archive.testzip()
            if damaged is not None:
                raise DamagedFile(f"its part {damaged!r:.100} is damaged")
            members = _by_name(archive.infolist())
            pickle_member = members.get("data.pkl")
            pickled = b""
            if pickle_member is not None and pickle_member.file_size <= MAX_PICKLE:
                pickled = archive.read(pickle_member)
    except (DamagedFile, MemoryError):
        raise
    except Exception as error:  # zipfile raises many kinds for damaged archives
        raise DamagedFile(f"{error!s:.200}") from None
    if not pickled:
        raise ForeignContent("it is not an archive that torch.save wrote")
    for key, size in _scan(pickled)[0].items():
        if f"data/{key}" not in members or members[f"data/{key}"].file_size != size:
            raise ForeignContent("it describes tensors of other sizes than it holds")


def _check_legacy(file: BufferedReader, name: str) -> None:
    """Compare the file's length with its storages, each with 8 bytes for its length, after the pickles."""
    file.seek(0)
    head, end, storages = file.read(MAX_PICKLE), 0, 0
    for _ in range(_LEGACY_PICKLES):
        sizes, end = _scan(head, end)
        storages += sum(size + 8 for size in sizes.values())
    if end + storages != file.seek(0, 2):
        raise DamagedFile("it is longer or shorter than the tensors that it describes")
    digest = re.search(r"-([0-9a-f]{8,64})\.pth?$", name)
    if digest is not None:
        file.seek(0)
        if not hashlib.file_digest(file, "sha256").hexdigest().startswith(digest[1]):
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
    """Yield every value within dicts, lists and tuples as (place, value), where a place is "key.key.key".

    Raises:
        ForeignContent: too many values, or values nested too deeply, as in a list that holds itself.
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


class _Element(NamedTuple):
    """The type of a storage: the bytes of one of its elements."""

    size: int


class _OrderedDict(dict[Any, Any], Stateful):
    """A state dict; its state is torch's own record of versions."""

    def set_state(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise TypeError("a dictionary's state is not a dictionary")


_ELEMENT_BYTES = {
    **{"DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8},
    **{"IntStorage": 4, "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1},
    **{"ComplexFloatStorage": 8, "ComplexDoubleStorage": 16},
}
_NAMES = {
    **{("torch", name): _Element(size) for name, size in _ELEMENT_BYTES.items()},
    ("torch.storage", "UntypedStorage"): _Element(1),
    ("collections", "OrderedDict"): Builder(lambda pairs=(): _OrderedDict(from_pairs(pairs))),
    ("torch", "Size"): Builder(lambda _: None),
    **{
        ("torch._utils", name): Builder(lambda *_: None)
        for name in ("_rebuild_parameter", "_rebuild_tensor", "_rebuild_tensor_v2")
    },
}
"""The names that a file of torch.save may look up. While the file is checked, every tensor is None."""


class _TensorPickle(PlainUnpickler):
    """Reads what torch.save pickles without making tensors, and notes the ``sizes`` of the storages in bytes.

    `torch.load` with ``weights_only`` follows the same pickle afterwards. It trusts the pickle about the
    size of every storage, and would overflow the stack on keys that this reader refuses.
    """

    dispatch = Instructions.named(
        "PROTO STOP MARK NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 BINFLOAT BINUNICODE BINSTRING "
        "SHORT_BINSTRING EMPTY_DICT EMPTY_LIST EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS SETITEM "
        "SETITEMS BINGET LONG_BINGET BINPUT LONG_BINPUT GLOBAL REDUCE BUILD BINPERSID",
        {pickle.BINPERSID[0]: pickle._Unpickler.dispatch[pickle.BINPERSID[0]], **PlainUnpickler.dispatch},
    )

    def __init__(self, data: bytes, start: int = 0) -> None:
        super().__init__(data, _NAMES, start)
        self.sizes: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch._utils" and name.startswith("_rebuild") and (module, name) not in _NAMES:
            raise Refused("it holds tensors that are sparse, quantized or without values")
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> None:
        match pid:
            case ("storage", _Element(size=size), str(key), str(), int(count), *rest) if (
                rest in ([], [None]) and 0 <= count < 2**48
            ):
                if self.sizes.setdefault(key, count * size) != count * size:
                    raise Refused("one of its storages has two sizes")
            case _:
                raise Refused("it describes a storage in another way than torch.save does")


def _scan(data: bytes, start: int = 0) -> tuple[dict[str, int], int]:
    """Return the bytes of each storage by its key for the pickle at ``start``, and where that pickle ends."""
    unpickler = _TensorPickle(data, start)
    try:
        unpickler.load()
    except Refused as error:
        raise ForeignContent(str(error)) from None
    except DamagedPickle:
        raise DamagedFile("its list of contents is not readable") from None
    return unpickler.sizes, unpickler.file.tell()


def _check_end(file: BinaryIO, archive: zipfile.ZipFile) -> None:
    """Refuse an archive whose index is not at the end of the file, at the place that its records give."""
    size = file.seek(0, 2)
    file.seek(max(size - _END - _LOCATOR - _END_64, 0))
    tail = file.read()
    end = struct.unpack("<4s4H2LH", tail[-_END:])
    if end[0] != b"PK\5\6" or end[7]:
        raise DamagedFile("the file does not end where its archive does")
    entries, length, start, behind = end[4], end[5], end[6], size - _END
    locator = tail[-_END - _LOCATOR : -_END]
    if locator[:4] == b"PK\6\7":
        behind -= _LOCATOR + _END_64
        wide = struct.unpack("<4sQ2H2L4Q", tail[-_END - _LOCATOR - _END_64 : -_END - _LOCATOR])
        entries, length, start = wide[7], wide[8], wide[9]
        if wide[0] != b"PK\6\6" or struct.unpack("<LQL", locator[4:])[1] != behind:
            raise DamagedFile("the records at the archive's end do not agree")
    if archive.start_dir != start or start + length != behind or entries != len(archive.infolist()):
        raise DamagedFile("the archive's index is not where it should be")


def _check_packing(members: list[zipfile.ZipInfo]) -> None:
    if len(members) > MAX_MEMBERS:
        raise DamagedFile(f"an archive of {len(members)} parts; over {MAX_MEMBERS} is refused")
    for member in members:
        if member.flag_bits & _ENCRYPTED:
            raise DamagedFile("its archive is encrypted")
        if member.compress_type != zipfile.ZIP_STORED:
            raise DamagedFile("its archive is compressed, which torch.save never does")
        if member.compress_size != member.file_size:
            raise DamagedFile("the sizes in the archive's index do not agree")
    ordered = sorted(members, key=lambda member: member.header_offset)
    for before, after in itertools.pairwise(ordered):
        if before.header_offset + before.file_size > after.header_offset:
            raise DamagedFile("parts of the archive overlap")


def _by_name(members: list[zipfile.ZipInfo]) -> dict[str, zipfile.ZipInfo]:
    """Return the members by their name without the first folder.

    torch takes the first member's folder for all and ignores the case of names.
    """
    folder = members[0].filename.partition("/")[0] + "/" if members else ""
    named = {member.filename.removeprefix(folder): member for member in members}
    if len({name.casefold() for name in named}) != len(members):
        raise DamagedFile("two parts of the archive have the same name")
    if any(not member.filename.startswith(folder) for member in members):
        raise DamagedFile("the parts of the archive lie in different folders")
    return named
