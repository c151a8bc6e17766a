"""Regions that a caller gives for an image, as boxes or as masks, checked before any work."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from detector.core.errors import InputError
from detector.core.masks import Masks


def checked_masks(masks: object, size: tuple[int, int], name: str) -> Masks:
    """Return ``masks``, boolean arrays (P, H, W), encodings or `Masks`, of an image of ``size``.

    Raises InputError for another type or size, and names the first mask that is empty or missing.
    """
    if isinstance(masks, Masks):
        if masks.size != size:
            raise InputError(f"{name}: masks are of an image of {masks.size}, the image has {size}")
        checked = masks
    elif isinstance(masks, list | tuple) and (not masks or isinstance(masks[0], Mapping)):
        checked = Masks.from_rles(masks, size, f"{name}: masks")
    else:
        checked = Masks.encode(_mask_array(masks, size, name))
    empty = (checked.areas() == 0).nonzero()
    if len(empty):
        raise InputError(f"{name}: mask {int(empty[0])} has no pixel; leave it out")
    return checked


def _mask_array(masks: object, size: tuple[int, int], name: str) -> np.ndarray:
    try:
        array = np.asarray(masks.detach().cpu() if isinstance(masks, Tensor) else masks)
    except (TypeError, ValueError):  # masks of different sizes
        array = np.empty(0, object)
    if array.dtype.kind not in "bui" or array.ndim != 3 or array.shape[1:] != size:
        raise InputError(
            f"{name}: masks: expected a boolean array of shape (P, {size[0]}, {size[1]}) or run-length "
            f"encodings, not {array.dtype} of shape {array.shape}"
        )
    return array


def checked_boxes(boxes: object, size: tuple[int, int], name: str) -> Tensor:
    """Return ``boxes`` as a tensor (P, 4) float32.

    Raises InputError for another shape or type, and names the first box that is not finite, is reversed or
    empty, or lies outside an image of ``size`` (height, width).
    """
    rows = _numbers(boxes, name)
    if rows.size == 0 and rows.shape in ((0,), (0, 4)):
        return torch.zeros(0, 4)
    if rows.ndim != 2 or rows.shape[1] != 4:
        one = "; put a single box into a list: [box]" if rows.shape == (4,) else ""
        raise InputError(f"{name}: boxes have shape {rows.shape}, expected (P, 4){one}")
    with np.errstate(over="ignore"):  # what float32 does not hold becomes infinite
        checked = torch.from_numpy(rows.astype(np.float32))
    x1, y1, x2, y2 = checked.unbind(1)
    faults = {
        "is not finite": ~torch.isfinite(checked).all(dim=1),
        "is reversed or empty; boxes are x1, y1, x2, y2 with x1 < x2 and y1 < y2": (x2 <= x1) | (y2 <= y1),
        f"leaves the image of {size[1]}x{size[0]} pixels; clip it": (
            (x1 < 0) | (y1 < 0) | (x2 > size[1]) | (y2 > size[0])
        ),
    }
    for what, wrong in faults.items():
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise InputError(f"{name}: box {row}, {checked[row].tolist()}, {what}")
    return checked


def _numbers(boxes: object, name: str) -> np.ndarray:
    try:
        plain = boxes.detach().cpu().double().numpy() if isinstance(boxes, Tensor) else boxes
        rows = np.asarray(plain)
    except (TypeError, ValueError):  # rows of different lengths
        rows = np.empty(0, object)
    if rows.dtype.kind not in "iuf":
        raise InputError(f"{name}: boxes: expected numbers of shape (P, 4), such as a NumPy array")
    return rows
