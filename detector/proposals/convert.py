"""Converts a file of proposals into a store, in bounded memory; checks every box, identifies every image."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from detector.core.errors import InputError
from detector.core.files import file_hash, is_hidden, make_folder
from detector.core.masks import Masks
from detector.core.polygons import FractionalPolygons
from detector.core.records import Records
from detector.core.structures import ImageRecord, Proposals
from detector.proposals.conventions import (
    CORNER_CONVENTIONS,
    FRACTION_CONVENTIONS,
    MATLAB_CONVENTIONS,
    WrittenBoxes,
    detect_convention,
    find_convention,
)
from detector.proposals.filtering import filter_proposals
from detector.proposals.image_names import ImageMatcher, NamedImage
from detector.proposals.index import check_image_id
from detector.proposals.methods import folder_name
from detector.proposals.readers import read_images
from detector.proposals.readers.raw_images import Position, RawImage, image_place, make_proposals
from detector.proposals.store import Entry, ProposalStore, writer_lock

_SAMPLED_IMAGES = 100
_MAX_SAMPLED_FROM = 1000
# The share of boxes that may leave their image by over a pixel, or have no area: a few are noise, more mean
# that the convention is another one.
_TOLERATED_FAULTS = 0.01
# A box may differ from the box of its mask by so many pixels, or by this part of the mask's longer side. In
# 939 annotations of COCO train2017 the largest difference is 4.25 pixels: their polygons were rounded.
_ROUNDING_PIXELS, _ROUNDING_PART = 5.0, 0.1
_UNKNOWN_SIZE = (
    "its boxes are parts of the image, whose size is unknown, so that the file can only be converted with "
    "the data set of its images (--config)"
)
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
    progress: Callable[[int], None] = lambda _images: None,
) -> ProposalStore:
    """Convert ``source`` into a store at ``store_path`` and open it; a finished one is opened as it is.

    Images that are among ``records`` are stored by their keys (`detector.proposals.image_names` says which
    image a name means), others by their names in the file. The store appears at ``store_path`` only when it
    is complete; its notes say how the file was read.

    Args:
        file_format: one of `detector.proposals.readers.FORMATS`.
        records: the images of the data set; for files that name no images, exactly those of the file in its
            order. They give the sizes that boxes are checked against, and the convention ``auto`` is
            determined from their objects. An image of the file that has another size is a fault.
        convention: a name from `detector.proposals.conventions.CONVENTIONS`, ``"auto"``, or None for the
            usual one of the format.
        faults: what to do with an image that has no boxes, another size in the file, numbers that are not
            finite, or boxes that do not fit it or their masks: ``"error"``, ``"skip"`` (it is not in the
            store) or ``"full_image"`` (one box, the whole image).
        missing: the same for an image of ``records`` that is not in the file; None is the same as
            ``faults``.
        keep_others: whether images of the file that are not in ``records`` go into the store too, without a
            check against any size.
        one_split: whether ``records`` are one split, in its order. If not, a file that names no images is
            refused, because its order is unknown.
        everything: returns the images of all splits, so that boxes of another split are never used; needed
            where a file may hold more than the images of ``records``.
        top_k, min_size, deduplicate: applied as in `detector.proposals.filtering.filter_proposals`, to
            images whose size is known; by default every box is kept.
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
    options |= {"keep_others": keep_others}
    limits: dict[str, Any] = {"top_k": top_k, "min_size": min_size, "deduplicate": deduplicate}
    parameters = source_parameters(source, file_format) | options | limits
    parameters |= {"images": record_digest(records or ())}
    work = _Conversion(
        source=source,
        file_format=file_format,
        records=records or (),
        everything=everything,
        one_split=one_split,
        limits=limits if top_k is not None or min_size > 0 or deduplicate else None,
        **options,
    )
    if not target.exists():
        make_folder(target.parent)
        with writer_lock(target.with_name(f".{target.name}.lock"), wait=600.0):
            if not target.exists():
                _fill(target, parameters, work, progress)
    # Refuses a store of other parameters, which another process may have just made.
    return ProposalStore.create(target, generator="converted", parameters=parameters)


def _fill(
    target: Path, parameters: dict[str, Any], work: _Conversion, progress: Callable[[int], None]
) -> None:
    """Make the store ``target``, which appears complete or, if anything fails, not at all."""
    unfinished = target.with_name(target.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)  # of a conversion that was killed
    try:
        store = ProposalStore.create(unfinished, generator="converted", parameters=parameters)
        store.append_all(work.entries(), lambda: progress(len(store)))
        store.compact()
        store.annotate(work.notes())
        unfinished.rename(target)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


