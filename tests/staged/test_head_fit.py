"""The stage head: from a config to a checkpoint that the tools read, killed and resumed, and fitted again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from detector.api import Detector
from detector.config import Config, load_config
from detector.core.errors import InputError
from detector.engine.checkpoint import load_checkpoint, numbered_checkpoints, save_checkpoint
from detector.engine.run_log import read_log
from detector.factory.data import split_records
from detector.factory.model import restore_model
from detector.models.backbones import Backbone
from detector.staged import head_fit
from detector.staged.label_changes import compare_labels
from detector.staged.refit import EarlierRun, refit
from detector.staged.runner import StagedTraining
from detector.tasks.start import build_scorer, build_task

Load = Callable[..., Config]
HEAD = ("train.head_only=true", "model.pool={kind: spp, levels: [2, 1]}", "train.steps=8", "data.workers=0")
KINDS = {
    "softmax": (),
    "logistic": ("model.head.kind=logistic",),
    "svm": ("model.head.kind=svm", "test.score_threshold=-1"),
    "prototypes": ("model.head.kind=prototypes", "model.head.background_prototypes=3"),
    "knn": ("model.head.kind=knn", "model.head.max_background=40"),
}


def run(config: Config, folder: Path) -> Any:
    folder.mkdir(exist_ok=True)
    training = StagedTraining(config, folder, "cpu")
    evaluation = training.run()
    assert evaluation is not None
    training.finish(evaluation)
    return evaluation


@pytest.fixture
def no_convolutions(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Return what makes every later call of the convolutions fail."""

    def refuse(*_: object) -> None:
        raise AssertionError("an image passes through the convolutions")

    return lambda: monkeypatch.setattr(Backbone, "forward", refuse)


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_gives_a_checkpoint_that_the_tools_read(tiny: Load, tmp_path: Path, kind: str) -> None:
    config, folder = tiny(*HEAD, *KINDS[kind]), tmp_path / "run"
    evaluation = run(config, folder)
    [path] = numbered_checkpoints(folder / "checkpoints")
    state = load_checkpoint(path)
    assert json.loads((folder / "metrics.json").read_text())["voc_mAP"] == evaluation.metrics["voc_mAP"]
    assert (folder / "run.png").is_file()
    assert (folder / "environment.json").is_file()
    model = restore_model(load_config(folder / "config.yaml"), state, str(path))
    again = build_scorer(config, "cpu", split="test").evaluate(model)
    assert again.metrics["voc_mAP"] == evaluation.metrics["voc_mAP"]
    detector = Detector.load(path, "cpu")
    image = split_records(config, ["test"])["test"][0]
    found, expected = detector(str(image.path)), evaluation.results[image.image_id]
    torch.testing.assert_close(found.boxes, expected.boxes)
    torch.testing.assert_close(found.scores, expected.scores)
    assert state["model"]["predictor.bbox_pred.weight"].any()
    losses = [one for one in read_log(folder / "log.jsonl") if one["kind"] == "train"]
    assert len(losses) == (8 if kind == "softmax" else 0)


def test_another_head_or_seed_finds_the_stored_features(
    tiny: Load, tmp_path: Path, no_convolutions: Callable[[], None]
) -> None:
    config = tiny(*HEAD)
    first = head_fit_of(config, tmp_path / "one")
    no_convolutions()
    second = head_fit_of(tiny(*HEAD, "seed=9", *KINDS["knn"], "train.steps=3"), tmp_path / "two")
    assert second.features.folder == first.features.folder
    assert second.features.folder.parent == Path(config.train.features_folder)
    with pytest.raises(AssertionError, match="convolutions"):
        head_fit_of(tiny(*HEAD, "proposals.top_k_train=20"), tmp_path / "three")


def head_fit_of(config: Config, folder: Path) -> head_fit.HeadFit:
    """Build the stage without its fit."""
    from detector.config.schema import RidgeConfig
    from detector.factory.data import class_names
    from detector.factory.model import build_model

    classes, torch_seed = class_names(config), 3
    torch.manual_seed(torch_seed)
    model = build_model(config.model_copy(update={"seed": torch_seed}), len(classes))
    folder.mkdir(exist_ok=True)
    return head_fit.HeadFit(config, model, classes, folder, "cpu", lambda _: None, None, RidgeConfig())


