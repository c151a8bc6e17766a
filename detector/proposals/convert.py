"""From a file of proposals to a store, in bounded memory."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detector.core.errors import InputError
from detector.core.files import make_folder
from detector.core.structures import ImageRecord, Proposals
from detector.proposals.conventions import (
    CONVENTIONS,
    MATLAB_CONVENTIONS,
    WrittenBoxes,
    detect_convention,
    find_convention,
)
from detector.proposals.faults import find_fault
from detector.proposals.index import check_image_id
from detector.proposals.locking import writer_lock
from detector.proposals.matching import ImageMatcher, NamedImage
from detector.proposals.prepare import filter_proposals
from detector.proposals.readers import read_images
from detector.proposals.readers.raw_images import Position, RawImage, make_proposals
from detector.proposals.sources import record_digest, source_parameters
from detector.proposals.store import Entry, ProposalStore

_SEGMENT_BOXES = 1 << 20  # 16 MiB of boxes in memory
_SAMPLED_IMAGES = 100
_MAX_LOOKED_AT = 1000
FAULT_POLICIES = ("error", "skip", "full_image")


def convert(
    source: Path | str,
    file_format: str,
    store_path: Path | str,
    *,
    records: Sequence[ImageRecord] | None = None,
    convention: str | None = None,
    faults: str = "error",
    missing: str | None = None,
    keep_others: bool = True,
    one_split: bool = True,
    everything: Callable[[], Sequence[NamedImage]] = tuple,
    top_k: int | None = None,
    min_size: float = 0.0,
    deduplicate: bool = False,
    progress: Callable[[int], None] | None = None,
) -> ProposalStore:
    """Convert ``source`` into a store at ``store_path`` and open it; a finished one is opened as it is.

    Images that are among ``records`` are stored by their keys (`detector.proposals.matching` says which image
    a name means), others by the names they have in the file. The store appears at ``store_path`` only when it
    is whole; its notes say what was found.

    Args:
        file_format: one of `detector.proposals.readers.FORMATS`.
        records: the images of the data set, for files that name no images exactly those of the file in its
            order. They give the sizes that boxes are checked against, and the convention of
            ``auto`` is determined from them.
        convention: a name from `detector.proposals.conventions.CONVENTIONS`, ``"auto"``, or None for what
            is usual in the format.
        faults: what to do with an image that has no boxes, numbers that are not finite, or boxes that do
            not fit it: ``"error"``, ``"skip"`` (it is not in the store) or ``"full_image"`` (one box, the
            whole image).
        missing: the same for an image of ``records`` that is not in the file; None is as ``faults``.
        keep_others: whether images of the file that are not in ``records`` go into the store too, unchecked
            against any size.
        one_split: whether ``records`` are one split, in its order. A file that names no images is refused
            otherwise: the order of its images cannot be determined.
        everything: gives the images of all splits, so that boxes of another split are never taken; needed
            where a file may hold more than the images of ``records``.
        top_k, min_size, deduplicate: applied as in `detector.proposals.prepare.filter_proposals`, to images
            whose size is known; by default everything is kept as it came.
        progress: called with the number of images done.

    Raises:
        InputError: a source that cannot be read, an image with a fault under ``"error"``, a convention that
            cannot be determined, or a store at ``store_path`` of another source or with other arguments.
    """
    missing = faults if missing is None else missing
    for name, policy in (("faults", faults), ("missing", missing)):
        if policy not in FAULT_POLICIES:
            raise InputError(f"{name} is {policy!r}; use one of {', '.join(FAULT_POLICIES)}")
    source, target = Path(source), Path(store_path)
    options: dict[str, Any] = {"convention": convention, "faults": faults, "missing": missing}
    options |= {"keep_others": keep_others, "top_k": top_k, "min_size": min_size, "deduplicate": deduplicate}
    parameters = source_parameters(source, file_format) | options | {"images": record_digest(records or ())}
    if target.exists():
        return ProposalStore.create(target, generator="converted", parameters=parameters)
    make_folder(target.parent)
    unfinished = target.with_name(target.name + ".unfinished")
    with writer_lock(target.with_name(f".{target.name}.lock"), wait=600.0):
        if not target.exists():
            shutil.rmtree(unfinished, ignore_errors=True)  # of a conversion that was killed
            store = ProposalStore.create(unfinished, generator="converted", parameters=parameters)
            work = _Conversion(
                source,
                file_format,
                records or (),
                everything,
                convention,
                faults,
                missing,
                keep_others,
                one_split,
            )
            try:
                for entries in _batches(work.entries(), top_k, min_size, deduplicate):
                    store.append(entries)
                    if progress is not None:
                        progress(len(store))
                store.compact()
                store.annotate(work.notes())
                unfinished.rename(target)
            except BaseException:
                shutil.rmtree(unfinished, ignore_errors=True)
                raise
    return ProposalStore.open(target)


class _Conversion:
    """One run through a source: which image is which, in which convention, and what is wrong with it."""

    def __init__(
        self,
        source: Path,
        file_format: str,
        records: Sequence[ImageRecord],
        everything: Callable[[], Sequence[NamedImage]],
        convention: str | None,
        faults: str,
        missing: str,
        keep_others: bool,
        one_split: bool,
    ) -> None:
        self._source = source
        self._format = file_format
        self._records = {record.key: record for record in records}
        self._order = [record.key for record in records]
        self._matcher = ImageMatcher(records, everything)
        self._names: Sequence[str] = ()
        self._matched: dict[str, str] | None = None
        self._convention = convention
        self._faults = faults
        self._absent = missing
        self._keep_others = keep_others
        self._one_split = one_split
        self._seen: dict[str, str | Position] = {}
        self._foreign = 0
        self._left_out: dict[str, str] = {}
        self._whole: dict[str, str] = {}
        self._evidence = ""

    def entries(self) -> Iterator[tuple[str, Entry]]:
        """Yield what goes into the store."""
        images = read_images(self._source, self._format)
        self._names = images.names
        for image in self._with_convention(iter(images)):
            key = self._identify(image.key)
            record = self._records.get(key)
            if record is None and not self._keep_others:
                continue
            check_image_id(key, self._source)
            size = (0, 0) if record is None else (record.height, record.width)
            boxes = find_convention(image.convention).to_half_open(image.boxes)
            fault = find_fault(boxes, image.scores, size, image.convention)
            if fault is None:
                where = f"{self._source}, image {key!r}"
                yield key, Entry(make_proposals(boxes, image.scores, where), size=size)
            else:
                yield from self._replace(key, fault, record, self._faults)
        yield from self._missing()

    def notes(self) -> list[str]:
        """Say in sentences what was found."""
        notes = [self._evidence] if self._evidence else []
        if self._foreign:
            use = "kept without a check" if self._keep_others else "not used"
            notes.append(
                f"{self._source.name} holds {len(self._seen)} images: {len(self._seen) - self._foreign} of "
                f"the {len(self._records)} that need boxes, and {self._foreign} others, whose boxes are {use}"
            )
        outcomes = {"left out": self._left_out, "given one box, the whole image": self._whole}
        for what, images in outcomes.items():
            if images:
                first = "; ".join(f"{key}: {fault}" for key, fault in list(images.items())[:5])
                notes.append(f"{len(images)} images {what}: {first}")
        return notes

    def _with_convention(self, images: Iterator[RawImage]) -> Iterator[RawImage]:
        first = next(images, None)
        if first is None:
            return
        images = chain((first,), images)
        name = self._convention or first.convention
        if name == "auto":
            looked_at, samples = self._sample(images)
            candidates = MATLAB_CONVENTIONS if first.convention == "auto" else _corner_conventions()
            name, self._evidence = detect_convention(samples, candidates, str(self._source))
            images = chain(looked_at, images)
        for image in images:
            yield image._replace(convention=name)

    def _sample(self, images: Iterator[RawImage]) -> tuple[list[RawImage], list[WrittenBoxes]]:
        looked_at: list[RawImage] = []
        samples: list[WrittenBoxes] = []
        for image in images:
            looked_at.append(image)
            record = self._records.get(self._find(image.key) or "")
            if record is not None and np.isfinite(image.boxes).all():
                samples.append(WrittenBoxes(record, image.boxes))
            if len(samples) == _SAMPLED_IMAGES or len(looked_at) == _MAX_LOOKED_AT:
                break
        return looked_at, samples

    def _find(self, key: str | Position) -> str | None:
        """Return the data set's key of the image that the file calls ``key``, or None."""
        if isinstance(key, str):
            if key in self._records:
                return key
            return self._match_all().get(key) if self._records else None
        if not self._one_split:
            raise InputError(
                f"{self._source} names no images, and several splits could be meant; give the one in whose "
                "order it is (--split, or in a config a file a split)"
            )
        if key.total != len(self._order):
            raise InputError(
                f"{self._source} names no images and has {key.total}; the data set whose order it is in is "
                f"wanted, and that at hand has {len(self._order)}"
            )
        return self._order[key.place]

    def _match_all(self) -> dict[str, str]:
        """Return the keys of all images by their names in the file."""
        if self._matched is None:
            self._matched = self._matcher.match(self._names, self._source)
        return self._matched

    def _identify(self, name: str | Position) -> str:
        found = self._find(name)
        self._foreign += found is None and bool(self._records)
        key = found or str(name)
        if key in self._seen:
            raise InputError(f"{self._source} has image {key!r} twice; keep one")
        self._seen[key] = name
        return key

    def _replace(
        self, key: str, fault: str, record: ImageRecord | None, policy: str
    ) -> Iterator[tuple[str, Entry]]:
        if policy == "error" or (record is None and policy == "full_image"):
            raise InputError(
                f"{self._source}, image {key!r}: {fault}; correct the file, give another convention, or "
                "set what to do with such images (proposals.faults) to skip or full_image"
            )
        if record is None or policy == "skip":
            self._left_out[key] = fault
            return
        self._whole[key] = fault
        box = torch.tensor([[0, 0, record.width, record.height]], dtype=torch.float32)
        yield key, Entry(Proposals(boxes=box), size=(record.height, record.width))

    def _missing(self) -> Iterator[tuple[str, Entry]]:
        missing = [key for key in self._records if key not in self._seen]
        if missing and (self._absent == "error" or len(missing) == len(self._records)):
            example = next(map(str, self._seen.values()), None)
            there = "the file is empty" if example is None else f"the file has {example!r}"
            raise InputError(
                f"{self._source}: {len(missing)} of {len(self._records)} images are not in the file; is it "
                f"of another split? The first is {self._records[missing[0]].path}, {there}; "
                "proposals.missing says what to do with them"
            )
        for key in missing:
            yield from self._replace(key, "not in the file", self._records[key], self._absent)


def _corner_conventions() -> list[str]:
    return [name for name, convention in CONVENTIONS.items() if convention.axes != "xywh"]


def _batches(
    entries: Iterator[tuple[str, Entry]], top_k: int | None, min_size: float, deduplicate: bool
) -> Iterator[dict[str, Entry]]:
    """Group what goes into the store into segments."""
    batch: dict[str, Entry] = {}
    boxes = 0
    for key, entry in entries:
        if all(entry.size) and (top_k is not None or min_size > 0 or deduplicate):
            kept = filter_proposals(
                entry.proposals, entry.size, min_size=min_size, top_k=top_k, deduplicate=deduplicate
            )
            entry = entry._replace(proposals=kept)
        batch[key] = entry
        boxes += len(entry.proposals)
        if boxes >= _SEGMENT_BOXES:
            yield batch
            batch, boxes = {}, 0
    if batch:
        yield batch
