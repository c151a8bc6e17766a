"""Settings of training that change what a run computes or keeps: optimizers, averages, mining, losses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from detector.config import Config
from detector.core.errors import InputError
from detector.data.samples import TrainingSamples, collate
from detector.engine.checkpoint import load_checkpoint, save_checkpoint
from detector.engine.run_log import read_log
from detector.factory import model as model_parts
from detector.factory.loaders import inference_transforms
from detector.factory.model import build_model, restore_model
from detector.models.compiled import CompiledDetector
from detector.tasks import base
from detector.tasks.scoring import run_history
from detector.tasks.start import build_scorer, build_task, start_run
from tests.tasks.test_start import assert_identical

Load = Callable[..., Config]

FEW = ("train.steps=6", "train.checkpoint_every=3", "test.max_images=2", "train.draw_images=0")
EVALUATED = ("train.evaluate_every=3", "train.validation_fraction=0.25")
SETTINGS = {
    "adamw": ["train.optimizer=adamw", "train.learning_rate=1e-3"],
    "averaged": ["train.ema=0.9", *EVALUATED],
    "mined": ["train.sampling.kind=ohem"],
    "mined crops": [
        *("train.sampling={kind: ohem, rois_per_image: 4}", "proposals.top_k_train=8"),
        "model.pool={kind: warp, output_size: 3, crop_size: 44, context: 4}",
    ],
    "validation loss": ["train.validation_loss=true", *EVALUATED],
    "all": [
        *("train.optimizer=adamw", "train.learning_rate=1e-3", "train.ema=0.9", "train.sampling.kind=ohem"),
        *("train.validation_loss=true", "train.early_stopping=9", *EVALUATED),
    ],
}


def train(config: Config, folder: Path, *, resume: bool = False) -> dict[str, Any]:
    """Run to the end, write the results and return the last checkpoint."""
    run = start_run(config, folder, "cpu", resume=resume)
    run.run()
    run.finish()
    return load_checkpoint(folder / "checkpoints" / f"step_{run.step}.pt")


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_a_run_resumes_exactly(tiny: Load, tmp_path: Path, name: str) -> None:
    config = tiny(*FEW, *SETTINGS[name])
    whole = train(config, tmp_path / "whole")
    folder = tmp_path / "resumed"
    (folder / "checkpoints").mkdir(parents=True)
    shutil.copy(tmp_path / "whole" / "checkpoints" / "step_3.pt", folder / "checkpoints")
    resumed = train(config, folder, resume=True)
    for key in ("model", "ema"):
        if whole[key] is not None:
            assert_identical(whole[key], resumed[key])
    for number, entry in whole["optimizer"]["state"].items():
        assert_identical(entry, resumed["optimizer"]["state"][number])
    assert (whole["without_gain"], whole["best"]) == (resumed["without_gain"], resumed["best"])


def test_another_optimizer_is_refused_on_resume(tiny: Load, tmp_path: Path) -> None:
    start_run(tiny(*FEW), tmp_path / "run", "cpu").run()
    with pytest.raises(
        InputError, match=r"train\.optimizer = \"sgd\", now \"adamw\"; the other optimizer keeps"
    ):
        start_run(tiny(*FEW, "train.optimizer=adamw"), tmp_path / "run", "cpu", resume=True)


def test_averaged_weights_are_evaluated_saved_and_used(tiny: Load, tmp_path: Path) -> None:
    config = tiny(*FEW, "train.ema=0.5", *EVALUATED)
    state = train(config, tmp_path / "run")
    assert list(state["ema"]) == list(state["model"])
    assert any(not torch.equal(state["ema"][name], value) for name, value in state["model"].items())
    assert_identical(restore_model(config, state, "a.pt").state_dict(), state["ema"])
    assert_identical(restore_model(config, state, "a.pt", raw=True).state_dict(), state["model"])
    later = tiny(*FEW, f"train.initial_weights={tmp_path / 'run' / 'checkpoints' / 'step_6.pt'}")
    assert_identical(build_task(later, "cpu").model.state_dict(), state["ema"])

    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    scorer = build_scorer(config, classes=state["classes"])
    for raw in (False, True):
        model = restore_model(config, state, "a.pt", raw=raw)
        found = scorer.assess(model, last=True)
        if not raw:
            assert metrics["voc07_mAP"] == found.test.metrics["voc07_mAP"]  # type: ignore[union-attr]
        else:
            assert metrics["raw_weights"] == {
                name: found.chosen_by.metrics[name] for name in metrics["raw_weights"]
            }
    assert metrics["raw_weights"]["split"] == "trainval"
    evaluations = [one for one in read_log(tmp_path / "run" / "log.jsonl") if one["kind"] == "evaluate"]
    assert [one["step"] for one in evaluations] == [3, 6]
    assert all({"voc07_mAP", "raw_voc07_mAP"} <= set(one) for one in evaluations)
    _, drawn = run_history(tmp_path / "run")
    assert {"voc07_mAP", "raw_voc07_mAP"} <= set(drawn)


def test_an_average_may_begin_and_end_when_a_run_is_resumed(tiny: Load, tmp_path: Path) -> None:
    first, second = ("train.steps=3", *FEW[1:]), FEW
    start_run(tiny(*first), tmp_path / "run", "cpu").run()
    start_run(tiny(*second, "train.ema=0.9"), tmp_path / "run", "cpu", resume=True).run()
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "step_6.pt")["ema"] is not None
    start_run(tiny("train.steps=9", *FEW[1:]), tmp_path / "run", "cpu", resume=True).run()
    assert load_checkpoint(tmp_path / "run" / "checkpoints" / "step_9.pt")["ema"] is None


@pytest.mark.parametrize(
    ("key", "value", "wanted"),
    [
        ("ema", {"a": torch.tensor([torch.nan])}, "a has NaN"),
        ("ema", {"a": 1}, "'ema' is not a mapping of names to dense tensors, or None"),
        ("scaler", {"scale": 0.0, "steps": 1}, "'scaler' is not a loss scale above 0"),
        ("without_gain", -1, "'without_gain' is not a whole number of evaluations"),
    ],
)
def test_damaged_values_in_a_checkpoint_are_refused(
    tmp_path: Path, key: str, value: Any, wanted: str
) -> None:
    state = {"step": 1, "config": {}, "classes": ["a"], "model": {"a": torch.zeros(1)}, key: value}
    save_checkpoint(tmp_path / "a.pt", state)
    with pytest.raises(InputError, match=wanted):
        load_checkpoint(tmp_path / "a.pt")


def test_averages_of_another_network_are_refused(tiny: Load, tmp_path: Path) -> None:
    config = tiny(*FEW, "train.ema=0.5")
    start_run(config, tmp_path / "run", "cpu").run()
    state = load_checkpoint(tmp_path / "run" / "checkpoints" / "step_6.pt")
    del state["ema"]["predictor.cls_score.bias"]
    with pytest.raises(InputError, match=r"another architecture .* missing predictor\.cls_score\.bias"):
        restore_model(config, state, "a.pt")


def test_the_validation_loss_is_that_of_the_images_whatever_the_step(tiny: Load, tmp_path: Path) -> None:
    config = tiny(*FEW, "train.validation_loss=true", *EVALUATED, "train.flip=1.0")
    task = build_task(config, "cpu")
    validation = task.scorer.validation
    assert validation is not None
    found = task.validation_losses(task.model)
    assert task.validation_losses(task.model) == found
    assert set(found) == {"val_loss", "val_loss_cls", "val_loss_box"}
    assert found["val_loss"] == pytest.approx(found["val_loss_cls"] + found["val_loss_box"])
    # The same from one batch of all images, with the regions that each image's number draws.
    (view,) = inference_transforms(config)
    samples = TrainingSamples(
        validation.records, validation.proposals, view, config.seed, draw_regions=task.draw_regions
    )
    batch = collate([samples(number, number) for number in range(len(validation.records))])
    with torch.no_grad():
        losses = task.step(batch)
    for name, loss in losses.items():
        assert found[f"val_{name}"] == pytest.approx(loss.item(), rel=1e-4)

    train(config, tmp_path / "run")
    evaluations = [one for one in read_log(tmp_path / "run" / "log.jsonl") if one["kind"] == "evaluate"]
    assert all(set(found) <= set(one) for one in evaluations)
    curves, _ = run_history(tmp_path / "run")  # run.png draws them dashed, beside those of training
    assert set(found) <= set(curves)
    assert len(curves["val_loss"]) == len(evaluations)


def test_classification_has_a_validation_loss(tiny: Load) -> None:
    settings = ("task=classification", "model.pool={kind: spp, levels: [1, 2]}")
    task = build_task(tiny(*FEW, *settings, "train.validation_loss=true", *EVALUATED), "cpu")
    found = task.validation_losses(task.model)
    assert set(found) == {"val_loss", "val_loss_cls"}
    assert found["val_loss"] == found["val_loss_cls"] > 0


def test_mining_trains_on_as_many_regions_as_asked_for(tiny: Load) -> None:
    task: Any = build_task(
        tiny("train.sampling={kind: ohem, rois_per_image: 5}", "model.head.dropout=0.0"), "cpu"
    )
    batch = next(task.batches(0))
    assert min(batch.sampled.counts) > 5
    assert task.count(batch) == 10
    levels = task.model.train().features(task.model.inputs(batch.images, batch.sizes))
    with torch.no_grad():
        per_region = task.loss.per_region(
            task.model.eval().predict(levels, batch.sampled.rois), batch.sampled
        )
    chosen = task.hard_examples(task.model.train(), levels, batch.sampled)
    assert chosen.counts == (5, 5)
    hardest = [float(part.max()) for part in per_region.split(batch.sampled.counts)]
    with torch.no_grad():
        own = task.loss.per_region(task.model.eval().predict(levels, chosen.rois), chosen)
    assert [float(part.max()) for part in own.split(5)] == pytest.approx(hardest)
    task.model.train()
    losses = task.step(batch, task.count(batch))
    assert sum(losses.values()).item() == pytest.approx(own.mean().item(), rel=1e-3)


def test_mining_under_autocast_trains_every_weight(tiny: Load) -> None:
    """Weights that are converted for the ranking, without a gradient, must not be used again after it."""
    task: Any = build_task(tiny("train.sampling.kind=ohem", "train.precision=bfloat16"), "cpu")
    task.model.train()
    sum(task.step(next(task.batches(0))).values()).backward()
    without = [name for name, one in task.model.named_parameters() if one.grad is None or not one.grad.any()]
    assert not without


def test_float16_needs_a_gpu(tiny: Load, tmp_path: Path) -> None:
    for key in ("train.precision", "test.precision"):
        with pytest.raises(InputError, match=rf"^{key}: float16 is for GPUs, .* set {key} to bfloat16"):
            start_run(tiny(*FEW, f"{key}=float16"), tmp_path / "run", "cpu")


def test_a_compiled_run_keeps_its_names_and_its_losses(
    tiny: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "check_compiler", lambda device: None)  # it has a test of its own
    monkeypatch.setattr(model_parts, "compiled", lambda model: CompiledDetector(model, backend="eager"))
    settings = ("train.steps=3", *FEW[1:], "model.head.dropout=0.0")
    usual = train(tiny(*settings), tmp_path / "usual")
    compiled = train(tiny(*settings, "train.compile=true"), tmp_path / "compiled")
    assert list(usual["model"]) == list(compiled["model"])
    for name, value in usual["model"].items():
        torch.testing.assert_close(compiled["model"][name], value, rtol=1e-4, atol=1e-5)


def test_a_compiled_classifier_has_the_same_losses(tiny: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "check_compiler", lambda device: None)
    monkeypatch.setattr(model_parts, "compiled", lambda model: CompiledDetector(model, backend="eager"))
    settings = ("task=classification", "model.pool={kind: spp, levels: [1, 2]}", "model.head.dropout=0.0")
    usual, compiled = (
        build_task(tiny(*FEW, *settings, f"train.compile={choice}"), "cpu") for choice in ("false", "true")
    )
    with closing(usual.batches(0)) as batches:
        for batch in (next(batches), next(batches)):
            losses = [task.step(batch)["loss_cls"].item() for task in (usual, compiled)]
            assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_compiled_code_does_not_share_batch_statistics(tiny: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_model(tiny(), 3)
    assert isinstance(model_parts.compiled(model), CompiledDetector)
    monkeypatch.setattr(model_parts.distributed, "world_size", lambda: 2)
    with pytest.raises(InputError, match=r"^train\.compile: several processes compute the batch statistics"):
        model_parts.compiled(model)
    model_parts.compiled(build_model(tiny("model.backbone.name=alexnet"), 3))


def test_a_validation_loss_that_is_not_finite_is_reported(
    tiny: Load, capsys: pytest.CaptureFixture[str]
) -> None:
    task = build_task(tiny(*FEW, "train.validation_loss=true", *EVALUATED), "cpu")
    with torch.no_grad():
        task.model.predictor.cls_score.bias.fill_(torch.nan)
    assert task.validation_losses(task.model) == {}
    assert "warning: the validation loss is not finite" in capsys.readouterr().err