@pytest.mark.parametrize("kind", ["softmax", "logistic"])
def test_a_stage_that_was_stopped_ends_with_the_same_detector(
    tiny: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    config = tiny(*HEAD, *KINDS[kind], "train.checkpoint_every=3", "model.box.regression=ridge")
    run(config, tmp_path / "whole")
    (tmp_path / "stopped").mkdir()

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    for name in ("_record" if kind == "softmax" else "_put", "_fit_boxes"):
        owner = head_fit.SoftmaxFit if name == "_record" else head_fit.HeadFit
        with monkeypatch.context() as patched:
            patched.setattr(owner, name, stop)
            if name == "_record":
                patched.setattr(
                    head_fit.SoftmaxFit, "_record", lambda self, *_: stop() if self.step > 4 else {}
                )
                patched.setattr("detector.core.progress.TrainingProgress.record", lambda *_: None)
                patched.setattr("detector.engine.run_log.RunLog.write", lambda *_: None)
            with pytest.raises(KeyboardInterrupt):
                StagedTraining(config, tmp_path / "stopped", "cpu").run()
    evaluation = StagedTraining(config, tmp_path / "stopped", "cpu").run()
    assert evaluation is not None
    one, other = (
        load_checkpoint(numbered_checkpoints(tmp_path / name / "checkpoints")[-1])["model"]
        for name in ("whole", "stopped")
    )
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_a_head_after_a_training_keeps_its_convolutions(tiny: Load, tmp_path: Path) -> None:
    stages = [
        {
            "name": "train",
            "kind": "train",
            "settings": {"model": {"head": {"kind": "softmax", "hidden": [8]}}},
        },
        {"name": "head", "kind": "head", "ridge": {"max_rows": 50}},
    ]
    config = tiny(*HEAD[1:], *KINDS["prototypes"], "train.steps=2", f"stages={json.dumps(stages)}")
    run(config, tmp_path / "run")
    at = [
        load_checkpoint(numbered_checkpoints(place / "checkpoints")[-1])["model"]
        for place in sorted((tmp_path / "run" / "stages").iterdir())
    ]
    names = [name for name in at[0] if name.startswith("backbone.")]
    assert all(torch.equal(at[0][name], at[1][name]) for name in names)
    assert "box_head.layers.fc6.weight" in at[0]
    assert "box_head.layers.fc6.weight" not in at[1]
    (tmp_path / "new").mkdir()
    earlier = EarlierRun.open(tmp_path / "run")
    assert earlier.new_config(None, ["seed=4"]).stages[0].ridge.max_rows == 50  # type: ignore[union-attr]


def test_wrong_heads_are_refused_with_the_key(tiny: Load, tmp_path: Path) -> None:
    config = tiny(*KINDS["knn"])
    with pytest.raises(InputError, match=r"model.head.kind: knn is fitted .* set train.head_only"):
        build_task(config, "cpu")
    for more, message in (
        (("model.pool.kind=warp",), "no features that the regions of an image share"),
        (("train.sampling.kind=ohem",), "takes? random"),
        (("train.augment.color_jitter.hue=0.1",), "train.augment"),
        (("task=classification", "model.pool.kind=spp"), "task"),
    ):
        with pytest.raises(InputError, match=message):
            tiny("train.head_only=true", *more)
    with pytest.raises(InputError, match=r"model\.head\.k: "):
        tiny("model.head.kind=logistic", "model.head.k=3")


def test_examples_of_a_checkpoint_are_checked(tiny: Load, tmp_path: Path) -> None:
    config = tiny(*HEAD, *KINDS["knn"], "data.val_split=null")
    run(config, tmp_path / "run")
    [path] = numbered_checkpoints(tmp_path / "run" / "checkpoints")
    state = load_checkpoint(path)
    for name, value, message in (
        ("labels", torch.full_like(state["model"]["predictor.cls_score.labels"], 99), "outside 0..5"),
        ("examples", torch.zeros(0, 5), "has 0 examples"),
        ("examples", torch.zeros(7), "examples"),
        ("labels", state["model"]["predictor.cls_score.labels"].float(), "labels"),
    ):
        changed = {**state, "model": {**state["model"], f"predictor.cls_score.{name}": value}}
        del changed["file"]
        save_checkpoint(tmp_path / "changed.pt", changed)
        with pytest.raises(InputError, match=message):
            Detector.load(tmp_path / "changed.pt", "cpu")


@pytest.fixture
def trained(tiny: Load, tiny_root: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Return the folders of a run on a copy of the tiny data set, and of that copy, whose images are gone.

    In place of each image is a file of the same size that is none.
    """
    root = tmp_path / "data set"
    shutil.copytree(tiny_root, root)
    run(tiny(*HEAD, f"data.root={root}"), tmp_path / "run")
    for image in (root / "JPEGImages").iterdir():
        image.write_bytes(b"?" * image.stat().st_size)
    return tmp_path / "run", root


def test_a_refit_for_other_labels_opens_no_image_and_leaves_the_run_as_it_was(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, root = trained
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    labels = tmp_path / "labels"
    shutil.copytree(root / "Annotations", labels)
    for path in labels.iterdir():
        path.write_text(path.read_text().replace("<name>disc", "<name>coin"))
    (tmp_path / "new").mkdir()
    earlier = EarlierRun.open(folder)
    config = earlier.new_config(str(labels), [])
    changes = earlier.changes(config)
    assert changes.renamed == {"disc": "coin"}
    assert not changes.relabelled
    assert changes.lines() == ["class 'disc' is now called 'coin'"]
    training = refit(earlier, config, tmp_path / "new", "cpu")
    state, old = load_checkpoint(training.detector), earlier.checkpoint
    assert "coin" in state["classes"]
    assert "disc" not in state["classes"]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    # The classes are in the order of their names, and the rest is as in the first run.
    order = [0, *(1 + old["classes"].index(name.replace("coin", "disc")) for name in state["classes"])]
    assert order != sorted(order)
    for name in ("backbone.features.0.weight",):
        assert torch.equal(state["model"][name], old["model"][name])
    again = EarlierRun.open(tmp_path / "new")
    assert again.features.folder == earlier.features.folder
    (tmp_path / "third").mkdir()
    third = refit(again, again.new_config(None, ["model.head.kind=logistic"]), tmp_path / "third", "cpu")
    assert load_checkpoint(third.detector)["config"]["model"]["head"]["kind"] == "logistic"


def test_a_refit_with_the_same_labels_is_the_same_detector(
    trained: tuple[Path, Path], tmp_path: Path
) -> None:
    earlier = EarlierRun.open(trained[0])
    (tmp_path / "new").mkdir()
    config = earlier.new_config(None, ["test.nms_threshold=0.4"])
    assert earlier.changes(config).lines() == ["the labels are the same as before"]
    state = load_checkpoint(refit(earlier, config, tmp_path / "new", "cpu").detector)
    for name, value in earlier.checkpoint["model"].items():
        assert torch.equal(value, state["model"][name]), name


def test_a_refit_refuses_what_the_features_do_not_fit(trained: tuple[Path, Path], tmp_path: Path) -> None:
    folder, _ = trained
    earlier = EarlierRun.open(folder)
    with pytest.raises(InputError, match=r"model\.pool\.levels.* = .*a refit keeps it"):
        earlier.new_config(None, ["model.pool.levels=[1]"])
    with pytest.raises(InputError, match="holds no run"):
        EarlierRun.open(tmp_path / "nothing")
    state = dict(earlier.checkpoint)
    path = Path(state.pop("file"))
    weights = {name: value + 1 if "features.0" in name else value for name, value in state["model"].items()}
    save_checkpoint(path, {**state, "model": weights})
    with pytest.raises(InputError, match="made with another weights"):
        EarlierRun.open(folder)


def test_changes_of_labels_are_counted(tiny: Load) -> None:
    records = split_records(tiny(), ["trainval"])["trainval"]
    names = ("a", "b", "c", "d", "e")
    labels = records.objects.labels
    changed = np.array(labels)
    row = int(np.flatnonzero(labels == 1)[0])
    changed[row] = 2
    moved = np.array(records.objects.boxes)
    moved[row + 1] += 500
    after = records_with(records, changed, moved)
    found = compare_labels(records, names, after, ("a", "b", "c", "d", "x", "y"))
    assert found.relabelled == (("a", "b", 1),)
    assert (found.added, found.removed, found.compared) == (1, 1, len(labels) - 1)
    assert found.renamed == {"e": "x"}
    assert found.added_classes == ["y"]
    assert found.removed_classes == []
    fewer = compare_labels(records, names, records[1:], names)
    assert fewer.removed == len(records[0].targets)
    assert fewer.added == 0


def records_with(records: Any, labels: np.ndarray, boxes: np.ndarray) -> Any:
    from dataclasses import replace

    return replace(records, objects=replace(records.objects, labels=labels, boxes=boxes))


def test_code_that_only_the_run_of_somebody_else_names_is_not_loaded(
    tiny: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("open('loaded', 'w').close()\ndef network():\n    raise OSError\n")
    config = tiny().model_dump(mode="json")
    config["model"]["backbone"]["name"] = "evil:network"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
    with pytest.raises(InputError, match=r"model\.backbone\.name = 'evil:network'.*may not choose code"):
        EarlierRun.open(tmp_path / "run")
    with pytest.raises(InputError, match="has no checkpoint yet"):  # the user has named it
        EarlierRun.open(tmp_path / "run", overrides=["model.backbone.name=evil:network"])
    assert not (tmp_path / "loaded").exists()
