"""The demo on anybody's images: proposals made on the spot, or looked up in a file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from detector.data.generated.dataset import generate_voc
from detector.engine.checkpoint import load_checkpoint, save_checkpoint
from tests.commands.conftest import Tool

CONFIG = """
data: {root: voc, workers: 0}
proposals: {file: boxes.npz, format: npz}
model: {backbone: {name: small}, head: {hidden: [16]}, pool: {output_size: 2}}
train: {steps: 1, scales: [96]}
test: {scales: [96], score_threshold: 0.0, nms_threshold: 1.0, max_detections: 10000}
"""


@pytest.fixture
def checkpoint(tool: Tool, tmp_path: Path) -> Path:
    """Of a network trained on somebody's proposal file."""
    generate_voc(tmp_path / "voc", train_images=2, test_images=2, image_size=(96, 128), seed=1)
    ids = [path.stem for path in (tmp_path / "voc/Annotations").glob("*.xml")]
    boxes = np.float32([[0, 0, 60, 50], [20, 20, 90, 90]])
    np.savez(tmp_path / "boxes.npz", **dict.fromkeys(ids, boxes))
    (tmp_path / "mine.yaml").write_text(CONFIG)
    result = tool("train", "--config", "mine.yaml", "--output", "run", "--device", "cpu")
    assert result.returncode == 0, result.stderr
    return tmp_path / "run/checkpoints/best.pt"


def proposals_of_each(folder: Path) -> list[float]:
    """How many proposals each image had: with a score threshold of 0 each is found once for every class."""
    found = json.loads((folder / "detections.json").read_text())
    return [len(image["detections"]) / len(found["classes"]) for image in found["images"]]


