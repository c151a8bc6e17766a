"""Names from files reach terminal and log letter for letter: no escape sequence, no rich markup."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from detector.core.progress import note
from detector.data.convert import voc_to_coco
from detector.data.generated.dataset import generate_voc
from tests.commands.conftest import PROJECT, Result, Tool
from tests.tiny import TINY

NAME = "\x1b[2J\x1b]0;x\x07[red]a"
NAMES = (NAME, "Cabinet/shelf", "n" * 300, r"$\frac$", "_..")
SHOWN = "\\x1b[2J\\x1b]0;x\\x07[red]a"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A COCO data set whose classes are called NAMES."""
    root = tmp_path / "voc"
    generate_voc(root, train_images=4, test_images=2, image_size=(96, 112), seed=2)
    for split in ("trainval", "test"):
        path = root / f"{split}.json"
        voc_to_coco(root, split, path)
        data = json.loads(path.read_text())
        data["categories"] = [{"id": number, "name": name} for number, name in enumerate(NAMES, start=1)]
        path.write_text(json.dumps(data))
    data = {**TINY["data"], "root": str(root), "format": "coco", "annotations": "{split}.json",
            "images": "JPEGImages", "workers": 0}  # fmt: skip
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({**TINY, "data": data}))
    return path


def safe(result: Result, status: int = 0) -> str:
    text = result.stdout + result.stderr
    assert result.returncode == status, text
    assert "\x1b" not in text
    assert "\x07" not in text
    return text


def test_training_scoring_and_checking(
    tool: Tool, config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    run = ("--config", config, "--output", tmp_path / "run", "train.steps=1")
    assert SHOWN in safe(tool("train", *run))
    checkpoint = tmp_path / "run" / "checkpoints" / "step_1.pt"
    scoring = ("--config", config, "--checkpoint", checkpoint)
    for metric in ("voc", "coco"):
        output = tmp_path / metric / "figures.json"
        assert SHOWN in safe(tool("evaluate", *scoring, "--metric", metric, "--output", output))
        figures = json.loads(output.read_text())
        (results,) = output.with_suffix("").glob("evaluation_test_*/results")
        again = tmp_path / "again.json"
        assert len(list(results.glob("comp4_det_test_*.txt"))) == len(NAMES)
        for place in [results, *results.glob("*.json")]:
            safe(tool("evaluate", "--detections", place, "--annotations", tmp_path / "voc" / "test.json",
                      "--metric", metric, "--output", again))  # fmt: skip
            read = json.loads(again.read_text())
            assert set(read["per_class"]) == set(NAMES)
            key = "AP" if metric == "coco" else "voc_mAP"
            assert read[key] == pytest.approx(figures[key])
    assert SHOWN in safe(tool("evaluate", *scoring, "data.classes=[red]"), 2)
    found = safe(tool("check_data", "--config", config, "data.classes=[circle]"), 1)
    assert SHOWN in found


@pytest.mark.slow
def test_a_terminal_gets_the_name_too_and_not_what_it_commands(config: Path) -> None:
    output, terminal = pty.openpty()
    line = [sys.executable, str(PROJECT / "tools" / "check_data.py"), "--config", str(config),
            "data.classes=[circle]"]  # fmt: skip
    with subprocess.Popen(line, stdout=terminal, stderr=terminal, cwd=config.parent,
                          env={**os.environ, "COLUMNS": "200"}):  # fmt: skip
        os.close(terminal)
        shown = b""
        while True:
            try:
                shown += os.read(output, 65536)
            except OSError:  # Linux's end of a terminal
                break
    os.close(output)
    assert b"Problems" in shown
    assert b"\\x1b[2J" in shown
    assert b"[red]a" in shown
    for command in (b"\x1b[2J", b"\x1b]0;", b"\x07"):
        assert command not in shown


def test_notes_are_no_markup(capfd: pytest.CaptureFixture[str]) -> None:
    note(f"{NAME} [link=x]y[/link] :smile:\nsecond\u202e")
    assert capfd.readouterr().err == f"{SHOWN} [link=x]y[/link] :smile:\nsecond\\u202e\n"
