"""Every tool explains itself and shows an example."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.tools.conftest import PROJECT, Tool

TOOLS = sorted(path.stem for path in (PROJECT / "tools").glob("*.py"))


def test_every_tool_has_help_with_an_example(tool: Tool) -> None:
    assert {"train", "evaluate", "demo", "propose"} <= set(TOOLS)
    with ThreadPoolExecutor(2) as pool:
        results = dict(zip(TOOLS, pool.map(lambda name: tool(name, "-h"), TOOLS), strict=True))
    for name, result in results.items():
        assert result.returncode == 0, (name, result.stderr)
        assert "example:" in result.stdout, name