@dataclass(kw_only=True)
class _Conversion:
    """One run through a source: which image is which, in which convention, and what is wrong with it.

    The fields are arguments of `convert`; ``limits`` are those of `filter_proposals`, or None for no filter.
    """

    source: Path
    file_format: str
    records: Sequence[ImageRecord]
    everything: Callable[[], Sequence[NamedImage]]
    one_split: bool
    convention: str | None
    faults: str
    missing: str
    keep_others: bool
    limits: dict[str, Any] | None

    def __post_init__(self) -> None:
        self._by_key = {record.key: record for record in self.records}
        self._names: Sequence[str] = ()
        self._seen: dict[str, str | Position] = {}
        self._foreign = 0
        self._left_out: dict[str, str] = {}
        self._full_image: dict[str, str] = {}
        self._evidence = ""
        self._masked = 0
        self._moved = _Moved(0, 0.0)

    def entries(self) -> Iterator[tuple[str, Entry]]:
        """Yield the entries of the store; the boxes of images of a known size are filtered."""
        for key, entry in self._checked_entries():
            if self.limits is not None and all(entry.size):
                kept = filter_proposals(entry.proposals, entry.size, **self.limits)
                entry = entry._replace(proposals=kept)
            yield key, entry

    def _checked_entries(self) -> Iterator[tuple[str, Entry]]:
        images = read_images(self.source, self.file_format)
        self._names = images.names
        for image in self._with_convention(iter(images)):
            key = self._identify(image.key)
            record = self._by_key.get(key)
            if record is None and not self.keep_others:
                continue
            check_image_id(key, self.source)
            found = self._entry(key, image, record)
            if found == _UNKNOWN_SIZE and record is None and self._by_key:
                self._left_out[key] = "it is not in the data set, and its size is unknown"
                continue
            if found == _UNKNOWN_SIZE and record is None:
                raise InputError(f"{image_place(self.source, image.key)}: {found}")
            if isinstance(found, Entry):
                yield key, found
            else:
                yield from self._replace(key, found, record, self.faults)
        yield from self._add_missing()

    def _entry(self, key: str, image: RawImage, record: ImageRecord | None) -> Entry | str:
        """Return the entry of an image, or what is wrong with it."""
        size = (0, 0) if record is None else (record.height, record.width)
        if image.size is not None and all(size) and image.size != size:
            return (
                f"the file has an image of {image.size[1]} x {image.size[0]} pixels, and the image of the "
                f"data set has {size[1]} x {size[0]}"
            )
        size = size if all(size) or image.size is None else image.size
        convention = find_convention(image.convention)
        if convention.whole is not None and not all(size):
            return _UNKNOWN_SIZE
        where = image_place(self.source, key)
        boxes = convention.to_half_open(image.boxes, size)
        masks = None if image.masks is None else masks_of(image.masks, size, where)
        fault = find_fault(boxes, image.scores, size, image.convention)
        if fault is None and masks is not None:
            fault = find_mask_fault(boxes, masks, image.convention)
        if fault is not None:
            return fault
        proposals = make_proposals(boxes, image.scores, where, masks)
        if masks is not None:
            self._masked += int(masks.present.sum())
            self._moved = self._moved.and_those(boxes, proposals.boxes.numpy())
        return Entry(proposals, size=size)

    def notes(self) -> list[str]:
        """Return sentences that say how the file was read."""
        notes = [self._evidence] if self._evidence else []
        if self._masked:
            notes.append(f"{self._masked} regions have masks; their boxes are those of the masks")
        if self._moved.boxes:
            notes.append(
                f"{self._moved.boxes} boxes are written in {self.source.name} with other coordinates than "
                f"those of their masks; the largest difference is {self._moved.most:.3g} px"
            )
        if self._foreign:
            use = "kept without a check" if self.keep_others else "not used"
            notes.append(
                f"{self.source.name} holds {len(self._seen)} images: {len(self._seen) - self._foreign} of "
                f"the {len(self._by_key)} that need boxes, and {self._foreign} others, whose boxes are {use}"
            )
        outcomes = {"left out": self._left_out, "given one box, the whole image": self._full_image}
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
        name = self.convention or first.convention
        if name == "auto":
            passed, samples = self._sample(images)
            candidates = _candidates(first.convention)
            name, self._evidence = detect_convention(samples, candidates, str(self.source))
            images = chain(passed, images)
        for image in images:
            yield image._replace(convention=name)

    def _sample(self, images: Iterator[RawImage]) -> tuple[list[RawImage], list[WrittenBoxes]]:
        """Return the images up to the last sample, and the samples among them."""
        passed: list[RawImage] = []
        samples: list[WrittenBoxes] = []
        for image in images:
            passed.append(image)
            record = self._by_key.get(self._find(image.key) or "")
            if record is not None and np.isfinite(image.boxes).all():
                samples.append(WrittenBoxes(record, image.boxes))
            if len(samples) == _SAMPLED_IMAGES or len(passed) == _MAX_SAMPLED_FROM:
                break
        return passed, samples

    def _find(self, key: str | Position) -> str | None:
        """Return the data set's key of the image that the file calls ``key``, or None."""
        if isinstance(key, str):
            if key in self._by_key:
                return key
            return self._keys_by_name.get(key) if self._by_key else None
        if not self.one_split:
            raise InputError(
                f"{self.source} names no images, and several splits could be meant; give the one in whose "
                "order it is (--split, or one file per split in the config)"
            )
        if key.total != len(self.records):
            raise InputError(
                f"{self.source} names no images and has {key.total}; it must be used with the data set whose "
                f"order it has, and this one has {len(self.records)} images"
            )
        return self.records[key.place].key

    @cached_property
    def _keys_by_name(self) -> dict[str, str]:
        """The data set's keys of all images by their names in the file."""
        return ImageMatcher(self.records, self.everything).match(self._names, self.source)

    def _identify(self, name: str | Position) -> str:
        own = self._find(name)
        self._foreign += own is None and bool(self._by_key)
        key = own or str(name)
        if key in self._seen:
            raise InputError(f"{self.source} has image {key!r} twice; keep one")
        self._seen[key] = name
        return key

    def _replace(
        self, key: str, fault: str, record: ImageRecord | None, policy: str
    ) -> Iterator[tuple[str, Entry]]:
        if policy == "error" or (record is None and policy == "full_image"):
            raise InputError(
                f"{self.source}, image {key!r}: {fault}; correct the file, give another convention, or "
                "set what to do with such images (proposals.faults) to skip or full_image"
            )
        if record is None or policy == "skip":
            self._left_out[key] = fault
            return
        self._full_image[key] = fault
        box = torch.tensor([[0, 0, record.width, record.height]], dtype=torch.float32)
        yield key, Entry(Proposals(boxes=box), size=(record.height, record.width))

    def _add_missing(self) -> Iterator[tuple[str, Entry]]:
        missing = [key for key in self._by_key if key not in self._seen]
        if missing and (self.missing == "error" or len(missing) == len(self._by_key)):
            example = next(map(str, self._seen.values()), None)
            there = "the file is empty" if example is None else f"the file has {example!r}"
            raise InputError(
                f"{self.source}: {len(missing)} of {len(self._by_key)} images are not in the file; is it "
                f"of another split? The first is {self._by_key[missing[0]].path}, {there}; "
                "proposals.missing says what to do with them"
            )
        for key in missing:
            yield from self._replace(key, "not in the file", self._by_key[key], self.missing)


