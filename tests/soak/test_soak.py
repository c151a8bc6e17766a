"""The short version of ``make soak``: two kills, and a comparison that notices every difference."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from detector.engine.checkpoint import load_checkpoint, save_checkpoint
from tests.soak import __main__ as soak
from tests.soak.compare import differences


@pytest.fixture(scope="module")
def soaked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a soak of two kills."""
    folder = tmp_path_factory.mktemp("soak") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["soak", "--kills", "2", "--seed", "4", "--out", str(folder)])
        assert soak.main() == 0
    return folder


@pytest.mark.slow
def test_kills_leave_no_trace(soaked: Path) -> None:
    result = json.loads((soaked / "soak.json").read_text())
    assert result["kills"] == sum(result["kills_by_phase"].values()) == 2
    assert result["differences"] == []


def _change_weight(folder: Path) -> None:
    path = folder / "run/checkpoints/step_12.pt"
    state = load_checkpoint(path)
    next(iter(state["model"].values())).mul_(1.0001)
    path.unlink()  # best.pt may be the same file
    save_checkpoint(path, {key: value for key, value in state.items() if key != "file"})


def _leave_temporary_file(folder: Path) -> None:
    (folder / "run/results/.metrics.json.17.tmp").touch()


def _lose_picture(folder: Path) -> None:
    next((folder / "run/detections").glob("*.jpg")).unlink()


def _change_metric(folder: Path) -> None:
    metrics = json.loads((folder / "run/metrics.json").read_text())
    (folder / "run/metrics.json").write_text(json.dumps({**metrics, "images": metrics["images"] + 1}))


def _repeat_line(folder: Path) -> None:
    log = folder / "run/log.jsonl"
    log.write_text(log.read_text() + log.read_text().splitlines()[-1] + "\n")


def _second_board(folder: Path) -> None:
    (folder / "run/tensorboard/events.out.tfevents.9.host.1.0").touch()


def _damage_proposals(folder: Path) -> None:
    segment = next((folder / "data/proposals").rglob("segment_*.boxes.npy"))
    content = bytearray(segment.read_bytes())
    content[-3] ^= 1
    segment.write_bytes(content)


def _leave_segment(folder: Path) -> None:
    segment = next((folder / "data/proposals").rglob("segment_*.boxes.npy"))
    segment.with_name("segment_000099.boxes.npy").write_bytes(segment.read_bytes())


def _leave_lock(folder: Path) -> None:
    (folder / "run/.run.lock").touch()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_change_weight, "step_12.pt differs"),
        (_leave_temporary_file, "orphan: run/results/.metrics.json.17.tmp"),
        (_lose_picture, "only run/detections/"),
        (_change_metric, "metrics.json differs"),
        (_repeat_line, "log.jsonl differs"),
        (_second_board, "tensorboard: 2 files"),
        (_damage_proposals, "segment_"),
        (_leave_segment, "orphan segments [99]"),
        (_leave_lock, "orphan: run/.run.lock"),
    ],
)
def test_a_difference_is_noticed(
    soaked: Path, tmp_path: Path, change: Callable[[Path], None], said: str
) -> None:
    whole = soaked / "detector" / "whole"
    copy = tmp_path / "copy"
    subprocess.run(["cp", "-a", str(whole), str(copy)], check=True)
    assert differences(whole, copy) == []
    change(copy)
    found = differences(whole, copy)
    assert any(said in one for one in found), found
