"""CUDA against the CPU kernels, bit for bit, which other tests hold to torchvision and to the reference."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from detector.ops import RoIPool, roi_pool, spp_pool
from tests.emulator.calls import OPERATORS
from tests.ops.rois import random_rois

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
CASES = [
    *(("roi_pool", {"output_size": size, "spatial_scale": 1 / 16, "bins": bins})
      for size in (7, (14, 3)) for bins in ("caffe", "exact", "partition")),
    *(("spp_pool", {"reduction": reduction, "window": window})
      for reduction in ("max", "avg") for window in ("roi", "spp", "cells")),
]  # fmt: skip
each_case = pytest.mark.parametrize(("name", "options"), CASES)
MAXIMUM, PYRAMID, AVERAGE = CASES[0], CASES[6], CASES[9]


def run(
    name: str, options: dict[str, object], features: Tensor, rois: Tensor, grad: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the output and the gradient of the features, on the CPU.

    ``grad`` is that of the output; without it a ramp, made on the CPU, since devices round it differently.
    """
    operator = OPERATORS[name]
    features = features.detach().requires_grad_()
    pooled = operator(features, rois, **options)
    if grad is None:
        grad = torch.linspace(-1, 1, pooled.numel()).reshape(pooled.shape).to(pooled.dtype)
    (result,) = torch.autograd.grad(pooled, features, grad.to(pooled.device))
    return pooled.detach().cpu(), result.cpu()


def assert_equal(ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
    assert torch.equal(ours[0], theirs[0])
    assert torch.equal(ours[1], theirs[1])


@each_case
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [1, 31, 83, 130, 257])
@pytest.mark.parametrize("size", [(38, 50), (150, 270)])  # places of maxima take 16 and 32 bits
def test_equals_the_cpu(
    name: str, options: dict[str, object], dtype: torch.dtype, channels: int, size: tuple[int, int]
) -> None:
    torch.manual_seed(channels)
    features = torch.randn(2, channels, *size).to(dtype)
    index_type = torch.float64 if dtype == torch.float64 else torch.float32
    rois = random_rois(200, 2, (size[0] * 16, size[1] * 16), dtype=index_type).round()
    expected = run(name, options, features, rois)
    assert_equal(run(name, options, features.cuda(), rois.cuda()), expected)
    channels_last = features.cuda().contiguous(memory_format=torch.channels_last)
    assert_equal(run(name, options, channels_last, rois.cuda()), expected)


