"""Proposals on disk: any number of images in bounded memory, safe against a crash at any moment.

A store is a folder:

    manifest.json                 what made the boxes, with which parameters, in which convention; notes
    index.npy                     image id -> segment, offset, count, image size, content hash, checksum;
                                  after the array its own checksum
    segment_000001.boxes.npy      (M, 4) float32: x1, y1, x2, y2, half-open pixels of the original image
    segment_000001.scores.npy     (M,) float32; absent where no image of the segment has scores
    segment_000001.masks.npy      (B,) uint8: the compressed counts of all masks, as pycocotools encodes them
    segment_000001.mask_offsets.npy  (M + 1,) int64: where the mask of each box begins; these two are absent
                                  where no image of the segment has masks
    checked.bin                   what a start found unchanged (detector.proposals.checked); may be deleted
    writer.lock                   held (flock) by the one process that writes

Segments never change. A writer adds a whole segment and then replaces the index in one step, so a process
killed in between leaves the store as it was. Readers need no lock and write nothing; one that finds damage
deletes ``checked.bin``.

Damage is reported before it is used: the checksums of manifest and index are compared when the store is
opened, that of an image's boxes and scores when a process first reads them, that of its masks when it first
reads these. What needs only boxes reads no masks.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import threading
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detector.core.errors import InputError
from detector.core.files import atomic_write, is_hidden, make_folder, read_short_text, require_regular
from detector.core.masks import Masks
from detector.core.records import Texts
from detector.core.structures import Proposals
from detector.proposals.checked import forget
from detector.proposals.filtering import Limits, filter_proposals
from detector.proposals.index import Index, Row, check_image_id, is_content_hash
from detector.proposals.segments import (
    Counts,
    DamagedStore,
    SegmentReader,
    StoredImage,
    checksum_of,
    greatest_number,
    mask_checksum_of,
    remove_segments,
    write_segment,
)

Item = TypeVar("Item")
Result = TypeVar("Result")
FORMAT = "detector proposal store"
VERSION = 1
BOX_CONVENTION = "x1, y1, x2, y2 float32 pixels half-open, original image"
IMAGE_SIZES = "index.npy: height and width of each image, in pixels; 0 if unknown"
CHECKSUM = "index.npy: CRC-32 of the bytes of each image's boxes, then of its scores"
# The CRC-32 of the manifest's other entries as compact JSON with sorted keys; earlier versions wrote none.
_OWN_CHECKSUM = "crc32"
_TYPES = {"generator": str, "parameters": dict, "notes": list, "version": int}
_LOCK = "writer.lock"
_WAIT_SECONDS = 30.0
_SEGMENT_BOXES = 1 << 20  # 16 MiB of boxes in memory
_COMPACT_BOXES = 1 << 24  # 256 MiB of boxes per segment
_MAX_SEGMENT = (1 << 32) - 1  # the index has 32 bits for it
_SCAN_BOXES = 1 << 19  # 8 MiB of boxes at once
_MASK_BYTES_OF_A_BOX = 16  # so many bytes of masks count as a box where memory is limited
_SCAN_SEGMENTS = 50  # at once, each with one open file or two


class Entry(NamedTuple):
    """What is stored per image: its proposals, the hash of its file, its (height, width).

    ``content_hash`` is None and ``size`` (0, 0) where they are unknown; where there are masks, the size is
    theirs.
    """

    proposals: Proposals
    content_hash: str | None = None
    size: tuple[int, int] = (0, 0)


class Damage(NamedTuple):
    """The images whose boxes a segment has lost, and a sentence that names its file and the reason."""

    reason: str
    image_ids: list[str]


class ProposalStore:
    """The proposals of a data set by one method, read by image id. Make one with ``open`` or ``create``.

    Any number of threads may read a store at the same time, also while it is reloaded or another process
    writes to it.
    """

    def __init__(
        self, path: Path, manifest: Mapping[str, Any], names: Mapping[str, str] | None = None
    ) -> None:
        self.path = path
        self._manifest = manifest
        self._names = dict(names or {})
        self._index = Index.load(path / "index.npy")
        self._segments = SegmentReader(path)
        self._writer: int | None = None  # the thread of this process that holds the lock

    @classmethod
    def open(cls, path: Path | str, names: Mapping[str, str] | None = None) -> ProposalStore:
        """Open an existing store; raises InputError if ``path`` is not a store or is damaged.

        ``names``: see `with_names`.
        """
        return cls(Path(path), _load_manifest(Path(path)), names)

    @classmethod
    def create(cls, path: Path | str, *, generator: str, parameters: Mapping[str, Any]) -> ProposalStore:
        """Make an empty store, or open the existing one if it has the same generator and parameters.

        Raises InputError if they differ, naming the differences, or if ``path`` holds something else.
        """
        folder = Path(path)
        wanted = _make_manifest(generator, parameters)
        if not (folder / "manifest.json").exists():
            _initialise(folder, wanted)
        existing = _load_manifest(folder)
        if difference := _differences(existing, wanted):
            raise InputError(
                f"{folder} holds proposals of another method or with other parameters ({difference}); use "
                "another folder or remove it"
            )
        return cls(folder, existing)

    def with_names(self, names: Mapping[str, str]) -> ProposalStore:
        """Return a store that also finds images by the keys of ``names``, whose values are ids."""
        return ProposalStore(self.path, self._manifest, {**self._names, **names})

    @property
    def generator(self) -> str:
        """The method that made the proposals."""
        return str(self._manifest["generator"])

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of the method."""
        return dict(self._manifest["parameters"])

    @property
    def notes(self) -> list[str]:
        """Sentences about how the store was made."""
        return [str(note) for note in self._manifest["notes"]]

    def __getitem__(self, image_id: str) -> Proposals:
        """Return the proposals of ``image_id`` in new tensors.

        Raises InputError if the store has none, and `DamagedStore` where they are not as they were written.
        """
        try:
            return self._read(image_id)
        except DamagedStore:  # unless another process has compacted the store
            self.reload()
        try:
            return self._read(image_id)
        except DamagedStore as error:
            raise self._lost(error) from error

    def filtered(self, image_id: str, size: tuple[int, int], limits: Limits) -> Proposals | None:
        """Return the proposals of ``image_id``, filtered by `filter_proposals`; None if the store has none.

        ``size`` is the image's (height, width). Almost all of the work is one native call without Python's
        global lock, unless the image has masks. Raises `DamagedStore` as ``store[image_id]`` does.
        """
        index = self._index
        place = self._find(index, image_id)
        if place is None:
            return None
        row = index[place]
        if row.masked:
            return filter_proposals(self[image_id], size, **limits._asdict())
        found = self._segments.read_filtered(row, size, limits, check=not index.checked[place])
        if found is None:  # damaged, or another process has compacted the store
            return filter_proposals(self[image_id], size, **limits._asdict())
        index.checked[place] = True
        return found

    def scan(
        self,
        image_ids: Texts,
        visit: Callable[[slice, Tensor], tuple[Tensor, Result]],
        progress: Callable[[int], None] = lambda _done: None,
    ) -> Iterator[Result]:
        """Yield what ``visit`` returns for each part of N ``image_ids``, in their order.

        ``visit`` gets the part and the places (n, 6) of its images as `detector.ops.proposals` takes them. It
        returns the number of proposals (n,) that it has read of each image, -1 where they are damaged, and
        the result. ``progress`` is called with the number of images done.

        Raises `DamagedStore` as ``store[image_id]`` does.
        """
        index = self._index
        places = self._find_all(index, image_ids)
        for part in _parts(index.rows(places), places >= 0):
            try:
                result = self._visit(index, places[part], part, visit)
            except DamagedStore:  # unless another process has compacted the store
                self.reload()
                index = self._index
                places = self._find_all(index, image_ids)
                try:
                    result = self._visit(index, places[part], part, visit)
                except DamagedStore as error:
                    raise self._lost(error) from error
            yield result
            progress(part.stop)

    def __contains__(self, image_id: object) -> bool:
        return isinstance(image_id, str) and self._find(self._index, image_id) is not None

    def __len__(self) -> int:
        return len(self._index)

    def find_all(self, image_ids: Texts) -> NDArray[np.int64]:
        """Return (N,) a number for each of N ids, -1 for those that the store does not have."""
        return self._find_all(self._index, image_ids)

    def counts(self, image_ids: Texts) -> NDArray[np.int64]:
        """Return (N,) how many proposals each of N images has, -1 for those that the store does not have."""
        index = self._index
        places = self._find_all(index, image_ids)
        return np.where(places < 0, -1, index.rows(places)["boxes"].astype(np.int64))

    def digest(self, image_ids: Texts) -> str:
        """Return a hash of the proposals of ``image_ids``, in their order, 32 hexadecimal digits.

        It depends on what the store has under these ids, by the checksums of its index, and on nothing else.
        """
        index = self._index
        places = self._find_all(index, image_ids)
        digest = hashlib.blake2b((places < 0).tobytes(), digest_size=16)
        rows = index.rows(places[places >= 0])
        for name in ("boxes", "scored", "checksum"):
            digest.update(rows[name].tobytes())
        if "masked" in (rows.dtype.names or ()) and rows["masked"].any():
            digest.update(rows["mask_checksum"].tobytes())
        return digest.hexdigest()

    def count_masked(self, image_ids: Texts) -> int:
        """Return how many of ``image_ids`` have regions with masks."""
        index = self._index
        places = self._find_all(index, image_ids)
        rows = index.rows(places[places >= 0])
        return int(rows["masked"].sum()) if "masked" in (rows.dtype.names or ()) else 0

    def require(self, image_ids: Texts) -> None:
        """Raise InputError for the first of ``image_ids`` that the store does not have."""
        missing = np.flatnonzero(self.find_all(image_ids) < 0)
        if len(missing):
            self._place(self._index, image_ids[int(missing[0])])

    def ids(self) -> list[str]:
        """Return the ids of all images, sorted."""
        return self._index.ids()

    def entry(self, image_id: str) -> Entry:
        """Return all that is stored for the image. Raises as ``store[image_id]`` does."""
        size = self.image_size(image_id) or (0, 0)
        return Entry(self[image_id], self.content_hash(image_id), size)

    def content_hash(self, image_id: str) -> str | None:
        """Return the hash of the image file that the boxes were made for, or None where it is unknown."""
        return self._row(image_id).content_hash or None

    def content_hashes(self, image_ids: Texts, others: Texts) -> list[str | None]:
        """Return the `content_hash` of each of N ``image_ids``; None where it, or the entry, is unknown.

        An image without an entry is looked up by its id in ``others`` (N).
        """
        index = self._index
        places = self._find_all(index, image_ids)
        if (places < 0).any():
            places = np.where(places < 0, self._find_all(index, others), places)
        hashes = index.rows(places)["hash"].tolist()
        return [
            content.decode(errors="replace") or None if place >= 0 else None
            for content, place in zip(hashes, places.tolist(), strict=True)
        ]

    def count(self, image_id: str) -> int:
        """Return how many proposals the image has."""
        return self._row(image_id).boxes

    def fingerprint(self, image_id: str) -> tuple[int, int, str]:
        """Return what distinguishes two entries: number of boxes, checksum of them and of the masks, hash of
        the image.
        """
        row = self._row(image_id)
        return row.boxes, row.checksum + (row.mask_checksum << 32), row.content_hash

    def image_size(self, image_id: str) -> tuple[int, int] | None:
        """Return the image's (height, width), or None where it is unknown."""
        row = self._row(image_id)
        return (row.height, row.width) if row.height and row.width else None

    def reload(self) -> None:
        """Load what other processes have written since the store was opened."""
        self._index = Index.load(self.path / "index.npy")
        self._segments.close()

    def append(self, entries: Mapping[str, Entry]) -> None:
        """Add ``entries`` as one new segment; an id that is there already is replaced.

        When this returns, the entries are on the disk; a process killed before leaves the store as it was.
        """
        if not entries:
            return
        images: list[StoredImage] = []
        rows: list[Row] = []
        for image_id, entry in entries.items():
            check_entry(self.path, image_id, entry)
            boxes, ranks = entry.proposals.boxes.numpy(), entry.proposals.scores
            scores = None if ranks is None else ranks.numpy()
            masks = entry.proposals.masks
            counts = masks.counts if masks is not None and any(masks.counts) else None
            size = masks.size if masks is not None and counts is not None else entry.size
            images.append(StoredImage(boxes, scores, counts))
            row = Row(
                image_id,
                segment=0,
                offset=0,  # both until the segment is written
                boxes=len(boxes),
                scored=scores is not None,
                height=size[0],
                width=size[1],
                checksum=checksum_of(boxes, scores),
                content_hash=entry.content_hash or "",
                masked=counts is not None,
                mask_checksum=0 if counts is None else mask_checksum_of(counts),
            )
            rows.append(row)
        with self.lock(_WAIT_SECONDS):
            index = Index.load(self.path / "index.npy")
            written = self._write_segment(self._next_segment(index), rows, images)
            self._save(index.merged(written))

    def append_all(
        self, entries: Iterable[tuple[str, Entry]], progress: Callable[[], None] = lambda: None
    ) -> None:
        """Append any number of ``entries`` in segments of a size that the memory holds.

        ``progress`` is called after each segment.
        """
        for batch in _batches(entries, lambda item: _weight(item[1].proposals), _SEGMENT_BOXES):
            self.append(dict(batch))
            progress()

    def discard(self, image_ids: Iterable[str]) -> None:
        """Remove the proposals of ``image_ids``."""
        with self.lock(_WAIT_SECONDS):
            self._save(Index.load(self.path / "index.npy").without(image_ids))

    def annotate(self, notes: list[str]) -> None:
        """Replace the notes in the manifest."""
        with self.lock(_WAIT_SECONDS):
            self._manifest = {**self._manifest, "notes": notes}
            _save_manifest(self.path, self._manifest)

    def segment_count(self) -> int:
        """Return how many segments are in use; each costs a reader a file descriptor or two."""
        return len(self._index.segments())

    def compact(self) -> None:
        """Rewrite the store without replaced entries, in the order of the ids, in few large segments."""
        with self.lock(_WAIT_SECONDS):
            self.reload()
            number = self._next_segment(self._index)
            moved: list[Row] = []
            rows = (self._index[place] for place in range(len(self._index)))
            for group in _batches(rows, lambda row: row.boxes, _COMPACT_BOXES):
                images = (self._read_whole(row) for row in group)
                moved += self._write_segment(number, group, images)
                number += 1
            self._save(self._index.merged(moved))
            self.tidy()

    def tidy(self) -> None:
        """Remove what killed writers have left: temporary files and segments that the index does not name."""
        with self.lock(_WAIT_SECONDS):
            self.reload()
            remove_segments(self.path, keep=self._index.segments())

    def damaged(self) -> list[Damage]:
        """Return what each damaged segment has lost, reading all that this process has not read yet."""
        index = self._index
        lost: defaultdict[int, list[str]] = defaultdict(list)
        reasons: dict[int, str] = {}
        sizes: Counter[int] = Counter()
        for place in index.places_on_disk():
            row = index[place]
            sizes[row.segment] += 1
            try:
                if not index.checked[place]:
                    self._read_checked(index, place, row)
                if not index.masks_checked[place]:
                    self._read_masks(index, place, row)
            except DamagedStore as error:
                lost[row.segment].append(row.image_id)
                reasons.setdefault(row.segment, str(error))
        return [
            Damage(f"{reasons[number]} ({len(ids)} of the {sizes[number]} images of this file are lost)", ids)
            for number, ids in lost.items()
        ]

    @contextmanager
    def lock(self, wait: float = 0.0, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """Be the only writer of this store inside the block.

        ``on_wait`` is called once if another process is the writer. Raises InputError if it still is after
        ``wait`` seconds.
        """
        if self._writer == threading.get_ident():
            yield
            return
        with writer_lock(self.path / _LOCK, wait, on_wait):
            self._writer = threading.get_ident()
            try:
                yield
            finally:
                self._writer = None

    def _find(self, index: Index, image_id: str) -> int | None:
        return index.find(self._names.get(image_id, image_id))

    def _find_all(self, index: Index, image_ids: Texts) -> NDArray[np.int64]:
        names = self._names
        if names:
            image_ids = Texts.of(names.get(image_id, image_id) for image_id in image_ids)
        return index.find_all(image_ids)

    def _place(self, index: Index, image_id: str) -> int:
        place = self._find(index, image_id)
        if place is None:
            example = f", such as {index[0].image_id!r}" if len(index) else ""
            raise InputError(
                f"{self.path} has no proposals for image {image_id!r}; it has {len(index)} images{example}"
            )
        return place

    def _row(self, image_id: str) -> Row:
        index = self._index
        return index[self._place(index, image_id)]

    def _read(self, image_id: str) -> Proposals:
        index = self._index
        place = self._place(index, image_id)
        row = index[place]
        boxes, scores, _ = self._read_checked(index, place, row)
        counts = self._read_masks(index, place, row)
        return Proposals(
            boxes=torch.from_numpy(boxes),
            scores=None if scores is None else torch.from_numpy(scores),
            masks=None if counts is None else Masks((row.height, row.width), counts),
        )

    def _visit(
        self,
        index: Index,
        places: NDArray[np.int64],
        part: slice,
        visit: Callable[[slice, Tensor], tuple[Tensor, Result]],
    ) -> Result:
        """Visit the images of one part; ``places`` (n,) are theirs in ``index``."""
        known = places >= 0
        checked = np.frombuffer(index.checked, np.uint8)
        numbers = torch.tensor([-1, 0, -1, 0, 0, -1]).repeat(len(places), 1)
        rows = index.rows(places[known])
        located = self._segments.locate(rows, check=checked[places[known]] == 0)
        numbers[torch.from_numpy(known)] = located.places
        held, result = visit(part, numbers)
        for number in np.flatnonzero(held.numpy() < 0).tolist():
            self._segments.read(index[int(places[number])], check=True)  # says what is wrong
            raise DamagedStore(f"{self.path}: image {index[int(places[number])].image_id!r} cannot be read")
        checked[places[known & (held.numpy() > 0)]] = 1
        return result

    def _read_checked(self, index: Index, place: int, row: Row) -> StoredImage:
        image = self._segments.read(row, check=not index.checked[place])
        index.checked[place] = True
        return image

    def _read_masks(self, index: Index, place: int, row: Row) -> Counts | None:
        counts = self._segments.read_masks(row, check=not index.masks_checked[place])
        index.masks_checked[place] = True
        return counts

    def _read_whole(self, row: Row) -> StoredImage:
        image = self._segments.read(row, check=True)
        return image._replace(counts=self._segments.read_masks(row, check=True))

    def _save(self, index: Index) -> None:
        index.save(self.path / "index.npy")
        self._index = index

    def _write_segment(self, number: int, rows: list[Row], images: Iterable[StoredImage]) -> list[Row]:
        """Write ``images`` as segment ``number`` and return ``rows`` with their place in it."""
        ends = list(accumulate((row.boxes for row in rows), initial=0))
        scored, masked = any(row.scored for row in rows), any(row.masked for row in rows)
        write_segment(self.path, number, images, rows=ends[-1], scored=scored, masked=masked)
        return [row._replace(segment=number, offset=end) for row, end in zip(rows, ends, strict=False)]

    def _next_segment(self, index: Index) -> int:
        """Return a number that no segment has had: readers with an older index may still need those."""
        number = max(max(index.segments(), default=0), greatest_number(self.path)) + 1
        if number > _MAX_SEGMENT:
            raise InputError(f"{self.path / 'index.npy'}: no segment number is free; make the store again")
        return number

    def _lost(self, error: DamagedStore) -> DamagedStore:
        """Return ``error`` with the remedy; whoever makes the proposals again shall look for the damage."""
        forget(self.path)
        return DamagedStore(f"{error}; {self._remedy()}")

    def _remedy(self) -> str:
        if self.generator == "converted":
            return f"delete the folder {self.path} and convert the proposals again"
        return (
            "make the proposals again with the command that made them, which makes only these images, or "
            f"delete the folder {self.path}"
        )


def merge_stores(
    sources: Sequence[Path | str],
    target: Path | str,
    *,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> ProposalStore:
    """Put all images of ``sources``, stores of one method, into the store at ``target``.

    ``target`` may exist and hold some of the images already, so that a merge that was killed is finished by
    another. ``progress`` is called after each store, with the number of images done and of all images.

    Raises InputError for stores whose generator or parameters differ from the first one's, and for an image
    of which two stores hold different proposals; no image of the second is then added to ``target``.
    """
    stores = [ProposalStore.open(source) for source in sources]
    first = stores[0]
    merged = ProposalStore.create(target, generator=first.generator, parameters=first.parameters)
    for store in stores:
        if (store.generator, store.parameters) != (first.generator, first.parameters):
            raise InputError(
                f"{store.path} and {first.path} were made in different ways: {store.generator} "
                f"{store.parameters} and {first.generator} {first.parameters}; only stores of one method "
                "with the same parameters can be merged"
            )
    ends = list(accumulate(map(len, stores)))
    with merged.lock():
        merged.reload()
        for store, end in zip(stores, ends, strict=True):
            _check_agreement(store, merged)
            missing = (image_id for image_id in store.ids() if image_id not in merged)
            merged.append_all((image_id, store.entry(image_id)) for image_id in missing)
            progress(end, ends[-1])
        merged.compact()
        merged.annotate(list(dict.fromkeys(text for store in [merged, *stores] for text in store.notes)))
    return merged


def check_entry(path: Path, image_id: str, entry: Entry) -> None:
    """Raise an InputError that names the store ``path`` and the image unless ``entry`` can be stored."""
    check_image_id(image_id, path)
    if entry.content_hash is not None and not is_content_hash(entry.content_hash):
        raise ValueError(f"not the hash of an image's content: {entry.content_hash!r}")
    finite = torch.isfinite(entry.proposals.boxes).all(dim=1)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise InputError(f"{path}: box {row} of image {image_id!r} is not finite; leave it out")
    masks = entry.proposals.masks
    if masks is not None and all(entry.size) and masks.size != tuple(entry.size):
        raise ValueError(f"masks of an image of {masks.size} for an image of {entry.size}")


@contextmanager
def writer_lock(path: Path, wait: float, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Hold the lock file ``path`` inside the block; InputError if it is not free after ``wait`` seconds.

    ``on_wait`` is called once if it is not free immediately. The system releases the lock when the process
    ends, however it ends.
    """
    if path.exists():
        require_regular(path)
    try:
        file = path.open("ab")
    except OSError as error:
        raise InputError(f"cannot write to {path.parent}: {error.strerror}") from error
    with file:
        deadline = time.monotonic() + wait
        while True:
            with suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            if time.monotonic() >= deadline:
                raise InputError(f"another process is writing {path.parent}; wait for it to end")
            if on_wait is not None:
                on_wait()
                on_wait = None
            time.sleep(0.02)
        yield


def _initialise(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Make an empty store; the manifest comes last, so that a folder that has one is complete."""
    make_folder(folder)
    with writer_lock(folder / _LOCK, _WAIT_SECONDS):
        if not (folder / "manifest.json").exists():
            ours = {_LOCK, "index.npy", "index.npy.tmp", "manifest.json.tmp"}  # of a creation that was killed
            others = (path for path in folder.iterdir() if path.name not in ours)
            if foreign := sorted(path.name for path in others if not is_hidden(path, folder)):
                raise InputError(
                    f"{folder} is not a proposal store and not empty (it holds {foreign[0]!r}); use another "
                    "folder"
                )
            Index.empty().save(folder / "index.npy")
            _save_manifest(folder, manifest)


def _make_manifest(generator: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest of a store by ``generator`` with ``parameters``, as it will be read back."""
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "generator": generator,
        "parameters": dict(parameters),
        "boxes": BOX_CONVENTION,
        "image_sizes": IMAGE_SIZES,
        "checksum": CHECKSUM,
        "notes": [],
    }
    return json.loads(json.dumps(manifest))


def _save_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Replace the manifest of the store ``folder`` in one durable step."""
    whole = {**manifest, _OWN_CHECKSUM: _manifest_checksum(manifest)}
    with atomic_write(folder / "manifest.json") as file:
        file.write(json.dumps(whole, indent=2).encode() + b"\n")


def _load_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of the store ``folder``; raises InputError if it is damaged or not of a store."""
    path = folder / "manifest.json"
    if not path.exists():
        raise InputError(f"{folder} is not a proposal store: it has no manifest.json")
    try:
        manifest = json.loads(read_short_text(path, "the manifest of a proposal store"))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); make the proposal store again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"{path} is not the manifest of a proposal store")
    checksum = manifest.pop(_OWN_CHECKSUM, None)
    if checksum is not None and checksum != _manifest_checksum(manifest):
        raise InputError(
            f"{path} is damaged or was edited (its checksum does not fit); put the old one back, or make the "
            "proposal store again"
        )
    manifest.setdefault("notes", [])
    for name, kind in _TYPES.items():
        if type(manifest.get(name)) is not kind:
            raise InputError(
                f"{path}: {name} is missing or is not a {kind.__name__}; make the proposal store again"
            )
    if manifest["version"] != VERSION or manifest.get("boxes") != BOX_CONVENTION:
        raise InputError(f"{path} is of another version than {VERSION}; make the proposal store again")
    return manifest


def _manifest_checksum(manifest: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(manifest, sort_keys=True).encode())


def _differences(existing: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Describe how the generator or the parameters of two manifests differ; "" if they do not."""
    if existing["generator"] != wanted["generator"]:
        return f"generator {existing['generator']!r} there, {wanted['generator']!r} wanted"
    there, here = existing["parameters"], wanted["parameters"]
    names = [name for name in sorted({*there, *here}) if there.get(name) != here.get(name)]
    return ", ".join(f"{name} {there.get(name)!r} there, {here.get(name)!r} wanted" for name in names)


def _batches(items: Iterable[Item], boxes_of: Callable[[Item], int], most_boxes: int) -> Iterator[list[Item]]:
    """Yield ``items`` in lists that each end when they have ``most_boxes`` boxes or more."""
    batch: list[Item] = []
    boxes = 0
    for item in items:
        batch.append(item)
        boxes += boxes_of(item)
        if boxes >= most_boxes:
            yield batch
            batch, boxes = [], 0
    if batch:
        yield batch


def _weight(proposals: Proposals) -> int:
    """Return how many boxes take as much memory as ``proposals`` with their masks."""
    masks = proposals.masks
    bytes_of_masks = 0 if masks is None else sum(map(len, masks.counts))
    return len(proposals) + bytes_of_masks // _MASK_BYTES_OF_A_BOX


def _parts(rows: NDArray[np.void], known: NDArray[np.bool_]) -> Iterator[slice]:
    """Yield slices of N images, given by their ``rows`` (N,), whose boxes and segments are few enough."""
    boxes = np.cumsum(np.where(known, rows["boxes"], 0), dtype=np.int64)
    changes = np.cumsum(np.diff(rows["segment"].astype(np.int64), prepend=-1) != 0)
    start = 0
    while start < len(rows):
        before = (boxes[start - 1], changes[start - 1]) if start else (0, 0)
        stop = min(
            np.searchsorted(boxes, before[0] + _SCAN_BOXES, "right"),
            np.searchsorted(changes, before[1] + _SCAN_SEGMENTS, "right"),
        )
        yield slice(start, max(int(stop), start + 1))
        start = max(int(stop), start + 1)


def _check_agreement(store: ProposalStore, merged: ProposalStore) -> None:
    for image_id in store.ids():
        if image_id in merged and store.fingerprint(image_id) != merged.fingerprint(image_id):
            raise InputError(
                f"{store.path} and {merged.path} hold different proposals for image {image_id!r}; either its "
                "file has changed, or stores of an older version, which name images by id, are of two splits "
                "with the same ids: make the older store again"
            )
