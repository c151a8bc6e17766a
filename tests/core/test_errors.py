"""Texts from files are shown letter for letter, and move nothing on a terminal."""

from __future__ import annotations

import pickle

import pytest

from detector.core.errors import InputError, listed, printable


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J\x1b]0;x\x07[red]a", "\\x1b[2J\\x1b]0;x\\x07[red]a"),
        ("a\nb\r\tc\x7f\x9b", "a\\x0ab\\x0d\\x09c\\x7f\\x9b"),
        ("\u202egnp.\u2066a\u061c\u200f", "\\u202egnp.\\u2066a\\u061c\\u200f"),
        ("a\u2028b\ud800", "a\\u2028b\\ud800"),
        ("Größe 图像 \u0645\u06cc\u200c\u062e \u202f\U0001f468\u200d\U0001f469 \\x41", None),
    ],
)
def test_printable_escapes_what_a_terminal_would_act_on(text: str, shown: str | None) -> None:
    assert printable(text) == (text if shown is None else shown)
    assert printable(printable(text)) == printable(text)


def test_an_input_error_is_safe_to_print_and_keeps_its_lines() -> None:
    error = InputError("a\x1b[2J.xml: wrong\n  second line\u202e")
    assert str(error) == "a\\x1b[2J.xml: wrong\n  second line\\u202e"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert error.args == ("a\x1b[2J.xml: wrong\n  second line\u202e",)


def test_listed_names_stay_on_one_line() -> None:
    assert listed(["a", "b\nerror: run this", "\x1b[2J"]) == r"a, b\x0aerror: run this, \x1b[2J"
