"""fc6 and fc7 in 8 bits, compared with integers of numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from detector.core.errors import InputError
from detector.models import quantized
from detector.models.quantized import Int8Linear, check_int8, rounded


def reference(layer: nn.Linear, inputs: torch.Tensor) -> np.ndarray:
    """Return the outputs, one region at a time, with products of Python's integers."""
    weight = layer.weight.detach().double().numpy()
    scales = np.abs(weight).max(axis=1) / 127
    whole = np.rint(weight / scales[:, None]).astype(np.int64)
    rows = []
    for row in inputs.double().numpy():
        scale = max(np.abs(row).max() / 127, 1e-37)
        rows.append((whole @ np.rint(row / scale).astype(np.int64)) * scale * scales)
    bias = 0.0 if layer.bias is None else layer.bias.detach().numpy()
    return np.stack(rows) + bias


@pytest.mark.parametrize(("inputs", "outputs", "bias"), [(64, 16, True), (13, 5, True), (200, 3, False)])
def test_outputs_are_those_of_integers(inputs: int, outputs: int, bias: bool) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(inputs, outputs, bias=bias)
    pooled = torch.randn(33, inputs) * torch.logspace(-3, 3, 33)[:, None]
    pooled[4] = 0
    with torch.inference_mode():
        found = Int8Linear(layer)(pooled)
        exact = layer(pooled)
    np.testing.assert_allclose(found.numpy(), reference(layer, pooled), rtol=1e-3, atol=1e-5)
    assert ((found - exact).norm(dim=1) <= 0.05 * exact.norm(dim=1) + 1e-6).all()


def test_a_region_does_not_depend_on_the_others() -> None:
    torch.manual_seed(0)
    layer = Int8Linear(nn.Linear(40, 7))
    pooled = torch.randn(21, 40)
    pooled[3] *= 1000
    together = layer(pooled)
    assert torch.equal(together, torch.cat([layer(row[None]) for row in pooled]))
    assert layer(pooled[:0]).shape == (0, 7)


def test_values_that_are_not_finite_stay_so() -> None:
    pooled = torch.ones(4, 8)
    pooled[0, 0], pooled[1, 0], pooled[2, 0] = float("nan"), float("inf"), -float("inf")
    finite = Int8Linear(nn.Linear(8, 3))(pooled).isfinite().all(dim=1)
    assert finite.tolist() == [False, False, False, True]


def test_rounding_is_within_half_a_step() -> None:
    rows = torch.randn(10, 30, generator=torch.Generator().manual_seed(1))
    values, scale = rounded(rows)
    assert ((values * scale - rows).abs() <= scale / 2 * (1 + 1e-5)).all()
    assert values.abs().amax(dim=1).tolist() == [127] * 10


def test_a_machine_without_exact_products_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    check_int8()

    def saturated(a: Any, b: Any) -> Any:
        return (a.int() @ b.int()).clamp(max=2**15)

    def missing(a: Any, b: Any) -> Any:
        raise NotImplementedError("no such operator")

    for wrong, message in ((saturated, "are not exact"), (missing, "no such operator")):
        monkeypatch.setattr(quantized.torch, "_int_mm", wrong)
        with pytest.raises(InputError, match=rf"test\.precision: int8.*{message}.*bfloat16"):
            check_int8()
