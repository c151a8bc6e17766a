"""``model.pool.kind: module:Name``: checked by a trial, and never loaded because a checkpoint names it."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from detector.config.load import parse_config, parse_stored
from detector.core.errors import InputError
from detector.factory.model import build_model

POOL = """
import torch
from pathlib import Path
Path({mark!r}).touch()

class Mean(torch.nn.Module):
    def __init__(self, channels, strides, centers, wrong=0):
        super().__init__()
        self.out_features = channels + wrong
    def windows(self, rois, roi_levels=None):
        return rois
    def forward(self, levels, rois, roi_levels=None, masks=None):
        return levels[0].mean((2, 3))[rois[:, 0].long()]
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "own_mean_pool.py").write_text(POOL.format(mark=str(tmp_path / "mark")))
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path / "mark"
    sys.modules.pop("own_mean_pool", None)


def values(**options: Any) -> dict[str, Any]:
    return {
        "data": {"root": "data"},
        "proposals": {"method": "dense"},
        "model": {
            "backbone": {"name": "small"},
            "pool": {"kind": "own_mean_pool:Mean", "options": options},
            "head": {"hidden": [8]},
        },
        "train": {"steps": 1},
    }


def test_network_pools_with_the_users_class(module: Path) -> None:
    model = build_model(parse_config(values(), "mine"), 2)
    pooled = model.region_pool([torch.ones(1, model.region_pool.out_features, 4, 4)], torch.zeros(3, 5), None)
    assert torch.equal(pooled, torch.ones(3, model.region_pool.out_features))


def test_wrong_width_is_one_clear_error(module: Path) -> None:
    with pytest.raises(InputError, match=r"own_mean_pool:Mean gave .* expected"):
        build_model(parse_config(values(wrong=1), "mine"), 2)


def test_checkpoint_cannot_choose_the_pool(module: Path) -> None:
    with pytest.raises(InputError, match=r"model\.pool\.kind"):
        parse_stored(values(), [], "best.pt")
    assert not module.exists()
    parse_stored(values(), [], "best.pt", allow_code=["own_mean_pool:Mean"])
