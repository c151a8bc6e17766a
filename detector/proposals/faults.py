"""What can be wrong with the boxes of an image that somebody else wrote."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# Boxes that leave their image by over a pixel, or have no inside: a few are noise, more are a convention.
_TOLERATED_FAULTS = 0.01


def find_fault(
    boxes: NDArray[np.float64], scores: NDArray[np.float64] | None, size: tuple[int, int], convention: str
) -> str | None:
    """Say what is wrong with the half-open ``boxes`` (P, 4) of an image of ``size``, (0, 0) if unknown."""
    if len(boxes) == 0:
        return "it has no boxes"
    finite = np.isfinite(boxes).all(axis=1) & (True if scores is None else np.isfinite(scores))
    if not finite.all():
        row = int((~finite).argmax())
        return f"row {row} is not finite: {boxes[row].tolist()}"
    hollow = (boxes[:, 2:] <= boxes[:, :2]).any(axis=1)
    if hollow.mean() > _TOLERATED_FAULTS:
        row = int(hollow.argmax())
        return f"{hollow.mean():.0%} of its boxes, read as {convention}, end before they begin (row {row})"
    if all(size):
        outside = (boxes < -1).any(axis=1) | (boxes[:, 2:] > np.array(size[::-1]) + 1).any(axis=1)
        if outside.mean() > _TOLERATED_FAULTS:
            row = int(outside.argmax())
            return (
                f"{outside.mean():.0%} of its boxes, read as {convention}, leave the image of {size[1]} x "
                f"{size[0]} pixels, such as row {row}: {boxes[row].tolist()}"
            )
    return None
