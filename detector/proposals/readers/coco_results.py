"""COCO's results format: a JSON list of {"image_id", "bbox": [x, y, width, height], "score"}."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from detector.core.errors import InputError
from detector.proposals.readers.raw_images import RawImage, RawImages, clear_errors

_BLOCK = 1 << 20
_MAX_OBJECT = 16 << 20  # a result with a mask in run lengths has a few kilobytes


def read_coco_results(source: Path) -> RawImages:
    """Return the images of ``source`` in the order in which they first occur, with their boxes in order.

    The file is parsed result by result into arrays of 40 bytes per box; it is never in memory as a whole.
    """
    boxes: dict[str, array[float]] = {}
    for number, result in enumerate(_results(source)):
        values = _values(source, number, result)
        boxes.setdefault(str(result["image_id"]), array("d")).extend(values)
    return RawImages(list(boxes), _taken_from(boxes))


def _taken_from(boxes: dict[str, array[float]]) -> Iterator[RawImage]:
    for key in list(boxes):
        rows = np.frombuffer(boxes.pop(key), np.float64).reshape(-1, 5)
        scored = not np.isnan(rows[:, 4]).all()
        yield RawImage(key, rows[:, :4], rows[:, 4] if scored else None, "xywh")


def _values(source: Path, number: int, result: Any) -> list[float]:
    """Return x, y, width, height and score; NaN for a result without score."""
    where = f"{source}, result {number}"
    if not isinstance(result, dict) or not {"image_id", "bbox"} <= result.keys():
        raise InputError(f"{where}: expected an object with 'image_id' and 'bbox'")
    image_id, box, score = result["image_id"], result["bbox"], result.get("score")
    if isinstance(image_id, bool) or not isinstance(image_id, int | str):
        raise InputError(f"{where}: image_id {image_id!r} is neither a number nor a text")
    numbers: list[Any] = [*box, 0.0 if score is None else score] if isinstance(box, list) else []
    plain = all(isinstance(value, int | float) and not isinstance(value, bool) for value in numbers)
    if len(numbers) != 5 or not plain:
        raise InputError(f"{where}, image {image_id!r}: bbox and score must be four numbers and one")
    try:
        values = [float(value) for value in numbers]
    except OverflowError as error:
        raise InputError(f"{where}, image {image_id!r}: {error}") from error
    return values if score is not None else [*values[:4], np.nan]


def _results(source: Path) -> Iterator[Any]:
    """Yield the elements of the JSON list in ``source``, a block of text in memory at a time."""
    with (
        clear_errors(source, "list of COCO results", ValueError, RecursionError),
        source.open(encoding="utf-8-sig") as file,
    ):
        text = _Text(file)
        text.expect("[")
        if text.next_character() == "]":
            return
        while True:
            yield text.element()
            if text.next_character() == "]":
                return
            text.expect(",")


class _Text:
    """A window on a text file, which moves forward as JSON values are taken from it."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._decoder = json.JSONDecoder()
        self._window = ""
        self._place = 0

    def next_character(self) -> str:
        """Return the next character that is not a blank, without taking it; "" at the end of the file."""
        while True:
            while self._place < len(self._window) and self._window[self._place].isspace():
                self._place += 1
            if self._place < len(self._window):
                return self._window[self._place]
            if not self._more():
                return ""

    def expect(self, character: str) -> None:
        if (following := self.next_character()) != character:
            raise ValueError(f"{character!r} expected, not {following!r}")
        self._place += 1

    def element(self) -> Any:
        """Take one object. Results are objects, and unlike a number an object shows where it ends."""
        if self.next_character() != "{":
            raise ValueError(f"an object expected, not {self.next_character()!r}")
        while True:
            try:
                value, self._place = self._decoder.raw_decode(self._window, self._place)
            except json.JSONDecodeError:
                if len(self._window) - self._place > _MAX_OBJECT or not self._more():
                    raise
            else:
                return value

    def _more(self) -> bool:
        block = self._file.read(_BLOCK)
        self._window, self._place = self._window[self._place :] + block, 0
        return bool(block)
