"""What the stages that fit a layer share: features of regions, and the saved state of an unfinished fit."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch

from detector.staged.box_ridge import RidgeFit
from detector.staged.layer_fit import fault_of_fit
from detector.staged.svm import SVMFit

SVM = {
    "key": "abc",
    "images": 3,
    "added": [1, 0],
    "converged": [True, False],
    "negatives": [torch.zeros(5, 4), torch.zeros(0, 4)],
    "weights": torch.zeros(2, 4),
    "biases": torch.zeros(2),
}
RIDGE: dict[str, Any] = {"key": "abc", "fits": {2: (torch.zeros(4, 4), torch.zeros(4))}}
OF_SVM = partial(SVMFit.find_fault, num_classes=2, width=4)
OF_RIDGE = partial(RidgeFit.find_fault, num_classes=2, width=4)


def test_the_saved_state_of_a_fit_has_no_fault() -> None:
    assert fault_of_fit(SVM, OF_SVM) is None
    assert fault_of_fit(RIDGE, OF_RIDGE) is None


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
def test_faults_in_the_state_of_an_svm_fit_are_noticed(change: dict[str, Any]) -> None:
    assert fault_of_fit({**SVM, **change}, OF_SVM) is not None


@pytest.mark.parametrize(
    "fits",
    [None, [], {"1": RIDGE["fits"][2]}, {3: RIDGE["fits"][2]}, {2: torch.zeros(4, 4)}, {2: (1, 2)},
     {2: (torch.zeros(4, 3), torch.zeros(4))}],
)  # fmt: skip
def test_faults_in_the_state_of_a_ridge_fit_are_noticed(fits: Any) -> None:
    assert fault_of_fit({**RIDGE, "fits": fits}, OF_RIDGE) is not None
    assert fault_of_fit([], OF_RIDGE) is not None
