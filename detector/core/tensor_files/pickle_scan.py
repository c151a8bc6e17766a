"""The pickle inside a file of ``torch.save``, read as a list of opcodes and never run.

``torch.load(weights_only=True)`` allocates what the pickle asks for, and takes its word for the size of
every storage. `storage_bytes` finds these sizes beforehand, so that they can be compared with the file.
"""

from __future__ import annotations

import io
import pickletools
from typing import Any


class ForeignContent(ValueError):
    """The file holds more than plain values and plain tensors; the message says what, without the file."""


STORAGES = {
    "torch DoubleStorage": 8,
    "torch FloatStorage": 4,
    "torch HalfStorage": 2,
    "torch BFloat16Storage": 2,
    "torch LongStorage": 8,
    "torch IntStorage": 4,
    "torch ShortStorage": 2,
    "torch CharStorage": 1,
    "torch ByteStorage": 1,
    "torch BoolStorage": 1,
    "torch ComplexFloatStorage": 8,
    "torch ComplexDoubleStorage": 16,
    "torch.storage UntypedStorage": 1,
}
"""Bytes of an element of each kind of storage."""
BUILDERS = frozenset(
    {
        "collections OrderedDict",
        "torch Size",
        "torch._utils _rebuild_parameter",
        "torch._utils _rebuild_tensor",
        "torch._utils _rebuild_tensor_v2",
    }
)
_STRINGS = {"BINUNICODE", "SHORT_BINSTRING", "BINSTRING"}
_WHOLE = {"BININT", "BININT1", "BININT2", "LONG1"}
_GETS, _PUTS = {"BINGET", "LONG_BINGET"}, {"BINPUT", "LONG_BINPUT"}
_OTHERS = {
    *("PROTO", "STOP", "EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "NEWTRUE"),
    *("NEWFALSE", "BINFLOAT", "APPEND", "APPENDS", "SETITEM", "SETITEMS", "REDUCE", "BUILD"),
}


def storage_bytes(pickled: bytes | io.BytesIO) -> dict[str, int]:
    """Return the bytes of each storage by its key; a stream is read up to the pickle's end.

    Raises:
        ForeignContent: a name or a way of writing that plain values and tensors do not need.
        ValueError: no whole pickle.
    """
    scan = _Scan()
    for opcode, argument, _ in pickletools.genops(pickled):
        scan.step(opcode.name, argument)
    return scan.sizes


class _Unknown:
    """A value that is no text, number or name."""


class _Scan:
    """Follows texts, numbers and names through the memo, which is all that describes a storage."""

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}
        self.memo: dict[int, Any] = {}
        self.last: Any = _Unknown
        self.since_mark: list[Any] | None = None  # None: something other than texts, numbers and names
        self.tuple: list[Any] | None = None

    def step(self, name: str, argument: Any) -> None:
        if name in _PUTS:
            self.memo[argument] = self.last
        elif name in _STRINGS or name in _WHOLE or name == "NONE":
            self._push(argument)
        elif name in _GETS:
            self._push(self.memo.get(argument, _Unknown))
        elif name == "GLOBAL":
            self._push(_known_name(argument))
        elif name == "BINPERSID":
            self._storage()
        elif name in ("MARK", "TUPLE"):
            self.tuple = self.since_mark if name == "TUPLE" else None
            self.since_mark = [] if name == "MARK" else None
            self.last = _Unknown
        elif name in _OTHERS:
            self.last, self.since_mark, self.tuple = _Unknown, None, None
        else:
            raise ForeignContent(f"it is written in another way than torch.save's (pickle's {name})")

    def _push(self, value: Any) -> None:
        self.last, self.tuple = value, None
        if self.since_mark is not None:
            self.since_mark.append(value)

    def _storage(self) -> None:
        match self.tuple:
            case ["storage", str(kind), str(key), str(), int(count), *rest] if (
                kind in STORAGES and rest in ([], [None]) and 0 <= count < 2**48
            ):
                size = count * STORAGES[kind]
                if self.sizes.setdefault(key, size) != size:
                    raise ForeignContent("one of its storages has two sizes")
            case _:
                raise ForeignContent("it describes a storage in another way than torch.save does")
        self.last, self.since_mark, self.tuple = _Unknown, None, None


def _known_name(written: str) -> str:
    if written in STORAGES or written in BUILDERS:
        return written
    if written.startswith("torch._utils _rebuild") or written.startswith("torch Q"):
        raise ForeignContent("it holds tensors that are sparse, quantized or without values")
    raise ForeignContent(f"it wants to run {written.replace(' ', '.')[:80]!a}")
