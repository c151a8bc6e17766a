"""What docs/hooks.py adds to the site: pages of other files, their links, and the table of commands."""

from __future__ import annotations

import importlib.util
import re
from types import ModuleType

import pytest

from detector.core.command_line import COMMANDS
from tests.conftest import PROJECT

pytest.importorskip("mkdocs", reason="mkdocs is not installed (the extra docs)")


@pytest.fixture(scope="module")
def hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hooks", PROJECT / "docs" / "hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_of_commands_lists_every_command(hooks: ModuleType) -> None:
    rows = re.findall(
        r"^\| \[`(\w+)`\]\(#\1\) \| `(\w+)\.py` \| (.+) \|$", hooks.command_table(), re.MULTILINE
    )
    assert rows == [(command.name, command.script, command.summary) for command in COMMANDS]
    page = (PROJECT / "docs" / "commands.md").read_text(encoding="utf-8")
    assert page.count("<!-- commands -->") == page.count("<!-- options -->") == 1


def test_it_shows_the_help_of_every_command(hooks: ModuleType) -> None:
    text = hooks.command_options()
    assert re.findall(r"^## (\w+)$", text, re.MULTILINE) == [command.name for command in COMMANDS]
    for section in text.split("\n## ")[1:]:
        name = section.split()[0]
        assert f"usage: region-detector {name} " in section
        assert "example:" in section


@pytest.mark.parametrize(
    ("page", "link", "expected"),
    [
        ("masks.md", "../data/README.md", "data.md"),
        ("api/stores.md", "../../data/README.md", "data.md"),
        ("data.md", "../docs/extend.md", "extend.md"),
        ("results.md", "../README.md", "index.md"),
        ("index.md", "quick_look.ipynb", "quick_look.md"),
        ("three_pipelines.md", "../detector/models/crops.py", "source/detector/models/crops.py.md"),
        ("tutorials/paper.md", "../measured.md", "measured.md"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(
    hooks: ModuleType, page: str, link: str, expected: str
) -> None:
    assert hooks.target_of(page, link) == expected


def test_a_file_without_a_page_is_shown_as_source(hooks: ModuleType) -> None:
    assert list(hooks.sources("a.md", "[x](../setup.py) [y](../no_such.py) [z](b.md)")) == ["setup.py"]
    assert "```python\n" in hooks.listing(PROJECT / "setup.py")
    assert "- `store.py`" in hooks.listing(PROJECT / "detector" / "proposals")


def test_a_notebook_becomes_a_page_with_pictures(hooks: ModuleType) -> None:
    cells = [
        {"cell_type": "markdown", "source": ["# Title"]},
        {
            "cell_type": "code",
            "source": ["print(1)"],
            "outputs": [{"text": ["1\n"]}, {"data": {"image/jpeg": "AAEC", "text/plain": "<Figure>"}}],
        },
    ]
    text, pictures = hooks.rendered({"cells": cells})
    assert text.startswith("# Title\n\n```python\nprint(1)\n```\n\n```text\n1\n```\n\n![")
    assert pictures == {"quick_look_1.jpg": b"\x00\x01\x02"}
