"""What a resumed run may change: every key is applied or refused, data and damage are noticed."""

from __future__ import annotations

import json
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from detector.api import Detector
from detector.commands.evaluate import score_checkpoint
from detector.config import Config
from detector.config.schema import DataConfig, Section, TestConfig, TrainConfig, sections_of
from detector.core.errors import InputError
from detector.data.fingerprint import VERSION
from detector.engine.checkpoint import DamagedCheckpoint, load_checkpoint, save_checkpoint
from detector.engine.run import Run
from detector.engine.run_log import read_log
from detector.evaluation.operating_point import OperatingPoint
from detector.factory.data import class_names, load_split
from detector.tasks.detection import DetectionScorer
from detector.tasks.resume import (
    ACCEPTED,
    APPLIED,
    REFUSED,
    SAME_DATA,
    check_changes,
    check_fingerprint,
    find_state,
    policy,
)
from detector.tasks.start import start_run
from tests.typed import float32, save_arrays

Load = Callable[..., Config]
SECTIONS: dict[str, type[Section]] = {"train": TrainConfig, "test": TestConfig, "data": DataConfig}


def keys(section: type[Section], prefix: str) -> Iterator[str]:
    """Yield every key of a section, ``prefix.a.b`` for those of a section inside it, of every kind."""
    for name, field in section.model_fields.items():
        inner = sections_of(field.annotation)
        for below in inner.values():
            yield from keys(below, f"{prefix}.{name}")
        if not inner:
            yield f"{prefix}.{name}"


ALL = sorted({key for name, section in SECTIONS.items() for key in keys(section, name)})


@pytest.mark.parametrize("key", ALL)
def test_every_key_of_the_schema_is_applied_or_refused(key: str) -> None:
    assert policy(key) in ("applied", "same data", "refused"), (
        f"decide in detector/tasks/resume.py what {key} does"
    )


def test_no_rule_is_for_a_key_that_does_not_exist() -> None:
    parents = {key.rpartition(".")[0] for key in ALL} | set(ALL)
    assert APPLIED | SAME_DATA | set(REFUSED) <= parents
    assert not APPLIED & SAME_DATA
    assert not (APPLIED | SAME_DATA) & set(REFUSED)
    assert policy("data.generate.seed") == "same data"
    assert policy("model.head.dropout") is None


def run(config: Config, folder: Path, *, resume: bool = False, accept: bool = False) -> Run[Any]:
    folder.mkdir(exist_ok=True)
    done = start_run(config, folder, "cpu", resume=resume, accept_changed_data=accept)
    done.run()
    return done


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_of_an_earlier_version_is_not_continued_but_stays_usable(
    tiny: Load, tiny_root: Path, tmp_path: Path
) -> None:
    """It drew the regions of its steps from a generator whose state it saved as ``sampler``."""
    few, folder = ("train.checkpoint_every=2", "data.workers=0"), tmp_path / "old"
    run(tiny("train.steps=2", *few), folder)
    paths = sorted((folder / "checkpoints").iterdir())
    state = load_checkpoint(paths[0])
    del state["file"]
    for path in paths:
        path.unlink()
        save_checkpoint(path, {**state, "sampler": {"generator": torch.get_rng_state()}})
    before = contents(folder)
    for steps in (2, 4):
        with pytest.raises(InputError) as refusal:
            start_run(tiny(f"train.steps={steps}", *few), folder, "cpu", resume=True)
        assert str(refusal.value) == (
            f"{folder / 'checkpoints' / 'step_2.pt'}: the run was started by an earlier version, which drew "
            "the regions of a step from one random generator; they now depend on seed, step and image only, "
            "so this version cannot continue the run exactly. Finish it with that version, or name the "
            "checkpoint in train.initial_weights of a new run"
        )
    assert contents(folder) == before
    checkpoint = folder / "checkpoints" / "best.pt"
    scored = score_checkpoint(
        tiny(*few), load_checkpoint(checkpoint), str(checkpoint), "test", tmp_path / "scored", "cpu"
    )
    assert 0 <= scored["voc07_mAP"] <= 1
    images = sorted((tiny_root / "JPEGImages").iterdir())[:2]
    assert len(Detector.load(checkpoint, "cpu")(images)) == 2  # the demo calls it too
    begun = run(tiny("train.steps=1", f"train.initial_weights={checkpoint}", *few), tmp_path / "begun")
    assert begun.step == 1
    assert "sampler" not in load_checkpoint(tmp_path / "begun" / "checkpoints" / "step_1.pt")


