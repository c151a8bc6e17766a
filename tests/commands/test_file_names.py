"""Names from data as file names."""

from __future__ import annotations

from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detector.core.files import LONGEST_NAME, file_name_of

anything = st.text(st.characters(exclude_categories=()), max_size=60)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("traffic light", "traffic light"),
        ("Größe 图像", "Größe 图像"),
        ("cabinet/shelf", "cabinet%2Fshelf"),
        ("..", "%2E%2E"),
        (".", "%2E"),
        (" a.b. ", "%20a.b.%20"),
        ("CON", "%43ON"),
        ("nul .x", "%6Eul .x"),
        ("console", "console"),
        ("lpt1", "%6Cpt1"),
        ("50%", "50%25"),
        ("\x00\n\x1b\u202e\ud800", "%00%0A%1B%E2%80%AE%ED%A0%80"),
    ],
)
def test_names_as_file_names(name: str, file: str) -> None:
    assert file_name_of(name) == file


@given(anything, anything)
def test_different_names_have_different_files_and_come_back(one: str, other: str) -> None:
    file = file_name_of(one)
    assert len(file.encode()) <= LONGEST_NAME
    assert "/" not in file
    assert file not in (".", "..")
    assert (file == file_name_of(other)) == (one == other)
    if "%~" not in file:
        assert unquote(file, errors="surrogatepass") == one


def test_a_long_name_is_cut_and_has_a_digest() -> None:
    one, other = file_name_of("图" * 300), file_name_of("图" * 299)
    assert one != other
    assert one.startswith("图" * 30)
    assert "%~" in one
    assert len(one.encode()) <= LONGEST_NAME
    assert file_name_of("a" * LONGEST_NAME) == "a" * LONGEST_NAME
