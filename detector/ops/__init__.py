"""Operators on feature maps and regions; importing this package loads the native libraries."""

from detector.ops import _library  # noqa: F401  (registers the operators)
from detector.ops.roi_pool import RoIPool, roi_pool

__all__ = ["RoIPool", "roi_pool"]
