"""Each step of selective search against the slow reference, value by value."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from detector.ops.selective_search_config import COLOR_SPACES, SIMILARITIES
from tests.ops import selective_search_reference as reference

STEPS = torch.ops.detector
SINGLE_CHANNEL = ("h", "intensity", "opencv_h", "opencv_intensity")


def copies(space: str) -> int:
    """How often the reference's repeated channel counts in colour distances; OpenCV's counts once."""
    return 3 if space in ("h", "intensity") else 1


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def scene(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Rectangles of flat, shaded and noisy colour: regions of many sizes, equal weights, equal regions."""
    rng = np.random.default_rng(seed)
    image = np.full((height, width, 3), rng.integers(0, 256, 3), dtype=np.int64)
    for _ in range(8):
        y, x = rng.integers(0, height), rng.integers(0, width)
        part = image[y : y + rng.integers(1, height + 1), x : x + rng.integers(1, width + 1)]
        part[:] = rng.integers(0, 256, 3)
        part += rng.integers(0, 3) * np.arange(part.shape[1])[:, None]
        part += rng.integers(-9, 10, part.shape) * rng.integers(0, 2)
    return np.clip(image, 0, 255).astype(np.uint8)


def planes_of(image: np.ndarray, space: str) -> np.ndarray:
    return STEPS.selective_search_color_planes(torch.from_numpy(image), COLOR_SPACES[space]).numpy()


@pytest.mark.parametrize("space", COLOR_SPACES)
def test_color_spaces_equal_numpy(space: str) -> None:
    corners = np.array(np.meshgrid([0, 1, 127, 254, 255], [0, 128, 255], [0, 64, 255])).T.reshape(1, -1, 3)
    for image in (noise(40, 50), corners.astype(np.uint8), np.full((2, 3, 3), 77, np.uint8)):
        assert np.array_equal(planes_of(image, space), reference.color_planes(image, space))


@pytest.mark.parametrize("space", ["h", "opencv_h", "hsv"])
def test_every_hue_is_rounded_exactly(space: str) -> None:
    """All triples of a coarse grid, which hold every order of the channels and ties among them."""
    grid = np.stack(np.meshgrid(*[np.arange(0, 256, 15, dtype=np.uint8)] * 3), axis=-1).reshape(18, -1, 3)
    assert np.array_equal(planes_of(grid, space), reference.color_planes(grid, space))


def test_known_colors() -> None:
    """White, red and mid grey in the ICC encoding and on the whole hue circle."""
    image = np.array([[[255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255]]], dtype=np.uint8)
    assert planes_of(image, "lab")[:, 0, 0].tolist() == [255, 128, 128]
    assert planes_of(image, "hsv")[0, 0].tolist() == [0, 0, 85, 170]
    assert planes_of(image, "opencv_hsv")[0, 0].tolist() == [0, 0, 60, 120]


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 2), (5, 13), (37, 29), (70, 33)])
def test_texture_equals_numpy(size: tuple[int, int]) -> None:
    for image in (noise(*size)[..., 0], scene(*size)[..., 1]):
        bins = STEPS.selective_search_texture(torch.from_numpy(image.copy())).numpy().astype(int) - 9
        halves = np.stack([np.maximum(bins, 0), np.maximum(-bins, 0)], axis=1).reshape(8, *size)
        assert np.array_equal(np.moveaxis(halves, 0, 2), reference.texture_bins(image))


def test_texture_has_no_gradient_on_a_constant_and_the_full_one_on_a_step() -> None:
    step = np.zeros((20, 20), np.uint8)
    assert (STEPS.selective_search_texture(torch.from_numpy(step)) == 9).all()
    step[:, 10:] = 255
    bins = STEPS.selective_search_texture(torch.from_numpy(step)).numpy().astype(int) - 9
    assert bins[:, 10, 9].tolist() == [9, 0, 5, 5]  # the axis' largest response; 0.26 along the diagonals
    assert (bins[:, :, :4] == 0).all()


