"""Several stores of one method, made by several machines or jobs, become one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path

from detector.core.errors import InputError
from detector.proposals.entries import Entry
from detector.proposals.store import ProposalStore

_SEGMENT_BOXES = 1 << 20


def merge_stores(
    sources: Sequence[Path | str],
    target: Path | str,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> ProposalStore:
    """Put all images of ``sources`` into the store at ``target``, a new one or one that holds some already.

    A merge that was killed is finished by another. ``progress`` is called after each store, with
    images done and images in all.

    Raises InputError for stores of other generators or parameters than the first, and for an image of which
    two stores hold different proposals; ``target`` then has none of the images of the second.
    """
    stores = [ProposalStore.open(source) for source in sources]
    first = stores[0]
    merged = ProposalStore.create(target, generator=first.generator, parameters=first.parameters)
    for store in stores:
        if (store.generator, store.parameters) != (first.generator, first.parameters):
            raise InputError(
                f"{store.path} and {first.path} were made otherwise: {store.generator} "
                f"{store.parameters} and {first.generator} {first.parameters}; only stores of one method "
                "with the same parameters can be merged"
            )
    ends = list(accumulate(map(len, stores)))
    with merged.lock():
        merged.reload()
        for store, end in zip(stores, ends, strict=True):
            _check_agreement(store, merged)
            for batch in _batches(store, merged):
                merged.append(batch)
            if progress is not None:
                progress(end, ends[-1])
        merged.compact()
        merged.annotate(list(dict.fromkeys(text for store in [merged, *stores] for text in store.notes)))
    return merged


def _check_agreement(store: ProposalStore, merged: ProposalStore) -> None:
    for image_id in store.ids():
        if image_id in merged and store.fingerprint(image_id) != merged.fingerprint(image_id):
            raise InputError(
                f"{store.path} and {merged.path} hold different proposals for image {image_id!r}; either its "
                "file has changed, or stores of an older version, which name images by id, are of two splits "
                "with the same ids: make the older store again"
            )


def _batches(store: ProposalStore, merged: ProposalStore) -> Iterator[dict[str, Entry]]:
    """Yield what ``merged`` does not hold yet, a segment at a time."""
    batch: dict[str, Entry] = {}
    boxes = 0
    for image_id in store.ids():
        if image_id in merged:
            continue
        size = store.image_size(image_id) or (0, 0)
        batch[image_id] = Entry(store[image_id], store.content_hash(image_id), size)
        boxes += len(batch[image_id].proposals)
        if boxes >= _SEGMENT_BOXES:
            yield batch
            batch, boxes = {}, 0
    if batch:
        yield batch
