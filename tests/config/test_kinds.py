"""Kinds of pools, proposals and stages: configs that name no kind, and stored ones that hold all keys."""

from __future__ import annotations

from typing import Any

import pytest

from detector.config import load_config, parse_config
from detector.config.load import parse_stored
from detector.config.schema import (
    CropPoolConfig,
    DenseProposals,
    FileProposals,
    FunctionProposals,
    NoProposals,
    OhemSamplingConfig,
    RandomSamplingConfig,
    RidgeStageConfig,
    RoIPoolConfig,
    SelectiveSearchProposals,
    SPPPoolConfig,
    SVMStageConfig,
    TrainStageConfig,
)
from detector.core.errors import InputError

# The keys that every checkpoint held before there were kinds, with their defaults.
POOL = {
    **{"kind": "roi", "output_size": 7, "center": None, "levels": [6, 3, 2, 1], "reduction": "max"},
    **{"rule": "adaptive", "window": "spp", "shrink": None, "crop_size": 224, "context": 16},
}
PROPOSALS: dict[str, Any] = {
    **{"file": None, "format": None, "convention": None, "method": None, "scales": None, "aspects": None},
    **{"stride_fraction": None, "mode": None, "seed": None, "width": None, "max_proposals": None},
    **{"time_limit": None, "options": {}, "top_k_train": 2000, "top_k_test": 1000, "min_size": 0.0},
    **{"missing": "error", "faults": "error"},
}
SVM = {
    **{"features": "fc7", "c": 0.001, "positive_weight": 2.0, "bias_multiplier": 10.0, "feature_norm": 20.0},
    **{"negative_iou": 0.3, "hard_score": -1.0001, "evict_score": -1.2, "retrain_after": 2000},
    **{"negative_overlap": None, "missing_positives": "error"},
}
RIDGE = {"penalty": 4000.0, "min_iou": 0.5, "max_rows": 20000, "whitening": 0.001}


def stored(
    pool: dict[str, Any] | None = None, proposals: dict[str, Any] | None = None, stages: Any = ()
) -> dict[str, Any]:
    return {
        "task": "detection",
        "data": {"root": "data"},
        "model": {"backbone": {"name": "small"}, "pool": POOL | (pool or {}), "roi_chunk": 1024},
        "proposals": PROPOSALS | (proposals or {"method": "dense"}),
        "train": {"steps": 4},
        "stages": [{"settings": {}, "svm": SVM, "ridge": RIDGE} | stage for stage in stages],
    }


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"output_size": 6}, RoIPoolConfig(output_size=6)),
        ({"kind": "spp", "levels": [4, 1]}, SPPPoolConfig(kind="spp", levels=(4, 1))),
        ({"kind": "warp", "crop_size": 96}, CropPoolConfig(kind="warp", crop_size=96)),
        ({"kind": "crop"}, CropPoolConfig(kind="crop")),
    ],
)
def test_pools_of_older_checkpoints(given: dict[str, Any], expected: object) -> None:
    assert parse_stored(stored(pool=given), [], "a.pt").model.pool == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (
            {"method": "dense", "scales": [0.5]},
            DenseProposals(method="dense", scales=(0.5,), top_k_test=1000),
        ),
        (
            {"method": "selective_search", "width": 300, "options": {"min_side": 8}, "time_limit": 9.0},
            SelectiveSearchProposals(
                method="selective_search", width=300, options={"min_side": 8}, time_limit=9.0, top_k_test=1000
            ),
        ),
        ({"file": "a", "format": "store"}, FileProposals(file="a", format="store", top_k_test=1000)),
    ],
)
def test_proposals_of_older_checkpoints(given: dict[str, Any], expected: object) -> None:
    assert parse_stored(stored(proposals=given), [], "a.pt").proposals == expected


def test_proposals_of_a_function_and_none() -> None:
    values = stored(proposals={"method": "mine:boxes", "options": {"size": 3}})
    assert isinstance(parse_config(values, "mine.yaml").proposals, FunctionProposals)
    values = stored(pool={"kind": "spp"}, proposals=dict(PROPOSALS)) | {"task": "classification"}
    assert parse_stored(values, [], "a.pt").proposals == NoProposals(top_k_test=1000)


def test_stages_of_older_checkpoints() -> None:
    kinds = ("train", "fine_tune", "svm", "box_ridge")
    stages: list[dict[str, Any]] = [{"name": kind, "kind": kind} for kind in kinds]
    stages[2] |= {"svm": SVM | {"c": 0.5}}
    config = parse_stored(stored(stages=stages), [], "a.pt")
    expected = [TrainStageConfig, TrainStageConfig, SVMStageConfig, RidgeStageConfig]
    assert [type(stage) for stage in config.stages] == expected
    assert config.stages[2].svm.c == 0.5  # type: ignore[union-attr]


def test_a_setting_of_another_kind_is_refused_with_the_way_out() -> None:
    values = stored(stages=[{"name": "a", "kind": "train", "svm": SVM | {"c": 0.5}}])
    with pytest.raises(InputError, match=r"stages\.0\.svm: a stage of kind train .*\n.*--set stages=\[\]"):
        parse_stored(values, [], "a.pt")
    assert parse_stored(values, ["stages=[]"], "a.pt").stages == ()
    with pytest.raises(InputError, match=r"a\.pt: model\.pool\.levels: model\.pool\.kind roi has no key"):
        parse_stored(stored(pool={"levels": [1]}), [], "a.pt")


def test_a_child_changes_the_kind_in_a_file_or_on_the_command_line() -> None:
    names = ("model.pool.kind=spp", "model.pool.kind=crop", "model.pool.kind=roi")
    spp, crop, roi = (load_config("rcnn_quickstart", [name]).model.pool for name in names)
    assert (spp, crop, roi) == (SPPPoolConfig(kind="spp"), CropPoolConfig(kind="crop"), RoIPoolConfig())
    again = load_config("quickstart", ["model.pool.kind=spp", "model.pool.levels=[2]", "model.pool.kind=roi"])
    assert again.model.pool == RoIPoolConfig()
    at_default = load_config("quickstart", ["model.pool.kind=spp", "model.pool.output_size=7"])
    assert at_default.model.pool == SPPPoolConfig(kind="spp")
    dense = load_config("quickstart", ["proposals.method=dense"]).proposals
    assert dense == DenseProposals(method="dense")
    with pytest.raises(InputError, match=r"proposals\.width: proposals\.method dense has no key"):
        load_config("quickstart", ["proposals.width=300", "proposals.method=dense"])


def test_mining_has_the_keys_that_apply_to_it() -> None:
    mined = load_config("quickstart", ["train.sampling.kind=ohem"]).train.sampling
    assert mined == OhemSamplingConfig(kind="ohem")  # without the shipped background_iou
    wanted = r"train\.sampling\.foreground_fraction: train\.sampling\.kind ohem has no key"
    with pytest.raises(InputError, match=wanted):
        load_config("quickstart", ["train.sampling.kind=ohem", "train.sampling.foreground_fraction=0.3"])
    back = load_config("quickstart", ["train.sampling.kind=ohem", "train.sampling.kind=random"])
    assert back.train.sampling == RandomSamplingConfig()
    assert load_config("quickstart", []).train.sampling.kind == "random"
