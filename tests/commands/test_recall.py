"""The tool: one store or several, tables, JSON and a picture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from detector.data.generated.dataset import generate_voc
from detector.proposals.convert import convert
from tests.commands.conftest import Tool
from tests.typed import float32, read_picture, save_arrays

CONFIG = """
data: {root: voc, workers: 0}
proposals: {method: dense}
model: {backbone: {name: small}}
train: {steps: 1}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    generate_voc(tmp_path / "voc", train_images=2, test_images=6, image_size=(96, 128), seed=1)
    (tmp_path / "mine.yaml").write_text(CONFIG)
    return tmp_path / "mine.yaml"


def make_store(tmp_path: Path, name: str, boxes: list[list[float]]) -> Path:
    ids = [path.stem for path in (tmp_path / "voc/Annotations").glob("*.xml")]
    save_arrays(tmp_path / f"{name}.npz", {image_id: float32(boxes) for image_id in ids})
    return convert(tmp_path / f"{name}.npz", "npz", tmp_path / name).path


def test_several_stores_in_one_picture(tool: Tool, config: Path, tmp_path: Path) -> None:
    whole = make_store(tmp_path, "whole", [[0, 0, 128, 96]])
    corner = make_store(tmp_path, "corner", [[0, 0, 3, 3], [0, 0, 4, 4], [0, 0, 128, 96]])
    arguments = ("--store", whole, "--store", f"small ones={corner}", "--counts", "1,3", "--output", "out")
    result = tool("recall", "--config", config, *arguments)
    assert result.returncode == 0, result.stderr
    assert "whole: 1 proposals per image, 6 images" in result.stdout
    assert "small ones: 3 proposals per image" in result.stdout
    report = json.loads((tmp_path / "out/recall.json").read_text())
    first, second = report["stores"]["whole"], report["stores"]["small ones"]
    assert report["split"] == "test"
    assert first["counts"] == second["counts"] == [1, 3]
    assert first["mean_best_overlap"][0] == first["mean_best_overlap"][1] == second["mean_best_overlap"][1]
    assert second["mean_best_overlap"][0] < first["mean_best_overlap"][0]
    picture = read_picture(tmp_path / "out/recall.png")
    assert picture.shape[0] > 900
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 50  # lines in several colours, not a blank page


def test_the_configs_own_proposals(tool: Tool, config: Path, tmp_path: Path) -> None:
    result = tool("recall", "--config", config, "--split", "trainval", "--output", "out")
    assert result.returncode == 0, result.stderr
    report = json.loads((tmp_path / "out/recall.json").read_text())["stores"]["dense"]
    assert report["images"] == 2
    assert report["recall"]["0.5"][-1] > 0.8


def test_what_does_not_fit_is_said(tool: Tool, config: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "other.npz", other=float32([[0, 0, 1, 1]]))
    other = convert(tmp_path / "other.npz", "npz", tmp_path / "other").path
    for arguments, message in (
        (("--store", other), "no proposals for any image of test"),
        (("--store", tmp_path / "absent"), "is not a proposal store"),
        (("--counts", "3,x"), "--counts '3,x': write whole numbers"),
        (("--split", "tset"), "tset"),
    ):
        result = tool("recall", "--config", config, *arguments)
        assert result.returncode == 2
        assert message in result.stderr
        assert "Traceback" not in result.stderr