@pytest.mark.parametrize("space", ["hsv", "lab", "rgi", "h", "intensity", "rgb", "opencv_h"])
@pytest.mark.parametrize(
    ("k", "min_size", "sigma"), [(50.0, 20, 0.8), (300.0, 0, 0.8), (10.0, 5, 0.0), (0.0, 1, 2.5)]
)
def test_segmentation_equals_the_plain_one(space: str, k: float, min_size: int, sigma: float) -> None:
    for image in (scene(17, 23, seed=1), noise(11, 13, seed=2)):
        planes = reference.color_planes(image, space)
        for connectivity in (4, 8):
            labels = STEPS.selective_search_segment(
                torch.from_numpy(image), COLOR_SPACES[space], sigma, k, min_size, connectivity
            )
            expected = reference.segment(planes, copies(space), sigma, k, min_size, connectivity)
            assert np.array_equal(labels.numpy(), expected)


def test_four_connected_pixels_meet_at_their_sides_alone() -> None:
    """A checkerboard unsmoothed: with 8 its colours are one region each, with 4 every pixel is one."""
    board = (255 * (np.indices((6, 7)).sum(axis=0) % 2)).astype(np.uint8)
    image = torch.from_numpy(board[..., None].repeat(3, axis=2))
    regions = {
        connectivity: int(
            STEPS.selective_search_segment(image, COLOR_SPACES["rgb"], 0.0, 1.0, 1, connectivity).max() + 1
        )
        for connectivity in (4, 8)
    }
    assert regions == {4: 42, 8: 2}


@pytest.mark.parametrize("seed", range(4))
def test_segmentation_of_larger_images_equals_the_plain_one(seed: int) -> None:
    """Enough edges for every branch of the sort: small, large and constant buckets."""
    image = scene(60, 50, seed) if seed % 2 else noise(45, 55, seed) // (1 + seed)
    labels = STEPS.selective_search_segment(
        torch.from_numpy(image), COLOR_SPACES["rgb"], 0.8, 60.0, 30
    ).numpy()
    assert np.array_equal(labels, reference.segment(np.moveaxis(image, 2, 0), 1, 0.8, 60.0, 30))


def hierarchy(
    image: np.ndarray,
    space: str,
    k: float,
    name: str,
    all_channels: bool,
    thirds: bool,
    connectivity: int = 8,
    diagonal: bool = False,
    sigma: float = 0.8,
) -> list:
    boxes, priorities = STEPS.selective_search_hierarchies(
        torch.from_numpy(image),
        color_spaces=[COLOR_SPACES[space]],
        scales=[k],
        min_sizes=[8],
        similarities=[SIMILARITIES[name]],
        sigma=sigma,
        connectivity=connectivity,
        diagonal_neighbours=diagonal,
        all_texture_channels=all_channels,
        pixels_per_size=3.0 if thirds else 1.0,
        num_threads=1,
    )
    return [(tuple(map(int, box)), p) for box, p in zip(boxes.tolist(), priorities.tolist(), strict=True)]


@pytest.mark.parametrize("name", SIMILARITIES)
@pytest.mark.parametrize("thirds", [True, False])
@pytest.mark.parametrize(("space", "all_channels"), [("hsv", False), ("lab", True), ("intensity", False)])
def test_grouping_equals_the_slow_one(name: str, thirds: bool, space: str, all_channels: bool) -> None:
    for seed, image in enumerate((scene(30, 40, seed=3), noise(24, 20, seed=4))):
        planes = reference.color_planes(image, space)
        labels = reference.segment(planes, copies(space), 0.8, 40.0 * 2**seed, 8)
        count = int(labels.max()) + 1
        assert count > 4
        found = hierarchy(image, space, 40.0 * 2**seed, name, all_channels, thirds)
        pixels_per_size = 3.0 if thirds else 1.0
        assert found[: count - 1] == reference.group(labels, planes, all_channels, name, pixels_per_size)
        regions = [reference.Region(labels == i, planes, []) for i in range(count)]
        assert found[count - 1 :] == [(region.box, count) for region in regions]


