"""The overlaps of all stored proposals of a data set with its objects, many images per native call."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detector.core.records import Objects, Records, kept_offsets
from detector.proposals.filtering import Limits
from detector.proposals.store import ProposalStore


class BulkObjects(NamedTuple):
    """Some of the objects of N images, image after image; ``rows`` (G,) are their numbers among all objects.

    Those of image i are the rows ``offsets[i]`` to ``offsets[i + 1]`` of ``boxes`` (G, 4).
    """

    boxes: NDArray[np.float32]
    offsets: NDArray[np.int64]
    rows: NDArray[np.int64]

    @classmethod
    def select(cls, objects: Objects, keep: NDArray[np.bool_]) -> BulkObjects:
        """Return the objects that the mask ``keep`` selects, image after image."""
        rows = np.flatnonzero(keep)
        return cls(np.asarray(objects.boxes)[rows], kept_offsets(objects.offsets, keep), rows)

    def part(self, images: slice) -> tuple[Tensor, Tensor]:
        """Return the boxes (g, 4) and the offsets (n + 1,) of some images."""
        offsets = self.offsets[images.start : images.stop + 1]
        boxes = self.boxes[offsets[0] : offsets[-1]]
        return torch.from_numpy(boxes), torch.from_numpy(offsets - offsets[0])


class BestOverlaps(NamedTuple):
    """``best`` (G, len(counts)) float32 of each object, and the number of proposals (N,) of each image."""

    best: NDArray[np.float32]
    held: NDArray[np.int64]


class Match(NamedTuple):
    """R boxes of some images (R, 4), and for each the row (R,) of the object that it overlaps most."""

    boxes: Tensor
    rows: Tensor


def best_overlaps_of_all(
    store: ProposalStore,
    records: Records,
    objects: BulkObjects,
    counts: Sequence[int],
    limits: Limits | None,
    progress: Callable[[int], None] = lambda _done: None,
) -> BestOverlaps:
    """Return the highest IoU of each object with any of the first ``counts[j]`` proposals of its image.

    The proposals are filtered by ``limits``, or used as they are stored where that is None. Images without an
    entry have none. ``counts`` must rise. Raises `DamagedStore`.
    """
    from detector.ops import proposals as native

    min_size, top_k = (None, None) if limits is None else (limits.min_size, limits.top_k)
    best = np.empty((len(objects.boxes), len(counts)), np.float32)
    held = np.empty(len(records), np.int64)

    def visit(part: slice, places: Tensor) -> tuple[Tensor, None]:
        boxes, offsets = objects.part(part)
        found, numbers = native.best_overlaps(
            places, _sizes(records, part), boxes, offsets, counts, min_size, top_k
        )
        best[objects.offsets[part.start] : objects.offsets[part.stop]] = found.numpy()
        held[part] = numbers.numpy()
        return numbers, None

    for _ in store.scan(records.keys, visit, progress):
        pass
    return BestOverlaps(best, held)


def matches_of_all(
    store: ProposalStore,
    records: Records,
    objects: BulkObjects,
    threshold: float,
    limits: Limits,
    *,
    full_image: bool = False,
) -> Iterator[Match]:
    """Yield all boxes whose best IoU with an object of their image is ``threshold`` or more, part by part.

    The boxes of an image are its objects, then its proposals, filtered by ``limits``. With ``full_image`` an
    image without an entry has one proposal, the whole image. Raises `DamagedStore`.
    """
    from detector.ops import proposals as native

    def visit(part: slice, places: Tensor) -> tuple[Tensor, Match]:
        boxes, offsets = objects.part(part)
        found, rows, numbers = native.matched_proposals(
            places,
            _sizes(records, part),
            boxes,
            offsets,
            threshold,
            limits.min_size,
            limits.top_k,
            full_image,
        )
        return numbers, Match(found, rows + int(objects.offsets[part.start]))

    return store.scan(records.keys, visit)


def content_digest(store: ProposalStore, records: Records) -> str:
    """Return a hash of what overlaps depend on: keys, sizes and objects of the records, their proposals."""
    digest = hashlib.blake2b(store.digest(records.keys).encode(), digest_size=16)
    keys, objects = records.keys, records.objects
    columns: list[NDArray[Any]] = [keys.content, keys.ends, records.sizes, objects.offsets, objects.boxes]
    columns += [objects.labels, objects.difficult, objects.crowd]
    for column in columns:
        digest.update(f"{column.dtype} {column.shape}".encode())
        digest.update(np.ascontiguousarray(column).data)
    return digest.hexdigest()


def _sizes(records: Records, part: slice) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(records.sizes[part], np.int32))
