"""Staged SPP-net: the detector is the same whether or not the run was killed on the way."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from detector.config import Config, load_config, parse_config
from detector.config.schema import RidgeConfig, RidgeStageConfig, SVMStageConfig
from detector.core.boxes import iou
from detector.core.errors import InputError
from detector.engine.callbacks import Callback, RunFacts
from detector.engine.checkpoint import load_checkpoint, numbered_checkpoints
from detector.engine.determinism import cuda_algorithms
from detector.engine.environment import read_environments
from detector.engine.run import Run, StopRequested
from detector.engine.run_log import read_log
from detector.factory.data import class_names, load_split
from detector.factory.model import build_model, restore_model
from detector.staged import runner as stages_module
from detector.staged.box_ridge import RidgeFit
from detector.staged.feature_cache import open_cache
from detector.staged.fine_tune import FineTuningTask
from detector.staged.runner import StagedTraining, StageRecord, read_record
from detector.staged.svm import SVMFit
from detector.tasks.start import build_scorer
from tests.devices import each_device
from tests.tiny import TINY

SOFTMAX = {"head": {"scores": "softmax"}, "box": {"regression": "none"}}
STAGED = {
    "model": {
        "backbone": {"name": "small"},
        "pool": {"kind": "spp", "levels": [2, 1]},
        "head": {"hidden": [16], "scores": "svm"},
        "box": {"regression": "ridge"},
    },
    "test": {"scales": [64, 96], "max_size": 160, "score_threshold": -5.0},
    "stages": [
        {"name": "classify", "kind": "train", "settings": {"task": "classification", "model": SOFTMAX}},
        {
            "name": "fine_tune",
            "kind": "fine_tune",
            "settings": {"model": SOFTMAX, "test": {"score_threshold": 0.05}},
        },
        {
            "name": "svm",
            "kind": "svm",
            "settings": {"model": {"box": {"regression": "none"}}},
            "svm": {"missing_positives": "never", "retrain_after": 50},
        },
        {"name": "boxes", "kind": "box_ridge", "ridge": {"penalty": 10.0}},
    ],
}
Staged = Callable[..., Config]


@pytest.fixture
def staged(tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Staged:
    monkeypatch.chdir(tmp_path)
    data = {**TINY["data"], "root": str(tiny_root), "workers": 0}
    train = {**TINY["train"], "steps": 6, "checkpoint_every": 2, "draw_images": 0}
    path = tmp_path / "staged.yaml"
    path.write_text(json.dumps({**TINY, "data": data, "train": train, **STAGED}))  # YAML, without aliases
    return lambda *overrides: load_config(path, overrides)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = load_checkpoint(numbered_checkpoints(folder / "checkpoints")[-1])[
        "model"
    ]
    return found


def run_alone(config: Config, folder: Path) -> None:
    os.chdir(folder)
    monkey = pytest.MonkeyPatch()
    monkey.setattr("detector.staged.svm.SAVE_EVERY", 1)
    monkey.setattr("detector.staged.cache_folder.FLUSH_EVERY", 1)
    StagedTraining(config, folder, "cpu").run()


def start(config: Config, folder: Path) -> multiprocessing.process.BaseProcess:
    """Run in a process forked from one that has imported everything and has computed nothing."""
    folder.mkdir(exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # found by PYTHONPATH, or every process imports torch again
    process = context.Process(target=run_alone, args=(config, folder))
    process.start()
    return process


@pytest.mark.slow
def test_killed_three_times_in_every_stage_ends_with_the_same_detector(
    staged: Staged, tmp_path: Path
) -> None:
    config, killed = staged("data.workers=2"), tmp_path / "killed"
    whole = start(staged(), tmp_path / "whole")
    whole.join(300)
    assert whole.exitcode == 0
    draw, kills = random.Random(0), 0
    for number, stage in enumerate(config.stages, start=1):
        name = f"{number:02d}_{stage.name}"
        took = json.loads((tmp_path / "whole" / "stages" / name / "done.json").read_text())["seconds"]
        for _ in range(3):
            process = start(config, killed)
            while process.is_alive() and not (killed / "stages" / name).is_dir():
                time.sleep(0.01)
            time.sleep(draw.uniform(0, max(took, 0.1)))
            if process.is_alive():
                assert process.pid is not None
                os.kill(process.pid, signal.SIGKILL)
            process.join(60)
            assert process.exitcode in (0, -signal.SIGKILL)
            kills += process.exitcode != 0
    assert kills >= len(config.stages)  # of three a stage; the last ones may come too late on a busy machine
    last = start(config, killed)
    last.join(300)
    assert last.exitcode == 0
    expected, found = weights(tmp_path / "whole"), weights(killed)
    assert expected.keys() == found.keys()
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


@pytest.mark.slow
@each_device
@pytest.mark.parametrize("workers", [0, 2])
def test_stopped_in_both_trainings_it_ends_with_the_same_detector(
    staged: Staged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, workers: int
) -> None:
    config, whole, stopped = staged(), tmp_path / "whole", tmp_path / "stopped"
    for folder in (whole, stopped):
        folder.mkdir()
    StagedTraining(config, whole, device).run()
    record = Run._record

    def stop(run: Run[Any], rate: float) -> None:
        record(run, rate)
        if run.step == 3:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Run, "_record", stop)
    threaded = staged(f"data.workers={workers}")
    for _ in range(2):
        with pytest.raises(StopRequested, match="after step 3"):
            StagedTraining(threaded, stopped, device).run()
    StagedTraining(threaded, stopped, device).run()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("loader-")]
    expected, found = weights(whole), weights(stopped)
    assert [name for name in expected if not torch.equal(expected[name], found[name])] == []


@each_device
def test_stages_pass_their_weights_on_and_the_tools_read_the_detector(
    staged: Staged, tmp_path: Path, device: str
) -> None:
    config, folder = staged(), tmp_path / "run"
    folder.mkdir()
    evaluation = StagedTraining(config, folder, device).run()
    assert evaluation is not None
    final = numbered_checkpoints(folder / "checkpoints")
    assert [path.name for path in final] == ["step_14.pt"]  # 6 + 6 steps of training, 2 fits
    at = {
        path.name[3:]: load_checkpoint(numbered_checkpoints(path / "checkpoints")[-1])["model"]
        for path in sorted((folder / "stages").iterdir())
    }
    convolution, fc6, score = (
        "backbone.features.0.weight",
        "box_head.layers.fc6.weight",
        "predictor.cls_score.weight",
    )
    assert len({tuple(state[convolution].flatten().tolist()) for state in at.values()}) == 1
    assert not torch.equal(at["classify"][fc6], at["fine_tune"][fc6])
    assert torch.equal(at["fine_tune"][fc6], at["svm"][fc6])
    assert not torch.equal(at["fine_tune"][score], at["svm"][score])
    assert torch.equal(at["svm"][score], at["boxes"][score])
    assert at["boxes"]["predictor.bbox_pred.weight"].any()
    model = restore_model(config, load_checkpoint(final[0]), "final").to(device)
    with cuda_algorithms(device, deterministic=True):
        again = build_scorer(config, device, split="test").evaluate(model)
    assert again.metrics["voc_mAP"] == evaluation.metrics["voc_mAP"]


def test_a_single_stage_can_be_run_and_needs_those_before_it(staged: Staged, tmp_path: Path) -> None:
    config, folder = staged(), tmp_path / "run"
    folder.mkdir()
    with pytest.raises(InputError, match="--stage svm: needs the stage classify"):
        StagedTraining(config, folder, "cpu").run("svm")
    with pytest.raises(InputError, match="--stage x: the config's stages are classify, fine_tune"):
        StagedTraining(config, folder, "cpu").run("x")
    assert StagedTraining(config, folder, "cpu").run("classify") is None
    assert [path.name for path in (folder / "stages").iterdir()] == ["01_classify"]
    assert not (folder / "checkpoints").exists()
    with pytest.raises(InputError, match="made with another config"):
        StagedTraining(staged("seed=8"), folder, "cpu").run()


def test_each_start_is_recorded_and_each_training_reports_to_its_callbacks(
    staged: Staged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[str, str]] = []

    class Listener(Callback):
        def on_start(self, facts: RunFacts) -> None:
            told.append(("start", facts.folder.name))

        def close(self) -> None:
            told.append(("close", ""))

    monkeypatch.setattr("detector.tasks.start.build_callbacks", lambda _: [Listener()])
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("classify", "fine_tune", "svm"):
        StagedTraining(staged(), folder, "cpu").run(name)
    assert told == [("start", "01_classify"), ("close", ""), ("start", "02_fine_tune"), ("close", "")]
    steps = [entry["step"] for entry in read_environments(folder)]
    assert steps == [0, 6, 12]
    for stage in ("01_classify", "02_fine_tune"):
        assert [entry["step"] for entry in read_environments(folder / "stages" / stage)] == [0]
    # Trackers decide on no result, so finished stages stay done.
    other = StagedTraining(staged("train.callbacks=[{kind: wandb, project: p}]"), folder, "cpu")
    assert len(other._finished_stages()) == 3


def test_each_image_goes_through_the_convolutions_once_per_scale(staged: Staged, tmp_path: Path) -> None:
    config = staged()
    classes = class_names(config)
    records = load_split(config, "trainval", classes, training=True).records
    model = build_model(config, len(classes))
    calls: list[int] = []
    model.backbone.register_forward_hook(lambda *_: calls.append(1))
    for _ in range(2):
        open_cache(config, model, records, tmp_path / "cache", "cpu")
        assert len(calls) == len(records) * 2
    torch.nn.init.zeros_(next(model.backbone.parameters()))
    open_cache(config, model, records, tmp_path / "cache", "cpu")  # other weights, another cache
    assert len(calls) == len(records) * 4
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_one_image_is_enough_and_a_class_without_objects_is_named(
    staged: Staged, tmp_path: Path, tiny_root: Path
) -> None:
    names = (tiny_root / "ImageSets/Main/trainval.txt").read_text().split()
    (tmp_path / "one.txt").write_text(names[0])
    (tmp_path / "test.txt").write_text(names[1])
    one = ("data.train_split=one", f"data.splits={tmp_path}", "train.images_per_batch=1")
    (tmp_path / "run").mkdir()
    assert StagedTraining(staged(*one), tmp_path / "run", "cpu").run() is not None
    strict = staged(*one)
    stage = strict.stages[2]
    assert isinstance(stage, SVMStageConfig)
    svm = stage.model_copy(update={"svm": stage.svm.model_copy(update={"missing_positives": "error"})})
    strict = strict.model_copy(update={"stages": (*strict.stages[:2], svm)})
    (tmp_path / "strict").mkdir()
    with pytest.raises(InputError, match="no object to train the SVM of"):
        StagedTraining(strict, tmp_path / "strict", "cpu").run()


@pytest.mark.parametrize("kind", ["svm", "box_ridge"])
def test_the_state_of_a_stopped_fit_is_refused_with_another_config(
    staged: Staged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    config, folder = staged(), tmp_path / "run"
    kinds: list[str] = [stage.kind for stage in config.stages]
    number = kinds.index(kind)
    folder.mkdir()
    for stage in config.stages[:number]:
        StagedTraining(config, folder, "cpu").run(stage.name)

    def stop(*_arguments: object) -> None:
        raise KeyboardInterrupt

    layer = {"svm": "svm.fold_svms", "box_ridge": "box_ridge.fold_ridge"}[kind]
    with monkeypatch.context() as patched:
        patched.setattr("detector.staged.svm.SAVE_EVERY", 1)
        patched.setattr(f"detector.staged.{layer}", stop)
        with pytest.raises(KeyboardInterrupt):
            StagedTraining(config, folder, "cpu").run(config.stages[number].name)
    match config.stages[number]:
        case SVMStageConfig() as stage:
            fit: dict[str, Any] = {"svm": stage.svm.model_copy(update={"c": 1.0})}
        case RidgeStageConfig() as stage:
            fit = {"ridge": stage.ridge.model_copy(update={"penalty": 1.0})}
    changed = config.stages[number].model_copy(update=fit)
    other = config.model_copy(update={"stages": (*config.stages[:number], changed)})
    with pytest.raises(InputError, match=r"fit\.pt: this stage was made with another config"):
        StagedTraining(other, folder, "cpu").run()
    assert StagedTraining(config, folder, "cpu").run(config.stages[number].name) is None


def test_features_are_scaled_and_rows_thinned_as_the_release_does(staged: Staged, tmp_path: Path) -> None:
    """A mean norm over regions of the images; at most ``max_rows`` rows per class, drawn by the seed."""
    config = staged()
    classes = class_names(config)
    model = build_model(config, len(classes))
    fit = RidgeFit(config, model, classes, tmp_path / "cache", "cpu", lambda _: None, None)
    norms = []
    for record in fit.records:
        regions = torch.cat((fit.objects(record).boxes, fit.proposals(record)))
        norms.append(fit.embed(record, regions).pooled.norm(dim=1))
    # At most 200 regions of an image are looked at, so the mean is that of a sample.
    assert fit.mean_norm(pooled=True) == pytest.approx(float(torch.cat(norms).mean()), rel=0.05)
    whole = fit._rows(RidgeConfig())
    few = fit._rows(RidgeConfig(max_rows=3))
    again = fit._rows(RidgeConfig(max_rows=3))
    for label, rows in whole.items():
        count = sum(len(boxes) for _, boxes, _ in rows)
        assert sum(len(boxes) for _, boxes, _ in few[label]) == min(3, count)
        for (record, boxes, deltas), (same, *others) in zip(few[label], again[label], strict=True):
            assert record.key == same.key
            assert torch.equal(boxes, others[0])
            pairs = {tuple(row) for _, b, d in rows for row in torch.cat((b, d), dim=1).tolist()}
            assert {tuple(row) for row in torch.cat((boxes, deltas), dim=1).tolist()} <= pairs
    assert max(sum(len(boxes) for _, boxes, _ in rows) for rows in whole.values()) > 3


def test_a_region_on_a_difficult_object_is_no_negative(staged: Staged, tmp_path: Path) -> None:
    """Where the config skips difficult objects, they are not positives, but their class is present."""
    config = staged("data.difficult=skip")
    classes = class_names(config)
    fit = SVMFit(
        config, build_model(config, len(classes)), classes, tmp_path / "cache", "cpu", lambda _: None, None
    )
    record = fit.records[0]
    targets = replace(record.targets, difficult=torch.ones(len(record.targets), dtype=torch.bool))
    hidden = replace(record, targets=targets)
    assert not len(fit.objects(hidden))
    for pooled in (False, True):
        features, overlaps, regions, windows = fit._candidates(hidden, pooled)
        assert len(features) == len(regions) == len(windows)
        expected = iou(regions, targets.boxes)
        for number in range(len(classes)):
            mine = targets.labels == number + 1
            best = expected[:, mine].amax(dim=1) if mine.any() else torch.zeros(len(regions))
            assert torch.equal(overlaps[:, number], best)
    assert overlaps.amax() >= 0.3


def test_an_rcnn_in_stages(staged: Staged, tmp_path: Path) -> None:
    """R-CNN's stages: fine-tuning on crops, SVMs on fc7, ridge regression on the pooled crops."""
    staged()
    values = json.loads((tmp_path / "staged.yaml").read_text())
    network, _, svm, boxes = values["stages"]
    network["settings"] = {"model": SOFTMAX, "test": {"score_threshold": 0.05}}
    values["stages"] = [network, svm, boxes]
    values["model"]["pool"] = {"kind": "warp", "crop_size": 24, "context": 4, "output_size": 2}
    values["proposals"] |= {"top_k_train": 30, "top_k_test": 30}
    values["test"] |= {"resize": "none", "scales": [64]}
    (tmp_path / "rcnn.yaml").write_text(json.dumps(values))
    config = load_config(tmp_path / "rcnn.yaml")
    (tmp_path / "run").mkdir()
    assert StagedTraining(config, tmp_path / "run", "cpu").run() is not None
    found = weights(tmp_path / "run")
    assert found["predictor.bbox_pred.weight"].any()
    assert not found["predictor.cls_score.weight"][0].any()  # SVMs leave the background no score
    resized = config.model_copy(update={"test": config.test.model_copy(update={"resize": "shorter"})})
    with pytest.raises(InputError, match="made with another config"):
        StagedTraining(resized, tmp_path / "run", "cpu").run()


