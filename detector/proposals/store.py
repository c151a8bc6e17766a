"""Proposals on disk: any number of images in bounded memory, safe against a crash at any moment.

A store is a folder:

    manifest.json                 what made the boxes, with which parameters, in which convention; notes
    index.npy                     image id -> segment, offset, count, image size, content hash, checksum;
                                  behind the array its own checksum
    segment_000001.boxes.npy      (M, 4) float32: x1, y1, x2, y2, half-open pixels of the original image
    segment_000001.scores.npy     (M,) float32; absent where no image of the segment has scores
    writer.lock                   held (flock) by the one process that writes

Segments never change. A writer adds a whole segment and then replaces the index in one step, so a process
killed in between leaves the store as it was. Readers need no lock. A split only chooses ids.

Damage is found before it is used: the manifest's checksum is compared when the store is opened, the index's
at its first use, and those of a segment's images when the segment is first read, once in each process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detector.core.errors import InputError
from detector.core.files import is_hidden, make_folder
from detector.core.structures import Proposals
from detector.proposals.checksums import Damage, find_damage
from detector.proposals.entries import Entry, check_entry, rows_of, write_entries
from detector.proposals.index import Index, Row
from detector.proposals.locking import writer_lock
from detector.proposals.manifest import differences, load_manifest, make_manifest, save_manifest
from detector.proposals.segments import (
    SegmentMaps,
    Signature,
    greatest_number,
    remove_segments,
    write_segment,
)

_LOCK = "writer.lock"
_COMPACT_BOXES = 1 << 24  # 256 MiB of boxes a segment
_MAX_SEGMENT = (1 << 32) - 1  # the index has 32 bits for it


class DamagedStore(InputError):
    """A file of the store does not hold what was written to it."""


class ProposalStore:
    """The proposals of a data set by one method, read by image id. Make one with ``open`` or ``create``."""

    def __init__(
        self, path: Path, manifest: Mapping[str, Any], checked: Mapping[int, Signature] | None = None
    ) -> None:
        self.path = path
        self._manifest = manifest
        self._index = Index.load(path / "index.npy")
        self._maps = SegmentMaps(path, self._check_segment, checked)
        self._locked = False

    @classmethod
    def open(cls, path: Path | str, checked: Mapping[int, Signature] | None = None) -> ProposalStore:
        """Open an existing store; raises InputError if ``path`` is none or is damaged.

        ``checked`` are the segments that another process has found sound.
        """
        return cls(Path(path), load_manifest(Path(path)), checked)

    @classmethod
    def create(cls, path: Path | str, *, generator: str, parameters: Mapping[str, Any]) -> ProposalStore:
        """Make an empty store, or open the one that is there if generator and parameters are the same.

        Raises InputError if they differ, naming how, or if something else lies at ``path``.
        """
        folder = Path(path)
        wanted = make_manifest(generator, parameters)
        if not (folder / "manifest.json").exists():
            _initialise(folder, wanted)
        found = load_manifest(folder)
        if difference := differences(found, wanted):
            raise InputError(
                f"{folder} holds proposals made otherwise ({difference}); use another folder or remove it"
            )
        return cls(folder, found)

    @property
    def generator(self) -> str:
        """The method that made the proposals."""
        return str(self._manifest["generator"])

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters it was called with."""
        return dict(self._manifest["parameters"])

    @property
    def notes(self) -> list[str]:
        """What was found while the store was made, a sentence each."""
        return [str(note) for note in self._manifest.get("notes", [])]

    def __getitem__(self, image_id: str) -> Proposals:
        """Return the proposals of ``image_id`` as tensors of their own.

        Raises InputError if it has none, and `DamagedStore` for a damaged segment.
        """
        try:
            return self._read(self._row(image_id))
        except (FileNotFoundError, DamagedStore):  # another process may have compacted the store
            self.reload()
        try:
            return self._read(self._row(image_id))
        except FileNotFoundError as error:
            raise DamagedStore(f"{error.filename} is missing; {self._remedy()}") from error

    def __contains__(self, image_id: object) -> bool:
        return isinstance(image_id, str) and self._index.find(image_id) is not None

    def __len__(self) -> int:
        return len(self._index)

    def __reduce__(
        self,
    ) -> tuple[Callable[..., ProposalStore], tuple[Path, Mapping[int, Signature]]]:
        return ProposalStore.open, (self.path, self.checked)

    @property
    def checked(self) -> Mapping[int, Signature]:
        """The segments that this process has found sound; `open` takes them over."""
        return self._maps.checked

    def ids(self) -> list[str]:
        """Return the ids of all images, sorted."""
        return self._index.ids()

    def content_hash(self, image_id: str) -> str | None:
        """Return the hash of the image file the boxes were made for, or None where it is not known."""
        return self._row(image_id).content_hash or None

    def count(self, image_id: str) -> int:
        """Return how many proposals the image has."""
        return self._row(image_id).boxes

    def fingerprint(self, image_id: str) -> tuple[int, int, str]:
        """Return what tells two entries apart: number and checksum of the boxes, hash of the image."""
        row = self._row(image_id)
        return row.boxes, row.checksum, row.content_hash

    def image_size(self, image_id: str) -> tuple[int, int] | None:
        """Return the image's (height, width), or None where it is not known."""
        size = self._row(image_id).size
        return size if all(size) else None

    def reload(self) -> None:
        """See what other processes have written since the store was opened."""
        self._index = Index.load(self.path / "index.npy")
        self._maps.close()

    def append(self, entries: Mapping[str, Entry]) -> None:
        """Add ``entries`` as one new segment; an id that is there already is replaced.

        When this returns, the entries are on the disk; a process killed before leaves the store as it was.
        """
        if not entries:
            return
        for image_id, entry in entries.items():
            check_entry(self.path, image_id, entry)
        with self.lock(wait=30.0):
            index = Index.load(self.path / "index.npy")
            number = self._next_segment(index)
            write_entries(self.path, number, list(entries.values()))
            index = index.merged(rows_of(number, entries))
            index.save(self.path / "index.npy")
            self._index = index

    def discard(self, image_ids: Iterable[str]) -> None:
        """Forget the proposals of ``image_ids``."""
        with self.lock(wait=30.0):
            self._index = Index.load(self.path / "index.npy").without(image_ids)
            self._index.save(self.path / "index.npy")

    def annotate(self, notes: list[str]) -> None:
        """Replace the notes in the manifest."""
        with self.lock(wait=30.0):
            self._manifest = {**self._manifest, "notes": notes}
            save_manifest(self.path, self._manifest)

    def segment_count(self) -> int:
        """Return how many segments are in use; each open one costs a reader a file descriptor or two."""
        return len(self._index.segments())

    def compact(self) -> None:
        """Rewrite the store without replaced entries, in the order of the ids, in few large segments."""
        with self.lock(wait=30.0):
            self.reload()
            first = self._next_segment(self._index)
            moved: list[Row] = []
            for number, group in enumerate(_groups(self._index.rows(), _COMPACT_BOXES), first):
                self._copy_rows(number, group)
                moved += _moved(number, group)
            self._index.merged(moved).save(self.path / "index.npy")
            self.reload()
            remove_segments(self.path, keep=self._index.segments())

    def damaged(self) -> list[Damage]:
        """Return what is wrong with each damaged segment, reading what is not checked yet."""
        found = []
        for number in sorted(self._index.segments()):
            try:
                self._maps.check(number)
            except (FileNotFoundError, DamagedStore):
                found.append(self._damage_of(number))
        return [damage for damage in found if damage is not None]

    @contextmanager
    def lock(self, wait: float = 0.0, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
        """Be the only writer of this store inside the block.

        ``on_wait`` is called once, where another process is. Raises InputError where it still is after
        ``wait`` seconds.
        """
        if self._locked:
            yield
            return
        with writer_lock(self.path / _LOCK, wait, on_wait):
            self._locked = True
            try:
                yield
            finally:
                self._locked = False

    def _next_segment(self, index: Index) -> int:
        """Return a number that no segment has had: readers with an older index may still want those."""
        number = max(max(index.segments(), default=0), greatest_number(self.path)) + 1
        if number > _MAX_SEGMENT:
            raise InputError(f"{self.path / 'index.npy'}: no segment number is free; make the store again")
        return number

    def _check_segment(self, number: int) -> None:
        damage = find_damage(self.path, number, self._index.rows_in(number))
        if damage is not None:
            raise DamagedStore(f"{damage.path} is damaged: {damage.reason}; {self._remedy()}")

    def _damage_of(self, number: int) -> Damage | None:
        rows = self._index.rows_in(number)
        try:
            return find_damage(self.path, number, rows)
        except FileNotFoundError as error:
            return Damage(Path(error.filename), "it is missing", rows.ids(range(len(rows))))

    def _remedy(self) -> str:
        if self.generator == "converted":
            return f"delete the folder {self.path} and convert the proposals again"
        return (
            "make the proposals again with the command that made them, which makes these images alone, or "
            f"delete the folder {self.path}"
        )

    def _row(self, image_id: str) -> Row:
        row = self._index.find(image_id)
        if row is None:
            example = f", such as {next(iter(self._index.rows())).image_id!r}" if len(self) else ""
            raise InputError(
                f"{self.path} has no proposals for image {image_id!r}; it has {len(self)} images{example}"
            )
        return row

    def _read(self, row: Row) -> Proposals:
        boxes = self._maps.read(row.segment, "boxes", row.offset, row.boxes)
        if not row.scored:
            return Proposals(boxes=torch.from_numpy(boxes))
        scores = self._maps.read(row.segment, "scores", row.offset, row.boxes)
        return Proposals(boxes=torch.from_numpy(boxes), scores=torch.from_numpy(scores))

    def _copy_rows(self, number: int, rows: list[Row]) -> None:
        boxes = (self._maps.read(row.segment, "boxes", row.offset, row.boxes) for row in rows)
        scores = (
            self._maps.read(row.segment, "scores", row.offset, row.boxes)
            if row.scored
            else np.zeros(row.boxes, np.float32)
            for row in rows
        )
        any_scored = any(row.scored for row in rows)
        write_segment(
            self.path, number, boxes, scores if any_scored else None, sum(row.boxes for row in rows)
        )


def _initialise(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Make an empty store; the manifest comes last, so that a folder with one is whole."""
    make_folder(folder)
    with writer_lock(folder / _LOCK, wait=30.0):
        if not (folder / "manifest.json").exists():
            _check_unused(folder)
            Index.empty().save(folder / "index.npy")
            save_manifest(folder, manifest)


def _check_unused(folder: Path) -> None:
    ours = {_LOCK, "index.npy", "index.npy.tmp", "manifest.json.tmp"}  # of a creation that was killed
    others = (path for path in folder.iterdir() if path.name not in ours)
    foreign = sorted(path.name for path in others if not is_hidden(path, folder))
    if foreign:
        raise InputError(
            f"{folder} is no proposal store and not empty (it holds {foreign[0]!r}); use another folder"
        )


def _groups(rows: Iterable[Row], most_boxes: int) -> Iterator[list[Row]]:
    group: list[Row] = []
    boxes = 0
    for row in rows:
        if group and boxes + row.boxes > most_boxes:
            yield group
            group, boxes = [], 0
        group.append(row)
        boxes += row.boxes
    if group:
        yield group


def _moved(number: int, rows: list[Row]) -> Iterator[Row]:
    offset = 0
    for row in rows:
        yield row._replace(segment=number, offset=offset)
        offset += row.boxes
