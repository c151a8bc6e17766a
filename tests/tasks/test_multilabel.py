"""Several labels per region, from annotations to scores: a network that learns two labels of every object."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from detector import Detector
from detector.commands.evaluate import parse, score_checkpoint
from detector.config import Config, load_config
from detector.core.errors import InputError
from detector.core.structures import ImageRecord
from detector.engine.checkpoint import load_checkpoint
from detector.factory.data import class_names, load_split
from detector.factory.model import restore_model
from detector.factory.proposals import open_proposals, stored_proposals
from detector.staged.runner import StagedTraining, fine_tuning_in
from detector.tasks.start import start_run
from tests.multilabel import CLASSES, CONFIG, write_voc

Load = Callable[..., Config]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data set, a config, and a run of 60 steps."""
    place = tmp_path_factory.mktemp("multilabel")
    write_voc(place / "voc", train_images=16, test_images=4)
    values = {**CONFIG, "data": {**CONFIG["data"], "root": str(place / "voc")}}
    (place / "config.yaml").write_text(yaml.safe_dump(values))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        start_run(load_config(place / "config.yaml", ["train.steps=60"]), place / "run", "cpu").run()
    return place


@pytest.fixture
def load(trained: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.chdir(trained)
    return lambda *overrides: load_config(trained / "config.yaml", overrides)


def checkpoint_of(trained: Path) -> Path:
    return trained / "run" / "checkpoints" / "step_60.pt"


def records_of(config: Config) -> list[ImageRecord]:
    return list(load_split(config, "test", class_names(config), training=False).records)


def test_both_labels_of_an_object_are_learned_and_reported(trained: Path, load: Load) -> None:
    detector = Detector.load(checkpoint_of(trained), device="cpu")
    assert detector.classes == CLASSES
    blue, plain, red, striped = range(1, 5)
    both, right, count = 0, 0, 0
    for record in records_of(load()):
        boxes = record.targets.boxes[::2]  # each object is annotated twice
        labels = record.targets.labels.reshape(-1, 2).tolist()
        scores = detector.classify(record.path, boxes).scores
        torch.testing.assert_close(scores[:, 0], 1 - scores[:, 1:].amax(dim=1))
        found = detector(record.path, boxes=boxes, score_threshold=0.3)
        for row, box, (colour, pattern) in zip(scores, boxes, labels, strict=True):
            right += int(row[colour] > row[blue + red - colour])
            right += int(row[pattern] > row[plain + striped - pattern])
            near = (found.boxes - box).abs().amax(dim=1) < 12
            both += {colour, pattern} <= set(found.labels[near].tolist())
            count += 2
    assert right / count > 0.9  # 0.5 by chance
    assert both > 0  # one region is reported with several labels


def test_saved_scores_are_those_of_classify(trained: Path, load: Load, tmp_path: Path) -> None:
    config, checkpoint = load(), load_checkpoint(checkpoint_of(trained))
    file = tmp_path / "scores.npz"
    plain = score_checkpoint(config, checkpoint, "step_60.pt", "test", tmp_path / "plain", "cpu")
    saving = score_checkpoint(
        config, checkpoint, "step_60.pt", "test", tmp_path / "saving", "cpu", save_scores=file
    )
    assert saving["per_class"] == plain["per_class"]  # the detections stay the same
    records = records_of(config)
    source = stored_proposals(config, open_proposals(config, records, "test"), training=False)
    detector = Detector.load(checkpoint_of(trained), device="cpu")
    with np.load(file, allow_pickle=False) as saved:
        assert saved["classes"].tolist() == ["background", *CLASSES]
        assert saved["images"].tolist() == [record.image_id for record in records]
        assert saved["keys"].tolist() == [record.key for record in records]
        assert len(saved.files) == 3 + 3 * len(records)
        for number, record in enumerate(records):
            boxes = source(record).boxes
            regions = detector.classify(record.path, boxes)
            assert np.array_equal(saved[f"{number}/boxes"], boxes.numpy())
            assert np.array_equal(saved[f"{number}/scores"], regions.scores.numpy())
            assert np.array_equal(saved[f"{number}/refined"], regions.boxes.numpy())


@pytest.mark.parametrize(
    "overrides",
    [
        ["train.sampling={kind: ohem, rois_per_image: 8}", "train.validation_loss=true"],
        ["model.head.class_agnostic=true", "model.box.normalize=fixed"],
    ],
    ids=["ohem", "class agnostic"],
)
def test_other_ways_of_training_take_label_sets(load: Load, tmp_path: Path, overrides: list[str]) -> None:
    run = start_run(load("train.steps=2", *overrides), tmp_path, "cpu")
    run.run()
    logged = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    losses = [row["loss_cls"] for row in logged if row["kind"] == "train"]
    assert len(losses) == 2
    assert all(0 < loss < 9.5 for loss in losses)  # two labels that score 0.01 each give 9.2


def test_layers_on_cached_features_take_label_sets(load: Load, tmp_path: Path) -> None:
    config = load("train.steps=2", "train.scale_jitter=null", "model.backbone.freeze=all")
    run = start_run(config, tmp_path, "cpu", make_task=fine_tuning_in(tmp_path))
    run.run()
    batches = run.task.batches(0)
    sampled = next(batches).sampled
    batches.close()
    assert set(sampled.label_sets.sum(dim=1).tolist()) == {0, 2}
    assert torch.equal(sampled.label_sets.any(dim=1), sampled.labels > 0)
    assert torch.equal(sampled.box_targets.any(dim=2) & ~sampled.label_sets, sampled.label_sets & False)


@pytest.mark.parametrize("kind", ["softmax", "logistic"])
def test_heads_on_stored_features_learn_both_labels(
    trained: Path, load: Load, tmp_path: Path, kind: str
) -> None:
    config = load(
        "train.head_only=true", "train.steps=100", "train.learning_rate=0.1", "train.log_every=50",
        f"train.features_folder={tmp_path / 'features'}", f"train.initial_weights={checkpoint_of(trained)}",
        "model.head={hidden: [], scores: sigmoid}" if kind == "softmax"
        else "model.head={kind: logistic, scores: sigmoid}",
    )  # fmt: skip
    training = StagedTraining(config, tmp_path, "cpu")
    training.run()
    detector = Detector.load(training.detector, device="cpu")
    right = []
    for record in records_of(config):
        labels = record.targets.labels.reshape(-1, 2)  # of blue, plain, red and striped, 1..4
        scores = detector.classify(record.path, record.targets.boxes[::2]).scores
        best = torch.stack((scores[:, [1, 3]].argmax(1) * 2 + 1, scores[:, [2, 4]].argmax(1) * 2 + 2), dim=1)
        right.append(best.sort(1).values == labels.sort(1).values)
    assert torch.cat([part.flatten() for part in right]).float().mean() > 0.8  # 0.5 by chance


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "stages=[{name: a, kind: train}, {name: b, kind: svm}]",
            "does not read the SVMs of a stage of kind svm",
        ),
        (
            "model.head={kind: knn, scores: sigmoid}",
            "sigmoid is for model.head.kind softmax or logistic, not knn",
        ),
    ],
)
def test_what_cannot_train_independent_scores_is_refused(load: Load, override: str, message: str) -> None:
    with pytest.raises(InputError, match=f"model.head.scores: .*{message}"):
        load(override)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--save-scores", "s.npy"], "--save-scores s.npy: name a .npz file"),
        (["--save-scores", "s.npz", "--detections", "d", "--annotations", "a"], "needs a checkpoint"),
    ],
)
def test_mistakes_in_the_options_are_named(
    options: list[str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["evaluate.py", "--config", "c", "--checkpoint", "p", *options])
    with pytest.raises(InputError, match=message):
        parse()


def test_softmax_warns_of_objects_with_several_labels(
    load: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start_run(load("train.steps=1", "model.head.scores=softmax"), tmp_path, "cpu")
    message = " ".join(capsys.readouterr().err.split())
    assert "warning: trainval: 32 of 32 boxes have several labels, the first in '000' at" in message
    assert "Set model.head.scores to sigmoid" in message


def test_a_checkpoint_is_not_read_with_another_kind_of_scores(trained: Path, load: Load) -> None:
    checkpoint = load_checkpoint(checkpoint_of(trained))
    for scores in ("softmax", "svm"):
        with pytest.raises(InputError, match=rf"here: trained .*scores: sigmoid.*says {scores}"):
            restore_model(load(f"model.head.scores={scores}"), checkpoint, "here")


def test_another_run_takes_the_predictor_only_with_the_same_scores(
    trained: Path, load: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ("train.steps=1", f"train.initial_weights={checkpoint_of(trained)}")
    stored = load_checkpoint(checkpoint_of(trained))["model"]["predictor.cls_score.weight"]
    for scores, same in (("sigmoid", True), ("softmax", False)):
        run = start_run(load(*start, f"model.head.scores={scores}"), tmp_path / scores, "cpu")
        assert torch.equal(run.task.model.state_dict()["predictor.cls_score.weight"], stored) == same
    assert "trained with model.head.scores: sigmoid, not softmax" in " ".join(capsys.readouterr().err.split())
