"""The R-CNN baseline as a config: convolutions on every region, and how often those of the others run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from detector.config import Config
from detector.core.errors import InputError
from detector.engine.checkpoint import load_checkpoint
from detector.factory.loaders import inference_views
from detector.factory.model import build_model, build_predictor, convolutions, restore_model
from detector.models.backbones import build_backbone
from detector.tasks.start import build_scorer, start_run

Load = Callable[..., Config]

RCNN = (
    "model.pool.kind=warp",
    "model.pool.crop_size=24",
    "model.pool.context=4",
    "model.pool.output_size=2",
    "model.roi_chunk=100",
)
SPP = ("model.pool.kind=spp", "model.pool.levels=[2,1]", "model.pool.output_size=7")


def backbone_calls(config: Config) -> list[int]:
    """Return how many images or crops each pass of the convolutions saw while one image was tested."""
    test_set = build_scorer(config, split=config.data.test_split).test_set
    model = build_model(config, len(test_set.classes)).eval()
    calls: list[int] = []
    convolutions(model).register_forward_hook(lambda _, inputs, __: calls.append(len(inputs[0])))
    views = inference_views(config, test_set.records[:1], test_set.proposals)
    build_predictor(config, model, "cpu")(next(views))
    return calls


@pytest.mark.parametrize("scales", [[96], [48, 64, 80, 96, 112]], ids=["1 scale", "5 scales"])
@pytest.mark.parametrize("pool", [(), SPP], ids=["Fast R-CNN", "SPP-net"])
def test_convolutions_run_once_an_image_and_scale(
    tiny: Load, pool: tuple[str, ...], scales: list[int]
) -> None:
    calls = backbone_calls(tiny(*pool, f"test.scales={scales}", "model.roi_chunk=100"))
    assert calls == [1] * len(scales)


def test_rcnn_runs_them_on_every_region_in_chunks(tiny: Load) -> None:
    assert backbone_calls(tiny(*RCNN, "proposals.top_k_test=250")) == [84, 84, 82]


@pytest.mark.parametrize("kind", ["warp", "crop"])
def test_an_rcnn_trains_resumes_exactly_and_is_restored(tiny: Load, tmp_path: Path, kind: str) -> None:
    config = tiny(f"model.pool.kind={kind}", *RCNN[1:], "test.max_images=2")
    for folder in (tmp_path / "whole", tmp_path / "stopped" / "checkpoints"):
        folder.mkdir(parents=True)
    evaluation = start_run(config, tmp_path / "whole", "cpu").run()
    kept = Path("checkpoints/step_8.pt")
    (tmp_path / "stopped" / kept).write_bytes((tmp_path / "whole" / kept).read_bytes())
    resumed = start_run(config, tmp_path / "stopped", "cpu", resume=True)
    again = resumed.run()
    last = load_checkpoint(tmp_path / "whole" / "checkpoints" / "step_12.pt")
    found = resumed.task.model.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in last["model"].items())
    assert again.metrics["voc07_mAP"] == evaluation.metrics["voc07_mAP"]
    restored = restore_model(config, last, "step_12.pt")
    scored = build_scorer(config, split="test").evaluate(restored)
    assert scored.metrics["voc07_mAP"] == evaluation.metrics["voc07_mAP"]
    assert scored.metrics["images"] == len(scored.results) == 2


def test_published_weights_and_freezing_reach_the_convolutions_of_the_regions(
    tiny: Load, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    published = build_backbone("small").features.state_dict()
    torch.save(published, tmp_path / "small.pth")
    model = build_model(tiny(*RCNN, "model.backbone.weights=small.pth", "model.backbone.freeze=2"), 3)
    found = convolutions(model)
    assert all(torch.equal(value, published[name]) for name, value in found.features.state_dict().items())
    trained = [name for name, value in found.named_parameters() if value.requires_grad]
    assert trained
    assert all(int(name.split(".")[1]) >= found.blocks["conv2"] for name in trained)
    boxes = build_model(tiny(*RCNN, "train.trainable=boxes"), 3)
    assert {name for name, value in boxes.named_parameters() if value.requires_grad} == {
        "predictor.bbox_pred.weight",
        "predictor.bbox_pred.bias",
    }


def test_crops_that_leave_no_cell_name_the_key(tiny: Load) -> None:
    with pytest.raises(InputError, match=r"model\.pool\.crop_size 4"):
        build_model(tiny(*RCNN, "model.pool.crop_size=4", "model.pool.context=1"), 3)


def test_the_first_images_alone_are_scored_where_the_config_says_so(tiny: Load) -> None:
    names = [
        [record.image_id for record in scorer.test_set.records]
        for scorer in (
            build_scorer(tiny(f"test.max_images={count}"), split="test") for count in ("null", "3", "100")
        )
    ]
    assert len(names[0]) == 4
    assert names[1:] == [names[0][:3], names[0]]
