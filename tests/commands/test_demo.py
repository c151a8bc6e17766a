"""The demo on anybody's images: what evaluation scores, with proposals made on the spot or from a file."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detector.api import Detector
from detector.commands.demo import find_images, picture_names, run_demo
from detector.config import Config
from detector.core.errors import InputError
from detector.data.generated.dataset import generate_voc
from detector.engine.checkpoint import load_checkpoint, save_checkpoint
from detector.engine.inference import RegionPredictor
from detector.factory.data import class_names
from detector.factory.loaders import inference_views
from detector.factory.model import build_model, build_postprocess
from detector.tasks.start import build_scorer
from tests.commands.conftest import Tool

CONFIG = """
data: {root: voc, workers: 0}
proposals: {file: boxes.npz, format: npz}
model: {backbone: {name: small}, head: {hidden: [16]}, pool: {output_size: 2}}
train: {steps: 1, scales: [96]}
test: {scales: [96], score_threshold: 0.0, nms_threshold: 1.0, max_detections: 10000}
"""
Load = Callable[..., Config]


@pytest.fixture
def checkpoint(tool: Tool, tmp_path: Path) -> Path:
    """Of a network trained on somebody's proposal file."""
    generate_voc(tmp_path / "voc", train_images=2, test_images=2, image_size=(96, 128), seed=1)
    ids = [path.stem for path in (tmp_path / "voc/Annotations").glob("*.xml")]
    boxes = np.array([[0, 0, 60, 50], [20, 20, 90, 90]], dtype=np.float32)
    arrays: dict[str, Any] = dict.fromkeys(ids, boxes)
    np.savez(tmp_path / "boxes.npz", **arrays)
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
    assert "making proposals by selective search" in result.stderr
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
    assert "detections below test.score_threshold = 0 are never returned" in result.stderr
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
    assert "evil.pt: the config in it has proposals.method = 'pydoc:pipepager'" in result.stderr
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


@pytest.mark.slow
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
    assert "the checkpoint" not in result.stderr.replace("the checkpoint's proposal file", "")
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


def detector_of(config: Config, device: str = "cpu", score_threshold: float | None = None) -> Detector:
    """Return a detector with the seeded random weights of the config's network."""
    classes = class_names(config)
    state = {
        "classes": list(classes),
        "model": build_model(config, len(classes)).state_dict(),
        "file": "random.pt",
        "score_threshold": score_threshold,
    }
    return Detector(config, state, device)


@pytest.mark.parametrize(
    ("scales", "refinements", "views"),
    [
        ("[96]", 0, []),
        ("[96]", 1, ["test.flip=true"]),
        ("[64,96,140]", 0, ["test.scale_rule=side"]),
        ("[64,96]", 2, []),
        ("[64,96]", 0, ["test.flip=true", "test.scale_rule=all"]),
        ("[96]", 1, ["test.precision=bfloat16"]),
    ],
)
def test_demo_and_evaluation_agree_bit_for_bit(
    tiny: Load, tmp_path: Path, scales: str, refinements: int, views: list[str]
) -> None:
    config = tiny(
        f"test.scales={scales}", f"test.refinements={refinements}", "test.score_threshold=0.1", *views
    )
    scorer = build_scorer(config, split="test")
    test_set = scorer.test_set
    evaluation = scorer.evaluate(build_model(config, len(test_set.classes)).eval())
    paths = [record.path for record in test_set.records]
    written = run_demo(detector_of(config), paths, tmp_path / "out", score_threshold=0.2)
    assert json.loads((tmp_path / "out" / "detections.json").read_text())["images"] == written
    total = 0
    for record, image in zip(test_set.records, written, strict=True):
        expected = evaluation.results[record.image_id]
        boxes = torch.tensor([found["box"] for found in image["detections"]]).reshape(-1, 4)
        scores = torch.tensor([found["score"] for found in image["detections"]])
        labels = [test_set.classes.index(found["class"]) + 1 for found in image["detections"]]
        assert torch.equal(boxes, expected.boxes)
        assert torch.equal(scores, expected.scores)
        assert labels == expected.labels.tolist()
        assert (tmp_path / "out" / image["drawn"]).is_file()
        total += len(labels)
    assert total > 0


def test_a_classifiers_demo_and_evaluation_agree_bit_for_bit(tiny: Load, tmp_path: Path) -> None:
    config = tiny(
        "task=classification",
        "model.pool={kind: spp, levels: [1, 2, 4]}",
        "test.scales=[64,96]",
        "test.flip=true",
    )
    scorer = build_scorer(config, split="test")
    images = scorer.test_set
    expected = scorer.evaluate(build_model(config, len(images.classes)).eval()).results
    paths = [record.path for record in images.records]
    run_demo(detector_of(config), paths, tmp_path / "out", score_threshold=0.5)
    written = json.loads((tmp_path / "out" / "classes.json").read_text())["images"]
    for record, image in zip(images.records, written, strict=True):
        found = {row["class"]: row["score"] for row in image["scores"]}
        assert [found[name] for name in images.classes] == expected[record.image_id].tolist()
        assert list(found.values()) == sorted(found.values(), reverse=True)
        assert (tmp_path / "out" / image["drawn"]).is_file()


