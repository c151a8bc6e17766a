"""tools/replay.py: from a run whose loss became infinite to the layer that did it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from detector.config import Config
from detector.data.generated.dataset import generate_voc
from detector.engine.callbacks import Callback
from detector.engine.checkpoint import load_checkpoint
from detector.engine.faults import read_fault
from tests.commands.conftest import Result, Tool
from tests.staged.test_runner import STAGED
from tests.tiny import TINY

DIVERGING = ("train.learning_rate=1e25", "train.schedule.kind=step", "train.log_every=3")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("replay") / "voc"
    generate_voc(root, train_images=4, test_images=2, image_size=(96, 112), seed=2)
    return root


@pytest.fixture
def train(tool: Tool, root: Path, tmp_path: Path) -> Callable[..., Result]:
    def run(*more: str, **sections: Any) -> Result:
        config = tmp_path / "tiny.yaml"
        values = {**TINY, "data": {**TINY["data"], "root": str(root)}, **sections}
        config.write_text(json.dumps(values))
        return tool("train", "--config", config, "--output", tmp_path / "run", "data.workers=0", *more)

    return run


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_diverges_leaves_a_batch_and_a_replay_names_the_value(
    train: Callable[..., Result], tool: Tool, tmp_path: Path
) -> None:
    run, fault = tmp_path / "run", tmp_path / "run/faults/step_6.pt"
    assert train("train.steps=4", "train.checkpoint_every=4").returncode == 0
    failed = train("--resume", "train.steps=12", "train.checkpoint_every=4", *DIVERGING)
    assert failed.returncode == 2
    assert "Traceback" not in failed.stderr
    assert "the loss is no longer finite at step 6" in failed.stderr
    assert f"`python tools/replay.py {fault}` finds the first value" in failed.stderr
    good = load_checkpoint(run / "checkpoints/step_4.pt")  # the last one stays
    assert good["step"] == 4
    assert not (run / "checkpoints/step_8.pt").exists()
    kept = read_fault(fault)
    assert kept.checkpoint == "step_4.pt"
    assert len(kept.image_ids) == 2
    before = files(run)

    replayed = tool("replay", fault, "--json")
    assert replayed.returncode == 0, replayed.stderr
    outcome = json.loads(replayed.stdout)
    assert (outcome["from_step"], outcome["step"]) == (4, 6)
    assert outcome["image_ids"] == kept.image_ids
    assert outcome["finding"]["part"] == "layer"
    assert outcome["finding"]["values"]["not_finite"] > 0
    assert outcome["finding"]["inputs"][0]["not_finite"] == 0
    assert "warning" not in replayed.stderr
    assert files(run) == before

    text = tool("replay", fault)
    assert text.returncode == 0
    assert text.stdout.startswith("step 6: the first value that is not finite is in the layer ")
    assert "  weight: " in text.stdout

    mild = tool("replay", fault, "train.learning_rate=0.001")
    assert mild.returncode == 1, mild.stderr
    assert mild.stdout == "steps 5 to 6: all values stayed finite\n"


def test_without_a_checkpoint_the_replay_begins_at_the_first_step(
    train: Callable[..., Result], tool: Tool, tmp_path: Path
) -> None:
    failed = train("train.steps=6", "train.checkpoint_every=6", *DIVERGING)
    assert failed.returncode == 2, failed.stderr
    (fault,) = (tmp_path / "run/faults").iterdir()  # which a start that failed would otherwise remove
    replayed = tool("replay", fault, "--json")
    assert replayed.returncode == 0, replayed.stderr
    assert "replaying from the first step" in replayed.stderr
    outcome = json.loads(replayed.stdout)
    assert outcome["from_step"] == 0
    assert outcome["step"] <= read_fault(fault).step


def test_changed_images_and_damaged_checkpoints_are_said(
    train: Callable[..., Result], tool: Tool, tmp_path: Path
) -> None:
    assert train("train.steps=4", "train.checkpoint_every=2").returncode == 0
    assert train("--resume", "train.steps=12", *DIVERGING).returncode == 2
    (fault,) = (tmp_path / "run/faults").iterdir()
    last = tmp_path / "run/checkpoints/step_4.pt"
    last.write_bytes(last.read_bytes()[:2000])
    state = torch.load(fault, weights_only=True)
    state["batches"][0]["images"] += 1
    torch.save(state, fault)
    replayed = tool("replay", fault, "--json")
    assert f"warning: {last}: not readable as a checkpoint" in replayed.stderr
    assert "replaying from" in replayed.stderr
    assert "step_2.pt" in replayed.stderr
    assert "is not the one in" in replayed.stderr or json.loads(replayed.stdout)["step"] < state["step"]


@pytest.mark.parametrize("stage", ["01_classify", "02_fine_tune"])
def test_a_stage_is_replayed_too(
    train: Callable[..., Result], tool: Tool, tmp_path: Path, stage: str
) -> None:
    every: Any = STAGED["stages"]
    stages: list[dict[str, Any]] = [dict(one) for one in every]
    at = int(stage[:2]) - 1
    stages[at] = {**stages[at], "settings": {**stages[at]["settings"], "train": {"learning_rate": 1e25}}}
    settings = {**TINY["train"], "steps": 6, "checkpoint_every": 2, "log_every": 2}
    failed = train(**{**STAGED, "stages": stages, "train": settings})
    assert failed.returncode == 2, failed.stderr
    (fault,) = (tmp_path / "run/stages" / stage / "faults").iterdir()
    replayed = tool("replay", fault)
    assert replayed.returncode == 0, replayed.stderr
    assert "the first value that is not finite is in the " in replayed.stdout


def test_what_is_no_fault_file_is_one_error(tool: Tool, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("text")
    torch.save({"format": 1, "step": 3}, tmp_path / "short.pt")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    for name, words in (
        ("none.pt", "no such checkpoint"),
        ("notes.txt", "not readable as a checkpoint"),
        ("short.pt", "'losses' is missing"),
        ("tiny.yaml", "not readable as a checkpoint"),
    ):
        refused = tool("replay", tmp_path / name)
        assert refused.returncode == 2
        assert refused.stderr.startswith(f"error: {tmp_path / name}: ")
        assert words in refused.stderr


def test_a_replay_reports_to_no_tracker(
    train: Callable[..., Result], tool: Tool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []

    def build(config: Config) -> list[Callback]:
        seen.append(len(config.train.callbacks))
        return []

    monkeypatch.setattr("detector.tasks.start.build_callbacks", build)
    tracker = "train.callbacks=[{kind: wandb, project: p}]"
    assert train("train.steps=12", tracker, *DIVERGING).returncode == 2
    (fault,) = (tmp_path / "run/faults").glob("step_*.pt")
    replayed = tool("replay", fault)
    assert replayed.returncode == 0, replayed.stderr
    assert seen == [1, 0]
