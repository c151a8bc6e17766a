"""What a proposal method says of an image that it cannot take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detector.errors import InputError
from detector.proposals.methods import full_parameters, propose


def test_an_image_too_large_for_selective_search_is_named() -> None:
    parameters = full_parameters("selective_search", {"max_pixels": None, "width": 30_000})
    with pytest.raises(InputError, match=r"^photos/a\.jpg: An image of 30 x 10 pixels cannot be searched at"):
        propose(
            "selective_search",
            parameters,
            Path("photos/a.jpg"),
            (30, 10),
            lambda _path, size: np.zeros((*size, 3), np.uint8),  # type: ignore[misc]
        )
