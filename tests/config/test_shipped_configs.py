"""Every shipped config loads, builds its network, and stays valid when the number of steps changes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from detector.config import Config, load_config, parse_config, stage_config
from detector.core.structures import Embedded
from detector.engine.optim import build_schedule
from detector.factory.model import build_model
from detector.ops.spp_pool import whole_map_rois
from tests.conftest import PROJECT
from tests.typed import present

CONFIGS = sorted((PROJECT / "configs").glob("*.yaml"))
WITHOUT_FILES = ["model.head.weights=false", "model.backbone.weights=null"]

each_config = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)


def test_the_promised_configs_are_there() -> None:
    promised = {
        "quickstart",
        "bccd_squeezenet",
        "fast_rcnn_vgg16_voc07",
        "fast_rcnn_alexnet_voc07",
        "fast_rcnn_resnet50_voc0712",
    }
    families = ("spp_classifier", "spp_net_staged", "spp_net_end_to_end", "rcnn")
    promised |= {f"{family}_{data}" for family in families for data in ("quickstart", "bccd", "voc07")}
    assert promised <= {path.stem for path in CONFIGS}


@each_config
def test_loads_and_survives_the_way_through_a_checkpoint(path: Path) -> None:
    config = load_config(path)
    assert parse_config(config.model_dump(mode="json"), "checkpoint") == config
    if path.stem == "own_data":  # the one that is a base for the data and weights of others
        assert (config.data.root, config.model.backbone.weights) == ("my_data", "default")
        return
    roots = [config.data.root, config.proposals.file, config.model.backbone.weights]
    assert all(root is None or str(root).startswith("data/") for root in roots)


@pytest.mark.parametrize("path", [path for path in CONFIGS if load_config(path).stages], ids=lambda p: p.stem)
def test_every_stage_builds_its_network(path: Path) -> None:
    config = load_config(path, WITHOUT_FILES)
    for stage in config.stages:
        with torch.device("meta"):
            model = build_model(stage_config(config, stage), 20)
        if stage.kind == "box_ridge":
            assert model.predictor.bbox_pred is not None
            assert model.predictor.reads_pooled


@each_config
@pytest.mark.parametrize("num_classes", [1, 20])
def test_builds(path: Path, num_classes: int) -> None:
    config = load_config(path, WITHOUT_FILES)
    with torch.device("meta"):  # shapes alone: VGG16's fc6 has 100 million weights
        model = build_model(config, num_classes)
        rois = torch.zeros(5, model.region_pool.out_features)
        logits, deltas, _ = model.predictor(Embedded(rois, model.box_head(rois)))
    assert logits.shape == (5, num_classes + 1)
    if config.task != "detection":
        assert deltas is None
    else:
        assert deltas.shape == (5, num_classes + 1, 4)
    assert model.box_coder.means.shape == (num_classes + 1, 4)


@each_config
def test_runs_on_an_image(path: Path) -> None:
    config = load_config(path, [*WITHOUT_FILES, "model.head.hidden=[16]"])
    model = build_model(config, 3).eval()
    rois = torch.tensor([[0.0, 5.0, 5.0, 60.0, 80.0], [0.0, 0.0, 0.0, 128.0, 96.0]])
    if config.task == "classification":  # in cells, whole numbers
        rois = whole_map_rois([model.backbone.map_size((96, 128))]).expand(2, 5)
    with torch.inference_mode():
        output = model(torch.zeros(1, 3, 96, 128), rois)
    assert output.class_logits.shape == (2, 4)
    if config.task != "detection":
        assert output.box_deltas is None
    else:
        assert output.box_deltas is not None
        assert output.box_deltas.shape == (2, 4, 4)
    assert output.class_logits.isfinite().all()


@each_config
@pytest.mark.parametrize("steps", [1, 2, 7, 100_000])
def test_any_number_of_steps_is_valid(path: Path, steps: int) -> None:
    config: Config = load_config(path, [f"train.steps={steps}"])
    factor = build_schedule(present(config.train.steps), **config.train.schedule.model_dump())
    rates = [factor(step) for step in {0, steps // 3, steps // 2, steps - 1}]
    assert all(0 < rate <= 1 for rate in rates)
