"""Every command and every Python block of the documentation is run, or at least read as the program reads it.

- The options of all commands are read by the commands' own parsers, and the values for configs are checked.
  So a renamed option or key fails here.
- `RUN_HERE` lists the pages whose commands `test_the_commands_of_the_pages` runs on small data; `RUN_BY` has
  those that another test runs. A block under ``<!-- needs: ... -->`` needs data, a network or time that
  tests lack.
- The imports of all Python blocks are tried.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import io
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from detector.config import load_config
from detector.config.files import find_config
from detector.core.command_line import COMMANDS
from detector.core.errors import InputError
from tests import pages
from tests.conftest import PROJECT
from tests.pages import PAGES, Block, blocks, commands, name_of, run_tool, write_named

RUN_HERE = (
    "README.md",
    "docs/tutorials/paper.md",
    "docs/tutorials/photographs.md",
    "docs/tutorials/regions.md",
    "docs/tutorials/teaching.md",
    "docs/runs.md",
    "docs/data_sets.md",
    "docs/proposals.md",
    "docs/training.md",
    "docs/three_pipelines.md",
    "docs/classification.md",
    "docs/evaluation.md",
    "docs/features.md",
    "docs/multilabel.md",
    "docs/pooling.md",
    "docs/weak.md",
    "docs/data_and_weights.md",
    "docs/compress.md",
    "docs/export.md",
    "docs/serve.md",
    "docs/video.md",
)
"""Run one after another in one folder; a command that several pages give is run once."""
RUN_BY = {
    "annotations": "test_annotations_page.py::test_every_config_and_every_command",
    "bring_your_own": "test_docs.py::test_bring_your_own",
    "distributed": "multiprocess/test_run.py::test_stopped_killed_and_resumed_runs_equal_uninterrupted_ones",
    "extend": "test_extend_page.py::test_each_example_trains_and_is_loaded_only_if_it_is_allowed",
    "reliability": "commands/test_replay.py"
    "::test_a_run_that_diverges_leaves_a_batch_and_a_replay_names_the_value",
}
"""Pages of docs/ that other tests run, and these tests, below tests/."""
SHELL = {
    *("source", "make", "pip", ".venv/bin/pip", "ip", "for", "srun", "mlflow", "wandb", "uv", "docker", "cd"),
    *("git", "curl"),
}
"""Programs that are not this project's. Only `source` may stand in a block that needs nothing."""
SCRIPTS = {command.script: command.name for command in COMMANDS}


