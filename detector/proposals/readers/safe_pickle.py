"""Reading pickles of plain data without Python's unpickler.

A pickle is a program, and the standard unpickler runs it: it imports modules and calls what the file says.
This machine knows the instructions that build numbers, texts, lists, tuples and dictionaries and has a fixed
list of names it will look up (`pickled_arrays`), each bound to code of ours. Everything else is refused by
name. It reads a memory map, so that the arrays in a large file stay on the disk until they are used, and it
counts what it builds, so that a small file cannot fill the memory.
"""

from __future__ import annotations

import codecs
import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detector.core.errors import InputError
from detector.core.files import require_regular
from detector.proposals.readers.pickle_machine import Machine, Mark, Refused
from detector.proposals.readers.pickled_arrays import BUILDERS, SHORT, Builder, Stateful

_MAX_INTEGER_BYTES = 16


def read_pickle(source: Path) -> Any:
    """Return what the pickle ``source`` holds; its arrays as `pickled_arrays.PickledArray`.

    Raises InputError for a damaged file and for one that needs anything but plain data.
    """
    require_regular(source)
    try:
        with source.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file has no map
        raise InputError(f"cannot read the pickle {source}: {error}") from error
    machine = Machine(data)
    try:
        return machine.run(_INSTRUCTIONS)
    except Refused as error:
        raise InputError(
            f"{source}: {error}; only numpy arrays, numbers, texts, lists and dictionaries are read"
        ) from error
    except (IndexError, KeyError, TypeError, ValueError, OverflowError, struct.error) as error:
        raise InputError(f"{source} is no readable pickle (byte {machine.position}: {error})") from error


def _constant(value: Any) -> Callable[[Machine], None]:
    return lambda machine: machine.push(value)


def _packed(layout: str) -> Callable[[Machine], None]:
    return lambda machine: machine.push(machine.number(layout))


def _text(length: str) -> Callable[[Machine], None]:
    return lambda machine: machine.push(str(machine.take(machine.number(length)), "utf-8", "surrogatepass"))


def _bytes(length: str) -> Callable[[Machine], None]:
    return lambda machine: machine.push(machine.take(machine.number(length)))


def _old_string(length: str) -> Callable[[Machine], None]:
    """Python 2's ``str``: a name where it is short, an array's content where it is long."""

    def push(machine: Machine) -> None:
        content = machine.take(machine.number(length))
        machine.push(str(content, "latin-1") if len(content) <= SHORT else content)

    return push


def _long(length: str) -> Callable[[Machine], None]:
    def push(machine: Machine) -> None:
        count = machine.number(length)
        if count > _MAX_INTEGER_BYTES:
            raise ValueError(f"an integer of {count} bytes")
        machine.push(int.from_bytes(machine.take(count), "little", signed=True))

    return push


def _integer_line(machine: Machine) -> None:
    text = machine.line().rstrip(b"L")
    machine.push(text == b"01" if text in (b"00", b"01") else int(text))


def _quoted_line(machine: Machine) -> None:
    text = machine.line().strip()
    if len(text) < 2 or text[0] != text[-1] or text[:1] not in (b"'", b'"'):
        raise ValueError("a string without quotes")
    decoded, _ = codecs.escape_decode(text[1:-1])
    machine.push(decoded.decode("latin-1"))


def _tuple_of(count: int) -> Callable[[Machine], None]:
    def push(machine: Machine) -> None:
        if count > len(machine.stack):
            raise IndexError("the stack is empty")
        items = tuple(machine.stack[len(machine.stack) - count :])
        del machine.stack[len(machine.stack) - count :]
        machine.push(items)

    return push