@pytest.mark.parametrize("name", SIMILARITIES)
def test_grouping_with_opencv_graph_and_neighbours_equals_the_slow_one(name: str) -> None:
    image = scene(30, 40, seed=3)
    planes = reference.color_planes(image, "rgb")
    labels = reference.segment(planes, 1, 0.8, 20.0, 8, connectivity=4)
    found = hierarchy(image, "rgb", 20.0, name, True, False, connectivity=4, diagonal=True)
    expected = reference.group(labels, planes, True, name, 1.0, diagonal=True)
    assert len(expected) == labels.max() > 4
    assert found[: len(expected)] == expected


def test_diagonal_neighbours_merge_across_a_corner() -> None:
    """Equal squares merge first with the switch, and only then; on the other diagonal they never do."""
    for flip in (False, True):
        values = np.array([[0, 120], [255, 0]], dtype=np.uint8)[:, :: -1 if flip else 1]
        image = np.repeat(np.kron(values, np.ones((12, 12), np.uint8))[..., None], 3, axis=2)
        first = {
            diagonal: hierarchy(
                image, "rgb", 20.0, "color_texture_size_fill", True, False, 4, diagonal, sigma=0.0
            )[0][0]
            for diagonal in (False, True)
        }
        assert first[False] != (0, 0, 24, 24)
        assert (first[True] == (0, 0, 24, 24)) == (not flip)


def test_of_equal_similarities_the_newest_wins() -> None:
    """Nine equal squares: every choice is a tie at first, and the order of merges shows the rule."""
    values = np.array([[0, 255, 0], [255, 0, 255], [0, 255, 0]], dtype=np.uint8)
    image = np.repeat(np.kron(values, np.ones((12, 12), np.uint8))[..., None], 3, axis=2)
    planes = reference.color_planes(image, "rgb")
    labels = reference.segment(planes, 1, 0.8, 20.0, 8)
    expected = reference.group(labels, planes, False, "size", 1.0)
    assert hierarchy(image, "rgb", 20.0, "size", False, thirds=False)[: len(expected)] == expected


@pytest.mark.parametrize(
    ("size", "to"), [((9, 7), (9, 7)), ((40, 30), (13, 10)), ((5, 6), (11, 9)), ((1, 8), (1, 3))]
)
def test_resize_keeps_constants_and_matches_the_kernel(size: tuple[int, int], to: tuple[int, int]) -> None:
    image = noise(*size)
    found = STEPS.selective_search_resize(torch.from_numpy(image), *to).numpy().astype(float)
    expected = image.astype(float)
    for axis in (0, 1):
        expected = np.moveaxis(bicubic(np.moveaxis(expected, axis, 0), to[axis]), 0, axis)
    assert np.abs(found - np.clip(expected, 0, 255)).max() <= 0.5 + 1e-3
    flat = torch.full((*size, 3), 113, dtype=torch.uint8)
    assert (STEPS.selective_search_resize(flat, *to) == 113).all()


def bicubic(signal: np.ndarray, count: int) -> np.ndarray:
    """Shrink or stretch axis 0 by the widened bicubic kernel, mirrored at the borders."""
    size = len(signal)
    stretch = max(1.0, size / count)
    place = (np.arange(count) + 0.5) * size / count - 0.5
    source = np.arange(-6 * size, 7 * size)
    t = np.abs(source[None] - place[:, None]) / stretch
    near, far = 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    weights = np.where(t <= 1, near, np.where(t < 2, far, 0))
    weights /= weights.sum(axis=1, keepdims=True)
    mirrored = np.where(source % (2 * size) < size, source % (2 * size), 2 * size - 1 - source % (2 * size))
    return np.tensordot(weights, signal[mirrored], axes=1)
