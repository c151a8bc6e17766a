"""Operators of torch in ONNX that torch's exporter does not know, or not as this project needs them."""

# No `from __future__ import annotations`: onnxscript reads the types of the parameters.

from typing import Any

from onnxscript import opset18 as op

from detector.export.formats import float32_below


def suppress(boxes: Any, scores: Any, nms_threshold: float, score_threshold: float, count: int) -> Any:
    """``detector_portable::suppress`` as one NonMaxSuppression, in which a class takes the place of an image.

    The rows of NonMaxSuppression are (class, 0, region), class after class and by falling score.
    """
    rows = op.NonMaxSuppression(
        boxes,
        op.Unsqueeze(scores, op.Constant(value_ints=[1])),
        op.Constant(value_ints=[count]),
        op.Constant(value_floats=[float32_below(nms_threshold)]),
        op.Constant(value_floats=[float32_below(score_threshold)]),
    )
    return op.Gather(rows, op.Constant(value_ints=[0, 2]), axis=1)


def sort(values: Any, *, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
    """``aten::sort.stable`` as TopK, which puts the lower index first among equal values."""
    length = op.Gather(op.Shape(values), op.Constant(value_ints=[dim]), axis=0)
    return op.TopK(values, length, axis=dim, largest=int(descending), sorted=1)
