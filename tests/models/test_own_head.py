"""``model.head.kind: module:Name``: checked by a trial, and never loaded because a checkpoint names it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from detector.config.load import parse_config, parse_stored
from detector.core.errors import InputError
from detector.factory.model import build_model, restore_model

HEAD = """
import torch
from pathlib import Path
Path({mark!r}).touch()

class Half(torch.nn.Module):
    def __init__(self, in_features, num_classes, wrong=0, width=None, many=False):
        super().__init__()
        self.out_features = in_features // 2 + wrong if width is None else width
        self.scale = torch.nn.Parameter(torch.full((in_features // 2,), float(num_classes)))
        self.many = many
    def forward(self, pooled):
        if self.many:
            pooled = pooled.view(len(pooled), -1)
        return pooled[:, : len(self.scale)] * self.scale

def text(in_features, num_classes):
    return "layers"
"""
NAME = "own_half_head"


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / f"{NAME}.py").write_text(HEAD.format(mark=str(tmp_path / "mark")))
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "mark"
    sys.modules.pop(NAME, None)


def values(kind: str = f"{NAME}:Half", agnostic: bool = False, **options: Any) -> dict[str, Any]:
    return {
        "data": {"root": "data"},
        "proposals": {"method": "dense"},
        "model": {
            "backbone": {"name": "small"},
            "pool": {"output_size": 2},
            "head": {"kind": kind, "options": options, "class_agnostic": agnostic},
        },
        "train": {"steps": 1},
    }


@pytest.mark.parametrize("agnostic", [False, True])
def test_hidden_features_are_those_of_the_users_layers(mark: Path, agnostic: bool) -> None:
    config = parse_config(values(agnostic=agnostic), "mine")
    model = build_model(config, 3).eval()
    width = model.region_pool.out_features
    levels = [torch.rand(1, width // 4, 6, 6)]
    rois = torch.tensor([[0.0, 0.0, 0.0, 40.0, 40.0], [0.0, 8.0, 8.0, 60.0, 60.0]])
    embedded = model.embed(levels, rois)
    assert torch.equal(embedded.hidden, embedded.pooled[:, : width // 2] * 3)
    output = model.predict(levels, rois)
    assert output.class_logits.shape == (2, 4)
    assert output.box_deltas is not None
    assert output.box_deltas.shape == (2, 1 if agnostic else 4, 4)


def test_network_is_restored_from_a_checkpoint(mark: Path) -> None:
    config = parse_config(values(), "mine")
    model = build_model(config, 2).eval()
    with torch.no_grad():
        for weights in model.box_head.parameters():
            weights.fill_(7.0)
    checkpoint = {
        "model": model.state_dict(),
        "classes": ("a", "b"),
        "config": config.model_dump(mode="json"),
    }
    restored = restore_model(config, checkpoint, "best.pt", raw=True)
    pooled = torch.rand(2, model.region_pool.out_features)
    assert torch.equal(restored.box_head(pooled), model.box_head(pooled))


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (f"{NAME}:Half", {"wrong": 1}, r"own_half_head:Half gave \(2, \d+\) for 2 regions; expected"),
        (f"{NAME}:Half", {"width": "12"}, "has out_features '12'"),
        (f"{NAME}:Half", {"many": True}, "failed: RuntimeError"),
        (f"{NAME}:Half", {"depth": 1}, "failed: TypeError: .*depth"),
        (f"{NAME}:text", {}, r"returned a str; it must return a torch\.nn\.Module"),
    ],
)
def test_what_is_wrong_is_one_clear_error(
    mark: Path, kind: str, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        build_model(parse_config(values(kind, **options), "mine"), 2)


def test_stored_features_cannot_train_it(mark: Path) -> None:
    whole = values()
    whole["train"]["head_only"] = True
    with pytest.raises(InputError, match=r"own_half_head:Half is trained on images"):
        parse_config(whole, "mine")
    staged = values() | {"stages": [{"name": "fit", "kind": "head"}]}
    with pytest.raises(InputError, match=r"stages: fit.*own_half_head:Half is trained on images"):
        parse_config(staged, "mine")
    assert not mark.exists()


def test_unknown_kind_gives_the_nearest() -> None:
    with pytest.raises(InputError, match=r"model\.head\.kind 'logstic' is unknown.*'logistic'"):
        parse_config(values("logstic"), "mine")


def test_checkpoint_cannot_choose_the_head(mark: Path) -> None:
    with pytest.raises(InputError, match=r"model\.head\.kind"):
        parse_stored(values(), [], "best.pt")
    parse_stored(values(), [], "best.pt", allow_code=[f"{NAME}:Half"])
    parse_stored(values(), [f"model.head.kind={NAME}:Half"], "best.pt")
    assert not mark.exists()
