"""Whatever is wrong with what a user hands in: exit status 2, one clear line, nothing half-written."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from detector.config import load_config
from detector.tasks.start import start_run
from tests.commands.conftest import PROJECT, Result, Tool
from tests.tiny import TINY

Write = Callable[..., Path]


@pytest.fixture
def config(root: Path, tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    values = {**TINY, "data": {**TINY["data"], "root": str(root)}}
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def checkpoint(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trained").mkdir()
    start_run(load_config(config, ["train.steps=1"]), tmp_path / "trained", "cpu").run()
    return tmp_path / "trained" / "checkpoints" / "step_1.pt"


def refused(result: Result, *words: str) -> None:
    text = result.stderr
    assert result.returncode == 2, text
    assert result.stdout == ""
    assert "Traceback" not in text
    line = text.strip().splitlines()[-1]
    assert line.startswith("error: "), text
    for word in words:
        assert word in text, text


def test_config_faults(tool: Tool, config: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train = ("train", "--config", config, "--output", run)
    refused(tool(*train, "train.stesp=3"), "tiny.yaml", "train.stesp", "did you mean 'steps'")
    refused(tool(*train, "train.steps=many"), "train.steps", "'many'", "whole number")
    refused(tool(*train, "data.root=/nowhere/voc"), "/nowhere/voc", "Annotations")
    refused(tool("train", "--config", tmp_path / "no.yaml"), "no.yaml", "no such config")
    assert not (run / "checkpoints").exists()


@pytest.mark.parametrize("name", ["train", "evaluate", "check_data", "recall", "propose"])
def test_a_config_without_its_option(tool: Tool, name: str) -> None:
    result = tool(name, "configs/mine.yaml")
    assert result.returncode == 2
    assert "write --config configs/mine.yaml" in result.stderr


def test_an_id_without_annotation_or_image(tool: Tool, config: Path, root: Path, tmp_path: Path) -> None:
    train = ("train", "--config", config, "--output", tmp_path / "run")
    first = (root / "ImageSets/Main/trainval.txt").read_text().split()[0]
    (root / "JPEGImages" / f"{first}.jpg").rename(tmp_path / "aside.jpg")
    refused(tool(*train), first, "trainval.txt", "JPEGImages")
    (tmp_path / "aside.jpg").rename(root / "JPEGImages" / f"{first}.jpg")
    (root / "Annotations" / f"{first}.xml").unlink()
    refused(tool(*train), first, "trainval.txt", f"{first}.xml")


def test_a_truncated_image_in_training(tool: Tool, config: Path, root: Path, tmp_path: Path) -> None:
    first = (root / "ImageSets/Main/trainval.txt").read_text().split()[0]
    image = root / "JPEGImages" / f"{first}.jpg"
    image.write_bytes(image.read_bytes()[:900])
    result = tool("train", "--config", config, "--output", tmp_path / "run")
    refused(result, f"{first}.jpg", "truncated")


def test_checkpoints_that_do_not_fit(tool: Tool, config: Path, checkpoint: Path, tmp_path: Path) -> None:
    short = tmp_path / "short.pt"
    short.write_bytes(checkpoint.read_bytes()[:2000])
    evaluate = ("evaluate", "--config", config, "--checkpoint")
    refused(tool(*evaluate, short), "short.pt", "truncated")
    refused(tool(*evaluate, tmp_path / "none.pt"), "none.pt", "no such checkpoint")
    refused(
        tool(*evaluate, checkpoint, "model.pool.output_size=3"),
        "made with model.pool.output_size = 4, the config says 3",
    )
    foreign = tmp_path / "foreign.pt"
    torch.save({"weights": torch.zeros(3)}, foreign)
    refused(tool(*evaluate, foreign), "foreign.pt", "not a checkpoint of this project")


def test_a_folder_that_cannot_be_written(tool: Tool, config: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    refused(tool("train", "--config", config, "--output", tmp_path / "file" / "run"), "cannot write")


def test_a_run_is_never_mixed_with_another(tool: Tool, config: Path, checkpoint: Path) -> None:
    folder = checkpoint.parent.parent
    before = checkpoint.read_bytes()
    refused(tool("train", "--config", config, "--output", folder), "--resume", "--overwrite")
    assert checkpoint.read_bytes() == before


def test_starting_over_deletes_nothing_before_the_data_are_found_in_order(
    tool: Tool, config: Path, checkpoint: Path, root: Path
) -> None:
    folder = checkpoint.parent.parent
    before = checkpoint.read_bytes()
    split = root / "ImageSets" / "Main" / "trainval.txt"
    whole = split.read_text()
    split.write_text(whole + "absent\n")
    refused(tool("train", "--config", config, "--output", folder, "--overwrite"), "absent")
    assert checkpoint.read_bytes() == before
    split.write_text(whole)
    result = tool("train", "--config", config, "--output", folder, "--overwrite", "train.steps=2")
    assert result.returncode == 0, result.stderr
    assert not checkpoint.exists()
    assert (folder / "checkpoints" / "step_2.pt").is_file()


def test_an_image_smaller_than_one_cell_is_named(tool: Tool, config: Path, tmp_path: Path) -> None:
    tiny = ["train.scales=[4]", "train.scale_jitter=null", "test.scales=[4]", "data.workers=0"]
    result = tool("train", "--config", config, "--output", tmp_path / "small", *tiny)
    refused(result, "0000", "is smaller than one cell of the feature map; raise the scales")


@pytest.mark.slow
def test_a_full_disk_while_saving(config: Path, checkpoint: Path, tmp_path: Path) -> None:
    """A limit on file sizes stands in for the full disk: the write fails in the middle."""
    folder = checkpoint.parent.parent
    arguments = ["--config", str(config), "--output", str(folder), "--resume", "train.steps=2"]
    arguments.append("data.workers=0")  # workers hand images over in files of their own
    code = f"""
import resource, runpy, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
sys.argv = ["train.py", *{arguments!r}]
sys.path.insert(0, {str(PROJECT / "tools")!r})
runpy.run_path({str(PROJECT / "tools" / "train.py")!r}, run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    refused(Result(done.returncode, done.stdout, done.stderr), "step_2.pt: cannot write the file")
    assert {path.name for path in checkpoint.parent.iterdir()} == {"best.pt", "step_1.pt"}