@each_case
def test_few_and_many_rois_equal_the_cpu(name: str, options: dict[str, object]) -> None:
    """With few RoIs maxima are taken over cells, with many over windows of cells."""
    torch.manual_seed(0)
    features = torch.randn(3, 40, 38, 50).relu()
    for count in (0, 1, 3, 1100):
        rois = random_rois(count, 3, (608, 800)).round()
        assert_equal(run(name, options, features.cuda(), rois.cuda()), run(name, options, features, rois))


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda x: x.transpose(2, 3),
    "every second channel": lambda x: x[:, ::2],
    "part of a row": lambda x: x[..., 1:-1],
    "one channel, expanded": lambda x: x[:, :1].expand(-1, 40, -1, -1),
    "one image, expanded": lambda x: x[:1].expand(2, -1, -1, -1),
    "width 1 of a permuted map": lambda x: (
        x[:, :, :, 0].permute(0, 2, 1).contiguous().permute(0, 2, 1)[..., None]
    ),
    "height 1, channels last, transposed": (
        lambda x: x[:, :, :1].contiguous(memory_format=torch.channels_last).transpose(2, 3)
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize(("name", "options"), [MAXIMUM, PYRAMID, AVERAGE])
def test_any_layout_equals_the_cpu(
    name: str, options: dict[str, object], layout: Callable[[Tensor], Tensor]
) -> None:
    torch.manual_seed(1)
    features = torch.randn(2, 40, 38, 50)
    rois = random_rois(60, 2, (608, 800))
    assert_equal(
        run(name, options, layout(features.cuda()), rois.cuda()), run(name, options, layout(features), rois)
    )


@each_case
def test_a_gradient_of_any_layout_equals_the_cpu(name: str, options: dict[str, object]) -> None:
    torch.manual_seed(2)
    features, rois = torch.randn(2, 64, 12, 16), random_rois(30, 2, (192, 256)).round()
    shape = run(name, options, features, rois)[0].shape
    for grad in (
        torch.randn(1).expand(shape),
        torch.randn(shape[::-1]).permute(*reversed(range(len(shape)))),
    ):
        assert_equal(
            run(name, options, features.cuda(), rois.cuda(), grad), run(name, options, features, rois, grad)
        )


@each_case
def test_the_same_bits_on_every_run(name: str, options: dict[str, object]) -> None:
    torch.manual_seed(3)
    features, rois = torch.randn(2, 64, 38, 50).cuda(), random_rois(500, 2, (608, 800)).round().cuda()
    torch.use_deterministic_algorithms(True)
    try:
        first = run(name, options, features, rois)
        for _ in range(5):
            assert_equal(run(name, options, features, rois), first)
    finally:
        torch.use_deterministic_algorithms(False)


@each_case
def test_a_row_no_kernel_can_use_gives_zeros(name: str, options: dict[str, object]) -> None:
    features = torch.randn(2, 3, 9, 9).cuda() + 10
    rois = torch.tensor([[0.0, 0, 0, 9, 9]]).repeat(6, 1)
    rois[1, 0], rois[2, 0], rois[3, 2], rois[4, 3] = 2, -1, float("nan"), float("inf")
    pooled, grad = run(name, options, features, rois.cuda())
    assert not pooled[1:5].any()
    assert torch.equal(pooled[0], pooled[5])
    assert torch.isfinite(grad).all()


@each_case
def test_an_empty_batch_gives_zeros(name: str, options: dict[str, object]) -> None:
    rois = torch.tensor([[-0.5, 0.0, 0, 64, 64], [0, 0, 0, 64, 64]]).cuda()
    pooled, grad = run(name, options, torch.randn(0, 64, 5, 5).cuda(), rois)
    assert not pooled.any()
    assert grad.shape == (0, 64, 5, 5)


@pytest.mark.parametrize(("name", "options"), [MAXIMUM, PYRAMID, AVERAGE])
def test_a_side_stream_is_used_and_not_waited_for(name: str, options: dict[str, object]) -> None:
    torch.manual_seed(4)
    values, rois = torch.randn(2, 64, 38, 50), random_rois(300, 2, (608, 800))
    expected = run(name, options, values, rois)
    features, rows = torch.zeros_like(values).cuda(), rois.cuda()
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(20_000_000)
        features.copy_(
            values.pin_memory(), non_blocking=True
        )  # only what comes after it on the stream sees it
        result = run(name, options, features, rows)
    assert_equal(result, expected)


@pytest.mark.parametrize(("name", "options"), [MAXIMUM, PYRAMID])
def test_a_cuda_graph_replays_a_training_step(name: str, options: dict[str, object]) -> None:
    torch.manual_seed(5)
    features = torch.randn(2, 64, 38, 50, device="cuda", requires_grad=True)
    rois = random_rois(100, 2, (608, 800)).cuda()
    operator = OPERATORS[name]

    def step() -> tuple[Tensor, Tensor]:
        pooled = operator(features, rois, **options)
        return pooled, torch.autograd.grad(pooled, features, torch.ones_like(pooled))[0]

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        features.copy_(torch.randn_like(features))
        rois[:, 1:] = random_rois(100, 2, (608, 800), seed=9).cuda()[:, 1:]
    graph.replay()
    for ours, again in zip(captured, step(), strict=True):
        assert torch.equal(ours, again)


def test_compiles_without_a_graph_break() -> None:
    pool = RoIPool(3, 1 / 16)
    compiled = torch.compile(pool, fullgraph=True, dynamic=True, backend="aot_eager")
    for count, height in ((4, 6), (9, 300)):
        features = torch.randn(2, 5, height, 7, device="cuda", requires_grad=True)
        rois = random_rois(count, 2, (16 * height, 112)).cuda()
        expected, output = pool(features, rois), compiled(features, rois)
        assert torch.equal(output, expected)
        (ours,) = torch.autograd.grad(output.sum(), features)
        (theirs,) = torch.autograd.grad(expected.sum(), features)
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("size", [(7, 9), (7, 300)])
@pytest.mark.parametrize("keeps", [False, True])
def test_opcheck(size: tuple[int, int], keeps: bool) -> None:
    features = torch.randn(2, 3, *size, device="cuda", requires_grad=keeps)
    rois = random_rois(5, 2, (size[0] * 16, size[1] * 16)).cuda()
    call = torch.ops.detector.roi_pool.default
    results = torch.library.opcheck(call, (features, rois, 3, 2, 1 / 16, 0, keeps))
    pooled, places = call(features.detach(), rois, 3, 2, 1 / 16, 0, True)
    backward = torch.ops.detector.roi_pool_backward.default
    arguments = (torch.randn_like(pooled), rois, places, 1 / 16, 0, 2, *size)
    results |= torch.library.opcheck(backward, arguments)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device only")
@pytest.mark.parametrize(("name", "options"), [MAXIMUM, PYRAMID, AVERAGE])
def test_a_second_device_equals_the_cpu(name: str, options: dict[str, object]) -> None:
    torch.manual_seed(6)
    features, rois = torch.randn(2, 64, 38, 50), random_rois(100, 2, (608, 800))
    assert torch.cuda.current_device() == 0
    assert_equal(
        run(name, options, features.to("cuda:1"), rois.to("cuda:1")), run(name, options, features, rois)
    )


def test_limits_are_named() -> None:
    features, rois = torch.randn(1, 2, 9, 9).cuda(), torch.tensor([[0.0, 0, 0, 100, 100]]).cuda()
    assert roi_pool(features, rois, (1000, 24), 1 / 16).shape == (1, 2, 1000, 24)
    with pytest.raises(RuntimeError, match="at most 1024 bin edges, not 1025"):
        roi_pool(features, rois, (1001, 24), 1 / 16)
    assert spp_pool(features, rois, range(1, 17)).shape == (1, 2 * sum(n * n for n in range(1, 17)))
    with pytest.raises(RuntimeError, match="at most 16 levels, not 17"):
        spp_pool(features, rois, range(1, 18))
    with pytest.raises(RuntimeError, match="at most 32767 cells a side, not 1 x 32768"):
        roi_pool(torch.zeros(1, 1, 1, 32768, device="cuda"), rois, 2, 1.0)


@pytest.mark.parametrize("size", [(1000, 24), (25, 25), (511, 513)])
def test_large_grids_equal_the_cpu(size: tuple[int, int]) -> None:
    torch.manual_seed(7)
    features, rois = torch.randn(1, 3, 38, 50), random_rois(3, 1, (608, 800))
    options = {"output_size": size, "spatial_scale": 1 / 16}
    assert_equal(
        run("roi_pool", options, features.cuda(), rois.cuda()), run("roi_pool", options, features, rois)
    )
