"""What a check of a data set looks at, and the problems that it reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from detector.core.errors import InputError
from detector.data.faults import message_without
from detector.data.targets import AnnotatedObject


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One fault: its ``kind`` in a few words, the ``file`` and perhaps the object in it, and the message.

    ``stops`` says that training, or an evaluation in it, ends with an error because of it; ``unusable``
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


Reporter = Callable[[Problem], None]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageToCheck:
    """One image to check: the files of its annotation and of its pixels, and the splits that name it.

    ``objects`` and ``size`` (height, width) are those in a COCO file. ``objects`` None means that
    ``annotation`` is a VOC file, still to be read.
    """

    image_id: str
    key: str
    splits: tuple[str, ...]
    annotation: Path
    path: Path
    size: tuple[int, int] | None = None
    objects: tuple[AnnotatedObject, ...] | None = None


def whole_file(path: Path, error: InputError) -> Problem:
    """Return an error that no single image caused as a problem of the file at ``path``."""
    return Problem(kind="annotations", file=str(path), message=message_without(error, path), stops=True)


def nothing_to_score(place: Path, split: str) -> Problem:
    message = f"no image of {split} has an annotation: result files can be written, and nothing is scored"
    return Problem(kind="no annotations", file=str(place), message=message, splits=(split,))
