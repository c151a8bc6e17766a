"""Problems of a data set.

Training raises an error at the first fault; a check of the data set collects all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from detector.core.errors import InputError


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """A fault or a probable mistake: its ``kind`` in a few words, the ``file`` and perhaps the object in it.

    ``stops`` says that training, or an evaluation during it, ends with an error because of it; ``unusable``
    that an object is left out of training.
    """

    kind: str
    file: str
    message: str
    object: str | None = None
    image_id: str | None = None
    key: str | None = None
    splits: tuple[str, ...] = ()
    stops: bool = False
    unusable: bool = False

    @property
    def place(self) -> str:
        """The file, followed by the object if the problem concerns one object."""
        return ": ".join(filter(None, (self.file, self.object)))


Reporter = Callable[[Problem], None]


def whole_file(path: Path, error: InputError) -> Problem:
    """Return the problem of the file at ``path`` for an error that no single image caused."""
    return Problem(kind="annotations", file=str(path), message=message_without(error, path), stops=True)


def nothing_to_score(place: Path, split: str) -> Problem:
    message = f"no image of {split} has an annotation: result files can be written, and nothing is scored"
    return Problem(kind="no annotations", file=str(place), message=message, splits=(split,))


def message_without(error: InputError, place: Path | str) -> str:
    """Return the message of ``error`` without the leading ``place``, which a report shows separately."""
    return str(error.args[0]).removeprefix(f"{place}: ")
