"""``--print-config`` of the tools."""

from __future__ import annotations

from pathlib import Path

from tests.commands.conftest import Tool


def test_tools_print_the_config_and_do_nothing_else(tool: Tool, tmp_path: Path) -> None:
    for name, arguments in {"train": (), "evaluate": ("--checkpoint", "a.pt"), "check_data": ()}.items():
        result = tool(name, "--config", "quickstart", *arguments, "--print-config", "train.steps=7")
        assert (result.returncode, result.stderr) == (0, "")
        assert "  steps: 7  # command line" in result.stdout.splitlines()
    assert not list(tmp_path.iterdir())


def test_a_config_that_is_not_found_lists_those_of_similar_names(tool: Tool) -> None:
    result = tool("train", "--config", "quickstar", "--print-config")
    assert result.returncode == 2
    assert "quickstar: no such config file; shipped configs of similar names: quickstart" in result.stderr
