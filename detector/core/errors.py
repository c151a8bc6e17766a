"""The one exception for faults in a user's input, and functions that make text from files safe to show."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

# Control characters (C0, DEL, C1), line and paragraph separators, bidirectional marks, surrogates.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Return ``text``, such as a name from a file, in a form that is safe to print on a terminal.

    Control characters, line breaks, bidirectional formatting and surrogates become ``\xNN`` or ``\uNNNN``;
    all other characters stay.
    """
    return UNPRINTABLE.sub(_escaped, text)


def listed(names: Iterable[str]) -> str:
    """Return names from files on one line, separated by commas and each made `printable`."""
    return ", ".join(map(printable, names))


def printable_lines(text: str) -> str:
    """Return ``text`` made `printable` except its line feeds, which stay."""
    return "\n".join(map(printable, text.split("\n")))


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class InputError(ValueError):
    """A file, key or value from a user is wrong; the message names it and says how to fix it.

    Tools print only the message, made `printable`, and exit with status 2. Any other exception is a fault of
    this project and keeps its traceback.
    """

    def __str__(self) -> str:
        return printable_lines(super().__str__())


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the valid name closest to ``name``, or an empty string."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""


FaultHandler = Callable[[InputError], None]


@contextmanager
def faults_to(on_fault: FaultHandler | None) -> Iterator[None]:
    """Pass an InputError of the block to ``on_fault`` and continue after the block; None raises it."""
    try:
        yield
    except InputError as error:
        if on_fault is None:
            raise
        on_fault(error)