OTHERS = {
    "train.trainable": "boxes",
    "train.initial_weights": "x.pt",
    "train.allow_partial": "true",
    "data.train_split": "train",
    "model.pool.kind": "warp",
    "data.difficult": "skip",
    "data.min_box_size": "3",
    "data.invalid_boxes": "clip",
    "proposals.top_k_train": "7",
    "model.head.dropout": "0.1",
    "seed": "9",
}


@pytest.mark.parametrize("key", OTHERS)
def test_what_cannot_be_changed_is_refused_in_one_sentence(tiny: Load, key: str) -> None:
    state = {"step": 4, "config": tiny().model_dump(mode="json")}
    with pytest.raises(InputError) as refusal:
        check_changes(state, tiny(f"{key}={OTHERS[key]}"), "step_4.pt")
    assert str(refusal.value).startswith(f"step_4.pt: made with {key} = ")
    assert "\n" not in str(refusal.value)


def test_a_key_younger_than_the_checkpoint_counts_with_its_default(tiny: Load) -> None:
    stored = tiny().model_dump(mode="json")
    del stored["data"]["min_box_size"], stored["train"]["trainable"]
    check_changes({"step": 4, "config": stored}, tiny(), "step_4.pt")
    with pytest.raises(InputError, match=r"data\.min_box_size = 2\.0, now 5\.0"):
        check_changes({"step": 4, "config": stored}, tiny("data.min_box_size=5.0"), "step_4.pt")


SET_ASIDE = {
    "evaluations begin": (
        (),
        ("train.evaluate_every=2",),
        "train.evaluate_every = null, now 2; with that, 0.15 of the images of trainval would be set aside "
        "for validation instead of 0, and a resumed run keeps its training images: name a split to choose "
        "best.pt on (train.evaluate_split=...), give train.evaluate_every=null to go on",
    ),
    "evaluations end": (
        ("train.evaluate_every=2",),
        ("train.momentum=0.5",),
        "train.evaluate_every = 2, now null; with that, 0 of the images of trainval would be set aside for "
        "validation instead of 0.15, and a resumed run keeps its training images: give",
    ),
    "a split in place of a fraction": (
        ("train.validation_fraction=0.3",),
        ("train.validation_fraction=0.3", "data.val_split=val"),
        'data.val_split = null, now "val"; with that, 0 of the images of trainval would be set aside for '
        "validation instead of 0.3, and a resumed run keeps its training images: name a split",
    ),
    "a split in place of the usual fraction": (
        ("train.evaluate_every=2",),
        ("train.evaluate_every=2", "data.val_split=val"),
        'data.val_split = null, now "val"; with that, 0 of the images of trainval would be set aside for '
        "validation instead of 0.15, and a resumed run keeps its training images: give data.val_split=null",
    ),
    "two settings together": (
        ("train.evaluate_every=2", "train.evaluate_split=test"),
        (),
        None,
    ),
    "no split any more": (
        ("train.evaluate_every=2", "train.evaluate_split=test"),
        ("train.evaluate_every=2",),
        'train.evaluate_split = "test", now null; with that, 0.15 of the images of trainval would be set '
        "aside for validation instead of 0, and a resumed run keeps its training images: give "
        'train.evaluate_split="test" to go on',
    ),
    "the way out": ((), ("train.evaluate_every=2", "train.evaluate_split=test"), None),
    "a way out of a fraction": (
        ("train.validation_fraction=0.3",),
        ("train.validation_fraction=0.3", "train.evaluate_split=val"),
        None,
    ),
    "another test split": ((), ("data.test_split=val",), None),
}


@pytest.mark.parametrize(("before", "after", "refusal"), SET_ASIDE.values(), ids=SET_ASIDE.keys())
def test_what_is_set_aside_from_training_stays(
    tiny: Load, before: tuple[str, ...], after: tuple[str, ...], refusal: str | None
) -> None:
    state = {"step": 4, "config": tiny(*before).model_dump(mode="json")}
    if refusal is None:
        check_changes(state, tiny(*after), "step_4.pt")
    else:
        with pytest.raises(InputError, match=re.escape(f"step_4.pt: made with {refusal}")):
            check_changes(state, tiny(*after), "step_4.pt")


