"""The config that a checkpoint keeps: it may not name code, and may not ask for all memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from detector.config import load_config
from detector.config.load import parse_stored
from detector.config.schema import FunctionProposals
from detector.core.errors import InputError
from tests.conftest import PROJECT

QUICKSTART = PROJECT / "configs" / "quickstart.yaml"
PAGER = {"method": "pydoc:pipepager", "options": {"cmd": "id > pwned"}}


def stored(**changes: Any) -> dict[str, Any]:
    values = load_config(QUICKSTART).model_dump(mode="json")
    values["proposals"] = {"method": "dense"}
    return {**values, **changes}


def stage(**settings: Any) -> list[dict[str, Any]]:
    return [{"name": "first", "kind": "train", "settings": settings}]


def test_a_checkpoint_without_names_of_code_is_read_with_overrides() -> None:
    config = parse_stored(stored(), ["proposals.top_k_test=7"], "a.pt")
    assert (config.proposals.method, config.proposals.top_k_test) == ("dense", 7)
    search = parse_stored(stored(proposals={"method": "selective_search"}), [], "a.pt")
    assert search.proposals.method == "selective_search"


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["proposals.top_k_test=7"],
        ["proposals.options={cmd: x}"],
        ["data.root=proposals.method=pydoc:pipepager"],
        ["proposals.method=mine:boxes", "proposals.method=null", "proposals={file: null}"],
    ],
)
def test_a_function_that_the_checkpoint_names_is_refused(overrides: list[str]) -> None:
    with pytest.raises(InputError) as caught:
        parse_stored(stored(proposals=PAGER), overrides, "evil.pt")
    assert str(caught.value).startswith("evil.pt: ")
    if not overrides:
        assert "'pydoc:pipepager'" in str(caught.value)
        assert "--set proposals.method=..." in str(caught.value)


@pytest.mark.parametrize("override", ["proposals.method=mine:boxes", "proposals={method: mine:boxes}"])
def test_a_function_that_the_command_line_names_is_taken_without_the_options_of_the_checkpoint(
    override: str,
) -> None:
    config = parse_stored(stored(proposals=PAGER), [override], "a.pt")
    assert config.proposals == FunctionProposals(method="mine:boxes")
    same = parse_stored(stored(proposals=PAGER), ["proposals.method=pydoc:pipepager"], "a.pt")
    assert same.proposals == FunctionProposals(method="pydoc:pipepager")  # nor with the same name


def with_backbone(name: str) -> dict[str, Any]:
    return stored(model={"backbone": {"name": name}})


def test_a_backbone_of_the_user_is_code_too() -> None:
    with pytest.raises(
        InputError, match=r"model\.backbone\.name = 'pydoc:pager'.*--set model\.backbone\.name="
    ):
        parse_stored(with_backbone("pydoc:pager"), ["proposals.method=pydoc:pager"], "evil.pt")
    for overrides, allowed in ((["model.backbone.name=mine:net"], ()), ([], ["mine:net"])):
        config = parse_stored(with_backbone("mine:net"), overrides, "a.pt", allow_code=allowed)
        assert config.model.backbone.function == "mine:net"
    for name in ("torchvision:resnet34", "small"):
        assert parse_stored(with_backbone(name), [], "a.pt").model.backbone.function is None
    values = stored(stages=stage(model={"backbone": {"name": "pydoc:pager"}}))
    with pytest.raises(InputError, match=r"stages: first = 'pydoc:pager'.*--set stages=\[\]"):
        parse_stored(values, [], "a.pt")


def test_a_stage_of_the_checkpoint_may_not_name_code_either() -> None:
    values = stored(stages=stage(proposals=PAGER))
    with pytest.raises(InputError, match=r"a\.pt: .*stages: first = 'pydoc:pipepager'.*--set stages=\[\]"):
        parse_stored(values, [], "a.pt")
    assert parse_stored(values, ["stages=[]"], "a.pt").stages == ()


def test_stages_have_no_stages_and_checkpoints_no_bases(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="first: a stage has no stages of its own"):
        parse_stored(stored(stages=stage(stages=stage(proposals=PAGER))), [], "a.pt")
    (tmp_path / "base.yaml").write_text("seed: 1")
    with pytest.raises(InputError, match=r"a\.pt: _base_: unknown key"):
        parse_stored(stored(_base_=str(tmp_path / "base.yaml")), [], "a.pt")


@pytest.mark.parametrize(
    "override",
    [
        "model.head.hidden=[400000]",
        f"model.head.hidden={[8] * 17}",
        "model.pool.output_size=1000",
        "model.pool={kind: spp, levels: [1000]}",
        f"model.pool={{kind: spp, levels: {[1] * 17}}}",
        "model.pool={kind: warp, crop_size: 5000}",
        "model={pool: {kind: warp, crop_size: 2048}, roi_chunk: 2048}",
        "model.roi_chunk=1000000",
        "model.backbone.reduce_channels=1000000",
        "train.scales=[100000]",
        f"train.scales={[600] * 65}",
        "train.max_size=100000",
        "train.scale_jitter=[1, 1000]",
        "train.images_per_batch=100000",
        "train.sampling.rois_per_image=10000000",
        "train.draw_images=1000000",
        "test.scales=[100000]",
        "test.max_size=100000",
        "test={scales: [8000, 8000, 8000, 8000, 8000], max_size: 8000}",
        "test.max_detections=100000000",
        "test.refinements=100000",
        "data.workers=5000",
        "data.generate.train_images=1000000000",
        "proposals.top_k_test=100000000",
        "proposals.max_proposals=100000000",
        "proposals.stride_fraction=1e-9",
        "proposals.scales=[1e-9]",
        f"proposals.scales={[0.5] * 65}",
        "proposals.aspects=[1e-9]",
        "proposals={method: selective_search, width: 1000000}",
        f"proposals={{method: selective_search, options: {{a: {'x' * 100_001}}}}}",
        "train.steps=99999999999999999999",
        "seed=0x" + "f" * 5000,
    ],
    ids=lambda override: override[:50],
)
def test_what_no_machine_has_is_refused_by_the_schema(override: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config(QUICKSTART, [override])
    assert str(caught.value).startswith(str(QUICKSTART))
    assert len(str(caught.value)) < 1000


def test_large_test_images_need_the_users_word() -> None:
    values = stored()
    values["test"] |= {"scales": [8192, 8192], "max_size": 8192}
    with pytest.raises(InputError, match=r"a\.pt: .* tests on images of 134217728 pixels"):
        parse_stored(values, [], "a.pt")
    assert parse_stored(values, ["test.scales=[8192]", "test.max_size=8192"], "a.pt").test.scales == (8192,)


def test_the_number_of_loader_processes_is_the_users() -> None:
    values = stored()
    values["data"]["workers"] = 64
    assert parse_stored(values, [], "a.pt").data.workers is None
    assert parse_stored(values, ["data.workers=1"], "a.pt").data.workers == 1


def test_many_stages_are_refused() -> None:
    with pytest.raises(InputError, match="stages"):
        load_config(QUICKSTART, [f"stages={[{'name': f's{n}', 'kind': 'train'} for n in range(33)]}"])
