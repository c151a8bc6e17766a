"""Reads JSON value by value from a text file of any length, with a window of it in memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from detector.core.files import require_regular
from detector.proposals.readers.raw_images import clear_errors

_BLOCK = 1 << 20
MAX_VALUE = 64 << 20
"""Characters of one value that is read as a whole: the annotations of one image, with masks in text."""
_BLANK = " \t\n\r"
_SKIPPED = re.compile(r'["\[\]{}]')
_QUOTED = re.compile(r'["\\]')
_SCALAR = re.compile(r"[^\s,\[\]{}:\"]+")


class JsonText:
    """A window on a text file, which moves forward as JSON values are taken from it.

    Every method raises ValueError where the text is not what it needs, and RecursionError for a value that is
    nested too deeply.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._decoder = json.JSONDecoder()
        self._window = ""
        self._place = 0

    def next_character(self) -> str:
        """Return the next character that is not a blank, without taking it; "" at the end of the file."""
        while True:
            while self._place < len(self._window) and self._window[self._place] in _BLANK:
                self._place += 1
            if self._place < len(self._window):
                return self._window[self._place]
            if not self._more():
                return ""

    def expect(self, character: str) -> None:
        """Take ``character``, the next one that is not a blank."""
        if (following := self.next_character()) != character:
            raise ValueError(f"{character!r} expected, not {following!r}")
        self._place += 1

    def element(self) -> Any:
        """Take one object."""
        if self.next_character() != "{":
            raise ValueError(f"an object expected, not {self.next_character()!r}")
        return self.value()

    def value(self) -> Any:
        """Take one value of any kind."""
        if not self._is_long():
            return self._decoder.decode(self._scalar())
        while True:
            try:
                value, self._place = self._decoder.raw_decode(self._window, self._place)
            except json.JSONDecodeError:
                if len(self._window) - self._place > MAX_VALUE or not self._more():
                    raise
            else:
                return value

    def skip(self) -> None:
        """Pass over one value of any kind and any length."""
        if not self._is_long():
            self._scalar()
            return
        depth = 0
        while True:
            found = _SKIPPED.search(self._window, self._place)
            if found is None:
                self._place = len(self._window)
                if not self._more():
                    raise ValueError("it ends too early")
                continue
            self._place = found.end()
            if found[0] == '"':
                self._skip_text()
            else:
                depth += 1 if found[0] in "[{" else -1
            if depth <= 0:
                return

    def items(self) -> Iterator[int]:
        """Take a list: yield the number of each element, which the caller takes or skips."""
        self.expect("[")
        if self.next_character() == "]":
            self._place += 1
            return
        number = 0
        while True:
            yield number
            number += 1
            if self.next_character() == "]":
                self._place += 1
                return
            self.expect(",")

    def members(self) -> Iterator[str]:
        """Take an object: yield the key of each entry, whose value the caller takes or skips."""
        self.expect("{")
        if self.next_character() == "}":
            self._place += 1
            return
        while True:
            if self.next_character() != '"':
                raise ValueError(f"a key expected, not {self.next_character()!r}")
            key = str(self.value())
            self.expect(":")
            yield key
            if self.next_character() == "}":
                self._place += 1
                return
            self.expect(",")

    def _is_long(self) -> bool:
        """Say whether an object, a list or a text follows, each of which shows where it ends."""
        return self.next_character() in ("{", "[", '"')

    def _scalar(self) -> str:
        """Take a number, true, false or null as text."""
        while True:
            found = _SCALAR.match(self._window, self._place)
            end = self._place if found is None else found.end()
            if end - self._place > 10_000:
                raise ValueError("a number of over 10000 characters")
            if end < len(self._window) or not self._more():
                break
        found = _SCALAR.match(self._window, self._place)
        if found is None:
            raise ValueError(f"a value expected, not {self.next_character()!r}")
        self._place = found.end()
        return found[0]

    def _skip_text(self) -> None:
        """Pass over the rest of a text, up to its closing quotation mark."""
        while True:
            found = _QUOTED.search(self._window, self._place)
            if found is None:
                self._place = len(self._window)
            elif found[0] == '"':
                self._place = found.end()
                return
            else:
                self._place = found.end()
                if self._place < len(self._window) or self._more():
                    self._place += 1
                    continue
            if found is None and not self._more():
                raise ValueError("it ends within a text")

    def _more(self) -> bool:
        # Doubled, so that a long value is not tried again and again.
        block = self._file.read(max(_BLOCK, len(self._window) - self._place))
        self._window, self._place = self._window[self._place :] + block, 0
        return bool(block)


@contextmanager
def json_text(source: Path, what: str) -> Iterator[JsonText]:
    """Open ``source`` as JSON; InputError names it as a ``what`` where it is not one."""
    require_regular(source)
    with (
        clear_errors(source, what, ValueError, RecursionError),
        source.open(encoding="utf-8-sig") as file,
    ):
        yield JsonText(file)


def list_items(source: Path, what: str) -> Iterator[Any]:
    """Yield the elements of the JSON list in ``source``, one in memory at a time."""
    with json_text(source, what) as text:
        for _ in text.items():
            yield text.value()


def section_items(source: Path, section: str, what: str) -> Iterator[Any]:
    """Yield the elements of the list that the JSON object in ``source`` has under the key ``section``."""
    with json_text(source, what) as text:
        for key in text.members():
            if key != section:
                text.skip()
                continue
            for _ in text.items():
                yield text.value()
