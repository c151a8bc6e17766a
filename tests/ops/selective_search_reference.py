"""Selective search written in the slow, obvious way from the definitions: the tests' oracle.

Nothing here is shared with the native code: numpy, Python numbers and plain loops.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

# ---------------------------------------------------------------------------------------- colour spaces


def _to_byte(values: np.ndarray) -> np.ndarray:
    return np.floor(np.clip(values, 0, 255) + 0.5).astype(np.uint8)


def _hue(rgb: np.ndarray, steps: int) -> np.ndarray:
    """Hue in exact fractions of a turn times ``steps``, rounded half up."""
    out = np.zeros(rgb.shape[:2], dtype=np.uint8)
    for y, x in np.ndindex(*rgb.shape[:2]):
        r, g, b = (int(v) for v in rgb[y, x])
        high, low = max(r, g, b), min(r, g, b)
        if high == low:
            continue
        if high == r:
            turn = Fraction(g - b, high - low)
        elif high == g:
            turn = Fraction(b - r, high - low) + 2
        else:
            turn = Fraction(r - g, high - low) + 4
        out[y, x] = math.floor(turn / 6 % 1 * steps + Fraction(1, 2)) % (180 if steps == 180 else 256)
    return out


def _saturation(rgb: np.ndarray) -> np.ndarray:
    high, low = rgb.max(axis=2).astype(int), rgb.min(axis=2).astype(int)
    return ((2 * 255 * (high - low) + np.maximum(high, 1)) // (2 * np.maximum(high, 1))).astype(np.uint8)


def _grey(rgb: np.ndarray) -> np.ndarray:
    inverse_yiq = np.linalg.inv([[1.0, 0.956, 0.621], [1.0, -0.272, -0.647], [1.0, -1.106, 1.703]])
    return _to_byte(rgb.astype(float) @ inverse_yiq[0])


def _lab(rgb: np.ndarray, matrix: np.ndarray, white: np.ndarray) -> np.ndarray:
    unit = rgb / 255.0
    linear = np.where(unit <= 0.04045, unit / 12.92, ((unit + 0.055) / 1.055) ** 2.4)
    t = linear @ matrix.T / white
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t * (29 / 6) ** 2 / 3 + 4 / 29)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    lightness, a, b = 116 * y - 16, 500 * (x - y), 200 * (y - z)
    return np.stack([_to_byte(lightness * 2.55), _to_byte(a + 128), _to_byte(b + 128)])


SRGB_TO_XYZ_D50 = np.array(
    [
        [0.4360747, 0.3850649, 0.1430804],
        [0.2225045, 0.7168786, 0.0606169],
        [0.0139322, 0.0971045, 0.7141733],
    ]
)
SRGB_TO_XYZ_D65 = np.array(
    [[0.412453, 0.357580, 0.180423], [0.212671, 0.715160, 0.072169], [0.019334, 0.119193, 0.950227]]
)


def _stretched_share(rgb: np.ndarray, channel: int) -> np.ndarray:
    total = rgb.astype(int).sum(axis=2)
    share = np.where(total > 0, rgb[..., channel] / np.maximum(total, 1), 1 / 3)
    spread = share.max() - share.min()
    return _to_byte((share - share.min()) / (spread if spread > 0 else 1) * 255)


def color_planes(rgb: np.ndarray, space: str) -> np.ndarray:
    """Return (C, H, W) uint8; C is 1 for the spaces that repeat one channel."""
    steps = 180 if space.startswith("opencv") else 255
    match space.removeprefix("opencv_"):
        case "hsv":
            return np.stack([_hue(rgb, steps), _saturation(rgb), rgb.max(axis=2)])
        case "h":
            return _hue(rgb, steps)[None]
        case "intensity":
            return _grey(rgb)[None]
        case "lab" if space == "lab":
            return _lab(rgb, SRGB_TO_XYZ_D50, np.array([0.96422, 1.0, 0.82521]))
        case "lab":
            return _lab(rgb, SRGB_TO_XYZ_D65, np.array([0.950456, 1.0, 1.088754]))
        case "rgi" if space == "rgi":
            return np.stack([_stretched_share(rgb, 0), _stretched_share(rgb, 1), _grey(rgb)])
        case "rgi":
            return np.stack([rgb[..., 0], rgb[..., 1], _grey(rgb)])
        case "rgb":
            return np.moveaxis(rgb, 2, 0)
    raise AssertionError(space)


# ----------------------------------------------------------------------------------------- segmentation


def smooth(plane: np.ndarray, sigma: float) -> np.ndarray:
    """Felzenszwalb's Gaussian in float32: rows, then columns, from the centre outwards, borders clamped."""
    clamped = max(np.float32(sigma), np.float32(0.01))
    count = int(np.ceil(clamped * np.float32(4))) + 1
    ratio = (np.arange(count, dtype=np.float32) / clamped).astype(np.float64)
    taps = np.exp(np.maximum(-0.5 * (ratio.astype(np.float32) ** 2).astype(np.float64), -700))
    taps = taps.astype(np.float32)
    total = np.float32(0)
    for tap in taps[1:]:
        total += tap
    taps = taps / (np.float32(2) * total + taps[0])
    out = plane.astype(np.float32)
    for axis in (1, 0):
        last = out.shape[axis] - 1
        place = np.arange(last + 1)
        result = taps[0] * out
        for i in range(1, count):
            before = np.take(out, np.maximum(place - i, 0), axis=axis)
            after = np.take(out, np.minimum(place + i, last), axis=axis)
            result = result + taps[i] * (before + after)
        out = result
    return out