def test_images_of_any_folder_need_no_store(tool: Tool, checkpoint: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in (tmp_path / "voc/JPEGImages").iterdir():
        (photos / f"my {path.name}").write_bytes(path.read_bytes())
    (tmp_path / "boxes.npz").unlink()
    stores = set((tmp_path / "data/proposals").iterdir())
    arguments = ("--checkpoint", checkpoint, photos, "--output", "out", "--device", "cpu")
    result = tool("demo", *arguments)
    assert result.returncode == 0, result.stderr
    assert "making some by selective search" in result.stderr
    found = proposals_of_each(tmp_path / "out")
    assert len(found) == 4
    assert all(count > 2 for count in found)
    assert set((tmp_path / "data/proposals").iterdir()) == stores  # nothing is left but what was asked for

    result = tool("demo", *arguments, "--set", "proposals.method=dense", "--set", "proposals.max_proposals=1")
    assert result.returncode == 0, result.stderr
    assert proposals_of_each(tmp_path / "out") == [1, 1, 1, 1]


def test_scores_of_svms_may_be_below_zero(tool: Tool, checkpoint: Path, tmp_path: Path) -> None:
    image = next((tmp_path / "voc/JPEGImages").iterdir())
    (tmp_path / "text").mkdir()
    (tmp_path / f"text/{image.stem}.txt").write_text("3 4 50 60\n")
    arguments = (
        "--checkpoint",
        checkpoint,
        image,
        "--output",
        "out",
        "--device",
        "cpu",
        "--proposals",
        "text",
    )
    result = tool("demo", *arguments, "--score-threshold", "-0.5")
    assert result.returncode == 0, result.stderr
    assert "no detections below test.score_threshold = 0 are made" in result.stderr
    assert "--set test.score_threshold=-0.5" in result.stderr
    result = tool("demo", *arguments, "--score-threshold", "nan")
    assert result.returncode == 2
    assert "--score-threshold nan: expected a finite number" in result.stderr


def test_a_file_is_looked_up_by_stem(tool: Tool, checkpoint: Path, tmp_path: Path) -> None:
    image = next((tmp_path / "voc/JPEGImages").iterdir())
    (tmp_path / "text").mkdir()
    (tmp_path / f"text/{image.stem}.txt").write_text("3 4 50 60\n")
    arguments = ("--checkpoint", checkpoint, image, "--output", "out", "--device", "cpu")
    result = tool("demo", *arguments, "--proposals", "text")
    assert result.returncode == 0, result.stderr
    assert proposals_of_each(tmp_path / "out") == [1]
    (tmp_path / "other").mkdir()
    (tmp_path / "other/000999.txt").write_text("3 4 50 60\n")
    result = tool("demo", *arguments, "--proposals", "other")
    assert result.returncode == 2
    assert f"other: 1 of 1 images are not in the file; is it of another split? The first is {image}" in (
        result.stderr
    )


def test_code_that_a_checkpoint_names_does_not_run(tool: Tool, checkpoint: Path, tmp_path: Path) -> None:
    """The function takes the image and the keywords of the config, here to run a command of the shell."""
    state = load_checkpoint(checkpoint)
    del state["file"]
    state["config"]["proposals"] = {"method": "pydoc:pipepager", "options": {"cmd": "touch pwned"}}
    save_checkpoint(tmp_path / "evil.pt", state)
    photo = next((tmp_path / "voc/JPEGImages").iterdir())
    arguments = ("--checkpoint", "evil.pt", photo, "--output", "out", "--device", "cpu")
    result = tool("demo", *arguments)
    assert result.returncode == 2
    assert "evil.pt: the config in this checkpoint has proposals.method = 'pydoc:pipepager'" in result.stderr
    assert "--set proposals.method=..." in result.stderr
    assert not (tmp_path / "pwned").exists()
    result = tool("demo", *arguments, "--set", "proposals.method=dense")
    assert result.returncode == 0, result.stderr
    (tmp_path / "mine.py").write_text(
        "def whole(image):\n    return [[0, 0, image.shape[1], image.shape[0]]]\n"
    )
    result = tool("demo", *arguments, "--set", "proposals.method=mine:whole")
    assert result.returncode == 0, result.stderr
    assert proposals_of_each(tmp_path / "out") == [1]
    assert not (tmp_path / "pwned").exists()


def test_files_that_a_checkpoint_names_are_not_opened(tool: Tool, checkpoint: Path, tmp_path: Path) -> None:
    state = load_checkpoint(checkpoint)
    del state["file"]
    os.mkfifo(tmp_path / "pipe")  # reading it would wait for ever
    config = state["config"]
    config["proposals"] |= {"file": "pipe"}
    config["model"]["backbone"]["weights"] = config["train"]["initial_weights"] = "pipe"
    config["data"] |= {"root": "pipe", "leave_out": "pipe"}
    save_checkpoint(tmp_path / "named.pt", state)
    photo = next((tmp_path / "voc/JPEGImages").iterdir())
    result = tool("demo", "--checkpoint", "named.pt", photo, "--output", "out", "--device", "cpu")
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("stored", [None, 0.3])
def test_the_threshold_is_the_checkpoints_unless_it_has_none_or_another_is_given(
    tool: Tool, checkpoint: Path, tmp_path: Path, stored: float | None
) -> None:
    state = load_checkpoint(checkpoint)
    del state["format"]
    save_checkpoint(checkpoint, {**state, "score_threshold": stored})
    image = next((tmp_path / "voc/JPEGImages").iterdir())
    arguments = ("--checkpoint", checkpoint, image, "--output", "out", "--device", "cpu")

    result = tool("demo", *arguments)
    assert result.returncode == 0, result.stderr
    source = "the checkpoint's" if stored else "the checkpoint has none of its own"
    assert f"score threshold {stored or 0.5:g}: {source}" in result.stderr
    images = json.loads((tmp_path / "out/detections.json").read_text())["images"]
    drawn = sum(found["score"] >= (stored or 0.5) for image in images for found in image["detections"])
    assert f"{drawn} detections in 1 images" in result.stderr

    result = tool("demo", *arguments, "--score-threshold", "0")
    assert "the checkpoint" not in result.stderr.replace("the checkpoint's proposals", "")
    assert f"{len(images[0]['detections'])} detections in 1 images" in result.stderr


@pytest.mark.parametrize("stored", ["0.5", float("nan"), [0.5], True])
def test_a_stored_threshold_that_is_no_number_is_refused(
    tool: Tool, checkpoint: Path, tmp_path: Path, stored: object
) -> None:
    state = load_checkpoint(checkpoint)
    del state["format"]
    save_checkpoint(checkpoint, {**state, "score_threshold": stored})
    image = next((tmp_path / "voc/JPEGImages").iterdir())
    result = tool("demo", "--checkpoint", checkpoint, image, "--output", "out", "--device", "cpu")
    assert result.returncode == 2
    assert "'score_threshold' is not a finite number" in result.stderr
