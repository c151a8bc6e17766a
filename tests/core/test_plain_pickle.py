"""Pickles build plain data and nothing else, and nothing that they name is reached."""

from __future__ import annotations

import pickle
import pickletools
import struct
from typing import Any

import pytest

from detector.core.plain_pickle import Builder, DamagedPickle, PlainUnpickler, Refused, Stateful

VALUES = [
    *(None, True, False, 0, 1, -1, 255, 256, 65_536, -(2**31), 2**40, -(2**70), 0.5, float("inf")),
    *("", "text", "ä\udc80\n", "x" * 300, "y" * 70_000, b"", b"bytes", b"z" * 300),
    *([], [1, [2]], (), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), {}, {"a": [1], 2: ("b", None)}),
]


class _Kept(Stateful):
    def __init__(self) -> None:
        self.state: Any = None

    def set_state(self, state: Any) -> None:
        self.state = state


def read(content: bytes, **names: Any) -> Any:
    return PlainUnpickler(content, {("our", name): value for name, value in names.items()}).load()


@pytest.mark.parametrize("protocol", range(3, 6))
def test_plain_values_come_back(protocol: int) -> None:
    assert read(pickle.dumps(VALUES, protocol)) == pickle.loads(pickle.dumps(VALUES, protocol))


@pytest.mark.parametrize("protocol", range(3))
def test_plain_values_of_older_protocols_come_back(protocol: int) -> None:
    """They write bytes as a call, which is not plain."""
    values = [value for value in VALUES if not isinstance(value, bytes)]
    assert read(pickle.dumps(values, protocol)) == values


def test_texts_of_python_2() -> None:
    long = b"\xe9" * 2000
    content = b"(S'caf\\xe9'\nU\x01\xe9T" + struct.pack("<i", len(long)) + long + b"l."
    short, other, view = read(content)
    assert (short, other) == ("café", "é")
    assert isinstance(view, memoryview)
    assert view == long  # a view of the file and no copy


def test_a_pickle_within_other_bytes() -> None:
    content = b"before" + pickle.dumps([1]) + pickle.dumps("two")
    first = PlainUnpickler(content, {}, 6)
    assert first.load() == [1]
    assert PlainUnpickler(content, {}, first.file.tell()).load() == "two"


def test_only_given_names_are_called_and_take_a_state() -> None:
    made = read(b"cour\nkept\n)RK\x05b.", kept=Builder(_Kept))
    assert made.state == 5
    assert read(b"cour\nadd\n(K\x01K\x02tR.", add=Builder(int.__add__)) == 3
    with pytest.raises(Refused, match=r"it wants to run our\.other"):
        read(b"cour\nother\n.", kept=Builder(_Kept))
    with pytest.raises(Refused, match=r"it wants to run os\.system"):
        read(b"cos\nsystem\n(S'true'\ntR.")


@pytest.mark.parametrize(
    "content",
    [
        b"cour\nkept\n}b.",  # a state for the name itself, which would change it for every later file
        b"cour\nkept\n)R)R.",  # a call of what the call gave
        b"cour\nkept\nK\x01R.",
        b"K\x01}b.",
        b"]K\x01K\x02s.",  # an item of a list
        b"cour\nkept\n)RK\x01a.",
        b"})K\x01s.",  # a tuple as key
        b"(]K\x01d.",
        b"}(K\x01u.",
        b"h\x00.",
        b"t.",
        b"K\x01",
        b"",
    ],
)
def test_senseless_instructions_are_damage(content: bytes) -> None:
    with pytest.raises(DamagedPickle, match=r"byte \d+: "):
        read(content, kept=Builder(_Kept))


def test_every_other_instruction_is_refused() -> None:
    """Among them those that instantiate, look up extensions or persistent ids, and build sets."""
    codes = {one.name: one.code.encode("latin-1") for one in pickletools.opcodes}
    others = {name: code for name, code in codes.items() if code[0] not in PlainUnpickler.dispatch}
    assert others.keys() == {
        *("LONG4", "EMPTY_SET", "ADDITEMS", "FROZENSET", "NEXT_BUFFER", "READONLY_BUFFER"),
        *("EXT1", "EXT2", "EXT4", "INST", "OBJ", "NEWOBJ_EX", "PERSID", "BINPERSID"),
    }
    for code in others.values():
        with pytest.raises(Refused, match="pickle instruction"):
            read(code)


@pytest.mark.slow
@pytest.mark.parametrize("instruction", [b"]", b"}", b"(", b"\x85", b"\x94"])
def test_a_file_cannot_build_many_times_its_size(instruction: bytes) -> None:
    with pytest.raises(Refused, match="more objects than a file of its size needs"):
        read(b")" + instruction * 1_400_000 + b".")