class _Moved(NamedTuple):
    """How many boxes are not those of their masks, and by how many pixels at most."""

    boxes: int
    most: float

    def and_those(self, written: NDArray[np.float64], exact: NDArray[np.float32]) -> _Moved:
        """Return this with the boxes (P, 4) of one more image added, those of the file and those stored."""
        away = np.abs(written - exact).max(axis=1, initial=0)
        return _Moved(self.boxes + int((away > 0.01).sum()), max(self.most, float(away.max(initial=0))))


def _candidates(convention: str) -> tuple[str, ...]:
    """Return the conventions that "auto" chooses from in a format whose usual one is ``convention``."""
    if find_convention(convention if convention != "auto" else "xyxy").whole is None:
        return MATLAB_CONVENTIONS if convention == "auto" else CORNER_CONVENTIONS
    return FRACTION_CONVENTIONS


def masks_of(masks: Masks | FractionalPolygons, size: tuple[int, int], where: str) -> Masks | None:
    """Return the ``masks`` of an image of ``size``; None where no region has one.

    A mask without a pixel is none. Raises InputError, which begins with ``where``, for polygons that cannot
    be drawn.
    """
    drawn = masks.drawn(size, where) if isinstance(masks, FractionalPolygons) else masks
    covered = (drawn.areas() > 0).tolist()
    if not any(covered):
        return None
    pairs = zip(drawn.counts, covered, strict=True)
    return Masks(drawn.size, tuple(counts if area else b"" for counts, area in pairs))


