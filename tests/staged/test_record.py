"""Records of stages: written and read back; whatever else stands there is one clear error."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from detector.core.errors import InputError
from detector.staged.kept_fit import fault_of_fit
from detector.staged.record import StageRecord, read_record, write_record

RECORD = StageRecord("abc", "checkpoints/step_6.pt", 14, 2.5, {"training: trainval": "00ff"})


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_record(tmp_path / "done.json", RECORD)
    assert read_record(tmp_path / "done.json") == RECORD
    older = {"key": "abc", "checkpoint": "checkpoints/step_6.pt", "steps": 14, "seconds": 2.5}
    (tmp_path / "done.json").write_text(json.dumps(older))
    assert read_record(tmp_path / "done.json").data_fingerprint == {}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"key": 3}, "key"),
        ({"key": None}, "key"),
        ({"checkpoint": "/etc/passwd"}, "checkpoint"),
        ({"checkpoint": "checkpoints/../../../x.pt"}, "checkpoint"),
        ({"checkpoint": ["checkpoints/step_6.pt"]}, "checkpoint"),
        ({"steps": "14"}, "steps"),
        ({"steps": True}, "steps"),
        ({"steps": 0}, "steps"),
        ({"steps": 10**400}, "steps"),
        ({"steps": 1.5}, "steps"),
        ({"seconds": -1}, "seconds"),
        ({"seconds": None}, "seconds"),
        ({"data_fingerprint": [1]}, "data_fingerprint"),
        ({"data_fingerprint": {"a": 1}}, "data_fingerprint"),
    ],
)
def test_other_values_are_named(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    path = tmp_path / "done.json"
    path.write_text(json.dumps({**RECORD.__dict__, **change}))
    with pytest.raises(InputError, match=rf"done\.json: not the record of a finished stage: {named}"):
        read_record(path)


@pytest.mark.parametrize("text", ["", "[]", "3", "{", "null", '{"key": "abc"}', "\ufeff{}"])
def test_other_files_are_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "done.json").write_text(text)
    with pytest.raises(InputError, match=r"done\.json: not"):
        read_record(tmp_path / "done.json")


SVM = {
    "key": "abc",
    "images": 3,
    "added": [1, 0],
    "converged": [True, False],
    "negatives": [torch.zeros(5, 4), torch.zeros(0, 4)],
    "weights": torch.zeros(2, 4),
    "biases": torch.zeros(2),
}
RIDGE = {"key": "abc", "fits": {2: (torch.zeros(4, 4), torch.zeros(4))}}


def test_what_a_fit_keeps_is_sound() -> None:
    assert fault_of_fit("svm", SVM, 2, 4) is None
    assert fault_of_fit("box_ridge", RIDGE, 2, 4) is None


@pytest.mark.parametrize(
    "change",
    [
        {"key": 3},
        {"images": -1},
        {"images": 2.0},
        {"seconds": "1"},
        {"data_fingerprint": []},
        {"weights": torch.zeros(3, 4)},
        {"weights": torch.zeros(2, 5)},
        {"weights": torch.full((2, 4), torch.nan)},
        {"weights": torch.zeros(2, 4, dtype=torch.int64)},
        {"biases": [0.0, 0.0]},
        {"added": [1]},
        {"added": None},
        {"converged": ["yes", "no"]},
        {"negatives": [torch.zeros(5, 4), None]},
        {"negatives": [torch.zeros(5, 4), torch.zeros(4)]},
        {"negatives": [torch.zeros(5, 4), torch.zeros(2, 3)]},
    ],
)
def test_another_state_of_an_svm_fit_is_a_fault(change: dict[str, Any]) -> None:
    assert fault_of_fit("svm", {**SVM, **change}, 2, 4) is not None


@pytest.mark.parametrize(
    "fits",
    [None, [], {"1": RIDGE["fits"][2]}, {3: RIDGE["fits"][2]}, {2: torch.zeros(4, 4)}, {2: (1, 2)},
     {2: (torch.zeros(4, 3), torch.zeros(4))}],
)  # fmt: skip
def test_another_state_of_a_ridge_fit_is_a_fault(fits: Any) -> None:
    assert fault_of_fit("box_ridge", {**RIDGE, "fits": fits}, 2, 4) is not None
    assert fault_of_fit("box_ridge", [], 2, 4) is not None
