"""tools/train.py and its folder: one process, no file of others, nothing that a failed start leaves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from detector.data.generated.dataset import generate_voc
from tests.commands.conftest import PROJECT, Tool
from tests.engine.test_run_folder import hold
from tests.staged.test_runner import STAGED
from tests.tiny import TINY

FEW = ("train.steps=2", "data.workers=0")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folder") / "voc"
    generate_voc(root, train_images=4, test_images=2, image_size=(96, 112), seed=2)
    return root


@pytest.fixture
def config(root: Path, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "data": {**TINY["data"], "root": str(root)}}))
    return path


@pytest.fixture
def staged(root: Path, tmp_path: Path) -> Path:
    path = tmp_path / "staged.yaml"
    values = {**TINY, "data": {**TINY["data"], "root": str(root)}, **STAGED}
    path.write_text(json.dumps(values))
    return path


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != ".run.lock"
    }


def test_beside_a_live_run_every_start_is_refused(
    tool: Tool, config: Path, staged: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    done = tool("train", "--config", config, "--output", folder, *FEW)
    assert done.returncode == 0, done.stderr
    before = tree(folder)
    process = hold(folder)
    try:
        for name, *options in (
            (config, "--resume"),
            (config, "--overwrite"),
            (config,),
            (staged, "--resume"),
            (staged, "--overwrite"),
            (staged, "--stage", "classify"),
        ):
            result = tool("train", "--config", name, "--output", folder, *options, *FEW)
            assert result.returncode == 2
            assert f"process {process.pid} is training in this folder" in result.stderr, options
        assert tree(folder) == before
    finally:
        os.killpg(process.pid, 9)
        process.wait(20)
    time.sleep(0.1)
    resumed = tool("train", "--config", config, "--output", folder, "--resume", *FEW)
    assert resumed.returncode == 0, resumed.stderr


def test_the_end_says_device_checkpoint_and_command(tool: Tool, config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "my run"
    done = tool("train", "--config", config, "--output", folder, "--device", "cpu", *FEW)
    best = folder / "checkpoints" / "best.pt"
    assert f"the checkpoint to use is {best}, of step 2, without a score threshold\n" in done.stderr
    assert "trained on cpu; the checkpoint to use" in done.stderr
    assert f"python tools/demo.py --checkpoint '{best}' photos/ --output '{folder}/photos'" in done.stderr


def test_overwriting_removes_the_run_and_nothing_else(tool: Tool, config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    train = ("train", "--config", config, "--output", folder, "data.workers=0")
    assert tool(*train, "train.steps=3").returncode == 0
    mine = {"results/thesis.txt": b"1", "cache/wheel": b"2", "detections/me.jpg": b"3", "notes.txt": b"4"}
    for name, content in mine.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
    result = tool(*train, "--overwrite", "train.steps=2")
    assert result.returncode == 0, result.stderr
    assert "3 files are kept, since the earlier run is not known to have written them" in result.stderr
    after = tree(folder)
    assert mine.items() <= after.items()
    assert {name for name in after if name.startswith("checkpoints/")} == {
        "checkpoints/best.pt",
        "checkpoints/step_2.pt",
    }


@pytest.mark.parametrize("option", ["--overwrite", "--resume", None])
def test_a_folder_of_others_is_left_alone(
    tool: Tool, config: Path, staged: Path, tmp_path: Path, option: str | None
) -> None:
    folder = tmp_path / "thesis"
    for name in ("results/plot.pdf", "cache/page", "checkpoints/step_10.pt", "config.yaml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("mine")
    before = tree(folder)
    for path in (config, staged):
        result = tool("train", "--config", path, "--output", folder, *([option] if option else []), *FEW)
        assert result.returncode == 2
        assert "holds checkpoints, results, cache, config.yaml, which no run of this project" in result.stderr
        assert tree(folder) == before


@pytest.mark.parametrize(
    "fault",
    [
        "model.backbone.weights=absent.pth",
        "train.initial_weights=absent.pt",
        "data.train_split=absent",
        "train.images_per_batch=1000",
        "train.scales=[4]",
    ],
)
def test_a_start_that_fails_leaves_nothing(
    tool: Tool, config: Path, staged: Path, tmp_path: Path, fault: str
) -> None:
    for name in (config, staged):
        folder = tmp_path / "deep" / "run"
        result = tool("train", "--config", name, "--output", folder, *FEW, "train.scale_jitter=null", fault)
        assert result.returncode == 2, result.stderr
        assert "Traceback" not in result.stderr
        assert not (tmp_path / "deep").exists(), tree(tmp_path / "deep")


@pytest.mark.parametrize("key", ["model.backbone.weights", "train.initial_weights"])
def test_weights_are_checked_before_any_data_are_read(
    tool: Tool, config: Path, tmp_path: Path, key: str
) -> None:
    faults = (f"{key}=absent.pth", "data.root=gone")
    result = tool("train", "--config", config, "--output", tmp_path / "run", *FEW, *faults)
    assert result.returncode == 2
    assert "absent.pth" in result.stderr
    assert "gone" not in result.stderr


def test_a_start_that_fails_in_a_folder_of_files_keeps_them(tool: Tool, config: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    failed = tool("train", "--config", config, "--output", tmp_path / "run", *FEW, "train.scales=[4]",
                  "train.scale_jitter=null")  # fmt: skip
    assert failed.returncode == 2
    assert list(tree(tmp_path / "run")) == ["notes.txt"]
    assert tool("train", "--config", config, "--output", tmp_path / "run", *FEW).returncode == 0


def test_a_run_killed_before_its_first_checkpoint_starts_again(
    tool: Tool, config: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert tool("train", "--config", config, "--output", folder, *FEW).returncode == 0
    for path in (folder / "checkpoints").iterdir():
        path.unlink()
    assert tool("train", "--config", config, "--output", folder, *FEW).returncode == 0
    refused = tool("train", "--config", config, "--output", folder, *FEW)
    assert refused.returncode == 2
    assert "holds a run already" in refused.stderr


def test_the_option_for_changed_data_belongs_to_resume(tool: Tool, config: Path) -> None:
    result = tool("train", "--config", config, "--accept-changed-data")
    assert result.returncode == 2
    assert "--accept-changed-data belongs to --resume" in result.stderr


def test_a_stage_that_cannot_be_done_deletes_nothing(
    tool: Tool, config: Path, staged: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    command = ("train", "--config", staged, "--output", folder, *FEW, "--stage")
    assert tool(*command, "classify").returncode == 0
    before = tree(folder)
    for name in ("classify", "svm", "clasify"):
        refused = tool(*command, name, "--overwrite")
        assert refused.returncode == 2
        assert "--overwrite deletes all stages of a run, and --stage does one of them" in refused.stderr
    for name, said in (
        ("clasify", "the config's stages are classify, fine_tune"),
        ("svm", "needs the stage fine_tune"),
    ):
        refused = tool(*command, name)
        assert refused.returncode == 2
        assert f"--stage {name}: {said}" in refused.stderr
    assert tree(folder) == before
    refused = tool("train", "--config", config, "--output", tmp_path / "other", "--stage", "classify")
    assert refused.returncode == 2
    assert "--stage classify: the config has no stages" in refused.stderr
    assert not (tmp_path / "other").exists()


def test_evaluations_of_several_checkpoints_lie_side_by_side(
    tool: Tool, config: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    assert (
        tool("train", "--config", config, "--output", folder, *FEW, "train.checkpoint_every=1").returncode
        == 0
    )
    for name, split in (("step_1", "test"), ("step_2", "test"), ("best", "test"), ("best", "trainval")):
        checkpoint = folder / "checkpoints" / f"{name}.pt"
        for _ in range(2):  # never asks
            result = tool("evaluate", "--config", config, "--checkpoint", checkpoint, "--split", split)
            assert result.returncode == 0, result.stderr
    found = sorted(path.parent.name for path in folder.glob("evaluation_*/metrics.json"))
    assert found == [
        "evaluation_test_best_step_2",
        "evaluation_test_step_1",
        "evaluation_test_step_2",
        "evaluation_trainval_best_step_2",
    ]
    figures = json.loads((folder / "evaluation_test_step_1" / "metrics.json").read_text())
    assert (figures["step"], figures["split"]) == (1, "test")
    assert list((folder / "evaluation_trainval_best_step_2/results").glob("comp4_det_trainval_*.txt"))


TOOLS = sorted(
    path.name
    for path in (PROJECT / "tools").glob("*.py")
    if not path.name.startswith(
        ("check_machine", "check_headers", "check_wheel", "check_release", "setup_check")
    )
)


@pytest.mark.parametrize("name", TOOLS)
def test_outside_the_environment_a_tool_says_how_to_set_it_up(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-E", "-s", "-S", str(PROJECT / "tools" / name), "--help"],
        capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert "make install" in done.stderr
    assert f".venv/bin/python tools/{name}" in done.stderr
    assert "torch" in done.stderr
