"""Training of a softmax head on stored features, against a plain loop."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from detector.config import Config
from detector.core.errors import InputError
from detector.engine.run_log import read_log
from detector.factory.model import build_model
from detector.models.heads import BoxHead
from detector.staged.head_fit import HeadFit
from detector.staged.softmax_fit import DropoutNoise, HeadLayers, SoftmaxFit
from tests.staged.stored_regions import rows_of, synthetic

Load = Callable[..., Config]
STEPS = 5


def fit(
    load: Load, folder: Path, *more: str, state: Any = None, save: Callable[[Any], None] = lambda _: None
) -> tuple[SoftmaxFit, Any, Any]:
    folder.mkdir(exist_ok=True)
    config = load(
        "train.head_only=true", "model.pool={kind: spp, levels: [1]}", "model.box.normalize=fixed",
        "train.sampling.foreground_fraction=0.5", "train.schedule.milestones=[0.6]",
        "train.learning_rate=0.1",
        "train.checkpoint_every=2", *more,
    )  # fmt: skip
    torch.manual_seed(0)
    model = build_model(config, 3)
    records, features, _ = synthetic(width=model.region_pool.out_features)
    rows = rows_of(records, features)
    return SoftmaxFit(config, model, rows, "cpu", folder, save, state, STEPS), model, rows


def test_a_linear_head_equals_a_plain_loop_over_standardised_features(tiny: Load, tmp_path: Path) -> None:
    training, model, rows = fit(tiny, tmp_path / "run", "model.head.hidden=[]", "model.head.dropout=0")
    weights = [p.detach().clone().requires_grad_() for p in model.predictor.parameters()]
    groups: list[dict[str, Any]] = [{"params": weights[::2]}, {"params": weights[1::2], "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(
        groups,
        lr=0.1, momentum=0.9, weight_decay=5e-4,
    )  # fmt: skip
    features = torch.from_numpy(rows.features.all_features.astype(np.float32))
    chosen = np.concatenate((rows.near, rows.foreground.rows))  # all of them fit into the sample
    mean, deviation = features[chosen].mean(0), features[chosen].std(0, correction=0)
    for step in range(STEPS):
        draw = training.draw(step)
        optimizer.param_groups[0]["lr"] = 0.1 if step < 3 else 0.01
        optimizer.param_groups[1]["lr"] = 2 * optimizer.param_groups[0]["lr"]
        x = (features[draw.rows] - mean) / deviation
        taken = rows.foreground.take(draw.foreground)
        labels = torch.zeros(len(x), dtype=torch.int64)
        labels[: len(taken.rows)] = torch.from_numpy(taken.labels)
        loss = functional.cross_entropy(x @ weights[0].T + weights[1], labels)
        boxes = (x @ weights[2].T + weights[3]).view(len(x), 4, 4)
        own = boxes[torch.arange(len(taken.rows)), labels[: len(taken.rows)]]
        targets = taken.deltas() / torch.tensor([0.1, 0.1, 0.2, 0.2])
        loss = loss + functional.smooth_l1_loss(own, targets, reduction="sum") / len(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    training.run()
    standard = (features - mean) / deviation
    for layer, weight, bias in zip(
        (model.predictor.cls_score, model.predictor.bbox_pred), weights[::2], weights[1::2], strict=True
    ):
        torch.testing.assert_close(layer(features), standard @ weight.T + bias, atol=1e-4, rtol=1e-4)


def test_a_step_draws_the_shares_of_foreground_and_background_by_the_seed(tiny: Load, tmp_path: Path) -> None:
    training, _, rows = fit(tiny, tmp_path / "run", "train.sampling.far_background_fraction=0.25")
    one, again, other = training.draw(1), training.draw(1), training.draw(2)
    assert len(one.rows) == 32
    assert len(one.foreground) == 16
    assert np.isin(one.rows[:16], rows.foreground.rows).all()
    assert np.isin(one.rows[16:], rows.far).sum() == 4
    assert np.isin(one.rows[16:], rows.near).sum() == 12
    np.testing.assert_array_equal(one.rows, again.rows)
    assert not np.array_equal(one.rows, other.rows)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_training_that_was_stopped_ends_with_the_same_weights(
    tiny: Load, tmp_path: Path, optimizer: str
) -> None:
    more = (f"train.optimizer={optimizer}", "train.ema=0.5", "train.log_every=1", "model.head.dropout=0.5")
    whole, model, _ = fit(tiny, tmp_path / "whole", *more)
    whole.run()
    kept: list[Any] = []

    def stop(state: Any) -> None:
        torch.save(state, tmp_path / "state.pt")
        kept.append(torch.load(tmp_path / "state.pt", weights_only=True))
        raise KeyboardInterrupt

    stopped, other, _ = fit(tiny, tmp_path / "stopped", *more, save=stop)
    with pytest.raises(KeyboardInterrupt):
        stopped.run()
    assert kept[0]["step"] == 2
    assert HeadFit.find_fault(kept[0], other) is None
    assert HeadFit.find_fault({**kept[0], "layers": {}}, other) is not None
    assert HeadFit.find_fault({**kept[0], "step": -1}, other) is not None
    resumed, other, _ = fit(tiny, tmp_path / "stopped", *more, state=kept[0])
    resumed.run()
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    logs = [[one["loss"] for one in read_log(tmp_path / name / "log.jsonl")] for name in ("whole", "stopped")]
    assert len(logs[0]) == STEPS
    assert logs[0] == logs[1]


def test_box_layers_that_ridge_regression_fits_are_not_trained(tiny: Load, tmp_path: Path) -> None:
    training, model, _ = fit(tiny, tmp_path / "run", "model.box.regression=ridge")
    before = model.predictor.bbox_pred.weight.clone()
    training.run()
    assert torch.equal(before, model.predictor.bbox_pred.weight)
    first = HeadLayers(model.box_head, model.predictor).first_layers()
    assert [type(layer) for layer in first] == [nn.Linear]
    assert first[0] is model.box_head.layers.fc6


def test_a_loss_that_is_not_finite_ends_the_fit(tiny: Load, tmp_path: Path) -> None:
    training, _, _ = fit(tiny, tmp_path / "run", "train.learning_rate=1e30")
    with pytest.raises(InputError, match=r"not finite at step \d+ of the head; lower train.learning_rate"):
        training.run()


def test_noise_drawn_ahead_is_that_of_torchs_dropout() -> None:
    head = BoxHead(6, (16, 8), dropout=0.4)
    pooled, noise = torch.randn(5, 6), DropoutNoise(head)
    torch.manual_seed(7)
    expected = head(pooled)
    with noise.applied():
        noise.current = noise.draw(len(pooled), 7)
        found = head(pooled)
    assert torch.equal(found, expected)
    assert (found == 0).any()
    torch.manual_seed(7)
    assert torch.equal(head(pooled), expected)  # the layers draw again


def test_the_standardisation_is_folded_into_a_layer_of_low_rank(tiny: Load, tmp_path: Path) -> None:
    """fc6_v has no bias, so the shift goes into the bias of fc6_u."""
    training, model, rows = fit(
        tiny,
        tmp_path / "run",
        "model.head.hidden=[32,16]",
        "model.head.rank=[2,null]",
        "model.head.dropout=0",
    )
    before = copy.deepcopy(model.box_head).eval()
    features = rows.features.all_features[:20].astype(np.float32)
    assert training.standard is not None
    expected = before(torch.from_numpy(training.standard.apply(features)))
    training._finish()
    torch.testing.assert_close(model.box_head.eval()(torch.from_numpy(features)), expected, rtol=0, atol=1e-4)
