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
