"""Where the proposals come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from detector.config.sections.base import Count, Positive, Section


class ProposalsConfig(Section):
    """Where the proposals come from: a ``file`` of some ``format``, or a ``method`` that makes them."""

    file: str | None = None
    """A proposal file, or the folder of a ProposalStore."""
    format: Literal["npz", "store"] | None = None
    method: Literal["dense"] | None = None
    scales: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    """dense: window sides as fractions of the image's shorter side; None takes the method's own."""
    aspects: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    """dense: width over height; None takes the method's own."""
    stride_fraction: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """dense: step between windows as a fraction of their side; None takes the method's own."""
    top_k_train: Count = 2000
    top_k_test: Count = 2000
    """Proposals used of each image, the best ranked first (paper: about 2000)."""
    min_size: float = Field(default=0.0, ge=0.0)
    """Proposals with a side below this many pixels of the original image are left out."""
    missing: Literal["error", "skip"] = "error"
    """Images without an entry in the file: an error, or left out of training (never of evaluation)."""

    @model_validator(mode="after")
    def _one_source(self) -> ProposalsConfig:
        if self.file is not None and self.method is not None:
            raise ValueError("proposals needs either 'file' with 'format', or 'method', and not both")
        if (self.file is None) != (self.format is None):
            raise ValueError("proposals.file and proposals.format go together: give both or neither")
        dense_only = {"scales": self.scales, "aspects": self.aspects, "stride_fraction": self.stride_fraction}
        given = [name for name, value in dense_only.items() if value is not None]
        if given and self.method != "dense":
            raise ValueError(f"proposals.{given[0]} only applies to proposals.method: dense")
        return self
