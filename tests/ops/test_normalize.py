"""The operator on images against a reference in plain torch, bit for bit, and against the formula."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from detector.core.structures import Normalization
from detector.ops import normalization_table, normalize_images
from tests.emulator.compare import same

SETTINGS = {
    "torchvision": Normalization(
        mean=(0.485, 0.456, 0.406), deviation=(0.229, 0.224, 0.225), maximum=255.0, bgr=False
    ),
    "Caffe": Normalization(
        mean=(102.9801, 115.9465, 122.7717), deviation=(1.0, 1.0, 1.0), maximum=1.0, bgr=True
    ),
    "BGR of [0, 1]": Normalization(
        mean=(0.406, 0.456, 0.485), deviation=(0.225, 0.224, 0.229), maximum=255.0, bgr=True
    ),
    "RGB of 0..255": Normalization(
        mean=(122.7717, 115.9465, 102.9801), deviation=(57.1, 58.3, 59.9), maximum=1.0, bgr=False
    ),
}
each_setting = pytest.mark.parametrize("normalization", SETTINGS.values(), ids=SETTINGS.keys())
Sizes = list[tuple[int, int]]


def reference(images: Tensor, table: Tensor, sizes: Sizes, bgr: bool) -> Tensor:
    """Look up one channel of one image at a time, and only the part that is no padding."""
    count, height, width, _ = images.shape
    inputs = torch.zeros(count, 3, height, width)
    for index, (rows, columns) in enumerate(sizes):
        for channel in range(3):
            source = 2 - channel if bgr else channel
            part = images[index, :rows, :columns, source].long()
            inputs[index, channel, :rows, :columns] = table[channel][part]
    return inputs


def formula(images: Tensor, normalization: Normalization) -> Tensor:
    """Compute (pixel / maximum - mean) / deviation in float32 for every value of whole images."""
    pixels = images.flip(3) if normalization.bgr else images
    pixels = pixels.permute(0, 3, 1, 2).contiguous().float()
    mean = torch.tensor(normalization.mean).view(3, 1, 1)
    return (pixels / normalization.maximum - mean) / torch.tensor(normalization.deviation).view(3, 1, 1)


def random_batch(shape: tuple[int, int, int], seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return images (N, H, W, 3) and a table whose entries all differ."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (*shape, 3), dtype=torch.uint8, generator=generator)
    return images, torch.randn(3, 256, generator=generator)


def whole(images: Tensor) -> Sizes:
    return [(images.shape[1], images.shape[2])] * len(images)


@st.composite
def batches(draw: st.DrawFn) -> tuple[Tensor, Tensor, Sizes, bool]:
    count = draw(st.integers(0, 3))
    height, width = draw(st.integers(0, 9)), draw(st.integers(0, 40))
    images, table = random_batch((count, height, width), draw(st.integers(0, 2**20)))
    size = st.tuples(st.integers(0, height), st.integers(0, width))
    return images, table, draw(st.lists(size, min_size=count, max_size=count)), draw(st.booleans())


@settings(max_examples=200, deadline=None)
@given(batches())
def test_equals_the_reference(batch: tuple[Tensor, Tensor, Sizes, bool]) -> None:
    images, table, sizes, bgr = batch
    inputs = normalize_images(images, table, sizes, bgr=bgr)
    assert inputs.shape == (len(images), 3, *images.shape[1:3])
    assert inputs.dtype == torch.float32
    assert inputs.is_contiguous(memory_format=torch.channels_last) or inputs.numel() == 0
    assert same(inputs, reference(images, table, sizes, bgr))


@each_setting
def test_equals_the_formula(normalization: Normalization) -> None:
    """Every value of a pixel occurs in every channel."""
    ramp = torch.arange(256, dtype=torch.uint8)
    images = torch.stack((ramp, ramp.flip(0), ramp.roll(100)), dim=1).reshape(1, 8, 32, 3)
    images = torch.cat((images, random_batch((1, 8, 32))[0]))
    table = normalization_table(normalization)
    assert table.shape == (3, 256)
    assert table.dtype == torch.float32
    inputs = normalize_images(images, table, whole(images), bgr=normalization.bgr)
    assert same(inputs.contiguous(), formula(images, normalization))


def test_the_padding_is_zero_whatever_lies_there() -> None:
    images, table = random_batch((2, 6, 5))
    inputs = normalize_images(images, table, [(4, 5), (6, 2)], bgr=False)
    images[0, 4:], images[1, :, 2:] = 7, 9
    assert same(inputs, normalize_images(images, table, [(4, 5), (6, 2)], bgr=False))
    padding = torch.cat((inputs[0, :, 4:].flatten(), inputs[1, :, :, 2:].flatten()))
    assert same(padding, torch.zeros_like(padding))


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 7, 1), (3, 1, 5), (0, 4, 4), (2, 0, 4), (2, 4, 0)])
@pytest.mark.parametrize("bgr", [False, True])
def test_small_and_empty_batches(shape: tuple[int, int, int], bgr: bool) -> None:
    images, table = random_batch(shape)
    assert same(
        normalize_images(images, table, whole(images), bgr=bgr),
        reference(images, table, whole(images), bgr),
    )


def test_images_may_begin_anywhere_in_memory() -> None:
    images, table = random_batch((3, 5, 7))
    inputs = normalize_images(images[1:], table, whole(images[1:]), bgr=True)
    assert same(inputs, reference(images[1:], table, whole(images[1:]), True))


@pytest.mark.parametrize("bgr", [False, True])
def test_the_same_bits_at_any_number_of_threads(bgr: bool) -> None:
    """The images have enough pixels for several threads."""
    images, table = random_batch((2, 301, 403))
    sizes = [(301, 370), (287, 403)]
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            results.append(normalize_images(images, table, sizes, bgr=bgr))
    finally:
        torch.set_num_threads(threads)
    expected = reference(images, table, sizes, bgr)
    assert all(same(result, expected) for result in results)


@pytest.mark.parametrize("bgr", [False, True])
def test_opcheck(bgr: bool) -> None:
    images, table = random_batch((2, 4, 5))
    arguments = (images, table, [4, 5, 3, 2], bgr)
    results = torch.library.opcheck(torch.ops.detector.normalize_images.default, arguments)
    assert set(results.values()) == {"SUCCESS"}
    assert len(results) == 4


def test_compiles_once_for_all_sizes() -> None:
    table = random_batch((1, 1, 1))[1]

    def prepare(images: Tensor, height: int) -> Tensor:
        return normalize_images(images, table, [(height, 3), (2, 2)], bgr=True) * 2

    compiled = torch.compile(prepare, fullgraph=True, dynamic=True, backend="aot_eager")
    for height, width in ((4, 6), (9, 8), (5, 7)):
        images = random_batch((2, height, width), width)[0]
        assert same(compiled(images, height - 1), prepare(images, height - 1))


def test_images_have_no_gradient_and_the_error_says_so() -> None:
    images, table = random_batch((1, 2, 2))
    inputs = normalize_images(images, table.requires_grad_(), whole(images), bgr=False)
    with pytest.raises(NotImplementedError, match="no gradient: images and the table are data"):
        inputs.sum().backward()
    assert not normalize_images(images, table.detach(), whole(images), bgr=False).requires_grad


def test_vmap_is_refused_in_words() -> None:
    images, table = random_batch((2, 2, 2))
    with pytest.raises(NotImplementedError, match=r"not work under torch\.func\.vmap; give it all images"):
        torch.func.vmap(lambda one: normalize_images(one[None], table, [(2, 2)], bgr=False))(images)


WRONG: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"images": torch.zeros(1, 4, 5, 3)}, TypeError, r"images must be of type torch\.uint8, not torch\.flo"),
    (
        {"table": torch.zeros(3, 256).double()},
        TypeError,
        r"table must be of type torch\.float32, not torch\.f",
    ),
    (
        {"images": torch.zeros(1, 3, 4, 5, dtype=torch.uint8)},
        ValueError,
        r"\(N, H, W, 3\), not \(1, 3, 4, 5\)",
    ),
    ({"images": torch.zeros(4, 5, 3, dtype=torch.uint8)}, ValueError, r"\(N, H, W, 3\), not \(4, 5, 3\)"),
    (
        {"table": torch.zeros(256, 3)},
        ValueError,
        r"table must have shape \(3, 256\), not \(256, 3\)",
    ),
    (
        {"images": torch.zeros(1, 3, 4, 5, dtype=torch.uint8).permute(0, 2, 3, 1)},
        ValueError,
        r"images must be contiguous; call \.contiguous\(\)",
    ),
    ({"table": torch.zeros(256, 3).t()}, ValueError, "table must be contiguous"),
    ({"table": torch.zeros(3, 256, device="meta")}, ValueError, "images are on cpu but table on meta"),
    ({"sizes": []}, ValueError, "1 images need as many sizes, not 0"),
    ({"sizes": [(5, 5)]}, ValueError, "image 0 has 5 x 5 pixels, but the batch holds 4 x 5 per image"),
    ({"sizes": [(4, 6)]}, ValueError, "image 0 has 4 x 6 pixels"),
    ({"sizes": [(-1, 5)]}, ValueError, "image 0 has -1 x 5 pixels"),
]


@pytest.mark.parametrize(("changed", "error", "message"), WRONG)
def test_wrong_arguments_are_refused(changed: dict[str, Any], error: type[Exception], message: str) -> None:
    images = torch.zeros(1, 4, 5, 3, dtype=torch.uint8)
    arguments = {"images": images, "table": torch.zeros(3, 256), "sizes": [(4, 5)], **changed}
    with pytest.raises(error, match=message):
        normalize_images(**arguments, bgr=False)


def test_the_kernel_checks_for_itself() -> None:
    """Whoever calls the operator itself, without the Python function, reads no memory that is not there."""
    images, table = random_batch((2, 4, 5))
    sizes = [4, 5, 4, 5]
    for arguments, message in (
        ((images[0], table, sizes), r"shape \(N, H, W, 3\)"),
        ((images[..., :2].contiguous(), table, sizes), r"shape \(N, H, W, 3\)"),
        ((images.float(), table, sizes), "contiguous and uint8"),
        ((images[:, :, ::2], table, sizes), "contiguous and uint8"),
        ((images, table[:, :255].contiguous(), sizes), r"shape \(3, 256\)"),
        ((images, table.double(), sizes), "contiguous and float32"),
        ((images, table[:, :1].expand(3, 256), sizes), "contiguous and float32"),
        ((images, table, sizes[:3]), "2 images have 4 heights and widths, not 3"),
        ((images, table, [4, 5, 5, 5]), "size of image 1, 5 x 5, is outside the batch of 4 x 5 pixels"),
        ((images, table, [4, -5, 4, 5]), "size of image 0, 4 x -5, is outside"),
    ):
        with pytest.raises(RuntimeError, match=message):
            torch.ops.detector.normalize_images(*arguments, False)


@pytest.mark.gpu
@pytest.mark.parametrize("bgr", [False, True])
@pytest.mark.parametrize(
    "shape",
    [(2, 600, 1000), (1, 1, 1), (3, 7, 1), (2, 1, 1025), (600, 3, 5), (0, 4, 4), (2, 0, 4), (1, 1333, 801)],
)
def test_cuda_equals_the_cpu(shape: tuple[int, int, int], bgr: bool) -> None:
    images, table = random_batch(shape)
    generator = torch.Generator().manual_seed(1)
    drawn = torch.rand(shape[0], 2, generator=generator).tolist()
    sizes = [(round(y * shape[1]), round(x * shape[2])) for y, x in drawn]
    for chosen in (sizes, whole(images)):
        inputs = normalize_images(images.cuda(), table.cuda(), chosen, bgr=bgr)
        assert inputs.is_cuda
        assert inputs.is_contiguous(memory_format=torch.channels_last) or inputs.numel() == 0
        assert same(inputs.cpu(), normalize_images(images, table, chosen, bgr=bgr))


@pytest.mark.gpu
def test_cuda_images_may_begin_anywhere_in_memory() -> None:
    images, table = random_batch((3, 45, 67))
    inputs = normalize_images(images.cuda()[1:], table.cuda(), whole(images[1:]), bgr=True)
    assert same(inputs.cpu(), reference(images[1:], table, whole(images[1:]), True))


@pytest.mark.gpu
def test_the_host_does_not_wait_for_the_device() -> None:
    images, table = random_batch((2, 60, 80))
    on_device, device_table = images.cuda(), table.cuda()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        inputs = normalize_images(on_device, device_table, [(60, 70), (50, 80)], bgr=True)
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    assert same(inputs.cpu(), reference(images, table, [(60, 70), (50, 80)], True))


@pytest.mark.gpu
def test_opcheck_on_cuda() -> None:
    images, table = random_batch((2, 4, 5))
    arguments = (images.cuda(), table.cuda(), [4, 5, 3, 2], True)
    results = torch.library.opcheck(torch.ops.detector.normalize_images.default, arguments)
    assert set(results.values()) == {"SUCCESS"}
