"""A method that makes proposals and can be loaded quickly, so that processes begin at the same time."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from detector.core import distributed


def boxes_of(image: NDArray[np.uint8], calls: str, slow: float = 0.0) -> NDArray[np.float64]:
    """Propose boxes and note the call in a file of this process's own; a square image cannot be taken."""
    digest = f"{image.shape} {int(image.astype(np.int64).sum())}"
    with Path(f"{calls}_{distributed.rank()}.txt").open("a") as file:
        file.write(f"{digest}\n")
    height, width = image.shape[:2]
    if height == width:
        raise ValueError("a square")
    time.sleep(slow)
    return np.array([[0, 0, width, height], [1, 1, width / 2, height / 2]])
