"""The stack, the memo and the input of the machine that reads pickles; see `safe_pickle`."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Mapping
from typing import Any


class Refused(Exception):
    """The pickle is well-formed and asks for something that is not given."""


class Mark:
    """Where a list of items on the stack begins."""


class Machine:
    def __init__(self, data: mmap.mmap) -> None:
        self.map = data
        self.data = memoryview(data)
        self.position = 0
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        # An array takes about ten objects and a hundred bytes or more.
        self.budget = 1_000_000 + len(data) // 5

    def run(self, instructions: Mapping[int, Callable[[Machine], None]]) -> Any:
        """Follow the program to its end and return what is then on top of the stack."""
        while True:
            code = self.data[self.position]
            self.position += 1
            if code == ord("."):
                return self.stack.pop()
            instruction = instructions.get(code)
            if instruction is None:
                raise Refused(f"it has the instruction {bytes([code])!r}")
            instruction(self)

    def take(self, count: int) -> memoryview:
        """Return the next ``count`` bytes, still in the map."""
        if count < 0 or self.position + count > len(self.data):
            raise ValueError("the file ends too early")
        self.position += count
        return self.data[self.position - count : self.position]

    def number(self, layout: str) -> Any:
        """Return the next number, in ``struct``'s layout."""
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> bytes:
        """Return the next line without its end."""
        end = self.map.find(b"\n", self.position)
        if end < 0:
            raise ValueError("the file ends too early")
        text = bytes(self.data[self.position : end])
        self.position = end + 1
        return text

    def push(self, value: Any) -> None:
        """Put ``value`` on the stack."""
        self.spend()
        self.stack.append(value)

    def spend(self, objects: int = 1) -> None:
        """Count objects against what a file of this size may build."""
        self.budget -= objects
        if self.budget < 0:
            raise Refused("it builds more objects than a file of its size needs")

    def since_mark(self) -> list[Any]:
        """Take what was put on the stack since the last mark, and the mark."""
        place = len(self.stack) - 1
        while not isinstance(self.stack[place], Mark):
            place -= 1
            if place < 0:
                raise ValueError("a mark is missing")
        items = self.stack[place + 1 :]
        del self.stack[place:]
        return items
