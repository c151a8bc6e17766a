"""Each key of a checkpoint is checked before anything uses it; the error names the file and the key."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from detector.core.errors import InputError
from detector.engine.checkpoint import check_content, is_plain

GENERATOR = torch.Generator().get_state()


def given(key: str, *values: Any) -> list[tuple[str, Any]]:
    return [(key, value) for value in values]


def state() -> dict[str, Any]:
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return {
        "step": 3,
        "evaluated": 0,
        "config": {"train": {"steps": 5, "scales": [600]}, "stages": []},
        "classes": ["cat", "dog"],
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "sampler": {"generator": GENERATOR},  # of an earlier version
        "random": {"torch": GENERATOR, "cuda": [torch.zeros(16, dtype=torch.uint8)]},
        "best": {"metric": 0.5, "step": 3.0},
        "score_threshold": 0.3,
        "seconds": 12.5,
        "threads": 2,
        "data_fingerprint": {"training: trainval": "00ff"},
        "something else": object(),
    }


def test_what_a_run_writes_is_accepted() -> None:
    check_content(state(), "a.pt")
    check_content({**state(), "best": {}, "score_threshold": None}, "a.pt")
    check_content({key: state()[key] for key in ("step", "config", "classes", "model")}, "a.pt")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *given("step", None, True, -1, 0.5, "3", 2**60, torch.tensor(3)),
        ("evaluated", "3"),
        *given("seconds", None, "1", -1.0, float("nan"), True),
        *given("threads", None, "2", 1.5),
        *given("data_fingerprint", None, [], {1: "a"}, {"a": 1}),
        *given("config", None, [], {1: 2}, {"a": torch.zeros(1)}, {"a": {1, 2}}, {"a": b"x"}),
        ("config", {"seed": 2**70}),
        ("config", {"name": "x" * 200_000}),
        *given("classes", None, "cat", [1], [""], ["cat", "cat"], {"cat": 1}, ["x" * 200_000]),
        *given("model", [], {"a": 1}, {1: torch.zeros(1)}, {"\x1b[2J": torch.zeros(1)}),
        ("model", {"a": torch.zeros(2, device="meta")}),
        ("model", {"a": torch.zeros(2, dtype=torch.complex64)}),
        *given("optimizer", None, {}, {"state": {}}, {"state": [], "param_groups": []}),
        ("optimizer", {"state": {}, "param_groups": [{}]}),
        ("optimizer", {"state": {}, "param_groups": [{"params": ["a"]}]}),
        ("optimizer", {"state": {"a": {}}, "param_groups": []}),
        ("optimizer", {"state": {0: {"momentum_buffer": 3}}, "param_groups": []}),
        *given("sampler", None, {}, {"generator": None}, {"generator": torch.zeros(5056)}),
        ("sampler", {"generator": GENERATOR[:-1]}),
        ("random", {"torch": GENERATOR}),
        ("random", {"torch": torch.zeros(5056, dtype=torch.uint8), "cuda": []}),
        ("random", {"torch": GENERATOR, "cuda": [3]}),
        *given("best", None, [], {"metric": 0.5}, {"metric": "x", "step": 1.0}),
        ("best", {"metric": float("nan"), "step": 1.0}),
        ("best", {"metric": 10**400, "step": 1.0}),
        *(("score_threshold", value) for value in ("high", True, 10**400)),
    ],
)
def test_other_types_are_one_error_with_file_and_key(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^runs/a\.pt: the checkpoint's '{key}' is not ") as caught:
        check_content({**state(), key: value}, "runs/a.pt")
    assert len(str(caught.value)) < 300


def test_weights_that_are_not_finite_are_named() -> None:
    broken = {"layer.weight": torch.tensor([1.0, torch.nan])}
    with pytest.raises(InputError, match=r"^a\.pt: layer\.weight has NaN or infinite values"):
        check_content({**state(), "model": broken}, "a.pt")


def test_plain_values_are_those_of_a_config() -> None:
    assert is_plain({"a": [1, 0.5, None, True, "text", ("b",)], "c": {"d": {}}})
    for value in ({"a": torch.zeros(1)}, {1: 2}, {"a": 2**64}, {"a": {3}}):
        assert not is_plain(value)
