"""Selective search (Uijlings et al., IJCV 2013) in numpy and OpenCV: python selective_search.py IMAGE

It prints boxes as JSON. The steps are those of the project region-detector, written short: the boxes are
similar to that project's, not the same, and take some seconds. Images are searched at about 40,000 pixels.
With the package region-detector, ``detector.ops.selective_search.selective_search`` gives its own boxes.
"""

from __future__ import annotations

import json
import sys

import cv2
import numpy as np

PIXELS = 40_000  # of the searched image
SCALES = (50, 100)  # thresholds k of the segmentation
SMALLEST = 8  # sides of boxes in pixels of the searched image


def segments(planes: np.ndarray, k: float) -> np.ndarray:
    """Return labels (h, w), 0..n-1: Felzenszwalb and Huttenlocher's segmentation (IJCV 2004)."""
    h, w = planes.shape[:2]
    smooth, numbers = cv2.GaussianBlur(planes.astype(np.float32), (0, 0), 0.8), np.arange(h * w).reshape(h, w)
    shifts = [((0, h), (0, w - 1), (0, h), (1, w)), ((0, h - 1), (0, w), (1, h), (0, w))]
    shifts += [((0, h - 1), (0, w - 1), (1, h), (1, w)), ((1, h), (0, w - 1), (0, h - 1), (1, w))]
    found = []
    for (a, b), (c, d), (e, f), (g, i) in shifts:
        weight = np.linalg.norm(smooth[a:b, c:d] - smooth[e:f, g:i], axis=2)
        found.append(np.stack([weight.ravel(), numbers[a:b, c:d].ravel(), numbers[e:f, g:i].ravel()], axis=1))
    edges = np.concatenate(found)
    edges = edges[np.argsort(edges[:, 0], kind="stable")]
    columns = (edges[:, 0].tolist(), edges[:, 1].astype(int).tolist(), edges[:, 2].astype(int).tolist())
    pairs = list(zip(*columns, strict=True))
    parent, size, limit = list(range(h * w)), [1] * (h * w), [float(k)] * (h * w)

    def root(place: int) -> int:
        while parent[place] != place:
            parent[place] = place = parent[parent[place]]
        return place

    for least in (0, k):  # join what is similar, then what is small
        for weight, a, b in pairs:
            a, b = root(a), root(b)
            if a != b and (min(size[a], size[b]) < least if least else weight <= min(limit[a], limit[b])):
                parent[b], size[a] = a, size[a] + size[b]
                limit[a] = weight + k / size[a]
    roots = np.array([root(place) for place in range(h * w)])
    return np.unique(roots, return_inverse=True)[1].reshape(h, w)


def histograms(labels: np.ndarray, channels: list[np.ndarray], bins: int) -> np.ndarray:
    """Return (n, channels * bins): how often each region has each value of each channel, as shares."""
    count, columns = labels.max() + 1, []
    for channel in channels:
        at = labels.ravel() * bins + np.clip(channel.ravel().astype(int) * bins // 256, 0, bins - 1)
        columns.append(np.bincount(at, minlength=count * bins).reshape(count, bins))
    return np.concatenate(columns, axis=1) / np.bincount(labels.ravel())[:, None] / len(channels)


def merged(labels: np.ndarray, planes: np.ndarray, use_color: bool) -> list[list[int]]:
    """Return the boxes (m, 4) of all regions that occur while the most similar neighbours are merged."""
    gray = planes[:, :, 0].astype(np.float32)
    slopes = [cv2.Sobel(gray, cv2.CV_32F, x, y) for x, y in ((1, 0), (0, 1))]
    texture = histograms(labels, [np.abs(g) for g in slopes] + [np.maximum(g, 0) for g in slopes], 16)
    color = histograms(labels, [planes[:, :, c] for c in range(3)], 25)
    count, pixels = labels.max() + 1, labels.size
    places = np.indices(labels.shape)
    rows, columns = places[0], places[1]
    boxes: list[list[int]] = [
        [int(n) for n in (columns[m].min(), rows[m].min(), columns[m].max() + 1, rows[m].max() + 1)]
        for m in (labels == n for n in range(count))
    ]
    sizes, colors, textures = list(np.bincount(labels.ravel())), list(color), list(texture)

    def joined(a: int, b: int) -> list[int]:
        first, second = boxes[a], boxes[b]
        return [min(first[n], second[n]) if n < 2 else max(first[n], second[n]) for n in range(4)]

    def similar(a: int, b: int) -> float:
        x1, y1, x2, y2 = joined(a, b)
        found: float = np.minimum(textures[a], textures[b]).sum() + 1 - (sizes[a] + sizes[b]) / pixels
        found += 1 - ((x2 - x1) * (y2 - y1) - sizes[a] - sizes[b]) / pixels
        return found + np.minimum(colors[a], colors[b]).sum() if use_color else found

    across = zip(labels[:, :-1].ravel().tolist(), labels[:, 1:].ravel().tolist(), strict=True)
    down = zip(labels[:-1].ravel().tolist(), labels[1:].ravel().tolist(), strict=True)
    pairs = {(min(a, b), max(a, b)) for a, b in (*across, *down) if a != b}
    edges = {pair: similar(*pair) for pair in sorted(pairs)}
    while edges:
        a, b = max(edges, key=lambda pair: edges[pair])
        share = sizes[a] / (sizes[a] + sizes[b])
        boxes.append(joined(a, b))
        for values in (colors, textures):
            values.append(share * values[a] + (1 - share) * values[b])
        sizes.append(sizes[a] + sizes[b])
        near = {n for pair in edges if a in pair or b in pair for n in pair} - {a, b}
        edges = {pair: value for pair, value in edges.items() if a not in pair and b not in pair}
        edges.update({(n, len(boxes) - 1): similar(n, len(boxes) - 1) for n in sorted(near)})
    return boxes[::-1]  # the largest regions first


def propose(path: str, limit: int = 2000) -> np.ndarray:
    """Return boxes (P, 4) float32 of the image file, x1, y1, x2, y2, half-open, in its own pixels."""
    image = cv2.imread(path)
    if image is None:
        sys.exit(f"{path}: not an image that OpenCV can read")
    height, width = image.shape[:2]
    factor = min(1.0, (PIXELS / (height * width)) ** 0.5)
    searched = max(1, round(width * factor)), max(1, round(height * factor))
    small = cv2.resize(image, searched, interpolation=cv2.INTER_AREA)
    runs: list[list[list[int]]] = []
    for code in (cv2.COLOR_BGR2HSV, cv2.COLOR_BGR2LAB):
        planes = cv2.cvtColor(small, code)
        for k in SCALES:
            labels = segments(planes, k)
            runs += [merged(labels, planes, use_color) for use_color in (True, False)]
    order = [run[place] for place in range(max(map(len, runs))) for run in runs if place < len(run)]
    boxes = np.array(list(dict.fromkeys(map(tuple, order))), np.float64)
    boxes = boxes[(boxes[:, 2:] - boxes[:, :2]).min(axis=1) >= min(SMALLEST, *small.shape[:2])][:limit]
    scale = np.array([width, height] * 2) / np.array([small.shape[1], small.shape[0]] * 2)
    return np.minimum(boxes * scale, [width, height] * 2).astype(np.float32)


if __name__ == "__main__":
    print(json.dumps(propose(sys.argv[1]).tolist()))
