"""Compiled networks: the same losses as the network itself, in one graph, and compiled only a few times."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

import pytest
import torch
import torch._inductor.config as inductor_config
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.utils import fresh_cache

from detector.config import Config
from detector.core.errors import InputError
from detector.core.structures import SampledRoIs
from detector.factory.model import build_model
from detector.models.compiled import CompiledDetector, check_compiler
from detector.models.losses import DetectionLoss
from detector.ops import roi_pool, spp_pool
from tests.typed import gradient

Load = Callable[..., Config]


@pytest.fixture(autouse=True)
def nothing_compiled() -> Generator[None, None, None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


POOLS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "roi_pool": lambda features, rois: roi_pool(features * 1.5, rois, 3, 1 / 16).flatten(1) * 2,
    "spp_pool": lambda features, rois: spp_pool(features * 1.5, rois, (3, 2, 1), 1 / 16) * 2,
    "average": lambda features, rois: spp_pool(features * 1.5, rois, reduction="avg", window="spp") * 2,
}


@pytest.mark.parametrize("name", POOLS)
def test_no_graph_breaks_at_a_pooling_operator(name: str) -> None:
    pool = POOLS[name]
    features = torch.randn(2, 8, 12, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    rois = torch.tensor([[0.0, 0, 0, 100, 100], [1, 10, 10, 60, 90]])
    found = torch._dynamo.explain(pool)(features, rois)
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons
    torch._dynamo.reset()
    compiled = torch.compile(pool, backend="aot_eager", dynamic=True, fullgraph=True)
    result, expected = compiled(features, rois), pool(features, rois)
    assert torch.equal(result, expected)
    mine, theirs = (torch.autograd.grad(one.square().sum(), features)[0] for one in (result, expected))
    assert torch.equal(mine, theirs)


def data(batch: int, height: int, width: int, per_image: int, seed: int) -> tuple[Tensor, SampledRoIs]:
    generator = torch.Generator().manual_seed(seed)
    corners = torch.rand(batch * per_image, 2, generator=generator) * 40
    boxes = torch.cat((corners, corners + 20 + 30 * torch.rand(len(corners), 2, generator=generator)), dim=1)
    numbers = torch.arange(batch).repeat_interleave(per_image)[:, None].float()
    sampled = SampledRoIs(
        rois=torch.cat((numbers, boxes), dim=1),
        labels=torch.randint(0, 4, (len(boxes),), generator=generator),
        box_targets=torch.randn(len(boxes), 4, generator=generator),
    )
    return torch.randn(batch, 3, height, width, generator=generator), sampled


SIZES = [
    (2, 96, 128, 8),
    (2, 97, 120, 9),
    (2, 128, 96, 16),
    (3, 96, 96, 5),
    (4, 99, 164, 31),
    (2, 98, 130, 7),
]
NETWORKS = {
    "roi": [],
    "pyramid": ["model.pool={kind: spp, levels: [3, 1]}"],
    "resnet": ["model.backbone={name: resnet18, stage: layer2, freeze: 1}"],
    "crops": ["model.pool={kind: warp, output_size: 3, crop_size: 44, context: 4}"],
}


def losses_and_gradients(network: Any, images: Tensor, sampled: SampledRoIs) -> tuple[float, list[Tensor]]:
    loss: Tensor = sum(DetectionLoss()(network(images, sampled.rois), sampled).values())  # type: ignore
    model = getattr(network, "model", network)
    model.zero_grad()
    loss.backward()
    return loss.item(), [gradient(p).clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_losses_are_those_of_the_network_and_few_sizes_are_compiled(tiny: Load, name: str) -> None:
    model = build_model(tiny("model.head.dropout=0.0", *NETWORKS[name]), 3).train()
    names = list(model.state_dict())
    counter = CompileCounterWithBackend("eager")
    network = CompiledDetector(model, backend=counter)
    counts = []
    for seed, size in enumerate(SIZES):
        images, sampled = data(*size, seed)
        state = {key: value.clone() for key, value in model.state_dict().items()}
        compiled = losses_and_gradients(network, images, sampled)
        model.load_state_dict(state)  # batch statistics, where there are any
        expected = losses_and_gradients(model, images, sampled)
        assert compiled[0] == pytest.approx(expected[0], rel=1e-5)
        for mine, theirs in zip(compiled[1], expected[1], strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
        counts.append(counter.frame_count)
    assert counts[0] > 0
    assert counts[-1] <= counts[0] + 2, counts  # once more where two sizes were equal by chance
    assert list(model.state_dict()) == names


def test_several_levels(tiny: Load) -> None:
    model = build_model(tiny("model.head.dropout=0.0"), 3).train()
    network = CompiledDetector(model, backend="aot_eager")
    levels = [model.features(data(1, side, side, 1, 0)[0])[0].detach() for side in (96, 128)]
    _, sampled = data(1, 96, 96, 6, 0)
    roi_levels = torch.tensor([0, 1, 1, 0, 1, 0])
    mine = network.predict(levels, sampled.rois, roi_levels)
    theirs = model.predict(levels, sampled.rois, roi_levels)
    torch.testing.assert_close(mine.class_logits, theirs.class_logits)


def test_without_a_compiler_there_is_one_error() -> None:
    with (
        inductor_config.patch({"cpp.cxx": ("/no/such/compiler",), "compile_threads": 1}),  # no processes
        fresh_cache(),  # in which nothing is compiled yet
        pytest.raises(InputError) as caught,
    ):
        check_compiler("cpu")
    message = str(caught.value)
    assert message.startswith("train.compile: torch.compile does not work on this machine: ")
    assert "/no/such/compiler" in message
    assert "set train.compile to false" in message
    assert len(message.splitlines()) == 1
