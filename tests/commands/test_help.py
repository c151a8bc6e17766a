"""Every tool explains itself and shows an example."""

from __future__ import annotations

from tests.commands.conftest import PROJECT, Tool

TOOLS = sorted(path.stem for path in (PROJECT / "tools").glob("*.py") if path.stem != "setup_check")


def test_every_tool_has_help_with_an_example(tool: Tool) -> None:
    assert {"train", "evaluate", "demo", "propose"} <= set(TOOLS)
    for name in TOOLS:
        result = tool(name, "-h")
        assert result.returncode == 0, (name, result.stderr)
        assert "example" in result.stdout, name