def test_weights_cast_beforehand_change_no_detection(tiny: Load) -> None:
    """In bfloat16 evaluation casts weights once; autocast alone, casting in every call, gives the same."""
    config = tiny("test.precision=bfloat16", "test.score_threshold=0.1", "model.roi_chunk=16")
    scorer = build_scorer(config, split="test")
    test_set = scorer.test_set
    model = build_model(config, len(test_set.classes)).eval()
    results = scorer.evaluate(model).results
    predictor = RegionPredictor(
        model=model, postprocess=build_postprocess(config, model.box_coder), precision=torch.bfloat16
    )
    for image in inference_views(config, test_set.records, test_set.proposals):
        expected = predictor(image)
        detections = results[image[0].metas[0].image_id]
        assert len(expected) > 0
        assert torch.equal(detections.boxes, expected.boxes)
        assert torch.equal(detections.scores, expected.scores)


def test_given_proposals_are_looked_up_by_stem(tiny: Load, tmp_path: Path) -> None:
    test_set = build_scorer(tiny(), split="test").test_set
    paths = [record.path for record in test_set.records][:2]
    file = tmp_path / "boxes.npz"
    arrays: dict[str, Any] = {paths[0].stem: np.array([[5, 5, 60, 60]], dtype=np.float32)}
    np.savez(file, **arrays)
    config = tiny(f"proposals.file={file}", "proposals.format=npz", "test.score_threshold=0.0")
    detector = detector_of(config)
    (image,) = run_demo(detector, paths[:1], tmp_path / "out", score_threshold=0.0)
    assert len(image["detections"]) == len(test_set.classes)  # the one proposal, once for each class
    with pytest.raises(InputError, match=rf"boxes\.npz: 1 of 2 .*first is {paths[1]},"):
        run_demo(detector, paths, tmp_path / "out", score_threshold=0.0)


def test_places_are_files_and_folders(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "note.txt"):
        (tmp_path / name).touch()
    assert find_images([tmp_path]) == [tmp_path / "a.jpg", tmp_path / "b.png"]
    images = [Path("x/a.jpg"), Path("y/a.png"), Path("a.bmp")]
    assert picture_names(images) == ["a.jpg", "a_2.jpg", "a_3.jpg"]
    assert picture_names([Path("A.jpg"), Path("a.png")]) == ["A.jpg", "a_2.jpg"]
    with pytest.raises(InputError, match="no such image"):
        find_images([tmp_path / "missing.jpg"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no image in"):
        find_images([tmp_path / "empty"])


def test_pictures_never_overwrite_the_images(tiny: Load) -> None:
    config = tiny()
    path = build_scorer(config, split="test").test_set.records[0].path
    before = path.read_bytes()
    with pytest.raises(InputError, match="would overwrite this file"):
        run_demo(detector_of(config), [path], path.parent, score_threshold=0.5)
    assert path.read_bytes() == before


@pytest.mark.parametrize("kind", ["picture of another image", "link", "JSON over the proposals"])
def test_no_file_that_is_read_is_overwritten(tiny: Load, tmp_path: Path, kind: str) -> None:
    source = build_scorer(tiny(), split="test").test_set.records[0].path
    (tmp_path / "out").mkdir()
    first, second, boxes = tmp_path / "a.png", tmp_path / "out" / "a.jpg", tmp_path / "out/detections.json"
    shutil.copy(source, first)
    shutil.copy(source, tmp_path / "original.jpg")
    if kind == "link":
        second.hardlink_to(tmp_path / "original.jpg")
        images, config = [first, tmp_path / "original.jpg"], tiny()
    elif kind == "picture of another image":
        shutil.copy(source, second)
        images, config = [first, second], tiny()
    else:
        boxes.write_text("[]")
        images, config = [first], tiny(f"proposals={{file: {boxes}, format: coco}}")
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    with pytest.raises(InputError, match="would overwrite this file; give another --output folder"):
        run_demo(detector_of(config), images, tmp_path / "out", score_threshold=0.5)
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def test_pictures_of_any_file_name_can_be_written(tiny: Load, tmp_path: Path) -> None:
    config = tiny()
    test_set = build_scorer(config, split="test").test_set
    photos = tmp_path / "photos"
    photos.mkdir()
    stems = ["n" * 251, "n" * 250, "CON", "50%", "a:b", "图像"]
    for stem in stems:
        shutil.copy(test_set.records[0].path, photos / f"{stem}.jpg")
    run_demo(detector_of(config), find_images([photos]), tmp_path / "out", 0.5)
    written = json.loads((tmp_path / "out" / "detections.json").read_text())["images"]
    assert {Path(image["image"]).stem for image in written} == set(stems)
    drawn = {image["drawn"] for image in written}
    assert len(drawn) == len(stems)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*drawn, "detections.json"}