def test_data_that_have_moved_still_have_their_usual_validation_split(tiny: Load, copied: Path) -> None:
    (copied / "ImageSets/Main/train.txt").write_text("000001\n")
    (copied / "ImageSets/Main/val.txt").write_text("000002\n")
    given = ("data.train_split=train", "train.evaluate_every=2")
    state = {"step": 4, "config": tiny("data.root=gone", *given).model_dump(mode="json")}
    changed = tiny(f"data.root={copied}", *given, "data.test_split=trainval")
    check_changes(state, changed, "step_4.pt")
    with pytest.raises(InputError, match=r'data\.test_split = "test", now "val"; with that, 0\.15'):
        check_changes(state, tiny(f"data.root={copied}", *given, "data.test_split=val"), "step_4.pt")


def test_measured_targets_keep_their_threshold(tiny: Load) -> None:
    state = {"step": 4, "config": tiny("model.box.normalize=dataset").model_dump(mode="json")}
    changed = "train.sampling.foreground_iou=0.6"
    with pytest.raises(InputError, match="constants of the box targets were measured"):
        check_changes(state, tiny("model.box.normalize=dataset", changed), "step_4.pt")
    check_changes(
        {**state, "config": tiny("model.box.normalize=fixed").model_dump(mode="json")},
        tiny("model.box.normalize=fixed", changed),
        "step_4.pt",
    )


CHANGES = {
    "train.weight_decay=0.5": (0.9, 0.5, 0.0),
    "train.momentum=0.2": (0.2, 5e-4, 0.0),
    "train.bias_decay=true": (0.9, 5e-4, 5e-4),
}


def test_solver_settings_are_applied_to_the_steps_to_come(tiny: Load, tmp_path: Path) -> None:
    few = ("train.checkpoint_every=1", "train.schedule.milestones=[1.0]", "data.workers=0")
    run(tiny("train.steps=1", *few), tmp_path / "run")
    ends = {}
    for number, (change, expected) in enumerate({"train.log_every=1": (0.9, 5e-4, 0.0), **CHANGES}.items()):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "run", folder)
        done = run(tiny("train.steps=2", *few, change), folder, resume=True)
        weights, biases = done.optimizer.param_groups
        assert (weights["momentum"], weights["weight_decay"], biases["weight_decay"]) == expected
        assert biases["momentum"] == weights["momentum"]
        ends[change] = load_checkpoint(folder / "checkpoints/step_2.pt")["model"]
    plain = ends.pop("train.log_every=1")
    weight, bias = "predictor.cls_score.weight", "predictor.cls_score.bias"
    differing = {
        change: {name for name in (weight, bias) if not torch.equal(plain[name], state[name])}
        for change, state in ends.items()
    }
    assert list(differing.values()) == [{weight}, {weight, bias}, {bias}]


def test_a_new_rate_comes_with_what_it_means_for_the_schedule(
    tiny: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("train.schedule.milestones=[0.5]", "data.workers=0")
    run(tiny("train.steps=2", *few), tmp_path / "run")
    capsys.readouterr()
    run(tiny("train.steps=6", "train.learning_rate=0.002", *few), tmp_path / "run", resume=True)
    said = capsys.readouterr().err
    assert "resuming with train.learning_rate = 0.002 instead of 0.01" in said
    assert "step 3 of 6 has 0.002, as if the run had begun with these settings" in said
    rates = [
        record["learning_rate"]
        for record in read_log(tmp_path / "run/log.jsonl")
        if record["kind"] == "train"
    ]
    assert rates == pytest.approx([0.01, 0.001, 0.002, 0.0002, 0.0002, 0.0002])


@pytest.fixture
def copied(tiny_root: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_root, tmp_path / "copied"))


