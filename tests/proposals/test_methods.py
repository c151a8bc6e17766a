"""A function of the user's, by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from detector.errors import InputError
from detector.proposals.methods import load_function


@pytest.mark.parametrize("text", ["raise KeyError(3)", "1 +", "import nothing_of_this_name", "x = 1 / 0"])
def test_a_module_that_fails_is_one_error_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    name = f"mine_{abs(hash(text))}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=f"proposal method '{name}:f' cannot be loaded: "):
        load_function(f"{name}:f")
