"""Pickles of plain data, read without running anything that they name.

A pickle is a program: an unpickler imports modules and calls what the file says. `PlainUnpickler` is the
standard library's unpickler that is written in Python, with three changes:

- It follows only the instructions that build numbers, texts, bytes, lists, tuples and dictionaries.
- A name in the pickle is looked up in a table of this project. A name that is not in it is refused.
- It counts what it builds, so that a small file cannot fill the memory, and long byte strings stay views of
  the file. The faster unpickler, written in C, allocates whatever size a file announces.
"""

from __future__ import annotations

import io
import mmap
import pickle
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

SHORT = 1024
"""Python 2 has one type for texts and bytes: up to this length it is read as text, beyond it as bytes."""
_KEYS = (str, int, float, bool, bytes, type(None))
"""The allowed types of keys. Hashing a tuple within a million tuples would overflow the stack."""
_FAULTS = (
    *(AttributeError, EOFError, LookupError, OverflowError, RecursionError, TypeError, ValueError),
    *(struct.error, pickle.UnpicklingError),
)


class Refused(Exception):
    """A pickle asks for something other than plain data; the message says what, without naming a file."""


class DamagedPickle(ValueError):
    """The bytes are not a complete pickle; the message says where and why, without naming a file."""


@dataclass(frozen=True, slots=True)
class Builder:
    """A function of this project that a pickle may call by a name."""

    build: Callable[..., Any]


class Stateful:
    """An object that a pickle first creates by a call and then fills with content."""

    def set_state(self, state: Any) -> None:
        """Take the content; raises ValueError or TypeError for unexpected content."""
        raise NotImplementedError


class Instructions(dict[int, Callable[[Any], None]]):
    """The functions that follow the instructions of a pickle, by the byte of the instruction."""

    def __missing__(self, code: int) -> Callable[[Any], None]:
        raise Refused(f"it has the pickle instruction {bytes([code])!r}")

    @classmethod
    def named(cls, names: str, known: Mapping[int, Callable[[Any], None]]) -> Instructions:
        """Return the ``known`` functions for the instructions with these ``names`` in the module pickle."""
        return cls({code: known[code] for code in (getattr(pickle, name)[0] for name in names.split())})


class PlainUnpickler(pickle._Unpickler):
    """Reads the pickle that begins at ``start`` of ``data``; after `load`, ``file.tell()`` is its end.

    ``names`` are the objects that the pickle may look up, by module and name.
    """

    stack: list[Any]
    read: Callable[[int], bytes]
    readline: Callable[[], bytes]
    pop_mark: Callable[[], list[Any]]

    def __init__(self, data: bytes | mmap.mmap, names: Mapping[tuple[str, str], Any], start: int = 0) -> None:
        self.file = io.BytesIO(data) if isinstance(data, bytes) else data
        self.file.seek(start)
        super().__init__(self.file)
        self._view, self._names = memoryview(data), names
        self._budget = 1_000_000 + len(data) // 5  # an array takes about ten objects and over a hundred bytes

    def load(self) -> Any:
        """Return what the pickle holds.

        Raises:
            Refused: it asks for more than plain data, or for more objects than a file of its size needs.
            DamagedPickle: it is cut off, or its instructions make no sense.
        """
        try:
            return super().load()
        except _FAULTS as error:
            raise DamagedPickle(f"byte {self.file.tell()}: {error}") from error

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._names:
            raise Refused(f"it wants to run {f'{module}.{name}':.100}")
        return self._names[module, name]

    def spend(self, objects: int) -> None:
        """Count objects that take far more memory than the instructions that build them."""
        self._budget -= objects
        if self._budget < 0:
            raise Refused("it builds more objects than a file of its size needs")

    def _decode_string(self, value: bytes) -> str:
        return value.decode("latin-1")

    def _integer(self) -> None:
        text = self.readline().rstrip(b"L\n")
        self.stack.append(text == b"01" if text in (b"00", b"01") else int(text))

    def _take(self, layout: str) -> Any:
        """Return a view of the bytes that follow their number, which is packed in ``layout``."""
        (count,) = struct.unpack(layout, self.read(struct.calcsize(layout)))
        start, end = self.file.tell(), self.file.tell() + count
        if not start <= end <= len(self._view):
            raise EOFError("the file ends too early")
        self.file.seek(end)
        return self._view[start:end]

    def _old_string(self) -> None:
        content = self._take("<i")
        self.stack.append(self._decode_string(bytes(content)) if len(content) <= SHORT else content)

    def _call(self) -> None:
        arguments, builder = self.stack.pop(), self.stack.pop()
        if not isinstance(builder, Builder) or type(arguments) is not tuple:
            raise TypeError("it calls something that is not a function")
        for argument in arguments:  # which the function may copy
            self.spend(len(argument) // 64 if isinstance(argument, str) else 1)
            self.spend(len(argument) if isinstance(argument, list) else 1)
        self.stack.append(builder.build(*arguments))

    def _set_state(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if not isinstance(target, Stateful):
            raise TypeError("a state for something that has none")
        target.set_state(state)

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._fill([key, value])

    def _dictionary(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self._fill(items)

    def _fill(self, items: list[Any]) -> None:
        self.spend(len(items) // 2)
        fill(self.stack[-1], items)

    dispatch = Instructions.named(
        "PROTO STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 "
        "FLOAT BINFLOAT STRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 "
        "SHORT_BINBYTES EMPTY_LIST LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 "
        "EMPTY_DICT GLOBAL STACK_GLOBAL GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE",
        pickle._Unpickler.dispatch,
    )
    dispatch |= {
        pickle.FRAME[0]: lambda self: self.read(8),
        pickle.INT[0]: _integer,
        pickle.LONG[0]: _integer,
        pickle.BINSTRING[0]: _old_string,
        pickle.BINBYTES[0]: lambda self: self.stack.append(self._take("<I")),
        pickle.BINBYTES8[0]: lambda self: self.stack.append(self._take("<Q")),
        pickle.BYTEARRAY8[0]: lambda self: self.stack.append(self._take("<Q")),
        pickle.REDUCE[0]: _call,
        pickle.NEWOBJ[0]: _call,
        pickle.BUILD[0]: _set_state,
        pickle.SETITEM[0]: _set_item,
        pickle.SETITEMS[0]: lambda self: self._fill(self.pop_mark()),
        pickle.DICT[0]: _dictionary,
    }


def fill(target: Any, items: list[Any]) -> None:
    """Put ``items``, keys and values in turn, into the dictionary ``target``."""
    if not isinstance(target, dict) or not all(type(key) in _KEYS for key in items[::2]):
        raise TypeError("entries of something that is not a dictionary, or keys that are not plain values")
    target.update(zip(items[::2], items[1::2], strict=True))


def from_pairs(pairs: Any = ()) -> dict[Any, Any]:
    """Return a dictionary of ``pairs`` of keys and values, as Python 2 writes an OrderedDict."""
    made: dict[Any, Any] = {}
    for key, value in pairs:
        fill(made, [key, value])
    return made


def _counted(instruction: Callable[[Any], None]) -> Callable[[Any], None]:
    def follow(unpickler: PlainUnpickler) -> None:
        unpickler.spend(1)
        instruction(unpickler)

    return follow


# The other instructions take at most about fifteen bytes of memory per byte of the file.
for _code in Instructions.named(
    "MARK EMPTY_LIST LIST TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT REDUCE NEWOBJ BUILD "
    "PUT BINPUT LONG_BINPUT MEMOIZE",
    PlainUnpickler.dispatch,
):
    PlainUnpickler.dispatch[_code] = _counted(PlainUnpickler.dispatch[_code])
