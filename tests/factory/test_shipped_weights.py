"""The weights that tools/download.py brings fit the shipped configs that name them, tensor by tensor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision import models

from detector.config import load_config
from detector.core.catalogue import PROJECT_WEIGHTS, find_weights
from detector.factory import weights
from detector.factory.model import build_model, convolutions
from detector.models.weights import normalization
from tests.conftest import PROJECT
from tests.typed import present

CONFIGS = {path: load_config(path) for path in sorted((PROJECT / "configs").glob("*.yaml"))}
BY_FILE = {find_weights(name).file.name: name for name in PROJECT_WEIGHTS}
USERS = [
    path
    for path, config in CONFIGS.items()
    if config.model.backbone.weights and Path(config.model.backbone.weights).name in BY_FILE
]
PAPER = PROJECT / "configs" / "fast_rcnn_vgg16_voc07_selective_search.yaml"


def published_state(name: str) -> dict[str, Tensor]:
    """The names and shapes in a published file; in J. Johnson's, fc6 and fc7 have older numbers."""
    network = name.removesuffix("_caffe")
    with torch.device("meta"):
        state = dict(models.get_model(network).state_dict())
    if name.endswith("_caffe"):
        for new, old in (("classifier.3.", "classifier.4."), ("classifier.0.", "classifier.1.")):
            state |= {old + kind: state.pop(new + kind) for kind in ("weight", "bias")}
    return state


@pytest.mark.parametrize("path", USERS, ids=lambda path: path.stem)
def test_every_tensor_finds_its_place(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A network with these weights is built on the meta device: what does not fit would be an error."""
    config = CONFIGS[path]
    file = Path(present(config.model.backbone.weights)).name
    asked: list[Path] = []

    def read(source: Path) -> dict[str, Tensor]:
        asked.append(source)
        return published_state(BY_FILE[file])

    monkeypatch.setattr(weights, "read_state_dict", read)
    with torch.device("meta"):
        model = build_model(config, 20)
    assert asked == [Path("data/weights") / file]
    said = capsys.readouterr().err
    wanted = convolutions(model).features.state_dict()
    if config.model.published_head:
        wanted |= model.box_head.layers.state_dict()
        assert "fc7.weight" in wanted
    assert f"tensors loaded {len(wanted)}" in said


def test_the_papers_experiment_is_there_with_torchvisions_network() -> None:
    config, caffe = CONFIGS[PAPER], CONFIGS[PAPER.with_name("fast_rcnn_vgg16_voc07.yaml")]
    assert PAPER in USERS
    assert (config.proposals.method, config.proposals.top_k_train) == ("selective_search", 2000)
    backbone = config.model.backbone
    assert (backbone.name, backbone.convention, backbone.freeze) == ("vgg16", "torchvision", 2)
    assert config.model.published_head
    expected = normalization("torchvision")
    assert (expected.bgr, expected.maximum) == (False, 255.0)
    # All the rest is as in the config with Caffe's weights.
    changed = {
        "proposals": caffe.proposals,
        "model": config.model.model_copy(update={"backbone": caffe.model.backbone}),
    }
    assert config.model_copy(update=changed) == caffe


def test_headers_tell_where_weights_can_be_had() -> None:
    assert "weights:vgg16_caffe" in (PAPER.with_name("fast_rcnn_vgg16_voc07.yaml")).read_text()
    assert "download.py voc2007 weights:vgg16\n" in PAPER.read_text()
