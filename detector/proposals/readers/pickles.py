"""Pickled proposals of Detectron, detectron2 and mmdetection."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.core.errors import InputError
from detector.core.files import require_regular
from detector.core.plain_pickle import (
    SHORT,
    Builder,
    DamagedPickle,
    PlainUnpickler,
    Refused,
    Stateful,
    from_pairs,
)
from detector.proposals.readers.raw_images import (
    MAX_BOXES,
    Position,
    RawImage,
    RawImages,
    image_place,
    raw_image,
)

_BOX_MODES = ("xyxy", "xywh")  # detectron2's BoxMode
_MAX_SIDES = 8
_NUMBERS = {f"{kind}{size}" for kind in "iuf" for size in (1, 2, 4, 8)} - {"f1"} | {"b1"}


def read_detectron(source: Path, convention: str) -> RawImages:
    """Return the images of a dictionary of lists, of the same length and in the same order.

    ``indexes`` or ``ids`` holds the image ids, ``boxes`` arrays (P, 4), and ``scores`` or
    ``objectness_logits``, which may be missing, arrays (P,). ``convention`` is that of the program:
    Detectron's boxes include their last pixel, detectron2's do not; ``bbox_mode`` in the file overrides it.
    """
    content = read_pickle(source)
    try:
        boxes, keys = _items(_named(content, "boxes")), _items(_named(content, "ids", "indexes"))
        keys = [_key(key) for key in keys]
        ranks = _named(content, "objectness_logits", "scores")
        scores = [None] * len(boxes) if ranks is None else _items(ranks)
        if "bbox_mode" in content:
            convention = _BOX_MODES[(0, 1).index(content["bbox_mode"])]
    except (TypeError, ValueError, OverflowError, KeyError) as error:
        raise InputError(
            f"{source} is not a proposal file of Detectron, a dictionary with the lists 'boxes' and 'ids' or "
            f"'indexes', perhaps 'scores' or 'objectness_logits', and bbox_mode 0 or 1 ({error!r})"
        ) from error
    if not len(keys) == len(boxes) == len(scores):
        raise InputError(f"{source} has {len(keys)} ids, {len(boxes)} boxes and {len(scores)} scores")
    images = zip(keys, boxes, scores, strict=True)
    return RawImages(keys, (_image(source, *image, convention) for image in images))


def read_mmdetection(source: Path) -> RawImages:
    """Return the images of mmdetection's file.

    Up to version 2 it is a list of arrays (P, 4), or (P, 5) with the score last: one per image, in the data
    set's order. Since version 3 it is a dictionary from image path to ``bboxes`` and ``scores``; the name of
    the image file without its suffix is the image id.
    """
    content = read_pickle(source)
    if isinstance(content, dict):
        names = [Path(path).stem for path in content if isinstance(path, str)]
        return RawImages(names, _named_images(source, content))
    if not isinstance(content, list):
        raise InputError(f"{source} is not a proposal file of mmdetection: neither a list nor a dictionary")
    places = (Position(index, len(content)) for index in range(len(content)))
    images = zip(places, content, strict=True)
    return RawImages([], (_image(source, place, rows, None, "xyxy") for place, rows in images))


def _named_images(source: Path, content: dict[Any, Any]) -> Iterator[RawImage]:
    for path, fields in content.items():
        fields = fields.fields if isinstance(fields, _Fields) else fields
        if not isinstance(path, str) or not isinstance(fields, dict) or "bboxes" not in fields:
            raise InputError(f"{source}: {str(path)[:80]!r} does not lead to 'bboxes' and 'scores'")
        yield _image(source, Path(path).stem, fields["bboxes"], fields.get("scores"), "xyxy")


def _image(source: Path, key: str | Position, boxes: Any, scores: Any, convention: str) -> RawImage:
    where = image_place(source, key)
    try:
        image = raw_image(key, _array(boxes), convention, where)
        if scores is None:
            return image
        ranks = np.ravel(_array(scores))
    except (TypeError, ValueError, OverflowError) as error:
        raise error if isinstance(error, InputError) else InputError(f"{where}: {error}") from error
    if len(ranks) != len(image.boxes):
        raise InputError(f"{where}: {len(image.boxes)} boxes and {len(ranks)} scores")
    return image._replace(scores=ranks)


def _named(content: Any, *names: str) -> Any:
    """Return the first of the entries ``names`` that exists, or None; TypeError if it is not a dictionary."""
    if not isinstance(content, dict):
        raise TypeError(f"a {type(content).__name__}")
    return next((content[name] for name in names if name in content), None)


def _key(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int | str | np.integer):
        raise TypeError(f"an image id of type {type(value).__name__}")
    return str(value)


def _items(value: Any) -> list[Any]:
    """Return a list, a tuple, an array of objects or the rows of an array as a list."""
    if isinstance(value, _Array):
        return list(value.content)
    if isinstance(value, list | tuple):
        return list(value)
    raise TypeError(f"a {type(value).__name__} where a list was expected")


def _array(value: Any) -> NDArray[Any]:
    """Return an array, or a list of numbers or of short rows of numbers, as an array."""
    if isinstance(value, _Array) and isinstance(value.content, np.ndarray):
        return value.content
    items = _items(value)
    if len(items) > MAX_BOXES:
        raise ValueError(f"{len(items)} boxes")
    array = np.array([_row(item) for item in items])
    if array.size == 0:
        return array.astype(np.float64)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{array.dtype} where numbers were expected")
    return array


def _row(item: Any) -> Any:
    if isinstance(item, int | float):
        return item
    row = item.content if isinstance(item, _Array) else item
    if not isinstance(row, list | tuple | np.ndarray) or len(row) > 5:
        raise TypeError("a box that is not a list of four or five numbers")
    if not all(isinstance(value, int | float | np.number) for value in row):
        raise TypeError("a box that does not hold numbers")
    return row


def first_of(value: Any) -> Any:
    """Return the only element of an array of objects, as which numpy saves any other object."""
    content = value.content if isinstance(value, _Array) else None
    return content[0] if isinstance(content, list) and len(content) == 1 else None


def array_of(value: Any) -> NDArray[Any] | None:
    """Return an array of numbers in what `read_pickle` returns, None for anything else."""
    content = value.content if isinstance(value, _Array) else None
    return content if isinstance(content, np.ndarray) else None


def read_pickle(source: Path, start: int = 0) -> Any:
    """Return what the pickle holds that begins at the byte ``start`` of ``source``.

    Nothing in it is run, and its arrays stay on the disk.

    Raises InputError for a damaged file and for one that needs anything but plain data.
    """
    require_regular(source)
    try:
        with source.open("rb") as file:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file has no map
        raise InputError(f"cannot read the pickle {source}: {error}") from error
    try:
        return PlainUnpickler(data, _NAMES, start).load()
    except Refused as error:
        raise InputError(
            f"{source}: {error}; only numpy arrays, numbers, texts, lists and dictionaries are read"
        ) from error
    except DamagedPickle as error:
        raise InputError(f"{source} is not a readable pickle ({error})") from error


class _Type(Stateful):
    """A plain number type, or ``object``, which only marks an array that is a list."""

    def __init__(self, name: Any, *_: Any) -> None:
        text = name if isinstance(name, str) else ""
        self.is_object = text in ("O", "O8", "object")
        if not self.is_object and text.lstrip("<>|=") not in _NUMBERS:
            raise ValueError(f"an array of {text[:20]!r}")
        self.dtype = np.dtype(np.uint8) if self.is_object else np.dtype(text)

    def set_state(self, state: Any) -> None:
        order = state[1]
        if order not in ("<", ">", "=", "|"):
            raise ValueError(f"the byte order {order!r}")
        if order in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(order)


class _Array(Stateful):
    """A numpy array of numbers over the bytes of the file, or a list of anything."""

    def __init__(self, *_: Any) -> None:
        self.content: NDArray[Any] | list[Any] = []

    def set_state(self, state: Any) -> None:
        shape, kind, fortran_order, content = state[-4:]
        self.fill(shape, kind, "F" if fortran_order else "C", content)

    def fill(self, shape: Any, kind: Any, order: Any, content: Any) -> _Array:
        """Take ``content``: a list for object arrays, else exactly the bytes that ``shape`` needs."""
        if not isinstance(kind, _Type) or type(shape) is not tuple or order not in ("C", "F"):
            raise TypeError("not an array")
        if kind.is_object:
            if type(content) is not list:
                raise TypeError("an array of objects without a list")
            self.content = content
            return self
        if isinstance(content, str) and len(content) > SHORT:
            raise TypeError("an array whose content is text")
        data = content.encode("latin-1") if isinstance(content, str) else content
        sound = len(shape) <= _MAX_SIDES and all(type(side) is int and side >= 0 for side in shape)
        if not sound or math.prod(shape) * kind.dtype.itemsize != len(data):
            raise ValueError(f"an array of shape {shape if sound else 'unknown'} in {len(data)} bytes")
        self.content = np.frombuffer(data, kind.dtype).reshape(shape, order=order)
        return self


class _Fields(Stateful):
    """An object of another package, of which only the fields are kept (mmengine's InstanceData)."""

    def __init__(self, *_: Any) -> None:
        self.fields: dict[str, Any] = {}

    def set_state(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 2:  # (its dictionary, its slots)
            state = state[0]
        if not isinstance(state, dict):
            raise TypeError("an object without fields")
        self.fields = state


def _from_buffer(content: Any, kind: Any, shape: Any, order: Any) -> _Array:
    return _Array().fill(shape, kind, order, content)


def _scalar(kind: Any, content: Any) -> Any:
    value = _Array().fill((1,), kind, "C", content).content
    return value[0] if isinstance(value, list) else value[0].item()


def _path_text(*parts: Any) -> str:
    """Return a path as text; no path is made of it."""
    if not all(isinstance(part, str) for part in parts):
        raise TypeError("a path that is not text")
    return "/".join(parts)


def _encode(text: Any, encoding: Any = "latin-1") -> bytes:
    """Do what Python 3 writes into the older protocols to make bytes."""
    if not isinstance(text, str) or encoding not in ("latin-1", "latin1"):
        raise TypeError("not bytes")
    return text.encode("latin-1")


_NAMES = {
    ("numpy", "ndarray"): Builder(_Array),
    ("numpy", "dtype"): Builder(_Type),
    **{(f"numpy.{core}.multiarray", "_reconstruct"): Builder(_Array) for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): Builder(_scalar) for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): Builder(_from_buffer) for core in ("core", "_core")},
    ("_codecs", "encode"): Builder(_encode),
    ("__builtin__", "bytes"): Builder(lambda: b""),  # Python 3's way of writing them in Python 2's protocols
    ("collections", "OrderedDict"): Builder(from_pairs),
    **{
        (module, f"{kind}Path"): Builder(_path_text)
        for module in ("pathlib", "pathlib._local")
        for kind in ("Posix", "Windows")
    },
    ("detectron2.structures.boxes", "BoxMode"): Builder(int),
    ("mmengine.structures.instance_data", "InstanceData"): Builder(_Fields),
    ("mmengine.data.instance_data", "InstanceData"): Builder(_Fields),
}
"""What a pickle may look up. No class of numpy or of another package is called with what a file says."""
