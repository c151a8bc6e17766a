"""How a network is tested."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from detector.config.sections.base import Count, Fraction, Section


class TestConfig(Section):
    __test__ = False  # not a test class, whatever its name

    metric: Literal["voc07", "voc"] = "voc07"
    """The headline figure and the one that chooses the best checkpoint: 11-point or area AP."""
    scales: tuple[Count, ...] = Field(default=(600,), min_length=1)
    """Shorter sides in pixels. With several, each proposal is scored at the scale that brings its area
    closest to 224 x 224 (release)."""
    max_size: Count = 1000
    score_threshold: Fraction = 0.05
    nms_threshold: Fraction = 0.3
    max_detections: Count = 100
    """Detections kept of an image, all classes together."""
    refinements: int = Field(default=0, ge=0)
    """How often detections are pooled and classified again from their own boxes (iterative localisation);
    costs little, since the features are there. The paper does not do it."""
    precision: Literal["float32", "bfloat16"] = "float32"
