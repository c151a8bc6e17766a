"""The console command: every tool is a subcommand, runs the same code, and is shown as its user calls it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib

import pytest

from detector.commands import console
from detector.core.command_line import COMMANDS, as_called
from tests.conftest import PROJECT

DEVELOPMENT = {"setup_check", "check_machine", "check_headers"}
"""Scripts for those who build the project, which an installation does not bring."""


def call(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "detector", *arguments],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_every_tool_is_a_subcommand_and_runs_the_same_code() -> None:
    scripts = {path.stem for path in (PROJECT / "tools").glob("*.py")} - DEVELOPMENT
    assert {command.script for command in COMMANDS} == scripts
    for command in COMMANDS:
        tree = ast.parse((PROJECT / "tools" / f"{command.script}.py").read_text())
        calls = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Call)]
        together = ", together=True" if command.together else ""
        assert calls == [f"cli.run({command.name}.main{together})"]


def test_the_installation_brings_the_command() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"region-detector": "detector.commands.console:main"}


def test_help_lists_the_commands_in_the_order_of_need() -> None:
    result = call("-h")
    assert result.returncode == 0
    listed = re.findall(r"^    (\w+)  ", result.stdout, re.MULTILINE)
    expected = (
        "train evaluate refit demo compress propose embed label check convert recall draw samples ablate "
        "replay"
    )
    assert listed == expected.split()
    assert "example" in result.stdout


def test_a_command_shows_itself_as_it_was_called(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in COMMANDS:
        monkeypatch.setattr(sys, "argv", ["/usr/bin/region-detector", command.name, "-h"])
        with pytest.raises(SystemExit, match="0"):
            console.main()
        shown = capsys.readouterr().out
        assert shown.startswith(f"usage: region-detector {command.name} ")
        assert f"region-detector {command.name}" in shown.partition("example")[2]
        assert "tools/" not in shown


def test_an_unknown_command_is_one_error_that_lists_them() -> None:
    result = call("trian")
    assert result.returncode == 2
    assert "trian" in result.stderr
    assert "train" in result.stderr


def test_arguments_and_errors_reach_the_command() -> None:
    result = call("train", "--config", "no_such_file.yaml")
    assert result.returncode == 2
    assert "no_such_file.yaml" in result.stderr


def test_scripts_are_shown_as_scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "look with tools/check_data.py --fix-list LIST, or python tools/demo.py photos/"
    monkeypatch.setattr(sys, "argv", ["tools/train.py"])
    assert as_called(text) == text
    monkeypatch.setattr(sys, "argv", ["region-detector train"])
    assert as_called(text) == (
        "look with region-detector check --fix-list LIST, or region-detector demo photos/"
    )