def segment(
    planes: np.ndarray, copies: int, sigma: float, k: float, min_size: int, connectivity: int = 8
) -> np.ndarray:
    """Return labels (H, W), 0..n-1 by first appearance. ``copies``: how often a plane counts in distances."""
    steps = ((1, 0), (0, 1), (1, 1), (1, -1))[: connectivity // 2]
    smoothed = [smooth(plane, sigma) for plane in planes]
    height, width = planes.shape[1:]
    edges = []
    for y in range(height):
        for x in range(width):
            for dx, dy in steps:
                if x + dx < width and 0 <= y + dy < height:
                    total = np.float32(0)
                    for plane in smoothed * copies:
                        difference = plane[y, x] - plane[y + dy, x + dx]
                        total = np.float32(total + difference * difference)
                    edges.append((np.sqrt(total), y * width + x, (y + dy) * width + x + dx))
    edges.sort(key=lambda edge: edge[0])  # stable: equal weights stay in raster order

    component = list(range(height * width))
    members = {i: [i] for i in component}
    threshold = dict.fromkeys(component, np.float32(k))

    def join(a: int, b: int) -> int:
        if len(members[a]) < len(members[b]):
            a, b = b, a
        for pixel in members[b]:
            component[pixel] = a
        members[a] += members.pop(b)
        return a

    for weight, first, second in edges:
        a, b = component[first], component[second]
        if a != b and weight <= threshold[a] and weight <= threshold[b]:
            joined = join(a, b)
            threshold[joined] = weight + np.float32(k) / np.float32(len(members[joined]))
    for _, first, second in edges:
        a, b = component[first], component[second]
        if a != b and min(len(members[a]), len(members[b])) < min_size:
            join(a, b)

    number: dict[int, int] = {}
    labels = [number.setdefault(root, len(number)) for root in component]
    return np.array(labels, dtype=np.int32).reshape(height, width)


# ---------------------------------------------------------------------------------------------- texture


def recursive_gaussian(signal: np.ndarray, sigma: float) -> np.ndarray:
    """Young and van Vliet's filter along axis 0, on a signal whose ends go on for a long way."""
    q = -0.2568 + 0.5784 * sigma + 0.0561 * sigma**2
    m0, m1, m2 = 1.16680, 1.10783, 1.40586
    scale = (m0 + q) * (m1**2 + m2**2 + 2 * m1 * q + q**2)
    a = (
        q * (2 * m0 * m1 + m1**2 + m2**2 + (2 * m0 + 4 * m1) * q + 3 * q**2) / scale,
        -(q**2) * (m0 + 2 * m1 + 3 * q) / scale,
        q**3 / scale,
    )
    far = 60
    pad = ((far, far), *((0, 0),) * (signal.ndim - 1))
    out = np.pad(signal.astype(float), pad, mode="edge")
    for _ in range(2):  # causal, then the same from the other end
        out = out.copy()
        start = out[0] / (1 - sum(a))
        for n in range(len(out)):
            for i, weight in enumerate(a, start=1):
                out[n] += weight * (out[n - i] if n >= i else start)
        out = (out * (1 - sum(a)))[::-1]
    return out[far:-far]


def _along(plane: np.ndarray, taps: np.ndarray, axis: int) -> np.ndarray:
    radius = len(taps) // 2
    padded = np.pad(plane, radius, mode="edge")
    out = np.zeros_like(plane)
    for y, x in np.ndindex(*plane.shape):
        column, row = padded[y : y + len(taps), x + radius], padded[y + radius, x : x + len(taps)]
        out[y, x] = np.dot(column if axis == 0 else row, taps)
    return out


def gradient_maps(channel: np.ndarray, sigma: float = 0.8) -> list[np.ndarray]:
    """Return the x, y, 45 and 135 degree responses (H, W) of a uint8 channel."""
    unit = channel / 255.0
    place = np.arange(-4, 5)
    gaussian = np.exp(-0.5 * (place / sigma) ** 2)
    gaussian /= gaussian.sum()
    derivative = place * gaussian / sigma**2
    gx = _along(_along(unit, gaussian, 0), derivative, 1)
    gy = _along(_along(unit, gaussian, 1), derivative, 0)
    smoothed = recursive_gaussian(recursive_gaussian(unit, sigma).T, sigma).T
    padded = np.pad(smoothed, 1, mode="edge")
    dx = (padded[1:-1, 2:] - padded[1:-1, :-2]) / 2
    dy = (padded[2:, 1:-1] - padded[:-2, 1:-1]) / 2
    return [gx, gy, (dx - dy) / math.sqrt(2), (dx + dy) / math.sqrt(2)]


def texture_bins(channel: np.ndarray) -> np.ndarray:
    """Return (H, W, 8) bins 0..9: each response's rising part, then its falling part."""
    halves = [np.maximum(sign * g, 0) for g in gradient_maps(channel) for sign in (1, -1)]
    return np.stack([np.minimum(np.floor(h * 9 / 0.43 + 0.5), 9).astype(int) for h in halves], axis=2)


# --------------------------------------------------------------------------------------------- grouping


class Region:
    """Pixels of one region and what follows from them."""

    def __init__(self, mask: np.ndarray, planes: np.ndarray, textures: list[np.ndarray]) -> None:
        self.mask = mask
        self.size = int(mask.sum())
        rows, columns = np.nonzero(mask)
        self.box = (int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1)
        self.color = [
            np.bincount(np.floor(24.0 * plane[mask] / 255 + 0.5).astype(int), minlength=25)
            for plane in planes
        ]
        self.texture = [
            np.bincount(bins[mask][:, m], minlength=10) for bins in textures for m in range(bins.shape[2])
        ]


def _intersection(first: list[np.ndarray], second: list[np.ndarray], size_a: int, size_b: int) -> float:
    """Intersection of two histograms, each normalised to sum 1 over all its maps; exact, then rounded."""
    shared = sum(
        min(int(a) * size_b, int(b) * size_a)
        for left, right in zip(first, second, strict=True)
        for a, b in zip(left, right, strict=True)
    )
    return shared / (size_a * size_b * len(first))


def similarity(a: Region, b: Region, name: str, pixels: int, pixels_per_size: float) -> float:
    if name == "size":
        return (pixels - a.size / pixels_per_size - b.size / pixels_per_size) / pixels
    width = max(a.box[2], b.box[2]) - min(a.box[0], b.box[0])
    height = max(a.box[3], b.box[3]) - min(a.box[1], b.box[1])
    fill = 1 - (width * height - a.size / pixels_per_size - b.size / pixels_per_size) / pixels
    if name == "fill":
        return fill
    size = similarity(a, b, "size", pixels, pixels_per_size)
    texture = _intersection(a.texture, b.texture, a.size, b.size)
    if name == "texture_size_fill":
        return (texture + size + fill) / 3
    return (_intersection(a.color, b.color, a.size, b.size) + texture + size + fill) / 4


def _neighbours(labels: np.ndarray, diagonal: bool = False) -> list[tuple[int, int]]:
    across = zip(labels[:, :-1].ravel(), labels[:, 1:].ravel(), strict=True)
    down = zip(labels[:-1].ravel(), labels[1:].ravel(), strict=True)
    corners = zip(labels[:-1, :-1].ravel(), labels[1:, 1:].ravel(), strict=True) if diagonal else ()
    pairs = {(min(a, b), max(a, b)) for a, b in [*across, *down, *corners] if a != b}
    return sorted((int(a), int(b)) for a, b in pairs)


def group(
    labels: np.ndarray,
    planes: np.ndarray,
    all_channels: bool,
    name: str,
    pixels_per_size: float,
    diagonal: bool = False,
) -> list[tuple[tuple[int, ...], int]]:
    """Return (box, priority) of the merged regions, first merge first.

    The release's loop: a list of similarities, stably sorted before every merge, whose last is taken.
    """
    textured = planes if all_channels else planes[:1]
    textures = [texture_bins(plane) for plane in textured]
    count, pixels = int(labels.max()) + 1, labels.size
    regions = {i: Region(labels == i, planes, textures) for i in range(count)}

    def compare(a: int, b: int) -> float:
        return similarity(regions[a], regions[b], name, pixels, pixels_per_size)

    edges = [(compare(a, b), a, b) for a, b in _neighbours(labels, diagonal)]
    boxes: list[tuple[tuple[int, ...], int]] = []
    for merged in range(count, 2 * count - 1):
        edges.sort(key=lambda edge: edge[0])
        _, a, b = edges[-1]
        regions[merged] = Region(regions[a].mask | regions[b].mask, planes, textures)
        boxes.append((regions[merged].box, 2 * count - 1 - merged))
        touching = {i for edge in edges if {a, b} & {*edge[1:]} for i in edge[1:]} - {a, b}
        edges = [edge for edge in edges if not {a, b} & {*edge[1:]}]
        edges += [(compare(i, merged), i, merged) for i in sorted(touching)]
    return boxes
