"""The network of a checkpoint: compared on shapes before memory is taken, and differences in words."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from detector.config import Config
from detector.core.errors import InputError
from detector.engine.checkpoint import load_checkpoint, save_checkpoint
from detector.factory.model import build_model, initial_model, restore_model
from detector.factory.weights import differences

Load = Callable[..., Config]
CLASSES = ("disc", "ring")


def checkpoint(config: Config, path: Path, **changes: Any) -> dict[str, Any]:
    model = build_model(config, len(CLASSES)).state_dict()
    state = {"step": 1, "config": config.model_dump(mode="json"), "classes": list(CLASSES), "model": model}
    save_checkpoint(path, {**state, **changes})
    return load_checkpoint(path)


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.pool={kind: roi, output_size: 2}"],
        ["model.pool={kind: spp, levels: [3, 1]}", "model.box.regression=ridge"],
        [
            "model.pool={kind: warp, output_size: 2, crop_size: 32, context: 4}",
            "model.head.class_agnostic=true",
        ],
        ["model.backbone.name=resnet18", "model.backbone.stage=layer1", "model.backbone.reduce_channels=4"],
        ["model.pool={kind: spp, levels: [1]}", "task=classification"],
    ],
    ids=["roi", "spp", "crops", "resnet", "classification"],
)
def test_every_kind_of_network_is_restored(tiny: Load, tmp_path: Path, overrides: list[str]) -> None:
    config = tiny("model.head.hidden=[4]", *overrides)
    state = checkpoint(config, tmp_path / "a.pt")
    found = restore_model(config, state, "a.pt").state_dict()
    assert found.keys() == state["model"].keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state["model"].items())


def test_a_network_larger_than_the_checkpoint_is_refused_before_it_is_built(
    tiny: Load, tmp_path: Path
) -> None:
    state = checkpoint(tiny(), tmp_path / "a.pt")
    hidden = f"model.head.hidden={[65536] * 16}"  # 240 GiB
    with pytest.raises(
        InputError, match=r"a\.pt: made with model\.head\.hidden = \[32, 32\], the config says"
    ):
        restore_model(tiny(hidden), state, "a.pt")
    stored = tiny(hidden).model_dump(mode="json")
    with pytest.raises(InputError, match=r"a\.pt: .*missing box_head\.layers\.fc8\.weight"):
        restore_model(tiny(hidden), {**state, "config": stored}, "a.pt")


def test_settings_that_fit_no_network_name_the_checkpoint(tiny: Load, tmp_path: Path) -> None:
    state = checkpoint(tiny(), tmp_path / "a.pt")
    with pytest.raises(InputError, match=r"^a\.pt: model\.backbone\.stage 'conv9' is not a block of small"):
        restore_model(tiny("model.backbone.stage=conv9"), state, "a.pt")


def test_a_checkpoint_of_another_backbone_is_one_sentence(
    tiny: Load, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.pt"
    made = tiny("model.backbone.name=squeezenet1_0", "model.backbone.stage=fire3", "model.head.hidden=[4]")
    state = checkpoint(made, path)
    now = tiny("model.head.hidden=[4]")
    sentence = r"a\.pt: made with model\.backbone\.name = 'squeezenet1_0', the config says 'small'"
    with pytest.raises(InputError, match=sentence):
        restore_model(now, state, str(path))
    with pytest.raises(InputError, match=sentence):
        initial_model(tiny("model.head.hidden=[4]", f"train.initial_weights={path}"), CLASSES)
    assert "features.0.weight" not in capsys.readouterr().err


def test_weights_of_another_type_are_refused(tiny: Load, tmp_path: Path) -> None:
    state = checkpoint(tiny(), tmp_path / "a.pt")
    state["model"]["predictor.cls_score.bias"] = state["model"]["predictor.cls_score.bias"].half()
    with pytest.raises(InputError, match=r"a\.pt: predictor\.cls_score\.bias has the type torch\.float16"):
        restore_model(tiny(), state, "a.pt")


def test_differences_are_those_that_change_the_network(tiny: Load) -> None:
    config = tiny()
    assert differences(config, config.model_dump(mode="json")) == ""
    assert differences(config, tiny("train.steps=5", "model.roi_chunk=7").model_dump(mode="json")) == ""
    oddities: tuple[Any, ...] = (None, [], {"model": 3}, {"model": {"backbone": None}})
    for odd in oddities:
        assert differences(config, odd) == ""
    other = tiny("model.box.regression=none").model_dump(mode="json")
    assert differences(config, other, predictor=False) == ""
    both = tiny("model.head.hidden=[4]", "model.box.regression=none").model_dump(mode="json")
    assert differences(config, both) == (
        "made with model.head.hidden = [4], the config says [32, 32]; with model.box.regression = 'none', "
        "the config says 'linear'"
    )
