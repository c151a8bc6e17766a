"""Truncated SVD of fully connected layers, compared with numpy's SVD."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from detector.core.errors import InputError
from detector.models.heads import BoxHead
from detector.models.low_rank import Factors, check_rank, largest_rank, whole_layers


def layer(inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(outputs, inputs, generator=generator), torch.randn(outputs, generator=generator)


@pytest.mark.parametrize("size", [(20, 12), (12, 20), (9, 9)])
@pytest.mark.parametrize("rank", [1, 3, 4])
def test_a_truncated_layer_is_the_best_of_its_rank(size: tuple[int, int], rank: int) -> None:
    weight, bias = layer(*size)
    tensors = Factors.of(weight, bias).truncated("fc6", rank)
    product = (tensors["fc6_u.weight"] @ tensors["fc6_v.weight"]).numpy()
    u, singular, vh = np.linalg.svd(weight.double().numpy(), full_matrices=False)
    np.testing.assert_allclose(product, (u[:, :rank] * singular[:rank]) @ vh[:rank], atol=1e-5)
    assert tensors["fc6_v.weight"].shape == (rank, size[0])
    assert torch.equal(tensors["fc6_u.bias"], bias)
    kept = np.sum(singular[:rank] ** 2) / np.sum(singular**2)
    assert Factors.of(weight, bias).kept(rank) == pytest.approx(kept)


def test_all_singular_values_give_the_layer_back() -> None:
    weight, bias = layer(20, 12)
    factors = Factors.of(weight, bias)
    torch.testing.assert_close(factors.svd.u @ factors.svd.v, weight, rtol=0, atol=1e-5)
    assert factors.kept(12) == pytest.approx(1.0)
    assert Factors.of(torch.zeros(3, 4), torch.zeros(3)).kept(2) == 0.0


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 1), (2, 2), (4, 4), (3, 7), (512, 1000), (25088, 4096)])
def test_the_largest_rank_is_the_last_that_saves_weights(inputs: int, outputs: int) -> None:
    rank = largest_rank(inputs, outputs)
    assert rank * (inputs + outputs) < inputs * outputs <= (rank + 1) * (inputs + outputs)


def test_a_rank_that_saves_nothing_is_refused_with_the_numbers() -> None:
    """512 x 1000 at rank 400 is the known trap: the two layers are larger than the one."""
    with pytest.raises(InputError, match=r"fc7: rank 400 .*= 604800 weights.* 512000; give at most 338"):
        check_rank("fc7", 512, 1000, 400)
    check_rank("fc7", 512, 1000, 338)
    with pytest.raises(InputError, match="leave it whole"):
        check_rank("fc6", 1, 5, 1)
    with pytest.raises(InputError, match="fc7: rank 4 makes the layer no smaller"):
        BoxHead(20, (8, 8), ranks=(3, 4))


def test_a_head_of_low_rank_has_two_layers_before_relu_and_dropout() -> None:
    torch.manual_seed(0)
    head = BoxHead(20, (12, 8), dropout=0.5, ranks=(3, None)).eval()
    assert list(dict(head.layers.named_children())) == [
        *("fc6_v", "fc6_u", "relu6", "drop6", "fc7", "relu7", "drop7")
    ]
    pooled = torch.randn(5, 20)
    v, u, fc7 = (head.layers.get_submodule(name) for name in ("fc6_v", "fc6_u", "fc7"))
    assert isinstance(v, nn.Linear)
    assert v.bias is None
    torch.testing.assert_close(head(pooled), fc7(u(v(pooled)).relu()).relu())
    assert head.out_features == 8
    wide = BoxHead(
        2000, (1000,), dropout=0.0, ranks=(500,)
    ).layers  # outputs start as large as a whole layer's
    hidden = wide.get_submodule("fc6_u")(wide.get_submodule("fc6_v")(torch.randn(50, 2000)))
    assert float(hidden.detach().square().mean()) == pytest.approx(2.0, rel=0.1)


def test_divided_layers_are_multiplied_out() -> None:
    head = BoxHead(20, (12, 8), ranks=(3, None))
    weight, bias = whole_layers(head.layers)["fc6"]
    x = torch.randn(4, 20)
    expected = head.layers.get_submodule("fc6_u")(head.layers.get_submodule("fc6_v")(x))
    torch.testing.assert_close(nn.functional.linear(x, weight, bias), expected)
    assert list(whole_layers(head.layers)) == ["fc6", "fc7"]
    assert whole_layers(BoxHead(4, ()).layers) == {}


def test_without_ranks_the_random_weights_are_those_of_earlier_versions() -> None:
    torch.manual_seed(3)
    first = nn.Linear(6, 5)
    nn.init.kaiming_normal_(first.weight, nonlinearity="relu")
    torch.manual_seed(3)
    assert torch.equal(BoxHead(6, (5,)).layers.get_parameter("fc6.weight"), first.weight)
