"""The one exception for faults in what a user hands in, and texts from files made safe to show."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

# Control characters (C0, DEL, C1), line and paragraph separators, bidirectional marks, surrogates.
UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Return ``text``, such as a name from a file, so that showing it moves nothing and hides nothing.

    Control, escape, bidirectional-format and surrogate characters, and all that break lines, become
    ``\xNN`` or ``\uNNNN``; all other characters stay.
    """
    return UNPRINTABLE.sub(_escaped, text)


def listed(names: Iterable[str]) -> str:
    """Return names from files as one line, separated by commas, each as `printable` shows it."""
    return ", ".join(map(printable, names))


def printable_lines(text: str) -> str:
    """Return ``text`` as `printable` does, but with its line feeds as they are."""
    return "\n".join(map(printable, text.split("\n")))


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


class InputError(ValueError):
    """A file, key or value from outside is wrong; the message names it and says how to fix it.

    Tools print the message alone and exit with status 2; any other exception is a fault of ours and
    keeps its traceback. The message shows what it quotes from files as `printable` does.
    """

    def __str__(self) -> str:
        return printable_lines(super().__str__())


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the valid name closest to ``name``, or an empty string."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
