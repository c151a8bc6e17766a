"""Which layers are taken over, and the outcome for every name."""

from __future__ import annotations

import torch
from torch import Tensor

from detector.models.transfer import HEADS, Transfer, plan_transfer


def state(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    return {name.replace("__", "."): torch.rand(shape) for name, shape in shapes.items()}


def outcomes(transfer: Transfer) -> dict[str, str]:
    return {row.name: row.outcome for row in transfer.rows}


NETWORK = state(
    backbone__a__weight=(4, 3),
    backbone__a__bias=(4,),
    box_head__fc6__weight=(5, 4),
    box_head__fc6__bias=(5,),
    predictor__cls_score__weight=(3, 5),
    predictor__cls_score__bias=(3,),
    predictor__bbox_pred__weight=(12, 5),
    predictor__bbox_pred__bias=(12,),
    box_coder__means=(3, 4),
)


def test_equal_names_and_shapes_are_loaded() -> None:
    file = {name: torch.rand(tensor.shape) for name, tensor in NETWORK.items()}
    transfer = plan_transfer(NETWORK, file)
    assert set(outcomes(transfer).values()) == {"loaded"}
    assert all(transfer.tensors[name] is file[name] for name in NETWORK)


def test_a_layer_is_taken_whole_or_not_at_all() -> None:
    file = dict(NETWORK, **{"box_head.fc6.weight": torch.rand(5, 9)})
    transfer = plan_transfer(NETWORK, file)
    found = outcomes(transfer)
    assert (found["box_head.fc6.weight"], found["box_head.fc6.bias"]) == ("other shape", "re-made")
    assert [(row.name, row.wanted, row.stored) for row in transfer.faults] == [
        ("box_head.fc6.weight", (5, 4), (5, 9))
    ]
    assert not [name for name in transfer.tensors if name.startswith("box_head")]


def test_missing_and_unexpected_names_are_faults_and_spare_ones_are_not() -> None:
    file = {name: tensor for name, tensor in NETWORK.items() if name != "backbone.a.bias"}
    file |= state(backbone__b__weight=(2, 2), fc__weight=(7, 5))
    found = outcomes(plan_transfer(NETWORK, file, spare={"fc.weight"}))
    assert found["backbone.a.bias"] == "missing"
    assert found["backbone.a.weight"] == "re-made"
    assert (found["backbone.b.weight"], found["fc.weight"]) == ("unexpected", "left out")


def test_counters_where_weights_belong_do_not_fit() -> None:
    file = dict(NETWORK, **{"backbone.a.bias": torch.zeros(4, dtype=torch.int64)})
    assert outcomes(plan_transfer(NETWORK, file))["backbone.a.bias"] == "other shape"


def test_heads_that_do_not_fit_are_re_made_without_a_fault() -> None:
    file = dict(NETWORK, **state(predictor__cls_score__weight=(9, 5), predictor__other__weight=(2,)))
    transfer = plan_transfer(NETWORK, file)
    found = outcomes(transfer)
    assert not transfer.faults
    assert found["predictor.cls_score.weight"] == found["predictor.cls_score.bias"] == "re-made"
    assert found["predictor.bbox_pred.weight"] == found["box_coder.means"] == "loaded"
    assert found["predictor.other.weight"] == "left out"


def test_the_constants_of_box_targets_go_with_the_layer_that_was_trained_in_them() -> None:
    file = {name: tensor for name, tensor in NETWORK.items() if "bbox_pred" not in name}
    found = outcomes(plan_transfer(NETWORK, file))
    assert found["box_coder.means"] == "re-made"
    assert found["predictor.cls_score.weight"] == "loaded"


def test_names_to_be_re_made_are_not_loaded_even_where_they_fit() -> None:
    found = outcomes(plan_transfer(NETWORK, dict(NETWORK), remake=HEADS))
    assert {name for name, outcome in found.items() if outcome == "re-made"} == {
        name for name in NETWORK if name.startswith(("predictor.", "box_coder."))
    }
