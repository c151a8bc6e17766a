"""How a network is tested."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from detector.config.sections.base import Count, Fraction, Pixels, Resize, Scales, Section

MAX_INPUT = 2**28
"""Pixels of the inputs of an image at all scales; each takes 12 bytes before any layer."""


class TestConfig(Section):
    __test__ = False  # not a test class, whatever its name

    metric: Literal["voc07", "voc", "coco"] = "voc07"
    """The headline figure and the one that chooses the best checkpoint: VOC's 11-point or area AP, or
    COCO's AP. With "coco" its twelve figures are computed as well, for data of either format."""
    scales: Scales = (600,)
    """Shorter sides in pixels; ``scale_rule`` says how several are used."""
    scale_rule: Literal["area", "side", "all"] = "area"
    """With several scales, each proposal is scored at the one where its area comes closest to 224 x 224
    ("area", Fast R-CNN's release and SPP-net's paper) or the square root of its area closest to 208 ("side",
    SPP-net's release); "all" scores it at every scale and merges the results before suppression."""
    flip: bool = False
    """Score the mirrored image too and merge the results before suppression."""
    box_regression: bool = True
    """Whether boxes are moved as the network says, or stay the proposals."""
    resize: Resize = "shorter"
    """As ``train.resize``; with "none" the scales are not used."""
    max_size: Pixels = 1000
    score_threshold: float = 0.05
    """A probability, or the margin of an SVM."""
    nms_threshold: Fraction = 0.3
    nested_threshold: Fraction | None = None
    """Of two boxes of a class that share more than this of the smaller one's area, the worse is dropped,
    however small their IoU: a part of an object reported beside the whole. None drops none for that, as the
    paper."""
    max_detections: int = Field(default=100, ge=1, le=1_000_000)
    """Detections kept of an image, all classes together."""
    max_images: Count | None = None
    """Score the first so many images of the split and no others, where a network is too slow for all; the
    figures are then those of these images (``images`` in metrics.json). None scores all."""
    refinements: int = Field(default=0, ge=0, le=100)
    """How often detections are pooled and classified again from their own boxes (iterative localisation);
    costs little, since the features are there. The paper does not do it."""
    precision: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _views_fit_into_memory(self) -> TestConfig:
        if self.input_pixels > MAX_INPUT:
            raise ValueError(
                f"test.scales and test.max_size ask for {self.input_pixels} pixels of each image, over "
                f"{MAX_INPUT}; take fewer or smaller scales"
            )
        return self

    @property
    def input_pixels(self) -> int:
        """The most pixels of the inputs that an image is tested at; 0 where images keep their own size."""
        if self.resize == "none":
            return 0
        return sum(min(scale, self.max_size) * self.max_size for scale in self.scales)
