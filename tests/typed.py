"""Values of tests under the types that they have, where a library's or a container's type is wider."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
from torch import Tensor

Value = TypeVar("Value")


def present(value: Value | None) -> Value:
    """The value, which must not be None."""
    assert value is not None
    return value


def gradient(tensor: Tensor | None) -> Tensor:
    """The gradient of a tensor; both must be there."""
    return present(present(tensor).grad)


def float32(values: object) -> np.ndarray:
    """A new array of float32, from nested sequences of numbers."""
    return np.array(values, dtype=np.float32)


def read_picture(path: Path | str) -> np.ndarray:
    """The picture (H, W, 3) uint8 of a file, in OpenCV's order blue, green, red."""
    return present(cv2.imread(str(path)))


def save_arrays(path: Path | str, arrays: Mapping[str, np.ndarray]) -> None:
    """Write an npz file of arrays under any names."""
    named: dict[str, Any] = dict(arrays)  # numpy's own options are keywords beside the names
    np.savez(path, **named)
