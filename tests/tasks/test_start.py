"""Whole runs: the same seed gives the same weights, and a stopped run goes on as if it never stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from detector.config import Config
from detector.core.errors import InputError
from detector.core.structures import Detections
from detector.data import samples
from detector.data.images import LoadedImage
from detector.engine.checkpoint import load_checkpoint, save_checkpoint
from detector.engine.run_log import read_log
from detector.factory.model import build_model
from detector.tasks.detection import DetectionScorer
from detector.tasks.resume import find_state
from detector.tasks.scoring import Evaluation
from detector.tasks.start import start_run
from tests.devices import each_device, on_cuda

PROJECT = Path(__file__).parents[2]
Load = Callable[..., Config]


def train(
    config: Config, folder: Path, device: str = "cpu", *, resume: bool = False, accept: bool = False
) -> Evaluation[Detections]:
    folder.mkdir(exist_ok=True)
    run = start_run(config, folder, device, resume=resume, accept_changed_data=accept)
    evaluation: Evaluation[Detections] = run.run()
    return evaluation


def final_state(folder: Path, step: int = 12) -> dict[str, torch.Tensor]:
    """Return the weights, and what the optimizer keeps of each parameter, of a run's checkpoint."""
    state = load_checkpoint(folder / "checkpoints" / f"step_{step}.pt")
    kept = {
        f"{name}.{number}": value
        for number, entry in state["optimizer"]["state"].items()
        for name, value in entry.items()
        if isinstance(value, torch.Tensor)
    }
    return {**state["model"], **kept}