def test_changed_data_are_refused_and_accepted_by_request(tiny: Load, tmp_path: Path, copied: Path) -> None:
    few = (f"data.root={copied}", "data.workers=0")
    run(tiny("train.steps=2", *few), tmp_path / "run")
    moved = copied.rename(tmp_path / "moved")
    run(tiny("train.steps=3", f"data.root={moved}", "data.workers=0"), tmp_path / "run", resume=True)
    split = moved / "ImageSets/Main/trainval.txt"
    split.write_text("\n".join(split.read_text().split()[:-1]) + "\n")
    config = tiny("train.steps=4", f"data.root={moved}", "data.workers=0")
    before = (tmp_path / "run/checkpoints/step_3.pt").read_bytes()
    with pytest.raises(InputError, match=r"data have changed.*training: trainval.*--accept-changed-data"):
        run(config, tmp_path / "run", resume=True)
    assert (tmp_path / "run/checkpoints/step_3.pt").read_bytes() == before
    run(config, tmp_path / "run", resume=True, accept=True)
    state = load_checkpoint(tmp_path / "run/checkpoints/step_4.pt")
    assert set(state["data_fingerprint"]) == {"training: trainval", "evaluation: test"}
    run(tiny("train.steps=5", f"data.root={moved}", "data.workers=0"), tmp_path / "run", resume=True)


def test_data_that_an_earlier_version_saw_have_to_be_accepted() -> None:
    before = {"data_fingerprint": {"classification: train": "0" * 32}}
    now = {"classification: train": f"{VERSION}{'0' * 32}"}
    with pytest.raises(InputError, match=r"earlier version.*classification: train.*--accept-changed-data"):
        check_fingerprint(now, before)
    check_fingerprint(now, {**before, ACCEPTED: True})
    check_fingerprint(now, {"data_fingerprint": now})


def damage(path: Path) -> None:
    content = path.read_bytes()[:3000]
    path.unlink()  # best.pt may be the same file
    path.write_bytes(content)


