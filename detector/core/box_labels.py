"""Objects with several labels: they are annotated as several objects with exactly the same box."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from detector.core.records import Objects, ranges


class BoxLabels(NamedTuple):
    """The B different boxes among some objects of N images, and the labels of each, without repetition.

    ``rows`` (B,) are the numbers, among all objects, of the first object with each box, rising. The labels of
    box b, rising, are ``labels[offsets[b] : offsets[b + 1]]``; ``offsets`` is (B + 1,).
    """

    rows: NDArray[np.int64]
    offsets: NDArray[np.int64]
    labels: NDArray[np.int64]

    @property
    def counts(self) -> NDArray[np.int64]:
        """The number of labels (B,) of each box."""
        return np.diff(self.offsets)

    def repeated(self, boxes: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return each of the numbers ``boxes`` (n,) once per label: places (m,) in ``boxes``, and labels.

        So ``boxes`` [1, 0], where box 0 has the labels 4 and 5 and box 1 the label 4, give [0, 1, 1] and
        [4, 4, 5].
        """
        counts = self.counts[boxes]
        places = np.repeat(np.arange(len(boxes)), counts)
        return places, self.labels[ranges(self.offsets[:-1][boxes], counts)]


def labels_of_boxes(objects: Objects, keep: NDArray[np.bool_]) -> BoxLabels:
    """Return the different boxes of the objects that the mask ``keep`` (G,) selects, with their labels.

    Two objects have the same box if they are of one image and all four numbers are equal.
    """
    rows = np.flatnonzero(keep)
    boxes = np.asarray(objects.boxes)[rows] + np.float32(0)  # turns -0 into 0, which has other bits
    left, right = np.ascontiguousarray(boxes).view(np.uint64).reshape(-1, 2).T
    columns = np.stack((objects.image_numbers()[rows].astype(np.uint64), left, right))
    order = np.lexsort(columns[::-1])  # stable: among equal boxes the first object comes first
    new = np.ones(len(rows), bool)
    new[1:] = (np.diff(columns[:, order], axis=1) != 0).any(axis=0)
    first = np.empty(len(rows), np.int64)
    first[order] = order[np.maximum.accumulate(np.where(new, np.arange(len(rows)), 0))]
    is_first = first == np.arange(len(rows))
    place = (np.cumsum(is_first) - 1)[first]
    pairs = np.unique(np.stack((place, np.asarray(objects.labels)[rows])), axis=1)
    counts = np.bincount(pairs[0], minlength=int(is_first.sum()))
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)))
    return BoxLabels(rows[is_first], offsets, pairs[1])
