"""Tools that work in one process refuse to be started in several."""

from __future__ import annotations

import pytest

from detector.commands import cli


def never() -> int:
    raise AssertionError("the tool has started")


def test_rank_0_gives_the_one_error(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    statuses = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit) as ended:
            cli.run(never)
        statuses.append(ended.value.code)
    assert statuses == [2, 0]
    assert capsys.readouterr().err.count("error: this tool works in one process") == 1


def test_one_process_of_torchrun_is_as_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(SystemExit) as ended:
        cli.run(lambda: 0)
    assert ended.value.code == 0