def test_too_little_disk_is_reported_before_the_convolutions_run(
    staged: Staged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = staged()
    config = config.model_copy(update={"stages": config.stages[:1] + config.stages[2:]})
    (tmp_path / "run").mkdir()
    StagedTraining(config, tmp_path / "run", "cpu").run("classify")
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    with pytest.raises(InputError, match=r"needs .* and the disk has 0\.0 MiB free"):
        StagedTraining(config, tmp_path / "run", "cpu").run()
    assert stages_module.CACHE in {path.name for path in (tmp_path / "run").iterdir()}


def place_of(folder: Path, number: int, stage: str) -> Path:
    return folder / "stages" / f"{number:02d}_{stage}"


@pytest.fixture
def two_done(staged: Staged, tmp_path: Path) -> Path:
    """A run whose first two stages are done."""
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("classify", "fine_tune"):
        StagedTraining(staged(), folder, "cpu").run(name)
    return folder


def test_damaged_records_and_checkpoints_of_stages_are_made_again(
    staged: Staged, two_done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = place_of(two_done, 2, "fine_tune")
    whole = weights(place)
    for text in ('{"key": 3}', "{", "[]"):
        (place / "done.json").write_text(text)
        assert StagedTraining(staged(), two_done, "cpu").run("fine_tune") is None
        assert "done.json: " in capsys.readouterr().err
    last = place / "checkpoints/step_6.pt"
    content = last.read_bytes()[:4000]
    last.unlink()
    last.write_bytes(content)
    assert StagedTraining(staged(), two_done, "cpu").run("fine_tune") is None
    said = capsys.readouterr().err
    assert "step_6.pt: not readable" in said
    assert "the stage fine_tune is done again" in said
    assert "resuming after step 4 from" in said
    assert all(torch.equal(value, weights(place)[name]) for name, value in whole.items())


def test_a_refused_stage_names_the_setting_and_leaves_the_config_as_it_was(
    staged: Staged, two_done: Path
) -> None:
    before = (two_done / "config.yaml").read_bytes()
    with pytest.raises(InputError, match=r"another config, with train\.momentum = 0\.9, now 0\.5; train"):
        StagedTraining(staged("train.momentum=0.5"), two_done, "cpu").run()
    assert (two_done / "config.yaml").read_bytes() == before


def test_staged_runs_notice_changed_data(staged: Staged, tmp_path: Path, tiny_root: Path) -> None:
    copy = Path(shutil.copytree(tiny_root, tmp_path / "copy"))
    config, folder = staged(f"data.root={copy}"), tmp_path / "run"
    folder.mkdir()
    for name in ("classify", "fine_tune", "svm"):
        StagedTraining(config, folder, "cpu").run(name)
    split = copy / "ImageSets/Main/trainval.txt"
    split.write_text("\n".join(split.read_text().split()[:-1]) + "\n")
    with pytest.raises(InputError, match=r"training: trainval.*--accept-changed-data"):
        StagedTraining(config, folder, "cpu").run("boxes")
    assert StagedTraining(config, folder, "cpu", accept_changed_data=True).run("boxes") is None


def test_a_damaged_fit_starts_again(
    staged: Staged, two_done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = place_of(two_done, 3, "svm") / "fit.pt"
    kept.parent.mkdir()
    for state in (b"PK\x03\x04 torn", {"key": 3}, [1]):
        if isinstance(state, bytes):
            kept.write_bytes(state)
        else:
            torch.save(state, kept)
        training = StagedTraining(staged(), two_done, "cpu")
        classes = class_names(training.config)
        model = build_model(training.config, len(classes))
        assert training._unfinished_fit(kept, 2, model, len(classes)) is None
        assert "fit.pt: not the state of an unfinished fit" in capsys.readouterr().err
    assert StagedTraining(staged(), two_done, "cpu").run("svm") is None


def test_seconds_of_all_stages_and_the_metrics_in_tensorboard(
    staged: Staged, two_done: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for number, name in enumerate(("classify", "fine_tune"), start=1):
        path = place_of(two_done, number, name) / "done.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "seconds": 1000.0}))
    training = StagedTraining(staged(), two_done, "cpu")
    evaluation = training.run()
    assert evaluation is not None
    assert 2000 < training.seconds() < 3000
    training.finish(evaluation)
    assert training.detector == two_done / "checkpoints/step_14.pt"
    assert json.loads((two_done / "metrics.json").read_text())["seconds"] > 2000
    events = EventAccumulator(str(two_done / "tensorboard")).Reload()
    (scalar,) = events.Scalars("evaluate/voc_mAP")
    assert scalar.step == 14
    assert scalar.value == pytest.approx(evaluation.metrics["voc_mAP"])
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 13))
    kinds = [json.loads(line)["kind"] for line in (two_done / "log.jsonl").read_text().splitlines()]
    assert kinds == ["train"] * 12 + ["evaluate"]


def test_the_seconds_of_a_stage_are_its_own(
    staged: Staged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They include neither the process nor the stages before it."""
    monkeypatch.setattr("detector.staged.runner.process_seconds", lambda: 500.0)
    began = time.perf_counter()
    for name in ("classify", "fine_tune"):
        StagedTraining(staged(), tmp_path, "cpu").run(name)
    took = time.perf_counter() - began
    places = [place_of(tmp_path, number, name) for number, name in enumerate(("classify", "fine_tune"), 1)]
    kept = [load_checkpoint(place / "checkpoints/step_6.pt")["seconds"] for place in places]
    recorded = [json.loads((place / "done.json").read_text())["seconds"] for place in places]
    assert 0 < sum(kept) < took
    assert all(one <= whole + 0.1 for one, whole in zip(kept, recorded, strict=True))


def test_a_staged_run_does_not_delete_the_weights_that_it_starts_from(staged: Staged, two_done: Path) -> None:
    weights = place_of(two_done, 1, "classify") / "checkpoints/step_6.pt"
    training = StagedTraining(staged(f"train.initial_weights={weights}"), two_done, "cpu")
    training.check_start()
    with pytest.raises(
        InputError, match=r"initial_weights: .*step_6\.pt is part of the run that --overwrite"
    ):
        training.check_start(overwrite=True)


def test_missing_weights_are_reported_before_a_staged_run_begins(staged: Staged, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    config = staged(f"model.backbone.weights={tmp_path / 'absent.pth'}")
    with pytest.raises(InputError, match=r"absent\.pth"):
        StagedTraining(config, tmp_path / "run", "cpu").run()
    assert list((tmp_path / "run").iterdir()) == []


def test_the_finished_detector_has_the_threshold_of_images_that_no_stage_was_trained_on(
    staged: Staged, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    config = staged("train.validation_fraction=0.3", "train.steps=2", "train.epochs=0.5")
    assert config.train.steps is None
    training = StagedTraining(config, tmp_path, "cpu")
    evaluation = training.run()
    assert evaluation is not None
    training.finish(evaluation)
    said = capfd.readouterr().err
    assert said.count("validation images: 2, set aside from trainval") == 3  # classify, fine_tune, at the end
    assert said.count("train.epochs 0.5 of 6 images in batches of 2: 2 steps") == 2
    state = load_checkpoint(numbered_checkpoints(tmp_path / "checkpoints")[-1])
    stored = state.get("score_threshold")
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["split"] == "test"
    assert metrics["validation"]["images"] == 2
    assert metrics.get("score_threshold") == stored


RECORD = StageRecord(
    key="abc",
    checkpoint="checkpoints/step_6.pt",
    steps=14,
    seconds=2.5,
    data_fingerprint={"training: trainval": "00ff"},
)


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    RECORD.write(tmp_path / "done.json")
    assert read_record(tmp_path / "done.json") == RECORD
    older = {"key": "abc", "checkpoint": "checkpoints/step_6.pt", "steps": 14, "seconds": 2.5}
    (tmp_path / "done.json").write_text(json.dumps(older))
    assert read_record(tmp_path / "done.json").data_fingerprint == {}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"key": 3}, "key"),
        ({"key": None}, "key"),
        ({"checkpoint": "/etc/passwd"}, "checkpoint"),
        ({"checkpoint": "checkpoints/../../../x.pt"}, "checkpoint"),
        ({"checkpoint": ["checkpoints/step_6.pt"]}, "checkpoint"),
        ({"steps": "14"}, "steps"),
        ({"steps": True}, "steps"),
        ({"steps": 0}, "steps"),
        ({"steps": 10**400}, "steps"),
        ({"steps": 1.5}, "steps"),
        ({"seconds": -1}, "seconds"),
        ({"seconds": None}, "seconds"),
        ({"data_fingerprint": [1]}, "data_fingerprint"),
        ({"data_fingerprint": {"a": 1}}, "data_fingerprint"),
    ],
)
def test_wrong_values_in_a_record_are_named(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    path = tmp_path / "done.json"
    path.write_text(json.dumps({**RECORD.model_dump(), **change}))
    with pytest.raises(InputError, match=rf"done\.json: not the record of a finished stage: {named}"):
        read_record(path)


@pytest.mark.parametrize("text", ["", "[]", "3", "{", "null", '{"key": "abc"}', "\ufeff{}"])
def test_files_that_are_no_records_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "done.json").write_text(text)
    with pytest.raises(InputError, match=r"done\.json: not"):
        read_record(tmp_path / "done.json")


def test_stages_start_from_averaged_weights_and_mine(staged: Staged, tmp_path: Path) -> None:
    mined = {"sampling": {"kind": "ohem", "rois_per_image": 7}, "validation_loss": True}
    stages = STAGED["stages"][:2]  # type: ignore[index]
    stages = [{**stage, "settings": {**stage["settings"], "train": mined}} for stage in stages]
    config = staged("train.ema=0.5", "train.evaluate_every=3", "train.validation_fraction=0.25")
    config = config.model_copy(
        update={"stages": parse_config({**config.model_dump(), "stages": stages}, "here").stages}
    )
    training = StagedTraining(config, tmp_path / "run", "cpu")
    for stage in ("classify", "fine_tune"):
        training.run(only=stage)
    first, second = (tmp_path / "run" / "stages" / name for name in ("01_classify", "02_fine_tune"))
    state, later = (load_checkpoint(one / "checkpoints" / "step_6.pt") for one in (first, second))
    frozen = [name for name in state["model"] if name.startswith("backbone.") and "weight" in name]
    assert frozen
    for name in frozen:  # the convolutions stay as the first stage's average left them
        assert torch.equal(later["model"][name], state["ema"][name])
    assert any(not torch.equal(state["model"][name], state["ema"][name]) for name in frozen)
    evaluations = [one for one in read_log(second / "log.jsonl") if one["kind"] == "evaluate"]
    assert all({"val_loss_cls", "raw_voc07_mAP"} <= set(one) for one in evaluations)


def test_regions_to_mine_from_are_of_one_scale_per_image(staged: Staged, tmp_path: Path) -> None:
    config = staged(
        "train.sampling={kind: ohem, rois_per_image: 7}",
        "model.head.scores=softmax",
        "model.box.regression=none",
    )
    task = FineTuningTask(config, "cpu", tmp_path / "cache")
    with closing(task.batches(0)) as batches:
        drawn = [next(batches).sampled for _ in range(4)]
    per_image = [
        part.unique().tolist()
        for one in drawn
        if one.roi_levels is not None
        for part in one.roi_levels.split(list(one.counts))
    ]
    assert all(len(levels) == 1 for levels in per_image)
    assert {levels[0] % 2 for levels in per_image} == {0, 1}  # of two scales per image
