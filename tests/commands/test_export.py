"""tools/export.py: what it writes runs without this project and gives its detections; the rest is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from benchmarks.exported import save_random
from detector import Detector
from detector.commands import export
from detector.config import Config
from detector.core.errors import InputError
from detector.engine.checkpoint import load_checkpoint, save_checkpoint
from detector.export.checks import USUAL, Row, Tolerances, compare_all, largest_difference
from detector.export.formats import Signature, load, write_openvino
from detector.export.programs import run_program

Load = Callable[..., Config]
Write = Callable[..., Path]

WITHOUT_OURS = """
import runpy, sys
for name in BLOCKED:
    sys.modules[name] = None  # importing it raises
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture
def checkpoint(tiny: Load, tmp_path: Path) -> Write:
    def write(*overrides: str) -> Path:
        config = tiny("test.score_threshold=0.3", *overrides)
        return save_random(config, tmp_path / "a.pt", classes=3)

    return write


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["export.py", *map(str, words)])
    return export.main()


def run_alone(folder: Path, *words: object, blocked: tuple[str, ...]) -> dict[str, Any]:
    """Return what ``run.py`` prints in a Python without this project and the ``blocked`` packages."""
    program = WITHOUT_OURS.replace("BLOCKED", repr(("detector", "pydantic", "PIL", *blocked)))
    command = [sys.executable, "-I", "-c", program, str(folder / "run.py"), *map(str, words)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, cwd=folder.parent
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def photograph(path: Path, size: tuple[int, int]) -> Path:
    rng = np.random.default_rng(3)
    small = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    cv2.imwrite(str(path), cv2.resize(small, size[::-1], interpolation=cv2.INTER_CUBIC))
    return path


@pytest.mark.slow
def test_onnx_and_openvino_give_the_detections_of_the_checkpoint(
    checkpoint: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    path, folder = checkpoint("model.pool={kind: roi, output_size: 2}", "test.max_size=128"), tmp_path / "out"
    options = ("--postprocess", "--check-images", 1, "--json", "--selective-search")
    assert call(monkeypatch, "--checkpoint", path, "--format", "onnx", "--output", folder, *options) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passed"]
    assert set(report["rows"][0]["scores"]) == {"0", "1", "7", "1000", "4000"}
    about = json.loads((folder / "model.json").read_text())
    assert about["classes"] == ["a", "b", "c"]

    image = photograph(tmp_path / "photo.jpg", (480, 700))
    boxes = np.array([[0, 0, 700, 480], [20, 30, 200, 400], [300, 5, 420, 90], [22, 28, 210, 390]])
    np.save(tmp_path / "boxes.npy", boxes)
    expected = Detector.load(path, "cpu")(image, boxes=boxes).to_dict()["detections"]
    assert expected
    signature = Signature(tuple(about["inputs"]), (), tuple(about["outputs"]))
    for form in ("onnx", "openvino"):
        if form == "openvino":
            write_openvino((folder / "model.onnx").read_bytes(), folder / "model.xml", signature)
            program = run_program(form, classifies=False, torchvision=False, search=True)
            (folder / "run.py").write_text(program)
        found = run_alone(folder, image, tmp_path / "boxes.npy", blocked=("torch", "torchvision"))
        assert [one["class"] for one in found["detections"]] == [one["class"] for one in expected]
        for one, other in zip(found["detections"], expected, strict=True):
            np.testing.assert_allclose(one["score"], other["score"], atol=1e-4)
            np.testing.assert_allclose(one["box"], other["box"], atol=1e-3)
        if form == "onnx":  # OpenVINO itself refuses a map without cells
            small = about["image"]["smallest_side"] - 1
            pixels, sides = np.zeros((small, 100, 3), np.uint8), np.array([small, 100], np.float32)
            given = [pixels, np.array([[0, 0, 100, small]], np.float32), sides, np.ones(2, np.float32)]
            results = dict(zip(signature.outputs, load(form, folder, signature)(given), strict=True))
            assert np.isnan(results["region_scores"]).all()
            assert len(results["boxes"]) == 0


@pytest.mark.slow
def test_torch_export_runs_without_this_project(
    checkpoint: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder = checkpoint("model.pool={kind: spp, levels: [1]}", "test.max_size=100"), tmp_path / "out"
    options = ("--checkpoint", path, "--format", "torch_export", "--output", folder, "--check-images", 1)
    assert call(monkeypatch, *options) == 0
    image = photograph(tmp_path / "photo.png", (90, 120))
    boxes = [[0, 0, 120, 90], [3, 4, 50, 60]]
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    found = run_alone(folder, image, tmp_path / "boxes.json", blocked=("torchvision",))["detections"]
    expected = Detector.load(path, "cpu").classify(image, boxes)
    scores, labels = expected.scores[:, 1:].max(dim=1)
    assert [one["class"] for one in found] == ["abc"[label] for label in labels]
    np.testing.assert_allclose([one["score"] for one in found], scores, atol=1e-4)


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["model.pool={kind: roi, mask: cells}"], "no standard operator pools the cells of a mask"),
        (["model.pool={kind: warp, crop_size: 32, context: 2}"], "R-CNN cuts each region out of the image"),
        (
            ["model.head.scores=svm", "test.score_threshold=-1"],
            "These are not probabilities.*the stage before",
        ),
        (["model.head={kind: svm}", "test.score_threshold=-1"], "Give model.head.scores=softmax"),
        (["model.head={kind: knn}"], "counts the votes of stored examples"),
        (["test.scales=[96,64]"], r"test\.scales=\[96\] test\.flip=false"),
        (["test.flip=true"], "tested on 2 views of each image"),
        (["test.refinements=1"], r"give test\.refinements=0"),
        (
            [
                "task=classification",
                "model.pool={kind: spp, levels: [1], rule: sliding}",
                "proposals.method=null",
            ],
            "model.pool.rule sliding",
        ),
    ],
    ids=["masks", "crops", "SVMs", "SVMs of a head", "votes", "scales", "mirrored", "refinements", "sliding"],
)
def test_what_cannot_be_exported_is_refused_with_the_reason(
    checkpoint: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], reason: str
) -> None:
    path = checkpoint(*overrides)
    with pytest.raises(InputError, match=reason):
        call(monkeypatch, "--checkpoint", path, "--format", "torch_export", "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_code_of_the_user_is_refused_before_it_could_run(
    checkpoint: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint()
    state = torch.load(path, weights_only=True)
    state["config"]["model"]["pool"] = {"kind": "my_pools:Pool"}
    save_checkpoint(path, {key: state[key] for key in ("step", "config", "classes", "model")})
    with pytest.raises(InputError, match=r"model\.pool\.kind = 'my_pools:Pool' is code of yours"):
        call(monkeypatch, "--checkpoint", path, "--format", "torch_export", "--output", tmp_path / "out")


def test_nested_boxes_are_refused_only_with_postprocessing(
    checkpoint: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = checkpoint("test.nested_threshold=0.9")
    options = (
        "--checkpoint",
        path,
        "--format",
        "torch_export",
        "--output",
        tmp_path / "out",
        "--postprocess",
    )
    with pytest.raises(InputError, match=r"test\.nested_threshold"):
        call(monkeypatch, *options)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_an_export_is_compared_with_float32_whatever_the_command_line_says(
    checkpoint: Write, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    words = ("--checkpoint", "x", "--format", "torch_export", "--output", "x")
    monkeypatch.setattr(sys, "argv", ["export.py", *words, f"test.precision={precision}"])
    state = load_checkpoint(checkpoint(f"test.precision={precision}"))
    exported = export.prepared(state, export.parse())
    assert exported.config.test.precision == "float32"
    assert exported.limits == USUAL


def test_svms_whose_margins_are_read_as_logits_are_exported(
    checkpoint: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--checkpoint", "x", "--format", "torch_export", "--output", "x", "model.head.scores=softmax")
    monkeypatch.setattr(sys, "argv", ["export.py", *words])
    state = load_checkpoint(checkpoint("model.head={kind: svm}", "test.score_threshold=-1"))
    assert export.prepared(state, export.parse()).about["scores"] == "softmax"


def test_a_network_that_differs_is_not_written(
    checkpoint: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def nothing(self: export.Export, folder: Path) -> None: ...
    def differing(self: export.Export, folder: Path, images: int) -> list[Row]:
        return [Row((9, 8), (9, 8), self.limits, {0: 0.0, 7: 2e-4}, {0: 0.0, 7: 0.0})]

    monkeypatch.setattr(export.Export, "write", nothing)
    monkeypatch.setattr(export.Export, "check", differing)
    options = ("--checkpoint", checkpoint(), "--format", "torch_export", "--output", tmp_path / "out")
    assert call(monkeypatch, *options) == 1
    said = capsys.readouterr()
    assert "FAILED" in said.out
    assert "--score-tolerance" in said.err
    assert not (tmp_path / "out").exists()
    assert call(monkeypatch, *options, "--score-tolerance", "2e-4") == 0
    with pytest.raises(InputError, match="--box-tolerance nan: give a finite number"):
        call(monkeypatch, *options, "--box-tolerance", "nan")


def test_a_missing_package_is_named_with_the_extra(
    checkpoint: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(InputError, match=r'pip install "region-detector\[export\]"'):
        call(monkeypatch, "--checkpoint", checkpoint(), "--format", "onnx", "--output", tmp_path / "out")


def test_a_difference_of_nan_or_shape_does_not_pass() -> None:
    assert largest_difference(np.zeros((2, 3)), torch.zeros(2, 2)) == float("inf")
    compared = iter([0.0, float("nan"), 9e-5])
    rows = compare_all(lambda case: (case[0], next(compared), 0.0, True), [(20, 30)], (0, 1, 7))
    assert not rows[0].passed
    assert rows[0].to_dict()["scores"] == {"0": 0.0, "1": None, "7": 9e-5}
    assert Row((9, 8), (9, 8), scores={0: 1e-4}, boxes={0: 1e-3}, detections={0: True}).passed
    assert not Row((9, 8), (9, 8), scores={0: 0.0}, boxes={0: 0.0}, detections={0: False}).passed
    near = Row((9, 8), (9, 8), scores={0: 2e-4}, boxes={0: 2e-3})
    assert not near.passed
    assert replace(near, limits=Tolerances(2e-4, 2e-3)).passed
