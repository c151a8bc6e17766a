"""Whole runs of the classifier: exact resume, shared scales, full images of any size."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from detector.commands.evaluate import score_checkpoint
from detector.config import Config
from detector.core.errors import InputError
from detector.core.structures import ImageRecord, Targets
from detector.engine.checkpoint import load_checkpoint
from detector.factory.model import build_model
from detector.tasks.classification import ClassificationTask, classified_image, extremes
from detector.tasks.scoring import Evaluation
from detector.tasks.start import build_scorer, start_run
from tests.conftest import PROJECT
from tests.devices import each_device
from tests.tasks.test_start import assert_identical, final_state, wait_for
from tests.typed import read_picture

Load = Callable[..., Config]
CLASSIFIER = (
    "task=classification",
    "model.pool={kind: spp, levels: [1, 2, 4]}",
    "train.scales=[72,96]",
    "test.scales=[96]",
)


def classify(
    config: Config, folder: Path, device: str = "cpu", *, resume: bool = False
) -> Evaluation[torch.Tensor]:
    folder.mkdir(exist_ok=True)
    evaluation: Evaluation[torch.Tensor] = start_run(config, folder, device, resume=resume).run()
    return evaluation


@pytest.mark.parametrize("scale_per", ["image", "batch", "epoch"])
def test_resumed_equals_uninterrupted(tiny: Load, tmp_path: Path, scale_per: str) -> None:
    config = tiny(*CLASSIFIER, f"train.scale_per={scale_per}", "train.evaluate_every=5")
    whole = classify(config, tmp_path / "whole")
    for step in (4, 8):
        folder = tmp_path / f"from_{step}"
        shutil.copytree(tmp_path / "whole", folder)
        for later in (folder / "checkpoints").glob("step_*.pt"):
            if int(later.stem.removeprefix("step_")) > step:
                later.unlink()
        again = classify(config, folder, resume=True)
        assert_identical(final_state(tmp_path / "whole"), final_state(folder))
        assert again.metrics["voc07_mAP"] == whole.metrics["voc07_mAP"]
        assert all(
            torch.equal(again.results[image_id], whole.results[image_id]) for image_id in whole.results
        )


@pytest.mark.parametrize(("first", "then"), [("0", "0"), ("2", "2"), ("0", "2")])
def test_three_steps_and_three_more_are_six_whatever_threads_load(
    tiny: Load, tmp_path: Path, first: str, then: str
) -> None:
    few = (*CLASSIFIER, "train.scale_per=batch")
    classify(tiny(*few, "train.steps=6", "data.workers=0"), tmp_path / "whole")
    classify(tiny(*few, "train.steps=3", f"data.workers={first}"), tmp_path / "parts")
    classify(tiny(*few, "train.steps=6", f"data.workers={then}"), tmp_path / "parts", resume=True)
    assert_identical(final_state(tmp_path / "whole", 6), final_state(tmp_path / "parts", 6))


@pytest.mark.slow
@each_device
def test_killed_three_times_it_ends_as_if_it_never_was(
    tiny: Load, tiny_config: Path, tmp_path: Path, device: str
) -> None:
    few = [*CLASSIFIER, "train.scale_per=epoch", "train.steps=45", "train.checkpoint_every=3"]
    config, folder, rng = tiny(*few), tmp_path / "killed", random.Random(5)
    command = [sys.executable, str(PROJECT / "tools" / "train.py"), "--config", str(tiny_config), *few]
    command += ["--device", device]
    environment = {**os.environ, "HOME": str(tmp_path)}
    for moment in (3, 12, 24):
        process = subprocess.Popen(
            [*command, "--output", str(folder), "--resume"], env=environment, stderr=subprocess.DEVNULL
        )
        wait_for(folder / "checkpoints" / f"step_{moment}.pt", process)
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        assert process.wait(60) == -signal.SIGKILL
    again = classify(config, folder, device, resume=True)
    whole = classify(config, tmp_path / "whole", device)
    assert_identical(final_state(tmp_path / "whole", 45), final_state(folder, 45))
    assert again.metrics["per_class"] == whole.metrics["per_class"]


def shorter_sides(config: Config, steps: int, start: int = 0) -> list[list[int]]:
    batches = islice(ClassificationTask(config, "cpu").batches(start), steps)
    return [[min(meta.input_size) for meta in batch.metas] for batch in batches]


def test_a_scale_is_shared_by_whom_the_config_says(tiny: Load) -> None:
    def sides(per: str, start: int = 0) -> list[list[int]]:
        config = tiny(*CLASSIFIER, f"train.scale_per={per}", "train.scale_jitter=null", "data.workers=0")
        return shorter_sides(config, 24, start)

    image, batch, epoch = sides("image"), sides("batch"), sides("epoch")
    assert {side for batch_sides in image for side in batch_sides} == {72, 96}
    assert any(len(set(batch_sides)) == 2 for batch_sides in image)
    assert all(len(set(batch_sides)) == 1 for batch_sides in batch)
    assert len({batch_sides[0] for batch_sides in batch[:4]}) == 2
    epochs = [{side for one in epoch[start : start + 4] for side in one} for start in range(0, 24, 4)]
    assert all(len(one) == 1 for one in epochs)  # 8 images, 2 a batch: 4 steps
    assert set.union(*epochs) == {72, 96}
    assert sides("epoch", start=6)[:18] == epoch[6:]


def test_square_inputs_need_no_padding(tiny: Load) -> None:
    config = tiny(*CLASSIFIER, "train.resize=square", "train.scale_per=batch", "data.workers=0")
    for batch in islice(ClassificationTask(config, "cpu").batches(0), 4):
        assert set(batch.sizes) == {tuple(batch.images.shape[1:3])}
        assert batch.images.shape[1] == batch.images.shape[2]


def test_images_of_any_size_are_scored_whole_and_by_themselves(tiny: Load) -> None:
    """With the image's own size, scores are those of the network on its pixels, nothing cut or added."""
    config = tiny(*CLASSIFIER, "test.resize=none", "test.max_size=1000")
    scorer = build_scorer(config, split="test")
    images = scorer.test_set
    model = build_model(config, len(images.classes)).eval()
    found = scorer.evaluate(model)
    sizes = set()
    for record in images.records:
        pixels = torch.from_numpy(read_rgb(record.path)).permute(2, 0, 1).float() / 255
        mean, deviation = (
            torch.tensor(row).view(3, 1, 1) for row in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
        )
        with torch.no_grad():
            features = model.backbone(((pixels - mean) / deviation)[None].contiguous())
            bins = [
                torch.nn.functional.adaptive_max_pool2d(features, level).flatten(1) for level in (1, 2, 4)
            ]
            logits = model.predictor.cls_score(model.box_head(torch.cat(bins, dim=1)))
        torch.testing.assert_close(
            found.results[record.image_id], logits[0, 1:].sigmoid(), rtol=1e-4, atol=1e-5
        )
        sizes.add(features.shape[2:])
    assert len(sizes) > 1


