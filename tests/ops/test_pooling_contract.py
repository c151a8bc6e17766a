"""What holds for all pooling operators: torch's contracts, refusals, errors, determinism."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from detector.core.cell_masks import CellMasks
from detector.ops import RoIPool, SpatialPyramidPool, roi_pool, spp_pool
from detector.ops._library import numbers_of
from detector.ops.masked_pooling import MODES, masked_roi_align, masked_roi_pool, masked_spp_pool
from tests.emulator.masked import random_masks
from tests.ops.rois import random_rois
from tests.typed import gradient

Pool = Callable[[Tensor, Tensor], Tensor]


def roi_pooling(bins: str) -> Pool:
    return lambda features, rois: roi_pool(features, rois, (3, 2), 1 / 16, bins)


def pyramid_pooling(reduction: str, window: str) -> Pool:
    return lambda features, rois: spp_pool(features, rois.round(), (3, 2, 1), 1 / 16, reduction, window)


def masks_for(rois: Tensor) -> CellMasks:
    return random_masks(random.Random(1), len(rois), 7, 9)


def masked_pooling(kind: str, mode: str) -> Pool:
    def pool(features: Tensor, rois: Tensor) -> Tensor:
        if kind == "roi":
            return masked_roi_pool(features, rois, masks_for(rois), 3, 1 / 16, mode)
        if kind == "align":
            return masked_roi_align(features, rois, masks_for(rois), 2, 1 / 16, 0, mode)
        return masked_spp_pool(features, rois, masks_for(rois), (3, 1), 1 / 16, kind, 0.0, None, mode)

    return pool


POOLS: dict[str, Pool] = {
    **{bins: roi_pooling(bins) for bins in ("caffe", "exact", "partition")},
    **{
        f"spp {reduction} {window}": pyramid_pooling(reduction, window)
        for reduction in ("max", "avg")
        for window in ("roi", "spp", "cells")
    },
    **{
        f"masked {kind} {mode}": masked_pooling(kind, mode)
        for kind in ("roi", "align", "spp")
        for mode in MODES
    },
}
each_pool = pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS.keys())


def sample(channels: int = 20, count: int = 12, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    torch.manual_seed(channels)
    index_type = torch.float64 if dtype == torch.float64 else torch.float32
    return torch.randn(2, channels, 7, 9).to(dtype), random_rois(count, 2, (112, 144), dtype=index_type)


def operator_calls() -> list[tuple[str, tuple[object, ...]]]:
    features, rois = sample(3, 5)
    learning = features.clone().requires_grad_()
    roi_arguments = (3, 2, 1 / 16, 0)
    spp_arguments = ([3, 1], [1 / 16, 1 / 16], [0.0, 0.0], [8.0, 8.0], 1)
    calls: list[tuple[str, tuple[object, ...]]] = []
    pooled, argmax = torch.ops.detector.roi_pool(features, rois, *roi_arguments, True)
    calls.append(("roi_pool", (features, rois, *roi_arguments, False)))
    calls.append(("roi_pool", (learning, rois, *roi_arguments, True)))
    calls.append(("roi_pool_backward", (torch.randn_like(pooled), rois, argmax, 1 / 16, 0, 2, 7, 9)))
    for reduction in (0, 1):
        pooled, argmax = torch.ops.detector.spp_pool(features, rois, *spp_arguments, reduction, True)
        calls.append(("spp_pool", (features, rois, *spp_arguments, reduction, False)))
        calls.append(("spp_pool", (learning, rois, *spp_arguments, reduction, True)))
        calls.append(
            (
                "spp_pool_backward",
                (torch.randn_like(pooled), rois, argmax, *spp_arguments, reduction, 2, 3, 7, 9),
            )
        )
    masks = masks_for(rois)
    windows = torch.cat((masks.windows, masks.offsets[:-1, None]), dim=1)
    for cover in (masks.covered, masks.coverage):
        for samples in (-1, 0):
            masked = (*spp_arguments, samples)
            pooled, kept = torch.ops.detector.masked_pool(features, rois, windows, cover, *masked, True)
            calls.append(("masked_pool", (features, rois, windows, cover, *masked, False)))
            calls.append(("masked_pool", (learning, rois, windows, cover, *masked, True)))
            grad = torch.randn_like(pooled)
            calls.append(("masked_pool_backward", (grad, rois, windows, cover, kept, *masked, 2, 3, 7, 9)))
    return calls


@pytest.mark.parametrize(("name", "arguments"), operator_calls())
def test_opcheck(name: str, arguments: tuple[object, ...]) -> None:
    results = torch.library.opcheck(getattr(torch.ops.detector, name).default, arguments)
    assert set(results.values()) == {"SUCCESS"}
    assert len(results) == 4


@each_pool
def test_gradcheck(pool: Pool) -> None:
    features = torch.randperm(2 * 2 * 4 * 5).reshape(2, 2, 4, 5).double().requires_grad_()
    rois = random_rois(3, 2, (64, 80), seed=9, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: pool(x, rois), (features,), eps=1e-4)


@each_pool
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_gradient_lies_in_memory_as_the_map_does(pool: Pool, dtype: torch.dtype) -> None:
    gradients = []
    for layout in (torch.contiguous_format, torch.channels_last):
        features, rois = sample(dtype=dtype)
        features = features.to(memory_format=layout).requires_grad_()
        pooled = pool(features, rois)
        pooled.backward(torch.sin(torch.arange(pooled.numel())).view(pooled.shape).to(dtype))
        gradients.append(gradient(features))
        assert gradient(features).is_contiguous(memory_format=layout)
    assert torch.equal(*gradients)


@each_pool
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_same_bits_on_every_run_and_at_any_number_of_threads(pool: Pool, dtype: torch.dtype) -> None:
    features, rois = sample(83, 200, dtype)
    features.requires_grad_()
    threads = torch.get_num_threads()
    results = []
    torch.use_deterministic_algorithms(True)
    try:
        for count in (1, 2, 3, 7, 2):
            torch.set_num_threads(count)
            features.grad = None
            pooled = pool(features, rois)
            pooled.backward(torch.linspace(-1, 1, pooled.numel()).reshape(pooled.shape).to(dtype))
            results.append((pooled.detach(), gradient(features)))
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(False)
    for pooled, grad in results[1:]:
        assert torch.equal(pooled, results[0][0])
        assert torch.equal(grad, results[0][1])


@each_pool
def test_training_and_inference_give_the_same(pool: Pool) -> None:
    features, rois = sample(83, 50)
    assert torch.equal(pool(features, rois), pool(features.clone().requires_grad_(), rois))


class Head(nn.Module):
    """A convolution, a pool and a linear layer: what a compiler or an exporter meets."""

    def __init__(self, pool: nn.Module, size: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 4, 3, padding=1)
        self.pool = pool
        self.linear = nn.Linear(size, 5)

    def forward(self, images: Tensor, rois: Tensor) -> Tensor:
        return self.linear(self.pool(self.convolution(images), rois).flatten(1))


def heads() -> list[Head]:
    torch.manual_seed(0)
    return [Head(RoIPool(3, 1 / 16), 36), Head(SpatialPyramidPool((2, 1), window="spp"), 20)]


@pytest.mark.parametrize("head", heads(), ids=["roi", "spp"])
def test_compiles_without_a_graph_break(head: Head) -> None:
    compiled = torch.compile(head, fullgraph=True, dynamic=True, backend="aot_eager")
    for count, height in ((4, 6), (9, 8)):
        images, rois = torch.randn(2, 3, height, 7), random_rois(count, 2, (96, 112))
        expected = head(images, rois)
        output = compiled(images, rois)
        torch.testing.assert_close(output, expected)
        (ours,) = torch.autograd.grad(output.sum(), head.convolution.weight)
        (theirs,) = torch.autograd.grad(expected.sum(), head.convolution.weight)
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("mode", MODES)
def test_masked_pooling_compiles_without_a_graph_break(mode: str) -> None:
    def pool(features: Tensor, rois: Tensor, masks: CellMasks) -> Tensor:
        return masked_roi_align(features * 2, rois, masks, 2, 1 / 16, 0, mode).relu()

    compiled = torch.compile(pool, fullgraph=True, dynamic=True, backend="aot_eager")
    for count in (4, 9):
        features, rois = sample(3, count)
        features.requires_grad_()
        masks = masks_for(rois)
        output, expected = compiled(features, rois, masks), pool(features, rois, masks)
        assert torch.equal(output, expected)
        (ours,) = torch.autograd.grad(output.sum(), features)
        (theirs,) = torch.autograd.grad(expected.sum(), features)
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("head", heads(), ids=["roi", "spp"])
def test_exports_with_any_number_of_rois(head: Head) -> None:
    rois = {0: torch.export.Dim("rois", min=1, max=4096)}
    arguments = (torch.randn(2, 3, 6, 7), random_rois(4, 2, (96, 112)))
    program = torch.export.export(head, arguments, dynamic_shapes=({}, rois))
    many = random_rois(50, 2, (96, 112), seed=1)
    torch.testing.assert_close(program.module()(arguments[0], many), head(arguments[0], many))


@each_pool
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_keeps_half_types_and_rois(pool: Pool, dtype: torch.dtype) -> None:
    features, rois = sample(dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        pooled = pool(features, rois)
    assert pooled.dtype == dtype
    assert torch.equal(pooled, pool(features, rois))


@each_pool
def test_vmap_is_refused_in_words(pool: Pool) -> None:
    features, rois = sample(3, 2)
    with pytest.raises(NotImplementedError, match=r"does not work under torch\.func\.vmap; RoIs already"):
        torch.func.vmap(pool)(features[None].expand(2, -1, -1, -1, -1), rois[None].expand(2, -1, -1))


@each_pool
def test_double_backward_is_refused_in_words(pool: Pool) -> None:
    features, rois = sample(3, 2)
    features.requires_grad_()
    pooled = pool(features, rois)
    weight = torch.ones_like(pooled, requires_grad=True)
    (grad,) = torch.autograd.grad(pooled, features, weight, create_graph=True)
    with pytest.raises(NotImplementedError, match="has no second derivative"):
        grad.sum().backward()


@each_pool
@pytest.mark.parametrize("index", [2.0, -1.0, 1e30])
def test_a_batch_index_outside_the_batch_names_its_row(pool: Pool, index: float) -> None:
    features, rois = sample()
    rois[7, 0] = index
    with pytest.raises(RuntimeError, match=r"row 7 of rois has batch index .*, but features hold 2 image"):
        pool(features, rois)


@each_pool
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_roi_that_is_not_finite_names_its_row(pool: Pool, value: float) -> None:
    features, rois = sample()
    rois[3, 2] = value
    with pytest.raises(RuntimeError, match=r"row 3 of rois holds .*; every number must be finite"):
        pool(features, rois)


@each_pool
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rois_are_refused_with_the_reason(pool: Pool, dtype: torch.dtype) -> None:
    features, rois = sample(dtype=dtype)
    with pytest.raises(TypeError, match="bfloat16 turns 1333 into 1336"):
        pool(features, rois.to(dtype))


@each_pool
def test_wrong_arguments_are_refused(pool: Pool) -> None:
    features, rois = sample()
    with pytest.raises(ValueError, match=r"features must have shape \(N, C, H, W\)"):
        pool(features[0], rois)
    with pytest.raises(ValueError, match=r"rois must have shape \(R, 5\), not \(12, 4\)"):
        pool(features, rois[:, 1:])
    with pytest.raises(TypeError, match=r"floating point type, not torch\.int64"):
        pool(features.long(), rois)
    with pytest.raises(TypeError, match="rois must be float32, or float64 with float64 features"):
        pool(features, rois.double())
    with pytest.raises(ValueError, match="features are on cpu but rois on meta"):
        pool(features, rois.to("meta"))


def test_the_kernels_check_for_themselves() -> None:
    """Whoever calls the operator itself, without the Python function, reads no memory that is not there."""
    features, rois = sample(3, 2)
    call = torch.ops.detector.roi_pool
    for arguments in (
        (features[0], rois, 2, 2, 1.0, 0, False),
        (features, rois[:, :4], 2, 2, 1.0, 0, False),
        (features, rois, 0, 2, 1.0, 0, False),
        (features, rois, 2, 2, 1.0, 3, False),
        (features, rois.double(), 2, 2, 1.0, 0, False),
        (features.long(), rois, 2, 2, 1.0, 0, False),
    ):
        with pytest.raises(RuntimeError):
            call(*arguments)
    with pytest.raises(RuntimeError, match=r"at most 2\^31 - 1 bins, not 65536 x 32768"):
        call(features, rois[:0], 65536, 32768, 1.0, 0, False)


def test_the_backward_kernels_check_for_themselves() -> None:
    features, rois = sample(3, 2)
    pooled, argmax = torch.ops.detector.roi_pool(features, rois, 2, 2, 1.0, 0, True)
    call = torch.ops.detector.roi_pool_backward
    for arguments, message in (
        ((pooled, rois, argmax[:1], 1.0, 0, 2, 7, 9), "kept maxima do not belong together"),
        ((pooled, rois, argmax.to(torch.int8), 1.0, 0, 2, 7, 9), "kept maxima do not belong together"),
        ((pooled, rois, argmax, 1.0, 0, -2, 7, 9), "do not belong together"),
        ((pooled, rois[:1], argmax, 1.0, 0, 2, 7, 9), "do not belong together"),
        ((pooled, rois[:, 0], argmax, 1.0, 0, 2, 7, 9), r"rois must have shape \(R, 5\)"),
        ((pooled, rois.half(), argmax, 1.0, 0, 2, 7, 9), "rois must be float32"),
        ((pooled, rois, argmax, 1.0, 3, 2, 7, 9), "unknown rule 3"),
        ((pooled, rois, argmax, 1.0, 0, 2, 2**20, 2**20), r"at most 2\^31 - 1 cells"),
        ((pooled, rois, argmax, 1.0, 0, 2, -7, 9), r"at most 2\^31 - 1 cells, not -7 x 9"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call(*arguments)
    wild = torch.full_like(argmax, 2**31 - 1)
    assert not call(pooled, rois, wild, 1.0, 0, 2, 7, 9).any()


def test_the_kernels_of_masked_pooling_check_for_themselves() -> None:
    features, rois = sample(3, 2)
    cover = torch.ones(12)
    windows = torch.tensor([[0, 0, 3, 2, 0], [2, 2, 4, 5, 6]])
    settings = ([2], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0], 0)
    call, backward = torch.ops.detector.masked_pool, torch.ops.detector.masked_pool_backward
    _, kept = call(features, rois, windows, cover, *settings, -1, True)
    row = r"row 1 of windows has cells that cover, with 12 numbers, does not have"
    for changed in (
        [2, 2, 4, 5, 7],
        [2, 2, 4, 5, -1],
        [2, 2, 4, 5, 2**63 - 1],
        [2, 2, 4, 6, 6],
        [-(2**40), 2, 4, 5, 6],
        [0, 0, 2**63 - 1, 2**63 - 1, 0],
        [-(2**63), -(2**63), 2**63 - 1, 2**63 - 1, 0],
    ):
        wrong = torch.stack((windows[0], torch.tensor(changed)))
        with pytest.raises(RuntimeError, match=row):
            call(features, rois, wrong, cover, *settings, -1, True)
        grad = torch.ones(2, 12)
        with pytest.raises(RuntimeError, match=row):
            backward(grad, rois, wrong, cover, kept, *settings, -1, 2, 3, 7, 9)
    for arguments, message in (
        ((windows[:1], cover, *settings, -1), r"windows must have shape \(R, 5\)"),
        ((windows.int(), cover, *settings, -1), "be int64"),
        ((windows, cover.double(), *settings, -1), "cover must be bool or float32"),
        ((windows, cover[None], *settings, -1), "cover must have one dimension"),
        ((windows, cover, *settings, -2), "a sampling ratio is from 0"),
        ((windows, cover, *settings, 2**40), "a sampling ratio is from 0"),
        ((windows, cover, *settings[:4], 9, -1), "unknown rule 9"),
        ((windows, cover, [], *settings[1:], -1), "at least one level"),
        ((windows, cover, [0], *settings[1:], -1), "at least one bin"),
    ):
        with pytest.raises(RuntimeError, match=message):
            call(features, rois, *arguments, True)
    for cells, places in ((cover > 0, torch.int32), (cover, torch.float32)):
        for samples in (-1, 2):
            pooled, kept = call(features, rois, windows, cells, *settings, samples, True)
            assert kept.dtype == places
            rest = (*settings, samples, 2, 3, 7, 9)
            for wrong in (kept[:1], kept.double(), kept.long()):
                with pytest.raises(RuntimeError, match="what was kept for it do not belong together"):
                    backward(pooled, rois, windows, cells, wrong, *rest)
            wild = torch.full_like(kept, 2**31 - 1 if places == torch.int32 else float("inf"))
            assert not backward(pooled, rois, windows, cells, wild, *rest).any()
            with pytest.raises(RuntimeError, match="features hold 1 image"):
                backward(pooled, rois + 1, windows, cells, kept, *settings, samples, 1, 3, 7, 9)


@each_pool
@pytest.mark.parametrize("index", [-0.5, -0.0, 0.0])
def test_an_empty_batch_has_no_image_for_any_roi(pool: Pool, index: float) -> None:
    rois = torch.tensor([[index, 0.0, 0, 64, 64]])
    for features in (torch.randn(0, 64, 5, 5), torch.randn(0, 64, 5, 5, requires_grad=True)):
        with pytest.raises(
            RuntimeError, match=r"row 0 of rois has batch index .*, but features hold 0 image"
        ):
            pool(features, rois)
        assert len(pool(features, rois[:0])) == 0


def test_the_backward_kernels_refuse_an_empty_batch() -> None:
    rois = torch.tensor([[-0.5, 0, 0, 4, 4]])
    grad, argmax = torch.randn(1, 64, 2, 2), torch.zeros(1, 64, 2, 2, dtype=torch.int32)
    with pytest.raises(RuntimeError, match="features hold 0 image"):
        torch.ops.detector.roi_pool_backward(grad, rois, argmax, 1.0, 0, 0, 5, 5)


@each_pool
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_no_zero_is_negative(pool: Pool, dtype: torch.dtype) -> None:
    """The sign of a zero would otherwise depend on which of equal values is met first."""
    features, rois = sample(83, 40, dtype)
    features = torch.where(features > 0, -0.0, features)
    for pooled in (pool(features, rois), pool(features.clone().requires_grad_(), rois).detach()):
        assert (pooled == 0).any()
        assert not pooled[pooled == 0].signbit().any()


@each_pool
def test_rois_get_no_gradient_and_need_none(pool: Pool) -> None:
    """A learned box may be pooled, from features that learn and from frozen ones."""
    features, rois = sample(3, 4)
    rois.requires_grad_()
    assert not pool(features, rois).requires_grad
    learning = features.clone().requires_grad_()
    (pool(learning, rois).sum() + rois.sum()).backward()
    assert torch.equal(gradient(rois), torch.ones_like(rois))
    expected = features.clone().requires_grad_()
    pool(expected, rois.detach()).sum().backward()
    assert torch.equal(gradient(learning), gradient(expected))


def test_unknown_bins_name_the_right_ones() -> None:
    with pytest.raises(ValueError, match="bins must be one of caffe, exact, partition, not 'Caffe'"):
        roi_pool(*sample(), 2, 1.0, bins="Caffe")


def test_enums_are_read_from_the_library() -> None:
    assert dict(numbers_of("Rule")) == {"caffe": 0, "exact": 1, "partition": 2, "spp": 3, "cells": 4}
    assert dict(numbers_of("Reduction")) == {"max": 0, "avg": 1}
    with pytest.raises(RuntimeError, match="there is no enum Rules"):
        numbers_of("Rules")
