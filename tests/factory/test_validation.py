"""Where validation images come from, and what is chosen on them: best.pt and the score threshold."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from detector.commands.check import check_data
from detector.config import Config
from detector.core.errors import InputError
from detector.data.convert import voc_to_coco
from detector.engine.checkpoint import load_checkpoint, save_checkpoint
from detector.engine.run import Run
from detector.engine.run_log import read_log
from detector.evaluation.operating_point import best_f1
from detector.evaluation.report import NOTHING_SCORED, write_json
from detector.factory.data import (
    Validation,
    check_apart,
    class_names,
    find_validation,
    load_training,
    load_validation,
    read_splits,
)
from detector.factory.model import restore_model
from detector.tasks.detection import DetectionTask
from detector.tasks.resume import find_state
from detector.tasks.scoring import TestSet
from detector.tasks.start import build_scorer, start_run

Load = Callable[..., Config]
SHORT = ("train.steps=4", "train.checkpoint_every=2", "data.workers=0")


def begin(config: Config, folder: Path, *, resume: bool = False) -> Run[Any]:
    folder.mkdir(exist_ok=True)
    return start_run(config, folder, "cpu", resume=resume)


@pytest.fixture
def with_val(tiny_root: Path, tmp_path: Path) -> Path:
    """A copy of the tiny data set whose trainval is divided into train and val."""
    root = tmp_path / "with_val"
    shutil.copytree(tiny_root, root)
    lists = root / "ImageSets/Main"
    ids = (lists / "trainval.txt").read_text().split()
    (lists / "train.txt").write_text("\n".join(ids[:5]))
    (lists / "val.txt").write_text("\n".join(ids[5:]))
    return root


def ids_of(config: Config) -> tuple[set[str], set[str]]:
    classes = class_names(config)
    trained = {record.image_id for record in load_training(config, classes, training=True).records}
    loaded = load_validation(config, classes)
    return trained, {record.image_id for record in loaded[1].records} if loaded else set()


def test_without_a_choice_to_make_every_training_image_is_trained_on(tiny: Load) -> None:
    trained, validated = ids_of(tiny())
    assert (len(trained), validated) == (8, set())


def test_a_choice_between_checkpoints_sets_images_aside_and_the_test_split_stays_for_the_end(
    tiny: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tiny(*SHORT, "train.evaluate_every=2")
    run = begin(config, tmp_path / "run")
    scored: list[tuple[int, str]] = []
    assert isinstance(run.task, DetectionTask)
    scorer = run.task.scorer
    evaluate: Callable[..., object] = scorer.evaluate

    def spy(model: object, test_set: TestSet | None = None) -> object:
        scored.append((run.step, (test_set or scorer.test_set).split))
        return evaluate(model, test_set)

    monkeypatch.setattr(scorer, "evaluate", spy)
    evaluation = run.run()
    assert scored == [(2, "trainval"), (4, "trainval"), (4, "test")]
    said = capfd.readouterr().err
    assert "validation images: 1, set aside from trainval (train.validation_fraction 0.15" in said
    lines = [record for record in read_log(tmp_path / "run/log.jsonl") if record["kind"] == "evaluate"]
    assert [(line["step"], line["split"]) for line in lines] == [(2, "trainval"), (4, "trainval")]
    tested = [record for record in read_log(tmp_path / "run/log.jsonl") if record["kind"] == "test"]
    assert [(line["step"], line["voc07_mAP"]) for line in tested] == [(4, evaluation.metrics["voc07_mAP"])]
    best = load_checkpoint(tmp_path / "run/checkpoints/best.pt")
    assert best["best"]["metric"] == max(line["voc07_mAP"] for line in lines)


def test_what_is_set_aside_is_apart_and_depends_on_the_split_seed_alone(tiny: Load) -> None:
    trained, validated = ids_of(tiny("train.validation_fraction=0.4"))
    assert (len(trained), len(validated), trained & validated) == (5, 3, set())
    assert ids_of(tiny("train.validation_fraction=0.4", "seed=9")) == (trained, validated)
    others = [
        ids_of(tiny("train.validation_fraction=0.4", f"data.split_seed={seed}")) for seed in range(1, 5)
    ]
    assert any(other != (trained, validated) for other in others)
    assert len(ids_of(tiny("train.validation_fraction=0.01"))[1]) == 1


def test_the_customary_split_is_taken_and_read_by_every_tool(tiny: Load, with_val: Path) -> None:
    config = tiny(f"data.root={with_val}", "data.train_split=train", "train.validation_fraction=0.4")
    assert find_validation(config) == Validation(split="val", implied=True)
    trained, validated = ids_of(config)
    assert (len(trained), len(validated), trained & validated) == (5, 3, set())
    assert read_splits(config) == ["train", "val", "test"]
    listed = with_val / "ImageSets/Main/val.txt"
    listed.write_text(f"{listed.read_text().strip()}\n{min(trained)}\n")
    report = check_data(config, read_splits(config))
    (problem,) = [problem for problem in report.problems if problem.kind == "in two splits"]
    assert problem.stops
    assert not report.would_start
    assert not find_validation(tiny(f"data.root={with_val}"))  # val is a part of trainval
    assert not find_validation(tiny(f"data.root={with_val}", "data.train_split=train", "data.test_split=val"))
    assert not find_validation(
        tiny(f"data.root={with_val}", "data.train_split=train", "train.validation_fraction=0")
    )


@pytest.mark.parametrize("split", ["val", "valid"])
def test_the_customary_split_of_coco_and_of_a_ratio(
    tiny: Load, with_val: Path, tmp_path: Path, split: str
) -> None:
    root = tmp_path / "coco"
    (root / "annotations").mkdir(parents=True)
    for ours, theirs in (("train", "train"), ("val", split), ("test", "test")):
        voc_to_coco(with_val, ours, root / f"annotations/instances_{theirs}.json")
    coco = ("data.format=coco", f"data.root={root}", "data.train_split=train")
    assert find_validation(tiny(*coco)).split == split
    ratio = f"data.split_ratio={{train: 0.5, {split}: 0.25, test: 0.25}}"
    assert find_validation(tiny(ratio, "data.train_split=train")).split == split


def test_images_in_both_splits_are_refused(tiny: Load, with_val: Path, tmp_path: Path) -> None:
    config = tiny(*SHORT, f"data.root={with_val}", "data.val_split=val")
    with pytest.raises(
        InputError, match=r"3 of 3 images of the validation split 'val' are images of the training"
    ):
        begin(config, tmp_path / "run")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_one_image_in_both_splits_is_found_behind_a_link(
    tiny: Load, with_val: Path, tmp_path: Path, kind: str
) -> None:
    """Two splits share a file whatever it is called in each, as long as links lead to it."""
    config = tiny(f"data.root={with_val}", "data.train_split=train")
    classes = class_names(config)
    trained = load_training(config, classes, training=True).records
    check_apart(config, trained, load_training(config, classes, training=True).records[:0])
    if kind == "file":
        link = tmp_path / "linked.jpg"
        link.symlink_to(trained[1].path)
    else:
        (tmp_path / "linked").symlink_to(trained[1].path.parent)
        link = tmp_path / "linked" / trained[1].path.name
    linked = [replace(trained[0], path=link)]
    with pytest.raises(InputError, match=f"1 of 1 images .* too, the first: {re.escape(str(link))};"):
        check_apart(config, trained, linked)
    own = tmp_path / "own.jpg"
    own.write_bytes(trained[1].path.read_bytes())
    check_apart(config, trained, [replace(trained[0], path=own)])


def test_a_customary_split_that_cannot_be_read_names_the_ways_out(tiny: Load, with_val: Path) -> None:
    (with_val / "ImageSets/Main/val.txt").write_text("not_there\n")
    config = tiny(f"data.root={with_val}", "data.train_split=train")
    with pytest.raises(
        InputError, match=r"not_there.*data\.val_split, or set train\.validation_fraction to 0"
    ):
        load_validation(config, class_names(config))


def test_a_choice_without_images_to_choose_on_is_refused(tiny: Load) -> None:
    with pytest.raises(InputError, match=r"train\.evaluate_every: .*name\s+data\.val_split"):
        find_validation(tiny("train.evaluate_every=2", "train.validation_fraction=0"))
    named = tiny("train.evaluate_every=2", "train.evaluate_split=test")
    assert not find_validation(named)


def test_validation_images_without_an_object_leave_the_last_checkpoint_the_best(
    tiny: Load, with_val: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in (with_val / "ImageSets/Main/val.txt").read_text().split():
        path = with_val / f"Annotations/{name}.xml"
        path.write_text(re.sub(r"<object>.*</object>", "", path.read_text(), flags=re.DOTALL))
    config = tiny(*SHORT, f"data.root={with_val}", "data.train_split=train", "train.evaluate_every=2")
    begin(config, tmp_path / "run").run()
    said = capfd.readouterr().err
    assert "warning: no validation image has an object" in said
    assert "no score threshold is stored: no object of the validation images was detected" in said
    assert load_checkpoint(tmp_path / "run/checkpoints/best.pt")["step"] == 4


CLASSIFIER = ("task=classification", "model.pool={kind: spp, levels: [1, 2]}")


@pytest.mark.parametrize("given", [(), CLASSIFIER], ids=["detection", "classification"])
def test_validation_images_without_annotations_are_not_scored(
    tiny: Load, with_val: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], given: tuple[str, ...]
) -> None:
    for name in (with_val / "ImageSets/Main/val.txt").read_text().split():
        (with_val / f"Annotations/{name}.xml").unlink()
    config = tiny(*SHORT, *given, f"data.root={with_val}", "data.train_split=train", "train.evaluate_every=2")
    metrics = begin(config, tmp_path / "run").run().metrics
    said = capfd.readouterr().err
    assert f"step 2: {NOTHING_SCORED}" in said
    assert "nan" not in said
    stored = "no score threshold is stored: the validation images have no annotations" in said
    assert stored == (not given)
    assert metrics["validation"] == {"split": "val", "annotated": False, "images": 3}
    assert metrics["split"] == "test"
    assert load_checkpoint(tmp_path / "run/checkpoints/best.pt")["step"] == 4


def test_what_validation_images_choose_is_said_for_the_task_and_the_images_used(tiny: Load) -> None:
    said = Validation(split="val").describe(9, tiny())
    assert said.endswith("they choose best.pt and the score threshold; training does not use these images")
    said = Validation(split="val").describe(9, tiny(*CLASSIFIER, "test.max_images=4"))
    assert said.startswith(
        "validation images: 9, the split val; the first 4 (test.max_images) choose best.pt; "
    )
    assert Validation(split="val").describe(9, tiny("test.max_images=9")) == Validation(split="val").describe(
        9, tiny()
    )


def test_a_run_of_a_version_without_these_keys_is_resumed(tiny: Load, tmp_path: Path) -> None:
    begin(tiny(*SHORT), tmp_path / "run").run()
    path = tmp_path / "run/checkpoints/step_4.pt"
    state = load_checkpoint(path)
    del state["format"], state["score_threshold"], state["config"]["data"]["val_split"]
    del state["config"]["train"]["epochs"], state["config"]["train"]["validation_fraction"]
    save_checkpoint(path, state)
    longer = tiny(*SHORT[1:], "train.steps=6")
    assert find_state(longer, tmp_path / "run") is not None


def test_one_training_image_cannot_be_set_aside(tiny: Load, with_val: Path) -> None:
    (with_val / "ImageSets/Main/one.txt").write_text(
        (with_val / "ImageSets/Main/val.txt").read_text().split()[0]
    )
    config = tiny(f"data.root={with_val}", "data.train_split=one", "train.validation_fraction=0.5")
    with pytest.raises(InputError, match="of 1 training images none can be set aside"):
        load_training(config, class_names(config), training=True)


def test_the_f1_best_threshold_is_stored_printed_and_among_the_metrics(
    tiny: Load, with_val: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = ("train.steps=40", "train.learning_rate=0.03", "data.workers=0", "train.log_every=20")
    config = tiny(*given, f"data.root={with_val}", "data.train_split=train", "train.checkpoint_every=20")
    evaluation = begin(config, tmp_path / "run").run()
    said = capfd.readouterr().err
    checkpoints = [load_checkpoint(tmp_path / f"run/checkpoints/{name}.pt") for name in ("step_40", "best")]
    stored = {checkpoint["score_threshold"] for checkpoint in checkpoints}
    assert len(stored) == 1

    model = restore_model(config, checkpoints[0], "step_40.pt")
    scorer = build_scorer(config)
    assert scorer.validation is not None
    again = scorer.evaluate(model, scorer.validation)
    point = best_f1(again.evaluator.precision_recall().values(), 3)
    assert point is not None
    assert stored == {point.score_threshold}
    assert (
        f"score threshold {point.score_threshold:.3f}, with the best F1 on 3 validation images of val" in said
    )
    metrics = evaluation.metrics
    assert metrics["split"] == "test"
    assert metrics["score_threshold"] == point.score_threshold
    assert metrics["validation"] == {
        **{name: again.metrics[name] for name in ("voc07_mAP", "voc_mAP")},
        **{"split": "val", **asdict(point)},
    }
    at = metrics["at_score_threshold"]
    found = [detections.scores >= point.score_threshold for detections in evaluation.results.values()]
    hits = at["precision"] * sum(int(kept.sum()) for kept in found)
    assert at["recall"] * at["objects"] == pytest.approx(hits)
    write_json(tmp_path / "metrics.json", metrics)
    assert json.loads((tmp_path / "metrics.json").read_text())["validation"]["f1"] == point.f1


def test_a_run_without_validation_images_says_that_it_stores_no_threshold(
    tiny: Load, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    metrics = begin(tiny(*SHORT), tmp_path / "run").run().metrics
    assert "no score threshold is stored: there are no validation images" in capfd.readouterr().err
    assert load_checkpoint(tmp_path / "run/checkpoints/best.pt")["score_threshold"] is None
    assert not {"score_threshold", "validation", "at_score_threshold"} & set(metrics)


def test_epochs_become_steps_once_the_images_are_counted(
    tiny: Load, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = (
        "train.epochs=1.2",
        "train.checkpoint_every=2",
        "data.workers=0",
        "train.validation_fraction=0.25",
    )
    config = tiny(*given)
    assert (config.train.steps, config.train.epochs) == (None, 1.2)
    run = begin(config, tmp_path / "run")
    run.run()
    assert "train.epochs 1.2 of 6 images in batches of 2: 4 steps" in capfd.readouterr().err  # ceil(3.6)
    assert read_log(tmp_path / "run/log.jsonl")[0]["steps"] == 4
    last = load_checkpoint(tmp_path / "run/checkpoints/step_4.pt")
    assert last["config"]["train"]["epochs"] == 1.2

    begin(config, tmp_path / "stopped")
    shutil.copytree(tmp_path / "run/checkpoints", tmp_path / "stopped/checkpoints")
    (tmp_path / "stopped/checkpoints/step_4.pt").unlink()
    resumed = begin(config, tmp_path / "stopped", resume=True)
    resumed.run()
    again = load_checkpoint(tmp_path / "stopped/checkpoints/step_4.pt")
    assert all(torch.equal(again["model"][name], value) for name, value in last["model"].items())

    fewer = tiny(*given[1:], "train.epochs=0.5")
    with pytest.raises(InputError, match=r"has done 4 steps, and train\.epochs 0\.5 means 2 steps"):
        begin(fewer, tmp_path / "run", resume=True)
