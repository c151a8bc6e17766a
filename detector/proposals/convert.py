"""From a file of proposals to a store, in bounded memory."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from detector.errors import InputError
from detector.proposals.locking import writer_lock
from detector.proposals.readers import read_proposals
from detector.proposals.store import Entry, ProposalStore
from detector.structures import ImageRecord, Proposals

_SEGMENT_BOXES = 1 << 20  # 16 MiB of boxes in memory


def convert(
    source: Path | str,
    file_format: str,
    store_path: Path | str,
    *,
    records: Sequence[ImageRecord] | None = None,
    progress: Callable[[int], None] | None = None,
) -> ProposalStore:
    """Convert ``source`` into a store at ``store_path`` and open it; a finished one is opened as it is.

    The store appears at ``store_path`` only when it is whole. ``records`` give the images' sizes;
    ``progress`` is called with the number of images done.

    Raises InputError for a source that cannot be read, for one without any of the ``records``, and where
    ``store_path`` holds proposals of another source.
    """
    source, target = Path(source), Path(store_path)
    parameters = source_parameters(source, file_format)
    if target.exists():
        return ProposalStore.create(target, generator="converted", parameters=parameters)
    unfinished = target.with_name(target.name + ".unfinished")
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    with writer_lock(target.with_name(f".{target.name}.lock"), wait=600.0):
        if not target.exists():
            shutil.rmtree(unfinished, ignore_errors=True)  # of a conversion that was killed
            store = ProposalStore.create(unfinished, generator="converted", parameters=parameters)
            try:
                _fill(store, source, read_proposals(source, file_format), records, progress)
                unfinished.rename(target)
            except BaseException:
                shutil.rmtree(unfinished, ignore_errors=True)
                raise
    return ProposalStore.open(target)


def source_parameters(source: Path, file_format: str) -> dict[str, Any]:
    """Return what the manifest says of a converted store's source: format, name, hash of the content."""
    try:
        with source.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except OSError as error:
        raise InputError(f"cannot read the proposals {source}: {error.strerror}") from error
    return {"format": file_format, "source": source.name, "source_blake2b": digest}


def _fill(
    store: ProposalStore,
    source: Path,
    images: Iterable[tuple[str, Proposals]],
    records: Sequence[ImageRecord] | None,
    progress: Callable[[int], None] | None,
) -> None:
    sizes = {record.image_id: (record.height, record.width) for record in records or ()}
    done = 0
    for entries in _segments(source, images, sizes):
        store.append(entries)
        done += len(entries)
        if progress is not None:
            progress(done)
    if sizes and not any(image_id in store for image_id in sizes):
        raise InputError(
            f"{source} has proposals for none of the {len(sizes)} images of the data set: it names "
            f"{store.ids()[:1]}, the data set {next(iter(sizes))!r}"
        )


def _segments(
    source: Path, images: Iterable[tuple[str, Proposals]], sizes: dict[str, tuple[int, int]]
) -> Iterator[dict[str, Entry]]:
    seen: set[str] = set()
    entries: dict[str, Entry] = {}
    boxes = 0
    for image_id, proposals in images:
        if image_id in seen:
            raise InputError(f"{source} has image {image_id!r} twice; keep one")
        seen.add(image_id)
        entries[image_id] = Entry(proposals, size=sizes.get(image_id, (0, 0)))
        boxes += len(proposals)
        if boxes >= _SEGMENT_BOXES:
            yield entries
            entries, boxes = {}, 0
    if entries:
        yield entries
