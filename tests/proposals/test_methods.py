"""Proposal methods: a function of the user's by name, and an image that a method cannot take."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detector.core.errors import InputError
from detector.proposals.methods import full_parameters, load_function, propose


@pytest.mark.parametrize("text", ["raise KeyError(3)", "1 +", "import nothing_of_this_name", "x = 1 / 0"])
def test_a_module_that_fails_is_one_error_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    name = f"mine_{len(text)}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=f"proposal method '{name}:f' cannot be loaded: "):
        load_function(f"{name}:f")


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
