"""What all sections of a config share: strictness, and the types of their numbers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1, le=2**31 - 1)]
Pixels = Annotated[int, Field(ge=1, le=8192)]
"""A side of an image as the network gets it; an input of 8192 x 8192 takes 800 MB before any layer."""
Scales = Annotated[tuple[Pixels, ...], Field(min_length=1, max_length=64)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Resize = Literal["shorter", "square", "none"]
Four = tuple[float, float, float, float]


class Section(BaseModel):
    """Base of all sections: immutable, strict about names, no silent conversion of types, no infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
