"""The page about trackers: its callback runs as it stands, and its lists are those of the code."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

import pytest
import yaml

from detector.config import load_config
from detector.engine.callbacks import Callback, RunFacts
from detector.engine.environment import environment
from tests.conftest import PROJECT
from tests.pages import blocks

PAGE = PROJECT / "docs" / "trackers.md"


def test_the_callback_of_the_page_copies_every_checkpoint(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (code,) = [block.text for block in blocks(PAGE) if block.language == "python"]
    assert len(code.splitlines()) <= 25
    monkeypatch.chdir(tmp_path)
    assert code.count('"quickstart"') == 1
    exec(compile(code.replace('"quickstart"', repr(str(tiny_config))), str(PAGE), "exec"), {})
    kept = tmp_path / "runs" / "mirrored" / "checkpoints"
    names = {"step_4.pt", "step_8.pt", "step_12.pt"}
    assert {path.name for path in (tmp_path / "mirror").iterdir()} - {"best.pt"} == names
    for name in names:
        assert (tmp_path / "mirror" / name).read_bytes() == (kept / name).read_bytes()


def test_the_config_of_the_page_is_valid(tiny_config: Path) -> None:
    (text,) = [block.text for block in blocks(PAGE) if block.language == "yaml"]
    given = yaml.safe_load(text)["train"]["callbacks"]
    config = load_config(tiny_config, [f"train.callbacks={json.dumps(given)}"])
    assert [one.kind for one in config.train.callbacks] == ["wandb", "mlflow"]


def test_the_page_lists_every_method_and_every_fact() -> None:
    page = PAGE.read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| `(\w+)\(([^)]*)\)` \|", page, re.MULTILINE))
    methods = {
        name: ", ".join(list(inspect.signature(method).parameters)[1:])
        for name, method in inspect.getmembers(Callback, inspect.isfunction)
    }
    assert listed == methods
    row = next(line for line in page.splitlines() if line.startswith("| `on_start"))
    assert set(re.findall(r"`(\w+)`", row)) == set(RunFacts.__dataclass_fields__)
    section = page[page.index("An entry has") : page.index("It holds no names")]
    entry = environment(step=0, seed=0, data_fingerprint={}, device="cpu", loader_threads=0)
    assert set(entry) <= set(re.findall(r"`(\w+)`", section))
