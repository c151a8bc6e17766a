"""What a pickle may build besides plain containers: arrays, and the few classes around proposals.

No class of numpy or of another package is called with what a file says: these stand-ins collect it, check
it, and make an array only from bytes that are there.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.proposals.readers.arrays import MAX_BOXES

# Python 2 has one type for texts and bytes; the machine takes the short ones for texts.
SHORT = 1024
_NUMBERS = {f"{kind}{size}" for kind in "iuf" for size in (1, 2, 4, 8)} - {"f1"}


@dataclass(frozen=True)
class Builder:
    """A name that a pickle may call, bound to a function of ours."""

    build: Callable[..., Any]


class Stateful:
    """Something whose content follows in the pickle after the call that makes it."""

    def set_state(self, state: Any) -> None:
        """Take the content; raises ValueError or TypeError if it is not as it should be."""
        raise NotImplementedError


class PickledType(Stateful):
    """A plain number type, or ``object``, which only marks an array that is a list."""

    def __init__(self, name: Any, *_: Any) -> None:
        text = name if isinstance(name, str) else str(name)
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


class PickledArray(Stateful):
    """A numpy array of numbers, made from the map when ``array`` is called; or a list of anything."""

    def __init__(self, *_: Any) -> None:
        self._content: NDArray[Any] | list[Any] = np.zeros(0)

    def set_state(self, state: Any) -> None:
        shape, kind, fortran_order, content = state[-4:]
        self.fill(shape, kind, "F" if fortran_order else "C", content)

    def fill(self, shape: Any, kind: Any, order: Any, content: Any) -> PickledArray:
        """Take ``content``: a list for object arrays, else exactly the bytes that ``shape`` needs."""
        if not isinstance(kind, PickledType) or type(shape) is not tuple or order not in ("C", "F"):
            raise TypeError("an array that is none")
        if kind.is_object:
            if type(content) is not list:
                raise TypeError("an array of objects without a list")
            self._content = content
            return self
        if isinstance(content, str) and len(content) > SHORT:
            raise TypeError("an array whose content is text")
        data = content.encode("latin-1") if isinstance(content, str) else content
        sides = [int(side) for side in shape]
        if any(side < 0 for side in sides) or math.prod(sides) * kind.dtype.itemsize != len(data):
            raise ValueError(f"an array of shape {sides[:8]} in {len(data)} bytes")
        self._content = np.frombuffer(data, kind.dtype).reshape(sides, order=order)
        return self

    @property
    def content(self) -> NDArray[Any] | list[Any]:
        return self._content


class PickledFields(Stateful):
    """An object of another package, of which only the fields are kept (mmengine's InstanceData)."""

    def __init__(self, *_: Any) -> None:
        self.fields: dict[str, Any] = {}

    def set_state(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 2:  # (its dictionary, its slots)
            state = state[0]
        if not isinstance(state, dict):
            raise TypeError("an object without fields")
        self.fields = state


def as_items(value: Any) -> list[Any]:
    """Return a list, a tuple, an array of objects or the rows of an array as a list."""
    if isinstance(value, PickledArray):
        return list(value.content)
    if isinstance(value, list | tuple):
        return list(value)
    raise TypeError(f"a {type(value).__name__} where a list was expected")


def as_array(value: Any) -> NDArray[Any]:
    """Return an array, or a list of numbers or of short rows of numbers, as an array."""
    if isinstance(value, PickledArray) and isinstance(value.content, np.ndarray):
        return value.content
    items = as_items(value)
    if len(items) > MAX_BOXES:
        raise ValueError(f"{len(items)} boxes")
    array = np.array([_as_row(item) for item in items])
    if array.size == 0:
        return array.astype(np.float64)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"{array.dtype} where numbers were expected")
    return array


def _as_row(item: Any) -> Any:
    if isinstance(item, int | float | np.number):
        return item
    row = item.content if isinstance(item, PickledArray) else item
    if not isinstance(row, list | tuple | np.ndarray) or len(row) > 5:
        raise TypeError("a box that is none")
    if not all(isinstance(value, int | float | np.number) for value in row):
        raise TypeError("a box that does not hold numbers")
    return row


def _from_buffer(content: Any, kind: Any, shape: Any, order: Any) -> PickledArray:
    return PickledArray().fill(shape, kind, order, content)


def _scalar(kind: Any, content: Any) -> Any:
    value = PickledArray().fill((1,), kind, "C", content).content
    return value[0] if isinstance(value, list) else value[0].item()


def _encode(text: Any, encoding: Any = "latin-1") -> bytes:
    """How Python 3 writes bytes into the older protocols."""
    if not isinstance(text, str) or encoding not in ("latin-1", "latin1"):
        raise TypeError("bytes that are none")
    return text.encode("latin-1")


def _dictionary(*arguments: Any) -> dict[Any, Any]:
    return dict(as_items(arguments[0])) if arguments else {}


def _builders() -> dict[tuple[str, str], Builder]:
    builders = {
        ("numpy", "ndarray"): Builder(PickledArray),
        ("numpy", "dtype"): Builder(PickledType),
        ("_codecs", "encode"): Builder(_encode),
        ("collections", "OrderedDict"): Builder(_dictionary),
        ("detectron2.structures.boxes", "BoxMode"): Builder(int),
    }
    for core in ("numpy.core", "numpy._core"):
        builders[f"{core}.multiarray", "_reconstruct"] = Builder(PickledArray)
        builders[f"{core}.multiarray", "scalar"] = Builder(_scalar)
        builders[f"{core}.numeric", "_frombuffer"] = Builder(_from_buffer)
    for package in ("mmengine.structures", "mmengine.data"):
        builders[f"{package}.instance_data", "InstanceData"] = Builder(PickledFields)
    return builders


BUILDERS = _builders()