def assert_identical(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different


@each_device
def test_one_seed_gives_one_result_and_another_seed_another(tiny: Load, tmp_path: Path, device: str) -> None:
    first = train(tiny(), tmp_path / "first", device)
    second = train(tiny("data.workers=0"), tmp_path / "second", device)
    train(tiny("seed=4"), tmp_path / "third", device)
    assert_identical(final_state(tmp_path / "first"), final_state(tmp_path / "second"))
    assert first.metrics["voc07_mAP"] == second.metrics["voc07_mAP"]
    name = "predictor.cls_score.weight"
    assert not torch.equal(final_state(tmp_path / "first")[name], final_state(tmp_path / "third")[name])


@each_device
def test_a_finished_run_leaves_no_thread_behind(tiny: Load, tmp_path: Path, device: str) -> None:
    before = set(threading.enumerate())
    train(tiny("data.workers=3", "train.steps=4"), tmp_path / "run", device)
    assert not {thread for thread in threading.enumerate() if thread.name.startswith("loader-")} - before


@pytest.mark.slow
@each_device
@pytest.mark.parametrize(("first", "then"), [("0", "0"), ("2", "2"), ("0", "2"), ("2", "1")])
def test_three_steps_and_three_more_are_six_whatever_threads_load(
    tiny: Load, tmp_path: Path, device: str, first: str, then: str
) -> None:
    """Batches that were made ahead when the run stopped are made again, with the same regions."""
    train(tiny("train.steps=6", "data.workers=0"), tmp_path / "whole", device)
    train(tiny("train.steps=3", f"data.workers={first}"), tmp_path / "parts", device)
    train(tiny("train.steps=6", f"data.workers={then}"), tmp_path / "parts", device, resume=True)
    assert_identical(final_state(tmp_path / "whole", 6), final_state(tmp_path / "parts", 6))


@each_device
def test_resumed_from_any_checkpoint_equals_uninterrupted(tiny: Load, tmp_path: Path, device: str) -> None:
    config = tiny("train.evaluate_every=5")
    train(config, tmp_path / "whole", device)
    for step in (4, 8):
        folder = tmp_path / f"from_{step}"
        (folder / "checkpoints").mkdir(parents=True)
        kept = tmp_path / "whole" / "checkpoints" / f"step_{step}.pt"
        (folder / "checkpoints" / kept.name).write_bytes(kept.read_bytes())
        train(config, folder, device, resume=True)
        assert_identical(final_state(tmp_path / "whole"), final_state(folder))


@pytest.mark.parametrize("workers", [0, 1])
def test_waiting_for_slow_images_is_in_the_log_and_the_metrics(
    tiny: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    opened = samples.open_image

    def slowly(*given: Any) -> LoadedImage:
        time.sleep(0.03)
        return opened(*given)

    config = tiny("train.steps=4", f"data.workers={workers}")
    (tmp_path / "run").mkdir()
    run = start_run(config, tmp_path / "run", "cpu")
    monkeypatch.setattr(samples, "open_image", slowly)
    run.run()
    run.finish()
    records = [one for one in read_log(tmp_path / "run" / "log.jsonl") if one["kind"] == "train"]
    assert len(records) == 4
    if workers == 0:
        assert all(one["data_wait"] >= 0.06 for one in records)  # two images per step, none made ahead
    assert all(one["data_wait"] <= one["seconds_per_step"] for one in records)
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    share = sum(one["data_wait"] for one in records) / sum(one["seconds_per_step"] for one in records)
    assert 0 < metrics["data_wait_share"] < 1
    assert metrics["data_wait_share"] >= share - 1e-3  # a step of the log includes writing the one before


NETWORKS = {
    "vgg16": ["model.backbone.name=vgg16", "model.backbone.freeze=2"],
    "alexnet": ["model.backbone.name=alexnet", "train.clip_gradient_norm=5"],
    "caffenet": ["model.backbone.name=caffenet"],
    "squeezenet": ["model.backbone.name=squeezenet1_0"],
    "resnet": ["model.backbone.name=resnet18", "model.backbone.freeze=0"],
    "torchvision": ["model.backbone={name: 'torchvision:squeezenet1_1', stage: features.7, freeze: 1}"],
    "fpn": ["model.neck=fpn", "model.fpn.channels=8", "test.scales=[64,96]"],
    "bfloat16": ["train.precision=bfloat16"],
    "float16": ["train.precision=float16", "test.precision=float16"],
    "averaged": ["train.optimizer=adamw", "train.learning_rate=1e-3", "train.ema=0.9"],
    "mined": ["train.sampling.kind=ohem", "train.precision=float16"],
    "pyramid": ["model.pool={kind: spp, levels: [3, 2, 1]}"],
    "average": ["model.pool={kind: spp, window: roi, reduction: avg}"],
    "crops": ["model.pool={kind: warp, output_size: 3, crop_size: 44, context: 4}"],
    "agnostic": ["model.head.class_agnostic=true"],
    "classes": ["task=classification", "model.pool={kind: spp, levels: [1, 2, 4]}"],
    "sliding": [
        "task=classification",
        "model.pool={kind: spp, levels: [1, 2, 4], rule: sliding}",
        "train.scales=[96]",
        "train.resize=square",
        "train.scale_jitter=null",
        "test.resize=square",
    ],
}


@on_cuda
@pytest.mark.parametrize("settings", NETWORKS.values(), ids=NETWORKS.keys())
def test_every_network_resumes_exactly_on_a_gpu(
    tiny: Load, tmp_path: Path, device: str, settings: list[str]
) -> None:
    """With an operation that adds in no fixed order this fails in one of a few tries, not in each."""
    config = tiny("train.steps=8", "train.checkpoint_every=4", "test.max_images=1", *settings)
    train(config, tmp_path / "whole", device)
    for number in range(2):
        folder = tmp_path / f"resumed_{number}"
        (folder / "checkpoints").mkdir(parents=True)
        shutil.copy(tmp_path / "whole" / "checkpoints" / "step_4.pt", folder / "checkpoints")
        train(config, folder, device, resume=True)
        assert_identical(final_state(tmp_path / "whole", 8), final_state(folder, 8))


@on_cuda
def test_a_run_moves_from_a_gpu_to_the_cpu_and_back(tiny: Load, tmp_path: Path, device: str) -> None:
    for steps, place in ((4, device), (8, "cpu"), (12, device)):
        train(tiny(f"train.steps={steps}"), tmp_path / "run", place, resume=True)
    train(tiny(), tmp_path / "whole", device)
    moved, whole = final_state(tmp_path / "run"), final_state(tmp_path / "whole")
    assert all(value.isfinite().all() for value in moved.values())
    assert moved.keys() == whole.keys()
    records = [record for record in read_log(tmp_path / "run" / "log.jsonl") if record["kind"] == "train"]
    assert ["peak_gpu_memory_mib" in record for record in records] == [True] * 4 + [False] * 4 + [True] * 4


@on_cuda
def test_a_run_without_determinism_trains_as_well(tiny: Load, tmp_path: Path, device: str) -> None:
    train(tiny("train.deterministic=false"), tmp_path / "run", device)
    assert all(value.isfinite().all() for value in final_state(tmp_path / "run").values())


@pytest.fixture(scope="module")
def uninterrupted() -> dict[str, dict[str, torch.Tensor]]:
    """Final states by device of the run that the next tests stop; the first test on a device trains it."""
    return {}


@pytest.mark.slow
@each_device
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_goes_on_exactly(
    tiny: Load,
    tiny_config: Path,
    tmp_path: Path,
    uninterrupted: dict[str, dict[str, torch.Tensor]],
    number: signal.Signals,
    device: str,
) -> None:
    tiny()  # changes into the test's own directory
    folder, whole = tmp_path / "stopped", tmp_path / "whole"
    command = [sys.executable, str(PROJECT / "tools" / "train.py"), "--config", str(tiny_config)]
    command += ["--device", device]
    environment = {**os.environ, "HOME": str(tmp_path)}
    slow = ["train.steps=60", "train.checkpoint_every=5"]
    process = subprocess.Popen(
        [*command, "--output", str(folder), *slow], env=environment, stderr=subprocess.DEVNULL
    )
    wait_for(folder / "checkpoints" / "step_5.pt", process)
    process.send_signal(number)
    status = process.wait(60)
    assert status == (-9 if number == signal.SIGKILL else 128 + number)
    config = tiny(*slow)
    train(config, folder, device, resume=True)
    if device not in uninterrupted:
        train(config, whole, device)
        uninterrupted[device] = final_state(whole, 60)
    assert_identical(uninterrupted[device], final_state(folder, 60))
    steps = [record["step"] for record in read_log(folder / "log.jsonl") if record["kind"] == "train"]
    assert steps == list(range(1, 61))


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        if path.exists():
            return
        assert process.poll() is None, "the run ended before it could be stopped"
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear within a minute")


def test_overfitting_four_images_reaches_ap_one(tiny: Load, tmp_path: Path) -> None:
    split = tmp_path / "four.txt"
    root = Path(tiny().data.root)
    split.write_text("\n".join((root / "ImageSets/Main/trainval.txt").read_text().split()[:4]))
    config = tiny(
        f"data.splits={tmp_path}",
        "data.train_split=four",
        "data.test_split=four",
        "train.steps=160",
        "train.learning_rate=0.03",
        "train.scale_jitter=null",
        "train.images_per_batch=4",
        "train.sampling.rois_per_image=48",
        "train.clip_gradient_norm=5",
        "train.schedule.kind=cosine",
        "train.schedule.warmup=0.1",
        "train.log_every=20",
        "train.checkpoint_every=160",
        "proposals.top_k_train=1000",
        "proposals.top_k_test=1000",
        "model.head.dropout=0",
        "model.head.hidden=[96]",
        "model.pool.output_size=7",
    )
    metrics = train(config, tmp_path / "four").metrics
    assert metrics["voc_mAP"] == pytest.approx(1.0)
    assert metrics["voc07_mAP"] == pytest.approx(1.0)


def test_every_step_is_kept_unless_the_config_says_otherwise(tiny: Load, tmp_path: Path) -> None:
    train(tiny("train.steps=5", "train.checkpoint_every=2"), tmp_path / "all")
    train(tiny("train.steps=5", "train.checkpoint_every=2", "train.keep_checkpoints=1"), tmp_path / "last")
    assert names(tmp_path / "all") == {"best.pt", "step_2.pt", "step_4.pt", "step_5.pt"}
    assert names(tmp_path / "last") == {"best.pt", "step_5.pt"}


def names(folder: Path) -> set[str]:
    return {path.name for path in (folder / "checkpoints").iterdir()}


def test_resuming_refuses_another_model_and_tells_of_another_rate(
    tiny: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    train(tiny("train.steps=4"), folder)
    with pytest.raises(InputError, match=r"model\.pool\.output_size = 4, now 3"):
        find_state(tiny("train.steps=8", "model.pool.output_size=3"), folder)
    with pytest.raises(InputError, match=r"done 4 steps, train\.steps is 2"):
        find_state(tiny("train.steps=2"), folder)
    config = tiny("train.steps=8", "train.learning_rate=0.5", "train.momentum=0.8")
    run = start_run(config, folder, "cpu", resume=True)
    said = capsys.readouterr().err
    assert "train.learning_rate = 0.5 instead of 0.01" in said
    assert [group["initial_lr"] for group in run.optimizer.param_groups] == [0.5, 1.0]
    assert [group["momentum"] for group in run.optimizer.param_groups] == [0.8, 0.8]
    assert "step 5 of 8 has 0.5" in said
    with pytest.raises(InputError, match=r'made with train\.trainable = "all", now "boxes"; the optimizer'):
        find_state(tiny("train.steps=8", "train.trainable=boxes"), folder)


def test_initial_weights_take_the_model_alone(tiny: Load, tmp_path: Path) -> None:
    train(tiny("train.steps=4"), tmp_path / "first")
    checkpoint = tmp_path / "first" / "checkpoints" / "step_4.pt"
    (tmp_path / "second").mkdir()
    run = start_run(tiny(f"train.initial_weights={checkpoint}"), tmp_path / "second", "cpu")
    saved = load_checkpoint(checkpoint)["model"]
    assert all(torch.equal(value, saved[name]) for name, value in run.task.model.state_dict().items())
    assert run.step == 0
    assert not run.optimizer.state


def test_the_second_stage_of_stage_wise_training_moves_the_box_layer_alone(
    tiny: Load, tmp_path: Path
) -> None:
    train(tiny("train.steps=4"), tmp_path / "first")
    checkpoint = tmp_path / "first" / "checkpoints" / "step_4.pt"
    settings = ("train.steps=4", "train.trainable=boxes", f"train.initial_weights={checkpoint}")
    train(tiny(*settings), tmp_path / "second")
    before = load_checkpoint(checkpoint)["model"]
    after = load_checkpoint(tmp_path / "second" / "checkpoints" / "step_4.pt")["model"]
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"predictor.bbox_pred.weight", "predictor.bbox_pred.bias"}


@pytest.mark.parametrize("pool", ["{kind: spp, levels: [3, 1]}", "{kind: spp, window: roi, reduction: avg}"])
def test_a_pyramid_trains_end_to_end(tiny: Load, tmp_path: Path, pool: str) -> None:
    config = tiny(f"model.pool={pool}", "train.steps=2")
    train(config, tmp_path / "run")
    run = start_run(config, tmp_path / "run", "cpu")
    before = run.task.model.state_dict()["backbone.features.0.weight"]
    after = load_checkpoint(tmp_path / "run" / "checkpoints" / "step_2.pt")["model"]
    assert not torch.equal(before, after["backbone.features.0.weight"])  # gradients passed the pyramid


def test_measured_box_targets_are_saved_with_the_weights(tiny: Load, tmp_path: Path) -> None:
    train(tiny("train.steps=1", "model.box.normalize=dataset"), tmp_path / "run")
    state = load_checkpoint(tmp_path / "run" / "checkpoints" / "step_1.pt")["model"]
    means, deviations = state["box_coder.means"], state["box_coder.deviations"]
    assert means.shape == deviations.shape == (6, 4)
    assert torch.all(means[:, 0].abs() < 1e-6)  # the set is taken with its mirror images
    assert torch.all((deviations > 0.02) & (deviations < 0.5))


def test_a_regressor_for_all_classes_is_measured_and_trained(tiny: Load, tmp_path: Path) -> None:
    train(tiny("train.steps=2", "model.head.class_agnostic=true"), tmp_path / "run")
    state = load_checkpoint(tmp_path / "run" / "checkpoints" / "step_2.pt")["model"]
    assert state["predictor.bbox_pred.weight"].shape == (4, 32)
    assert (state["box_coder.deviations"] == state["box_coder.deviations"][:1]).all()


def test_a_failing_evaluation_takes_no_training_with_it(
    tiny: Load, tmp_path: Path, tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(tiny_root, tmp_path / "copy"))
    config = tiny(f"data.root={copy}", "train.steps=4")
    train(config, tmp_path / "whole")
    image = next((copy / "JPEGImages").glob((copy / "ImageSets/Main/test.txt").read_text().split()[0] + ".*"))
    whole = image.read_bytes()
    evaluate = DetectionScorer.evaluate

    def damaged(scorer: DetectionScorer, *given: Any, **named: Any) -> Evaluation[Detections]:
        image.write_bytes(whole[:800])  # after the start, which would have noticed
        return evaluate(scorer, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(DetectionScorer, "evaluate", damaged)
        with pytest.raises(InputError, match="truncated"):
            train(config, tmp_path / "run")
    image.write_bytes(whole)
    evaluation = train(config, tmp_path / "run", resume=True)
    assert_identical(final_state(tmp_path / "whole", 4), final_state(tmp_path / "run", 4))
    assert names(tmp_path / "run") == {"best.pt", "step_4.pt"}
    evaluated = [
        record for record in read_log(tmp_path / "run" / "log.jsonl") if record["kind"] == "evaluate"
    ]
    assert [record["voc_mAP"] for record in evaluated] == [evaluation.metrics["voc_mAP"]]


@dataclass(frozen=True, kw_only=True)
class Incomparable(Evaluation[Detections]):
    """An evaluation with two images or more: tensors in it have no single truth value."""

    def __eq__(self, _other: object) -> bool:
        raise RuntimeError("Boolean value of Tensor with more than one value is ambiguous")


def test_the_loop_compares_no_evaluations_and_leaves_the_threshold_to_the_scorer(
    tiny: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evaluate = DetectionScorer.evaluate

    def incomparable(*given: Any, **named: Any) -> Incomparable:
        return Incomparable(**vars(evaluate(*given, **named)))

    monkeypatch.setattr(DetectionScorer, "evaluate", incomparable)
    said: list[object] = []
    monkeypatch.setattr(DetectionScorer, "note_point", lambda _, *given: said.append(given))
    train(tiny("train.steps=2", "train.validation_fraction=0.3", "data.workers=0"), tmp_path / "run")
    assert len(said) == 1
    kinds = [record["kind"] for record in read_log(tmp_path / "run/log.jsonl")]
    assert kinds[-2:] == ["evaluate", "test"]


def test_nothing_to_train_on_is_one_clear_error(tiny: Load, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nothing to train on in trainval.*under 5000 px"):
        train(tiny("data.min_box_size=5000"), tmp_path / "run")


def test_a_run_does_not_go_on_from_weights_alone(tiny: Load, tmp_path: Path) -> None:
    config = tiny("train.steps=2")
    train(config, tmp_path / "run")
    path = tmp_path / "run" / "checkpoints" / "step_2.pt"
    whole = load_checkpoint(path)
    path.with_name("best.pt").unlink()  # which the run would go on from
    weights = {name: value for name, value in whole.items() if name not in ("optimizer", "file")}
    save_checkpoint(path, weights)
    with pytest.raises(InputError, match=r"step_2\.pt: the checkpoint has no 'optimizer'"):
        find_state(config, tmp_path / "run")


def test_a_feature_pyramid_trains_at_the_levels_of_the_regions(tiny: Load, tmp_path: Path) -> None:
    settings = ["model.neck=fpn", "model.fpn.channels=8", "test.scales=[64,96]", "test.max_images=1"]
    config = tiny("train.steps=2", "train.validation_loss=true", *settings)
    train(config, tmp_path / "run", "cpu")
    checkpoint = load_checkpoint(tmp_path / "run" / "checkpoints" / "step_2.pt")
    state = checkpoint["model"]
    names = [name for name in state if name.startswith("neck.")]
    assert len(names) == 8  # two levels, each with two convolutions
    before = build_model(config, len(checkpoint["classes"])).state_dict()
    biases = [name for name in names if name.endswith("bias")]  # without weight decay
    moved = [name for name in biases if not torch.equal(state[name], before[name])]
    # All regions of these small images are pooled from the finer level, to which both maps contribute.
    assert moved == [name for name in biases if "layer_blocks.1" not in name]


def test_a_network_that_cannot_be_built_is_refused_before_proposals_are_made(
    tiny: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make(*_: object, **__: object) -> None:
        raise AssertionError("the network is built first")

    monkeypatch.setattr("detector.factory.proposals.make_proposals", make)
    with pytest.raises(InputError, match=r"model\.backbone\.stage 'layer9' is not a block"):
        start_run(tiny("model.backbone.stage=layer9"), tmp_path / "run", "cpu")
