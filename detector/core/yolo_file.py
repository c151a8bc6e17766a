"""YOLO's text files, one per image: boxes or polygons in fractions of the image's width and height.

A line is ``class x y width height`` with the centre of the box, or ``class x1 y1 x2 y2 x3 y3 ...`` with the
corners of a polygon. Where the data.yaml of the data set has ``kpt_shape``, keypoints follow the box.
Programs that predict add a confidence at the end of a line (``yolo predict save_txt=True save_conf=True``);
a line without one has an odd number of numbers, or as many as kpt_shape says.

Source: "Object detection", "Instance segmentation" and "Pose estimation datasets" at docs.ultralytics.com.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from detector.core.errors import FaultHandler, InputError, faults_to
from detector.core.files import ASCII_SPACE, read_short_text
from detector.core.shapes import Point, Shape, extent

MAX_LINES = 1_000_000
"""Lines with an object in one file."""
LONGEST_LINE = 1 << 20
"""Characters of one line."""
MAX_FRACTION = 2.0
"""Numbers are fractions of a side of the image; one above this is a number of pixels by mistake."""
_VISIBLE = 2.0  # the third number of a keypoint that is visible
_MAX_YAML_BYTES = 2**22


class YoloLine(NamedTuple):
    """What one line says, in fractions of the image's width and height.

    ``box`` is the centre, width and height, as written or of the box around ``polygon``, the corners, which
    are empty for a box. ``confidence`` is None where the line has none.
    """

    label: int
    box: tuple[float, float, float, float]
    polygon: tuple[Point, ...]
    confidence: float | None
    place: str


def yolo_lines(
    path: Path,
    *,
    keypoints: int = 0,
    confidences: bool = False,
    on_fault: FaultHandler | None = None,
) -> Iterator[YoloLine]:
    """Yield the objects in one file of YOLO labels.

    ``keypoints`` is how many numbers follow a box (`keypoint_numbers`); they are left out. A confidence is
    read with ``confidences`` and refused without.

    Raises:
        InputError: a file that cannot be read or has over `MAX_LINES` objects, or a line of another form;
            the message names file and line. With ``on_fault`` a faulty line is passed to it and left out.
    """
    count = 0
    for number, line in enumerate(read_short_text(path, "the labels").split("\n"), start=1):
        with faults_to(on_fault):
            words = line_words(line, f"{path}: line {number}")
            if not words:
                continue
            count += 1
            if count > MAX_LINES:
                break
            yield _parsed(words, keypoints, confidences, path, f"line {number}")
    if count > MAX_LINES:
        raise InputError(f"{path}: over {MAX_LINES} objects in one image are refused; divide the image")


def read_yolo(path: Path, *, keypoints: int = 0, on_fault: FaultHandler | None = None) -> list[Shape]:
    """Return the objects of `yolo_lines` as shapes; a label is the number of the class as text."""
    return [_shape(line) for line in yolo_lines(path, keypoints=keypoints, on_fault=on_fault)]


def line_words(line: str, where: str) -> list[str]:
    """Return the words of a line, none for an empty one; InputError for a line that is too long."""
    if len(line) > LONGEST_LINE:
        raise InputError(f"{where}: a line of over {LONGEST_LINE} characters is refused")
    return line.strip(ASCII_SPACE).split()


def parse_words(
    words: Sequence[str], where: str, *, keypoints: int = 0, confidences: bool = False
) -> tuple[int, list[float], float | None]:
    """Return the class of a line, the fractions of its box or polygon, and its confidence if it has one.

    Raises:
        InputError: words that are no line of YOLO; the message begins with ``where``.
    """
    label = _number_in(words[0])
    if not 0 <= label <= 2**31 or label != int(label):
        raise InputError(f"{where}: {words[0][:40]!r} is no class; expected a whole number from 0")
    scored = confidences and len(words) in ((6, 6 + keypoints) if keypoints else range(6, len(words) + 1, 2))
    numbers = [_fraction(word, where) for word in (words[1:-1] if scored else words[1:])]
    confidence = _confidence(words[-1], where) if scored else None
    if keypoints and len(numbers) in (4, 4 + keypoints):
        return int(label), numbers[:4], confidence
    if keypoints:
        raise InputError(
            f"{where}: {len(words)} numbers; expected 5 (class, centre, width, height) and {keypoints} of "
            "keypoints, as kpt_shape in data.yaml says"
        )
    if len(numbers) != 4 and (len(numbers) < 6 or len(numbers) % 2):
        raise InputError(
            f"{where}: {len(words)} numbers; expected 5 (class, centre, width, height) or a class and the "
            "corners of a polygon, two numbers for each of at least three"
            + (", and perhaps a confidence" if confidences else "")
        )
    if len(numbers) > 4 and _VISIBLE in numbers:
        raise InputError(
            f"{where}: a corner at 2, far outside the image; if the line has keypoints, whose visibility is "
            "2, put a data.yaml with their kpt_shape into the folder of the data set"
        )
    return int(label), numbers, confidence


def _parsed(words: Sequence[str], keypoints: int, confidences: bool, path: Path, place: str) -> YoloLine:
    label, numbers, confidence = parse_words(
        words, f"{path}: {place}", keypoints=keypoints, confidences=confidences
    )
    if len(numbers) == 4:
        x, y, width, height = numbers
        return YoloLine(label, (x, y, width, height), (), confidence, place)
    polygon = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    x1, y1, x2, y2 = extent(polygon)
    return YoloLine(label, ((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1), polygon, confidence, place)


def _shape(line: YoloLine) -> Shape:
    x, y, width, height = line.box
    around = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    return Shape(
        labels=(str(line.label),),
        box=extent(line.polygon) if line.polygon else around,
        polygons=(line.polygon,) if line.polygon else (),
        place=line.place,
    )


def _fraction(word: str, where: str) -> float:
    value = _number_in(word)
    if not abs(value) <= MAX_FRACTION:
        raise InputError(
            f"{where}: {word[:40]!r} is no fraction of the image's width or height; YOLO's coordinates are "
            "divided by them and lie between 0 and 1"
        )
    return value


def _confidence(word: str, where: str) -> float:
    value = _number_in(word)
    if not math.isfinite(value):
        raise InputError(f"{where}: the confidence {word[:40]!r} is no number")
    return value


def _number_in(word: str) -> float:
    """Return ``word`` as a number, NaN where it is none."""
    try:
        return math.nan if "_" in word else float(word)  # only Python allows 1_000
    except ValueError:
        return math.nan


def read_data_yaml(path: Path) -> dict[Any, Any]:
    """Return the content of a data.yaml. Raises InputError for a file that is not a YAML mapping."""
    text = read_short_text(path, "the description of the data set", _MAX_YAML_BYTES)
    try:
        values = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = f" in line {mark.line + 1}" if mark else ""
        raise InputError(
            f"{path}: not readable as YAML: {' '.join(str(error.problem).split())}{place}"
        ) from None
    except RecursionError:
        raise InputError(f"{path}: not readable as YAML: nested too deeply") from None
    except (yaml.YAMLError, ValueError, KeyError, AttributeError, TypeError, OverflowError) as error:
        # The library's constructors raise the others, for instance at a date with a 13th month.
        raise InputError(f"{path}: not readable as YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(values, dict):
        raise InputError(f"{path}: expected the description of a data set: names, train, val, test")
    return values


def keypoint_numbers(values: Mapping[Any, Any], path: Path) -> int:
    """Return how many numbers of keypoints follow each box, by the ``kpt_shape`` of a data.yaml; 0 without.

    ``kpt_shape`` is the number of keypoints, and 2 (x, y) or 3 (x, y, visibility). Raises InputError for
    anything else.
    """
    shape = values.get("kpt_shape")
    if shape is None:
        return 0
    whole = isinstance(shape, list) and all(type(one) is int for one in shape)
    if not whole or len(shape) != 2 or not 1 <= shape[0] <= LONGEST_LINE or shape[1] not in (2, 3):
        raise InputError(
            f"{path}: kpt_shape is {str(shape)[:60]}; expected the number of keypoints and 2 (x, y) or 3 (x, "
            "y, visibility), such as [17, 3]"
        )
    return int(shape[0] * shape[1])