def find_mask_fault(boxes: NDArray[np.float64], masks: Masks, convention: str) -> str | None:
    """Describe what is wrong with ``boxes`` (P, 4) beside the masks of the same regions, or return None."""
    exact = masks.boxes().numpy().astype(np.float64)
    sides = (exact[:, 2:] - exact[:, :2]).max(axis=1, initial=0)
    away = np.where(masks.present, np.abs(boxes - exact).max(axis=1, initial=0), 0)
    wrong = away > np.maximum(_ROUNDING_PIXELS, _ROUNDING_PART * sides)
    if wrong.mean() <= _TOLERATED_FAULTS:
        return None
    row = int(wrong.argmax())
    return (
        f"{wrong.mean():.0%} of its boxes, read as {convention}, are not those of their masks, such as row "
        f"{row}: {boxes[row].round(2).tolist()}, and its mask's is {exact[row].tolist()}"
    )


def find_fault(
    boxes: NDArray[np.float64], scores: NDArray[np.float64] | None, size: tuple[int, int], convention: str
) -> str | None:
    """Describe what is wrong with the half-open ``boxes`` (P, 4) of an image of ``size``, or return None.

    ``size`` is (height, width), (0, 0) if unknown; the message names the ``convention`` of the file.
    """
    if len(boxes) == 0:
        return "it has no boxes"
    finite = np.isfinite(boxes).all(axis=1) & (True if scores is None else np.isfinite(scores))
    if not finite.all():
        row = int((~finite).argmax())
        return f"row {row} is not finite: {boxes[row].tolist()}"
    hollow = (boxes[:, 2:] <= boxes[:, :2]).any(axis=1)
    if hollow.mean() > _TOLERATED_FAULTS:
        row = int(hollow.argmax())
        return f"{hollow.mean():.0%} of its boxes, read as {convention}, end before they begin (row {row})"
    if all(size):
        outside = (boxes < -1).any(axis=1) | (boxes[:, 2:] > np.array(size[::-1]) + 1).any(axis=1)
        if outside.mean() > _TOLERATED_FAULTS:
            row = int(outside.argmax())
            return (
                f"{outside.mean():.0%} of its boxes, read as {convention}, leave the image of {size[1]} x "
                f"{size[0]} pixels, such as row {row}: {boxes[row].tolist()}"
            )
    return None


def source_parameters(source: Path, file_format: str) -> dict[str, Any]:
    """Return format, name and BLAKE2b hash of the content of a file, or of all files in a folder.

    Hidden files of the folder do not count. Raises InputError for a source that cannot be read.
    """
    digest = _folder_hash(source) if source.is_dir() else file_hash(source)
    return {"format": file_format, "source": source.name, "source_blake2b": digest}


def _folder_hash(folder: Path) -> str:
    try:
        shown = (path for path in folder.rglob("*") if not is_hidden(path, folder))
        paths = sorted(path for path in shown if path.is_file())
    except OSError as error:
        raise InputError(f"{folder}: cannot read the folder: {error.strerror}") from error
    return _digest(f"{path.relative_to(folder).as_posix()}\n{file_hash(path)}\n" for path in paths)


def record_digest(records: Iterable[ImageRecord]) -> str:
    """Return a hash of the names and sizes of ``records``, in their order."""
    if isinstance(records, Records):
        rows = zip(records.keys, records.image_ids, records.sizes.tolist(), strict=True)
        return _digest(f"{key}\n{image_id}\n{size[0]} {size[1]}\n" for key, image_id, size in rows)
    return _digest(f"{one.key}\n{one.image_id}\n{one.height} {one.width}\n" for one in records)


def _digest(lines: Iterable[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for line in lines:
        digest.update(line.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def conversion_name(parameters: dict[str, Any]) -> str:
    """Return a folder name for the store that `convert` makes with these parameters.

    ``parameters`` are those of `source_parameters` and the arguments of `convert`. The name is the source's
    and a hash, which differs for another content and for other arguments.
    """
    return folder_name(Path(parameters["source"]).stem, parameters)
