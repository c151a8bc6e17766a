"""The one exception for faults in what a user hands in."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """A file, key or value from outside is wrong; the message names it and says how to mend it.

    Tools print the message alone and exit with status 2; any other exception is a fault of ours and
    keeps its traceback.
    """


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return ``" (did you mean 'x'?)"`` for the valid name closest to ``name``, or an empty string."""
    close = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f" (did you mean {close[0]!r}?)" if close else ""
