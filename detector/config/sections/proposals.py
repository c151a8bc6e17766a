"""Where the proposals come from."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from detector.config.sections.base import Pixels, Positive, Section
from detector.core.errors import nearest

MOST = 200_000
"""Proposals of an image: no method makes as many."""
MAX_OPTIONS = 100_000
"""Characters of ``options``, written as JSON."""
Share = Annotated[float, Field(ge=0.01, le=10.0)]
Aspect = Annotated[float, Field(ge=0.001, le=1000.0)]
METHODS = ("dense", "selective_search")
_FUNCTION = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
# The method each option belongs to; "function" is any module:function.
_OPTIONS = {
    "scales": ("dense",),
    "aspects": ("dense",),
    "stride_fraction": ("dense",),
    "max_proposals": METHODS,
    "mode": ("selective_search",),
    "seed": ("selective_search",),
    "width": ("selective_search",),
    "options": ("selective_search", "function"),
    "time_limit": ("selective_search", "function"),
}


class ProposalsConfig(Section):
    """Where the proposals come from: a ``file`` of some ``format``, or a ``method`` that makes them."""

    file: str | dict[str, str] | None = None
    """A proposal file, or the folder of a ProposalStore; a mapping gives each split its own."""
    format: (
        Literal["mat", "detectron", "detectron2", "mmdetection", "npz", "npy", "coco", "text", "store"] | None
    ) = None
    convention: (
        Literal[
            "auto",
            "xyxy",
            "xyxy_inclusive",
            "xyxy_inclusive_1",
            "yxyx",
            "yxyx_inclusive",
            "yxyx_inclusive_1",
            "xywh",
        ]
        | None
    ) = None
    """How the file writes a box; None is what is usual in its format, "auto" tells it by the annotations."""
    method: str | None = None
    """"dense", "selective_search", or "module:function": a function of yours from an image (H, W, 3) uint8
    RGB to boxes (P, 4), or to boxes and scores (P,)."""
    scales: Annotated[tuple[Share, ...], Field(min_length=1, max_length=64)] | None = None
    """dense: window sides as fractions of the image's shorter side; None takes the method's own."""
    aspects: Annotated[tuple[Aspect, ...], Field(min_length=1, max_length=64)] | None = None
    """dense: width over height; None takes the method's own."""
    stride_fraction: Annotated[float, Field(ge=0.01, le=1.0)] | None = None
    """dense: step between windows as a fraction of their side; None takes the method's own."""
    mode: str | None = None
    """selective_search: a preset's name; None is "fast"."""
    seed: int | None = None
    """selective_search: seed of the ranking; None is 0."""
    width: Pixels | None = None
    """selective_search: search each image resized to this width in pixels; None is its own size, or less
    where it is large."""
    max_proposals: Annotated[int, Field(ge=1, le=MOST)] | None = None
    """dense, selective_search: proposals made of each image, the best ranked; None makes all."""
    time_limit: Positive | None = None
    """selective_search, module:function: seconds an image may take; one that takes longer has no boxes."""
    options: dict[str, Any] = Field(default_factory=dict)
    """selective_search: fields of `detector.ops.SelectiveSearchConfig` that replace the
    preset's, such as ``scales`` and ``min_side``; module:function: its keyword arguments. What changes here
    is made again; a function whose code has changed is not noticed, so give it a version here."""
    top_k_train: int = Field(default=2000, ge=1, le=MOST)
    top_k_test: int = Field(default=2000, ge=1, le=MOST)
    """Proposals used of each image, the best ranked first (paper: about 2000)."""
    min_size: float = Field(default=0.0, ge=0.0)
    """Proposals with a side below this many pixels of the original image are left out."""
    missing: Literal["error", "skip", "full_image"] = "error"
    """Images without proposals: an error, left out of training (never of evaluation), or given one box, the
    whole image."""
    faults: Literal["error", "skip", "full_image"] = "error"
    """Images whose boxes in the file leave the image, are not finite, or are none: an error, left out of
    training (never of evaluation), or given one box, the whole image."""

    @property
    def calls_function(self) -> bool:
        """Whether ``method`` is a name that leads to code, and not one of the built-in methods."""
        return self.method is not None and self.method not in METHODS

    @model_validator(mode="after")
    def _one_source(self) -> ProposalsConfig:
        if self.file is not None and self.method is not None:
            raise ValueError("proposals needs either 'file' with 'format', or 'method', and not both")
        if (self.file is None) != (self.format is None):
            raise ValueError("proposals.file and proposals.format go together: give both or neither")
        if self.convention is not None and self.format in (None, "store"):
            raise ValueError("proposals.convention only applies to a proposals.file that is no store")
        return self

    @model_validator(mode="after")
    def _method_has_its_options(self) -> ProposalsConfig:
        kind = self.method
        if kind is not None and kind not in METHODS:
            if not _FUNCTION.fullmatch(kind):
                raise ValueError(
                    f"proposals.method {kind!r} is unknown{nearest(kind, METHODS)}; use one of "
                    f"{', '.join(METHODS)}, or module:function for a function of yours"
                )
            kind = "function"
        try:
            length = len(json.dumps(self.options, allow_nan=False))
        except (TypeError, ValueError, RecursionError):
            raise ValueError(
                "proposals.options holds what is no number, text, list or mapping of these"
            ) from None
        if length > MAX_OPTIONS:
            raise ValueError(f"proposals.options is over {MAX_OPTIONS} characters long")
        for name, methods in _OPTIONS.items():
            if getattr(self, name) not in (None, {}) and kind not in methods:
                known = " or ".join(methods).replace("function", "module:function")
                raise ValueError(f"proposals.{name} only applies to proposals.method: {known}")
        return self
