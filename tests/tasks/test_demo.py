"""The demo shows what evaluation scores: the same detections, bit for bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from detector.config import Config
from detector.core.errors import InputError
from detector.engine.inference import detect
from detector.factory.loaders import inference_views
from detector.factory.model import build_model, build_postprocess
from detector.tasks.demo import find_images, run_demo, unique_stems
from detector.tasks.start import build_scorer

Load = Callable[..., Config]


@pytest.mark.parametrize(
    ("scales", "workers", "refinements", "views"),
    [
        ("[96]", 0, 0, []),
        ("[96]", 1, 1, ["test.flip=true"]),
        ("[64,96,140]", 1, 0, ["test.scale_rule=side"]),
        ("[64,96]", 0, 2, []),
        ("[64,96]", 0, 0, ["test.flip=true", "test.scale_rule=all"]),
        ("[96]", 0, 1, ["test.precision=bfloat16"]),
    ],
)
def test_demo_and_evaluation_agree_bit_for_bit(
    tiny: Load, tmp_path: Path, scales: str, workers: int, refinements: int, views: list[str]
) -> None:
    config = tiny(
        f"data.workers={workers}",
        f"test.scales={scales}",
        f"test.refinements={refinements}",
        "test.score_threshold=0.1",
        *views,
    )
    scorer = build_scorer(config, split="test")
    test_set = scorer.test_set
    model = build_model(config, len(test_set.classes)).eval()
    evaluation = scorer.evaluate(model)
    paths = [record.path for record in test_set.records]
    run_demo(config, model, test_set.classes, paths, tmp_path / "out", "cpu", score_threshold=0.2)
    written = json.loads((tmp_path / "out" / "detections.json").read_text())
    total = 0
    for record, image in zip(test_set.records, written["images"], strict=True):
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


def test_weights_cast_beforehand_change_no_detection(tiny: Load) -> None:
    """In bfloat16 evaluation casts weights once; autocast alone, casting in every call, gives the same."""
    config = tiny("test.precision=bfloat16", "test.score_threshold=0.1", "model.roi_chunk=16")
    scorer = build_scorer(config, split="test")
    test_set = scorer.test_set
    model = build_model(config, len(test_set.classes)).eval()
    found = scorer.evaluate(model).results
    postprocess = build_postprocess(config, model.box_coder)
    for image in inference_views(config, test_set.records, test_set.proposals):
        expected = detect(model, image, postprocess, precision=torch.bfloat16)
        detections = found[image[0].metas[0].image_id]
        assert len(expected) > 0
        assert torch.equal(detections.boxes, expected.boxes)
        assert torch.equal(detections.scores, expected.scores)


def test_given_proposals_are_looked_up_by_stem(tiny: Load, tmp_path: Path) -> None:
    test_set = build_scorer(tiny(), split="test").test_set
    paths = [record.path for record in test_set.records][:2]
    file = tmp_path / "boxes.npz"
    np.savez(file, **{paths[0].stem: np.array([[5, 5, 60, 60]], dtype=np.float32)})
    config = tiny(f"proposals.file={file}", "proposals.format=npz", "test.score_threshold=0.0")
    model = build_model(config, len(test_set.classes)).eval()
    run_demo(config, model, test_set.classes, paths[:1], tmp_path / "out", "cpu", score_threshold=0.0)
    found = json.loads((tmp_path / "out" / "detections.json").read_text())["images"][0]["detections"]
    assert len(found) == len(test_set.classes)  # the one proposal, once for each class
    with pytest.raises(InputError, match=rf"boxes\.npz: 1 of 2 .*first is {paths[1]},"):
        run_demo(config, model, test_set.classes, paths, tmp_path / "out", "cpu", score_threshold=0.0)


def test_places_are_files_and_folders(tmp_path: Path) -> None:
    for name in ("b.png", "a.jpg", "note.txt"):
        (tmp_path / name).touch()
    assert find_images([tmp_path]) == [tmp_path / "a.jpg", tmp_path / "b.png"]
    assert unique_stems([Path("x/a.jpg"), Path("y/a.png"), Path("a.bmp")]) == ["a", "a_2", "a_3"]
    with pytest.raises(InputError, match="no such image"):
        find_images([tmp_path / "missing.jpg"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no image in"):
        find_images([tmp_path / "empty"])


def test_pictures_never_overwrite_the_images(tiny: Load, tmp_path: Path) -> None:
    test_set = build_scorer(tiny(), split="test").test_set
    config = tiny()
    model = build_model(config, len(test_set.classes)).eval()
    path = test_set.records[0].path
    before = path.read_bytes()
    with pytest.raises(InputError, match="would overwrite this image"):
        run_demo(config, model, test_set.classes, [path], path.parent, "cpu", score_threshold=0.5)
    assert path.read_bytes() == before


def test_pictures_of_any_file_name_can_be_written(tiny: Load, tmp_path: Path) -> None:
    config = tiny("data.workers=0")
    test_set = build_scorer(config, split="test").test_set
    model = build_model(config, len(test_set.classes)).eval()
    photos = tmp_path / "photos"
    photos.mkdir()
    stems = ["n" * 251, "n" * 250, "CON", "50%", "a:b", "图像"]
    for stem in stems:
        shutil.copy(test_set.records[0].path, photos / f"{stem}.jpg")
    run_demo(config, model, test_set.classes, find_images([photos]), tmp_path / "out", "cpu", 0.5)
    written = json.loads((tmp_path / "out" / "detections.json").read_text())["images"]
    assert {Path(image["image"]).stem for image in written} == set(stems)
    drawn = {image["drawn"] for image in written}
    assert len(drawn) == len(stems)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {*drawn, "detections.json"}