def test_a_resumed_run_goes_back_to_the_newest_sound_checkpoint(
    tiny: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("train.steps=6", "train.checkpoint_every=2", "train.keep_checkpoints=2", "data.workers=0")
    run(tiny(*few, "train.keep_checkpoints=null"), tmp_path / "run")
    whole = load_checkpoint(tmp_path / "run/checkpoints/step_6.pt")["model"]
    places = [tmp_path / "run/checkpoints" / f"step_{step}.pt" for step in (4, 6)]
    for path in places:
        damage(path)
        with pytest.raises(DamagedCheckpoint):
            load_checkpoint(path)
    capsys.readouterr()
    run(tiny(*few), tmp_path / "run", resume=True)
    said = capsys.readouterr().err
    assert "step_6.pt: not readable" in said
    assert "step_4.pt: not readable" in said
    assert "resuming after step 2 from" in said
    again = load_checkpoint(places[1])["model"]
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    assert {path.name for path in places[0].parent.iterdir()} == {"best.pt", "step_4.pt", "step_6.pt"}
    for path in places:
        damage(path)
    best = places[0].with_name("best.pt")
    state = find_state(tiny(*few), tmp_path / "run")  # best.pt is as complete as the others
    assert state is not None
    assert state["step"] == load_checkpoint(best)["step"]
    damage(best)
    with pytest.raises(InputError, match=r"none of the 3 checkpoints there can be read"):
        find_state(tiny(*few), tmp_path / "run")


def test_a_changed_byte_anywhere_is_noticed_or_changes_nothing(
    tiny: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """60 random bytes of the last checkpoint, one at a time; damage is said with the name of the file."""
    few = ("train.steps=4", "train.checkpoint_every=2", "data.workers=0")
    run(tiny(*few), tmp_path / "run")
    folder = tmp_path / "run/checkpoints"
    last = folder / "step_4.pt"
    whole, sound = last.read_bytes(), load_checkpoint(last)
    draw, noticed = random.Random(0), 0
    for _ in range(60):
        content = bytearray(whole)
        content[draw.randrange(len(content))] ^= draw.randrange(1, 256)
        last.unlink()  # best.pt may be the same file
        last.write_bytes(content)
        capsys.readouterr()
        state = find_state(tiny(*few), tmp_path / "run")
        assert state is not None
        said = capsys.readouterr().err
        if state["step"] == 2:
            noticed += 1
            assert f"warning: {last}: not readable as a checkpoint" in said
            assert f"resuming after step 2 from {folder / 'step_2.pt'}" in said
        else:
            assert "warning" not in said
            assert all(torch.equal(value, state["model"][name]) for name, value in sound["model"].items())
            assert torch.equal(state["random"]["torch"], sound["random"]["torch"])
            assert state["config"] == sound["config"]
    assert noticed > 50


def test_only_the_best_checkpoint_is_damaged(
    tiny: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run ends with the same weights, and the best one is restored or chosen among those to come."""
    few = ("train.steps=6", "train.checkpoint_every=2", "train.evaluate_every=1", "data.workers=0")
    run(tiny(*few), tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "run")
    (tmp_path / "run/checkpoints/step_6.pt").unlink()
    best = tmp_path / "run/checkpoints/best.pt"
    damage(best)
    capsys.readouterr()
    state = load_checkpoint(tmp_path / "run/checkpoints/step_4.pt")
    run(tiny(*few), tmp_path / "run", resume=True)
    said = capsys.readouterr().err
    assert f"warning: {best}: not readable as a checkpoint" in said
    kept = (tmp_path / "run/checkpoints" / f"step_{state['best']['step']:.0f}.pt").is_file()
    assert ("best.pt is restored from" if kept else "best.pt is chosen again among") in said
    first, second = (load_checkpoint(tmp_path / name / "checkpoints/step_6.pt") for name in ("whole", "run"))
    assert all(torch.equal(value, second["model"][name]) for name, value in first["model"].items())
    load_checkpoint(best)


def test_the_best_checkpoint_is_a_link_that_outlives_its_source(tiny: Load, tmp_path: Path) -> None:
    few = ("train.checkpoint_every=2", "train.evaluate_every=1", "train.keep_checkpoints=1", "data.workers=0")
    run(tiny("train.steps=4", *few), tmp_path / "run")
    folder = tmp_path / "run/checkpoints"
    state, last = load_checkpoint(folder / "best.pt"), load_checkpoint(folder / "step_4.pt")
    assert state["step"] == last["best"]["step"] == state["best"]["step"]
    assert {path.name for path in folder.iterdir()} == {"best.pt", "step_4.pt"}
    assert (folder / "best.pt").samefile(folder / "step_4.pt") is (state["step"] == 4)


@pytest.mark.parametrize("best_at", [1, 2, 3, 4])
def test_the_best_step_is_kept_whether_or_not_a_checkpoint_was_due(
    tiny: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, best_at: int
) -> None:
    headlines = iter([0.9 if step == best_at else 0.5 for step in (1, 2, 3, 4)])
    monkeypatch.setattr("detector.tasks.scoring.headline", lambda *_: next(headlines))
    few = ("train.checkpoint_every=2", "train.evaluate_every=1", "train.keep_checkpoints=1", "data.workers=0")
    run(tiny("train.steps=4", *few), tmp_path / "run")
    folder = tmp_path / "run/checkpoints"
    assert load_checkpoint(folder / "best.pt")["step"] == best_at
    assert (folder / "best.pt").stat().st_nlink == (2 if best_at == 4 else 1)


def test_a_damaged_best_checkpoint_is_taken_from_its_step_or_chosen_again(
    tiny: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ("train.checkpoint_every=2", "data.workers=0")
    run(tiny("train.steps=2", *few), tmp_path / "run")
    best, step = tmp_path / "run/checkpoints/best.pt", tmp_path / "run/checkpoints/step_2.pt"
    best.unlink()  # a copy, as a restored backup has it
    best.write_bytes(step.read_bytes()[:3000])
    run(tiny("train.steps=2", *few), tmp_path / "run", resume=True)
    assert best.samefile(step)
    assert "best.pt is restored from step_2.pt" in capsys.readouterr().err
    run(tiny("train.steps=4", *few), tmp_path / "run", resume=True)
    step.unlink()
    damage(best)
    best_step = load_checkpoint(step.with_name("step_4.pt"))["best"]["step"]
    run(tiny("train.steps=6", *few), tmp_path / "run", resume=True)
    assert load_checkpoint(best)["step"] in (6, best_step)


@pytest.mark.parametrize("lost", ["step_2.pt", "best.pt"])
def test_a_finished_run_needs_one_of_its_two_files(tiny: Load, tmp_path: Path, lost: str) -> None:
    run(tiny("train.steps=2", "data.workers=0"), tmp_path / "run")
    (tmp_path / "run/checkpoints" / lost).unlink()
    run(tiny("train.steps=2", "data.workers=0"), tmp_path / "run", resume=True)
    assert load_checkpoint(tmp_path / "run/checkpoints/best.pt")["step"] == 2
    run(tiny("train.steps=3", "data.workers=0"), tmp_path / "run", resume=True)
    assert load_checkpoint(tmp_path / "run/checkpoints/step_3.pt")["step"] == 3


def test_other_ways_of_testing_choose_the_best_again(
    tiny: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tiny("train.steps=1", "data.workers=0"), tmp_path / "run")
    config = tiny("train.steps=2", "test.metric=voc")
    assert start_run(config, tmp_path / "run", "cpu", resume=True).best == {}
    assert "best.pt is chosen again" in capsys.readouterr().err
    config = tiny("train.steps=2", "data.test_split=trainval")
    assert start_run(config, tmp_path / "run", "cpu", resume=True).best == {}


STEPWISE = (
    "train.steps=4",
    "train.checkpoint_every=2",
    "train.evaluate_every=1",
    "train.validation_fraction=0.3",
    "data.workers=0",
)


def best_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Let the evaluation after ``step`` be the best, and each one choose a threshold of its own."""
    headlines = iter([0.9 if step == now else 0.5 for now in range(1, 9)])
    monkeypatch.setattr("detector.tasks.scoring.headline", lambda *_: next(headlines))
    thresholds = iter([number / 10 for number in range(1, 9)])
    point = OperatingPoint(0.1, 0.5, 0.5, 0.5, 0.5, 2, 2)
    monkeypatch.setattr(
        DetectionScorer, "choose_point", lambda *_: replace(point, score_threshold=next(thresholds))
    )


@pytest.mark.parametrize("step", [1, 2, 4])
def test_a_finished_run_that_is_scored_in_another_way_keeps_its_files_consistent(
    tiny: Load,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    step: int,
) -> None:
    best_at(monkeypatch, step)
    run(tiny(*STEPWISE), tmp_path / "run")
    best, last = (tmp_path / "run/checkpoints" / name for name in ("best.pt", "step_4.pt"))
    chosen = best.read_bytes()
    again = run(tiny(*STEPWISE, "test.nms_threshold=0.5"), tmp_path / "run", resume=True)
    assert "best.pt stays the checkpoint that was chosen before" in capsys.readouterr().err
    saved = load_checkpoint(last)
    assert again.evaluation is not None
    assert again.evaluation.metrics["score_threshold"] == saved["score_threshold"] == 0.5
    assert saved["config"]["test"]["nms_threshold"] == 0.5
    if step == 4:
        assert best.samefile(last)
    else:
        assert best.read_bytes() == chosen
        assert load_checkpoint(best)["score_threshold"] == step / 10
    longer = tiny(*STEPWISE, "test.nms_threshold=0.5", "train.steps=5")
    run(longer, tmp_path / "run", resume=True)
    assert load_checkpoint(best)["step"] == (
        4 if step == 4 else 5
    )  # a figure of the other way is not compared


def test_the_report_at_the_end_is_of_the_best_checkpoint(
    tiny: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    best_at(monkeypatch, 3)
    done = run(tiny(*STEPWISE), tmp_path / "run")
    assert "score threshold 0.400, with the best F1" in capsys.readouterr().err
    best = tmp_path / "run/checkpoints/best.pt"
    done.finish()
    assert f"the checkpoint to use is {best}, of step 3, score threshold 0.300\n" in capsys.readouterr().err


def test_a_best_checkpoint_of_a_later_step_is_not_taken_for_that_of_the_state(
    tiny: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a kill between best.pt of step 3 and step_4.pt, and a resume with other settings."""
    best_at(monkeypatch, 3)
    run(tiny(*STEPWISE), tmp_path / "run")
    folder = tmp_path / "run/checkpoints"
    (folder / "step_4.pt").unlink()
    later = (folder / "best.pt").read_bytes()
    config = tiny(*STEPWISE, "train.learning_rate=0.001")
    for kept, step in ((1, None), (2, 2)):
        state = load_checkpoint(folder / "step_2.pt")
        state["best"] = {"metric": 0.6, "step": float(kept)}
        save_checkpoint(folder / "step_2.pt", {key: state[key] for key in state if key != "file"})
        found = start_run(config, tmp_path / "run", "cpu", resume=True).best
        assert found.get("step") == step
    assert "best.pt is restored from step_2.pt" in capsys.readouterr().err
    assert (folder / "best.pt").samefile(folder / "step_2.pt")
    assert load_checkpoint(folder / "best.pt")["step"] == 2
    assert later != (folder / "best.pt").read_bytes()


def test_seconds_are_those_of_all_processes(tiny: Load, tmp_path: Path) -> None:
    began = time.perf_counter()
    config = tiny("train.steps=1", "data.workers=0")
    (tmp_path / "run").mkdir()
    start_run(config, tmp_path / "run", "cpu", loading=100.0).run()
    kept = load_checkpoint(tmp_path / "run/checkpoints/step_1.pt")["seconds"]
    assert 100 < kept < 100 + time.perf_counter() - began
    again = time.perf_counter()
    done = run(tiny("train.steps=2", "data.workers=0"), tmp_path / "run", resume=True)
    assert kept < done.seconds() < kept + time.perf_counter() - again


def test_more_images_per_batch_than_there_are_is_its_own_sentence(tiny: Load, tmp_path: Path) -> None:
    for task in ("detection", "classification"):
        pool = ["model.pool={kind: spp, levels: [2, 1]}", f"task={task}"]
        with pytest.raises(
            InputError, match=r"^train\.images_per_batch: 1000 .* trainval has 8; give at most 8$"
        ):
            start_run(tiny("train.images_per_batch=1000", *pool), tmp_path, "cpu")


def test_images_without_proposals_do_not_fill_a_batch(tiny: Load, tmp_path: Path) -> None:
    config = tiny()
    for split in ("trainval", "test"):
        names = [
            one.image_id for one in load_split(config, split, class_names(config), training=False).records
        ]
        save_arrays(tmp_path / f"{split}.npz", {name: float32([[0, 0, 60, 60]]) for name in names[:3]})
    files = f"proposals.file={{trainval: {tmp_path}/trainval.npz, test: {tmp_path}/test.npz}}"
    given = ("proposals.method=null", files, "proposals.format=npz", "proposals.missing=skip")
    with pytest.raises(
        InputError, match=r"images_per_batch: 4 .* trainval has 3 with proposals; give at most 3$"
    ):
        start_run(tiny(*given, "train.images_per_batch=4"), tmp_path, "cpu")
    run = start_run(tiny(*given, "train.images_per_batch=3"), tmp_path, "cpu")
    assert len(run.task.records) == 3


def test_a_damaged_log_is_repaired_and_said(
    tiny: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tiny("train.steps=3", "data.workers=0"), tmp_path / "run")
    log = tmp_path / "run/log.jsonl"
    lines = log.read_text().splitlines()
    lines[1] = lines[1][:20]
    wrong: list[Any] = [[], 3, {"kind": "train"}, {"kind": "train", "step": "2"}, {"kind": 1, "step": True}]
    log.write_text("\n".join([*lines, *map(json.dumps, wrong)]) + '\n{"kind": "tra')
    capsys.readouterr()
    run(tiny("train.steps=4", "data.workers=0"), tmp_path / "run", resume=True)
    assert "log.jsonl: 6 damaged lines are left out: 2, " in capsys.readouterr().err
    assert [record["step"] for record in read_log(log) if record["kind"] == "train"] == [2, 3, 4]


def test_a_run_without_readable_weights_ends_before_any_proposal(
    tiny: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*_: object) -> None:
        raise AssertionError("proposals were opened first")

    monkeypatch.setattr("detector.factory.proposals.open_proposals", opened)
    for key in ("model.backbone.weights", "train.initial_weights"):
        with pytest.raises(InputError, match=r"absent\.p"):
            start_run(tiny(f"{key}={tmp_path / 'absent.pth'}"), tmp_path, "cpu")
