"""The images of a split as columns: a sequence of `ImageRecord`s that are made only when they are asked for.

A data set of COCO's size has 118,287 images and 860,001 objects. As columns they take tens of megabytes,
which may lie in a memory-mapped file that several processes share; as objects they would take gigabytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray

from detector.core.structures import ImageRecord, Targets

_ENCODING, _ERRORS = "utf-8", "surrogatepass"  # file names may hold what UTF-8 does not


@dataclass(frozen=True, eq=False, slots=True)
class Texts(Sequence[str]):
    """N texts as one block of bytes: text i is ``content[ends[i - 1] : ends[i]]``, in UTF-8.

    ``content`` (B,) is uint8 and ``ends`` (N,) int64; both may be memory-mapped.
    """

    content: NDArray[np.uint8]
    ends: NDArray[np.int64]

    @classmethod
    def of(cls, texts: Iterable[str]) -> Texts:
        encoded = [text.encode(_ENCODING, _ERRORS) for text in texts]
        ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
        return cls(np.frombuffer(b"".join(encoded), np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, at: int) -> str: ...
    @overload
    def __getitem__(self, at: slice) -> list[str]: ...
    def __getitem__(self, at: int | slice) -> str | list[str]:
        if isinstance(at, slice):
            return [self[number] for number in range(len(self))[at]]
        number = range(len(self))[at]
        start = int(self.ends[number - 1]) if number else 0
        return self.content[start : int(self.ends[number])].tobytes().decode(_ENCODING, _ERRORS)

    def __iter__(self) -> Iterator[str]:
        content, start = self.content.tobytes(), 0
        for end in self.ends.tolist():
            yield content[start:end].decode(_ENCODING, _ERRORS)
            start = end

    def take(self, rows: NDArray[np.int64]) -> Texts:
        """Return the texts of ``rows`` (n,), in that order."""
        begins = np.concatenate((np.zeros(1, np.int64), self.ends))[rows]
        lengths = self.ends[rows] - begins
        return Texts(self.content[ranges(begins, lengths)], np.cumsum(lengths, dtype=np.int64))


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Objects:
    """All G objects of N images, image after image: the columns of `Targets`.

    Those of image i are the rows ``offsets[i]`` to ``offsets[i + 1]``; ``offsets`` (N + 1,) is int64.
    ``boxes`` (G, 4) float32 are in original-image pixels, ``labels`` (G,) int64 are 1..K, ``difficult`` and
    ``crowd`` (G,) are bool, ``area`` (G,) float32 is in square pixels. All may be memory-mapped.
    """

    offsets: NDArray[np.int64]
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    difficult: NDArray[np.bool_]
    crowd: NDArray[np.bool_]
    area: NDArray[np.float32]

    @classmethod
    def of(cls, targets: Iterable[Targets]) -> Objects:
        every = [*targets, Targets.empty()]  # the empty one gives the columns their types and shapes
        columns = {
            name: torch.cat([getattr(one, name) for one in every]).numpy()
            for name in ("boxes", "labels", "difficult", "crowd", "area")
        }
        offsets = np.cumsum([0, *map(len, every[:-1])], dtype=np.int64)
        return cls(offsets=offsets, **columns)

    def __len__(self) -> int:
        """Return the number of objects G of all images."""
        return len(self.boxes)

    def image_numbers(self) -> NDArray[np.int64]:
        """Return (G,) the number of each object's image."""
        return image_numbers(self.offsets)

    def targets(self, number: int) -> Targets:
        """Return the objects of one image, as tensors of their own."""
        at = slice(int(self.offsets[number]), int(self.offsets[number + 1]))
        return Targets(
            boxes=torch.from_numpy(np.array(self.boxes[at])),
            labels=torch.from_numpy(np.array(self.labels[at])),
            difficult=torch.from_numpy(np.array(self.difficult[at])),
            crowd=torch.from_numpy(np.array(self.crowd[at])),
            area=torch.from_numpy(np.array(self.area[at])),
        )

    def take(self, rows: NDArray[np.int64]) -> Objects:
        """Return the objects of the images ``rows`` (n,), in that order."""
        offsets, at = rows_of_images(self.offsets, rows)
        return Objects(
            offsets=offsets,
            boxes=self.boxes[at],
            labels=self.labels[at],
            difficult=self.difficult[at],
            crowd=self.crowd[at],
            area=self.area[at],
        )


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Records(Sequence[ImageRecord]):
    """N images as columns; ``records[i]`` is an `ImageRecord`, and a slice is `Records`.

    ``image_ids`` and ``keys`` are those of the records. The file of image i is ``folder / files[i]``.
    ``sizes`` (N, 2) int32 are (height, width) in pixels.
    """

    folder: Path
    files: Texts
    image_ids: Texts
    keys: Texts
    sizes: NDArray[np.int32]
    objects: Objects

    @classmethod
    def of(cls, records: Iterable[ImageRecord]) -> Records:
        """Return the columns of any records, which is what is passed if they are columns already."""
        if isinstance(records, Records):
            return records
        every = list(records)
        return cls(
            folder=Path(),
            files=Texts.of(str(record.path) for record in every),
            image_ids=Texts.of(record.image_id for record in every),
            keys=Texts.of(record.key for record in every),
            sizes=np.array([(one.height, one.width) for one in every], np.int32).reshape(-1, 2),
            objects=Objects.of(record.targets for record in every),
        )

    def __len__(self) -> int:
        return len(self.sizes)

    @overload
    def __getitem__(self, at: int) -> ImageRecord: ...
    @overload
    def __getitem__(self, at: slice) -> Records: ...
    def __getitem__(self, at: int | slice) -> ImageRecord | Records:
        if isinstance(at, slice):
            rows = np.arange(len(self))[at]
            return self if len(rows) == len(self) and at.step in (None, 1) else self.take(rows)
        number = range(len(self))[at]
        height, width = self.sizes[number].tolist()
        return ImageRecord(
            image_id=self.image_ids[number],
            path=self.folder / self.files[number],
            height=height,
            width=width,
            targets=self.objects.targets(number),
            key=self.keys[number],
        )

    def paths(self) -> list[str]:
        """Return the paths of all images as texts, which takes far less time than as `Path`s."""
        folder = "" if self.folder == Path() else str(self.folder)
        return [os.path.join(folder, file) for file in self.files]  # noqa: PTH118

    def take(self, rows: NDArray[np.int64] | Sequence[int]) -> Records:
        """Return the images ``rows`` (n,), in that order."""
        chosen = np.asarray(rows, np.int64)
        return Records(
            folder=self.folder,
            files=self.files.take(chosen),
            image_ids=self.image_ids.take(chosen),
            keys=self.keys.take(chosen),
            sizes=self.sizes[chosen],
            objects=self.objects.take(chosen),
        )


def image_numbers(offsets: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return (G,) the number of the image that each row belongs to; ``offsets`` (N + 1,) as in `Objects`."""
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def rows_of_images(
    offsets: NDArray[np.int64], images: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the offsets (n + 1,) of the rows of ``images`` (n,) only, and the numbers of these rows (g,)."""
    counts = np.diff(offsets)[images]
    return np.concatenate(([0], np.cumsum(counts, dtype=np.int64))), ranges(offsets[:-1][images], counts)


def kept_offsets(offsets: NDArray[np.int64], keep: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the offsets (N + 1,) of those rows only that the mask ``keep`` (G,) selects."""
    kept: NDArray[np.int64] = np.concatenate(([0], np.cumsum(keep, dtype=np.int64)))[offsets]
    return kept


def ranges(begins: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the numbers begins[0], ..., begins[0] + lengths[0] - 1, begins[1], ... in one array."""
    starts = np.cumsum(lengths) - lengths
    return np.repeat(begins - starts, lengths) + np.arange(int(lengths.sum()))