def read_rgb(path: Path) -> np.ndarray:
    return read_picture(path)[..., ::-1].copy()


def test_several_views_are_averaged(tiny: Load) -> None:
    def scores(*overrides: str) -> dict[str, torch.Tensor]:
        config = tiny(*CLASSIFIER, *overrides)
        scorer = build_scorer(config, split="test")
        results: dict[str, torch.Tensor] = scorer.evaluate(build_model(config, len(scorer.classes))).results
        return results

    small, large = scores("test.scales=[64]"), scores("test.scales=[128]")
    both = scores("test.scales=[64,128]")
    for image_id, found in both.items():
        torch.testing.assert_close(found, (small[image_id] + large[image_id]) / 2)
        assert not torch.equal(small[image_id], large[image_id])


def test_a_run_learns_and_leaves_what_evaluation_reads(tiny: Load, tmp_path: Path) -> None:
    config = tiny(
        *CLASSIFIER,
        "train.steps=60",
        "train.images_per_batch=4",
        "data.train_split=test",  # four images, learnt by heart
        "model.head.dropout=0.0",
        "train.scale_jitter=null",
        "train.flip=0.0",
    )
    (tmp_path / "run").mkdir()
    run = start_run(config, tmp_path / "run", "cpu")
    evaluation = run.run()
    run.finish()
    assert evaluation.metrics["voc07_mAP"] == 1.0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert {"voc07_mAP", "voc_mAP", "per_class", "seconds", "peak_rss_mib"} <= metrics.keys()
    assert metrics["per_class"].keys() == set(run.task.classes)
    assert len(list((tmp_path / "run" / "results").glob("comp2_cls_test_*.txt"))) == 5
    assert (tmp_path / "run" / "run.png").stat().st_size > 10_000
    checkpoint = load_checkpoint(tmp_path / "run" / "checkpoints" / "step_60.pt")
    again = score_checkpoint(config, checkpoint, "step_60.pt", "test", tmp_path / "again", "cpu")
    assert again["per_class"] == metrics["per_class"]


def test_faulty_boxes_do_not_change_what_is_on_an_image(tiny: Load) -> None:
    """No box is used, so an object counts whatever became of its box."""
    config = tiny(*CLASSIFIER, "data.min_box_size=500")
    task = ClassificationTask(config, "cpu")
    assert sum(len(record.targets) for record in task.records) > 8