def _into_list(machine: Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if type(target) is not list:
        raise TypeError("items for what is no list")
    target.extend(items)


def _append(machine: Machine) -> None:
    item = machine.stack.pop()
    _into_list(machine, [item])


def _pairs(items: list[Any]) -> dict[Any, Any]:
    if len(items) % 2:
        raise ValueError("a key without a value")
    return dict(zip(items[::2], items[1::2], strict=True))


def _into_dict(machine: Machine, items: list[Any]) -> None:
    target = machine.stack[-1]
    if type(target) is not dict:
        raise TypeError("entries for what is no dictionary")
    target.update(_pairs(items))


def _set_item(machine: Machine) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    _into_dict(machine, [key, value])


def _look_up(machine: Machine, module: Any, name: Any) -> None:
    if (module, name) not in BUILDERS:
        raise Refused(f"it wants to run {module}.{name}")
    machine.push(BUILDERS[module, name])


def _global_line(machine: Machine) -> None:
    module, name = machine.line().decode(), machine.line().decode()
    _look_up(machine, module, name)


def _global_from_stack(machine: Machine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    _look_up(machine, module, name)


def _call(machine: Machine) -> None:
    arguments, builder = machine.stack.pop(), machine.stack.pop()
    if not isinstance(builder, Builder) or type(arguments) is not tuple:
        raise TypeError("a call of what is no function")
    for argument in arguments:  # a call may copy what it is given
        machine.spend(len(argument) // 64 if isinstance(argument, str) else 1)
        machine.spend(len(argument) if isinstance(argument, list) else 1)
    machine.push(builder.build(*arguments))


def _set_state(machine: Machine) -> None:
    state, target = machine.stack.pop(), machine.stack[-1]
    if not isinstance(target, Stateful):
        raise TypeError("a state for what has none")
    target.set_state(state)


def _put(machine: Machine, place: int) -> None:
    machine.spend()
    machine.memo[place] = machine.stack[-1]


def _duplicate(machine: Machine) -> None:
    machine.push(machine.stack[-1])


_INSTRUCTIONS: dict[int, Callable[[Machine], None]] = {
    code[0]: instruction
    for code, instruction in {
        b"\x80": lambda machine: machine.take(1),  # the protocol's number
        b"\x95": lambda machine: machine.take(8),  # the length of a frame
        b"(": lambda machine: machine.push(Mark()),
        b"0": lambda machine: machine.stack.pop(),
        b"1": lambda machine: machine.since_mark(),
        b"2": _duplicate,
        b"N": _constant(None),
        b"\x88": _constant(True),
        b"\x89": _constant(False),
        b"I": _integer_line,
        b"L": _integer_line,
        b"J": _packed("<i"),
        b"K": _packed("<B"),
        b"M": _packed("<H"),
        b"\x8a": _long("<B"),
        b"\x8b": _long("<i"),
        b"F": lambda machine: machine.push(float(machine.line())),
        b"G": _packed(">d"),
        b"S": _quoted_line,
        b"T": _old_string("<i"),
        b"U": _old_string("<B"),
        b"V": lambda machine: machine.push(machine.line().decode("raw-unicode-escape")),
        b"X": _text("<I"),
        b"\x8c": _text("<B"),
        b"\x8d": _text("<Q"),
        b"B": _bytes("<I"),
        b"C": _bytes("<B"),
        b"\x8e": _bytes("<Q"),
        b"\x96": _bytes("<Q"),
        b"]": lambda machine: machine.push([]),
        b"l": lambda machine: machine.push(machine.since_mark()),
        b"a": _append,
        b"e": lambda machine: _into_list(machine, machine.since_mark()),
        b")": _constant(()),
        b"t": lambda machine: machine.push(tuple(machine.since_mark())),
        b"\x85": _tuple_of(1),
        b"\x86": _tuple_of(2),
        b"\x87": _tuple_of(3),
        b"}": lambda machine: machine.push({}),
        b"d": lambda machine: machine.push(_pairs(machine.since_mark())),
        b"s": _set_item,
        b"u": lambda machine: _into_dict(machine, machine.since_mark()),
        b"c": _global_line,
        b"\x93": _global_from_stack,
        b"R": _call,
        b"\x81": _call,
        b"b": _set_state,
        b"g": lambda machine: machine.push(machine.memo[int(machine.line())]),
        b"h": lambda machine: machine.push(machine.memo[machine.number("<B")]),
        b"j": lambda machine: machine.push(machine.memo[machine.number("<I")]),
        b"p": lambda machine: _put(machine, int(machine.line())),
        b"q": lambda machine: _put(machine, machine.number("<B")),
        b"r": lambda machine: _put(machine, machine.number("<I")),
        b"\x94": lambda machine: _put(machine, len(machine.memo)),
    }.items()
}