class Parsed(BaseException):
    """Raised in the place of what a program does after it has read its arguments."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments


def parsed(main: Callable[[], object], words: list[str]) -> argparse.Namespace:
    """Return what the program of ``main`` reads from its arguments.

    Raises AssertionError with the program's message if it refuses them.
    """
    said = io.StringIO()

    def ended(parse: Callable[..., Any]) -> Callable[..., Any]:
        def parse_and_end(*arguments: Any, **options: Any) -> Any:
            raise Parsed(parse(*arguments, **options))

        return parse_and_end

    parser = argparse.ArgumentParser
    with (
        mock.patch.object(sys, "argv", words),
        mock.patch.object(parser, "parse_args", ended(parser.parse_args)),
        mock.patch.object(parser, "parse_intermixed_args", ended(parser.parse_intermixed_args)),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(said),
    ):
        try:
            main()
        except Parsed as end:
            return end.arguments
        except SystemExit as end:
            if not end.code:  # --print-config
                return argparse.Namespace()
    raise AssertionError(f"{' '.join(words)}: {said.getvalue()}")


def check_values(arguments: argparse.Namespace) -> None:
    """Check the config values of a command against the schema, where the config is one that is shipped."""
    config = getattr(arguments, "config", None)
    values = list(getattr(arguments, "overrides", None) or ())
    if not config or any(re.search(r"\bmy_\w+:", value) for value in values):
        return
    try:
        find_config(config)
    except InputError:
        return  # a config that a page or its reader writes
    load_config(config, values)


def check(words: list[str], block: Block) -> None:
    """Check one command of a page."""
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):  # a variable of the environment
        words = words[1:]
    if words[0] == "torchrun":
        check_torchrun(words)
    elif words[:2] == ["python", "-c"]:
        exec(words[2], {})
    elif words[0] == "python" and words[1] == "-m":
        check_module(words[2], words[3:])
    elif words[0] == "python" and words[1].startswith("benchmarks/"):
        check_module(words[1].removesuffix(".py").replace("/", "."), words[2:])
    elif words[0] == "python" and words[1].startswith("tools/"):
        check_tool(words)
    elif words[0] == "region-detector" and not words[1].startswith("-"):
        script = {command.name: command.script for command in COMMANDS}.get(words[1], words[1])
        check_tool(["python", f"tools/{script}.py", *words[2:]])
    elif words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (PROJECT / "Makefile").read_text(), re.MULTILINE)
        named = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
        assert set(named) <= set(targets)
    elif words[0] in ("pip", ".venv/bin/pip") and (extras := re.findall(r"\[([\w,]+)\]", " ".join(words))):
        project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
        assert set(extras[0].split(",")) <= set(project["optional-dependencies"])
    else:
        script = words[1] if len(words) > 1 else ""
        own = any(f"# {script}\n" in one.text for one in blocks(block.page))  # a file that the page writes
        known = own or block.needs or words[0] in SHELL | {"region-detector"}
        assert known, f"{words[0]} is not known"


def check_tool(words: list[str]) -> None:
    script = Path(words[1]).stem
    assert (PROJECT / words[1]).is_file(), f"{words[1]} does not exist"
    if script in SCRIPTS:
        module = import_module(f"detector.commands.{SCRIPTS[script]}")
        check_values(parsed(module.main, words[1:]))


def check_torchrun(words: list[str]) -> None:
    from torch.distributed.run import parse_args

    of_torchrun = parse_args(words[1:])
    assert of_torchrun.training_script.startswith("tools/")
    check_tool(["python", of_torchrun.training_script, *of_torchrun.training_script_args])


def check_module(name: str, words: list[str]) -> None:
    """Check ``python -m NAME``: a module of this project, and options that its file declares."""
    spec = find_spec(name)
    assert spec is not None, f"there is no module {name}"
    assert spec.origin is not None
    code = Path(spec.origin).read_text(encoding="utf-8")
    if spec.submodule_search_locations:
        code += "".join(path.read_text(encoding="utf-8") for path in Path(spec.origin).parent.rglob("*.py"))
    assert [word for word in words if word.startswith("--") and f'"{word}"' not in code] == []


def shell_blocks(page: Path) -> list[Block]:
    return [block for block in blocks(page) if block.language == "sh"]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_is_one_that_the_program_takes(page: Path) -> None:
    for block in shell_blocks(page):
        if block.text.startswith("#!"):
            continue  # a script of a batch system
        for words in commands(block):
            try:
                check(words, block)
            except (AssertionError, InputError) as fault:
                raise AssertionError(f"{block.place}: {fault}") from fault


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_in_fenced_blocks(page: Path) -> None:
    """Otherwise the tests here would not see them."""
    text = re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    assert re.findall(r"^ {4,}(?:python|torchrun|region-detector) .*", text, re.MULTILINE) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_command_is_run_or_says_what_it_needs(page: Path) -> None:
    if name_of(page) in RUN_HERE:
        return
    for block in shell_blocks(page):
        tools = [  # without the one-line programs, which `check` runs
            words
            for words in commands(block)
            if words[0] in ("python", "torchrun", "region-detector") and words[1] != "-c"
        ]
        assert block.needs or not tools or page.stem in RUN_BY, f"{block.place}: no test runs this"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_other_programs_are_in_blocks_that_say_what_they_need(page: Path) -> None:
    """No test runs `make` or `pip`; their blocks tell the reader what they need instead."""
    for block in shell_blocks(page):
        other = {words[0] for words in commands(block)} & SHELL - {"source"}
        assert block.needs or not other, f"{block.place}: {sorted(other)} without a line of what is needed"


def test_the_tests_that_run_pages_exist() -> None:
    for page, test in RUN_BY.items():
        assert (PROJECT / "docs" / f"{page}.md").is_file()
        file, name = test.split("::")
        tree = ast.parse((PROJECT / "tests" / file).read_text(encoding="utf-8"))
        assert name in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)], test


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One folder for all pages, so that a page finds what the pages before it have trained."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("pages")
        pages.make_place(folder, patch)
        yield folder


DONE: set[str] = set()
"""Commands that were run in this process; the pages give some of them several times."""


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in RUN_HERE if (PROJECT / page).is_file()])
def test_the_commands_of_the_pages(page: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in blocks(PROJECT / page):
        if block.needs:
            continue
        write_named(block, place)
        for words in commands(block) if block.language == "sh" else ():
            if words[0] == "python" and " ".join(words) not in DONE:
                run_tool(words, monkeypatch)
                DONE.add(" ".join(words))


def python_blocks() -> list[Block]:
    return [block for page in PAGES for block in blocks(page) if block.language == "python"]


@pytest.mark.parametrize("block", python_blocks(), ids=lambda block: block.place)
def test_python_compiles_and_its_imports_exist(block: Block) -> None:
    tree = ast.parse(block.text, block.place)
    optional = {"segment_anything"}  # another project, which one page uses as an example
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module not in optional:
            module = import_module(node.module)
            missing = [name.name for name in node.names if not hasattr(module, name.name)]
            missing = [name for name in missing if find_spec(f"{node.module}.{name}") is None]
            assert missing == [], f"{block.place}: {node.module} has no {missing}"
        elif isinstance(node, ast.Import):
            assert [name.name for name in node.names if find_spec(name.name) is None] == []