def test_a_detectors_config_is_refused_by_its_pool(tiny: Load) -> None:
    with pytest.raises(InputError, match=r"set model\.pool\.kind to spp"):
        tiny("task=classification")


def test_sides_that_the_sliding_rule_does_not_cut_are_named(tiny: Load) -> None:
    config = tiny(*CLASSIFIER, "model.pool.rule=sliding", "train.resize=square", "train.scales=[88]")
    fixed = config.model_copy(update={"train": config.train.model_copy(update={"scale_jitter": None})})
    task = ClassificationTask(fixed, "cpu")
    with pytest.raises(InputError, match=r"\(a, n\) = \(11, 4\)"):
        task.step(next(task.batches(0)))


def test_an_image_below_one_cell_is_named(tiny: Load) -> None:
    config = tiny(*CLASSIFIER, "model.backbone.name=alexnet", "test.scales=[16]")
    scorer = build_scorer(config, split="test")
    with pytest.raises(InputError, match=r"image '000009': .* less than one cell"):
        scorer.evaluate(build_model(config, 5))


def test_a_detector_starts_from_the_classifiers_convolutions_and_fc_layers(
    tiny: Load, tmp_path: Path
) -> None:
    """SPP-net's transfer: backbone, fc6 and fc7 are taken over, the task's own parts start from scratch."""
    pool = "model.pool={kind: spp, levels: [1, 2, 4]}"
    classify(tiny(*CLASSIFIER), tmp_path / "classifier")
    checkpoint = tmp_path / "classifier" / "checkpoints" / "step_12.pt"
    config = tiny(pool, "model.box.normalize=dataset", f"train.initial_weights={checkpoint}", "train.steps=2")
    fresh = start_run(tiny(pool, "model.box.normalize=dataset"), tmp_path, "cpu").task.model.state_dict()
    detector = start_run(config, tmp_path, "cpu").task.model.state_dict()
    trained = load_checkpoint(checkpoint)["model"]
    for name, tensor in detector.items():
        source = fresh if name.startswith(("predictor.", "box_coder.")) else trained
        assert torch.equal(tensor, source[name]), name
    assert not torch.equal(fresh["box_head.layers.fc6.weight"], trained["box_head.layers.fc6.weight"])
    (tmp_path / "detector").mkdir()
    evaluation = start_run(config, tmp_path / "detector", "cpu").run()
    assert 0.0 <= evaluation.metrics["voc07_mAP"] <= 1.0


def test_a_classifier_of_another_pyramid_does_not_fit(tiny: Load, tmp_path: Path) -> None:
    classify(tiny(*CLASSIFIER, "train.steps=1"), tmp_path / "classifier")
    checkpoint = tmp_path / "classifier" / "checkpoints" / "step_1.pt"
    config = tiny("model.pool={kind: spp, levels: [3, 1]}", f"train.initial_weights={checkpoint}")
    with pytest.raises(InputError, match=r"step_1\.pt: made with model\.pool\.levels = \[1, 2, 4\]"):
        start_run(config, tmp_path, "cpu")


def record(folder: Path, name: str, label: int | None) -> ImageRecord:
    path = folder / f"{name}.png"
    cv2.imwrite(str(path), np.full((20, 30, 3), 90, np.uint8))
    boxes = torch.tensor([[1.0, 1, 15, 15]]) if label else torch.zeros(0, 4)
    targets = Targets.make(boxes, torch.tensor([label] if label else [], dtype=torch.int64))
    return ImageRecord(image_id=name, path=path, height=20, width=30, targets=targets)


def test_the_best_images_show_something(tmp_path: Path) -> None:
    """Low scores of an image without objects fit perfectly, and prove little."""
    records = [record(tmp_path, f"empty{i}", None) for i in range(6)]
    records += [record(tmp_path, f"full{i}", 1 + i % 2) for i in range(6)]
    scores = {one.image_id: torch.tensor([0.01, 0.02]) for one in records[:6]}
    for i, one in enumerate(records[6:]):
        right = 0.9 - 0.1 * i
        scores[one.image_id] = torch.tensor([right, 0.1] if i % 2 == 0 else [0.1, right])
    best, worst = (
        [classified_image(one, scores[one.image_id]) for one in group] for group in extremes(records, scores)
    )
    assert [shown.presence for shown in best] == [[1, -1], [-1, 1]]
    assert [max(shown.scores) for shown in best] == [np.float32(0.9), np.float32(0.8)]
    assert [round(max(shown.scores), 2) for shown in worst] == [0.4, 0.5, 0.6, 0.7]
