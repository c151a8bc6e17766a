"""Reading on behind a fault: a reader raises at the first one, a check of the data collects them all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from detector.core.errors import InputError

FaultHandler = Callable[[InputError], None]


@contextmanager
def faults_to(on_fault: FaultHandler | None) -> Iterator[None]:
    """Hand an InputError to ``on_fault`` and continue after the block; None lets the error through."""
    try:
        yield
    except InputError as error:
        if on_fault is None:
            raise
        on_fault(error)


def message_without(error: InputError, place: Path | str) -> str:
    """Return the message of ``error`` without the leading ``place``, which a report shows separately."""
    return str(error.args[0]).removeprefix(f"{place}: ")
