"""What a terminal shows of a job: counts only when they are known."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from detector.core import progress


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, width=120, color_system=None)
    monkeypatch.setattr(progress, "console", console)
    return text


def test_a_bar_shows_no_count_before_it_is_known(terminal: io.StringIO) -> None:
    with progress.progress_bar("proposals") as advance:
        pass
    assert "/?" not in terminal.getvalue()
    with progress.progress_bar("proposals") as advance:
        advance(3, 8)
    assert "3/8" in terminal.getvalue()
    assert "/?" not in terminal.getvalue()


def test_other_bars_know_their_count(terminal: io.StringIO) -> None:
    assert list(progress.track(iter("ab"), 2, "testing")) == ["a", "b"]
    with progress.TrainingProgress(10, 4) as bar:
        bar.step(5)
    assert "2/2" in terminal.getvalue()
    assert "5/10" in terminal.getvalue()
    assert "/?" not in terminal.getvalue()


def test_lines_wait_until_something_is_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = iter([0.0, 40.0, 50.0, 60.0, 90.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    with progress.progress_bar("proposals") as advance:
        advance(0, 8)  # for instance after a long wait for another process
        advance(2, 8)
        advance(3, 8)
        advance(6, 8)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "proposals: 2 of 8, 0.04 per second, 2.5 min left",
        "proposals: 6 of 8, 0.0667 per second, 0.5 min left",
    ]


def test_other_ranks_print_warnings_only_and_say_which_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "_rank", 0)
    progress.note("a step")
    progress.speak_as(3)
    progress.note("a step of another")
    progress.note("warning: a slow disk")
    with progress.said_once():
        progress.note("warning: what every process has seen")
    progress.show("a result of another")
    progress.speak_as(0)
    progress.show("a result")
    printed = capsys.readouterr()
    assert printed.err.splitlines() == ["a step", "rank 3: warning: a slow disk"]
    assert printed.out.splitlines() == ["a result"]
    assert progress.speaker() == ""
