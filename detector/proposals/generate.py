"""Makes the proposals of a data set, only for images that are new or whose file has changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from detector.core.errors import InputError
from detector.core.files import file_hash
from detector.core.progress import ReportProgress
from detector.core.structures import ImageRecord
from detector.proposals.filtering import filter_proposals
from detector.proposals.index import check_image_id
from detector.proposals.journal import Journal, decode_entry, encode_entry
from detector.proposals.methods import ImageReader, full_parameters, prepare, propose
from detector.proposals.store import Entry, ProposalStore
from detector.proposals.workers import Lost, run_tasks

_SEGMENT_IMAGES = 256
_MANY_SEGMENTS = 32  # from here on opening them costs more than reading

ImageCheck = Callable[[Path, tuple[int, int] | None], None]
HOW_TO_LEAVE_OUT = (
    "tools/check_data.py --fix-list FILE writes a list of the images that cannot be used, and "
    "data.leave_out=FILE leaves them out"
)


def generate_store(
    records: Sequence[ImageRecord],
    store_path: Path | str,
    *,
    method: str,
    read_image: ImageReader,
    check_image: ImageCheck | None = None,
    parameters: Mapping[str, Any] | None = None,
    workers: int = 0,
    time_limit: float | None = None,
    progress: ReportProgress = lambda _done, _total: None,
    on_failure: Callable[[str, str], None] | None = None,
    on_damage: Callable[[str], None] = lambda _sentence: None,
    wait: float = 0.0,
    on_wait: Callable[[], None] | None = None,
) -> ProposalStore:
    """Bring the store at ``store_path`` up to date with ``records`` and open it.

    Images are stored by their keys. A store of an older version has them by ``image_id``; its entries for
    unchanged files are used as they are (see `detector.proposals.image_names.match_store`). An image is
    processed again only if the content of its file has changed. Finished images are kept, even if this
    process is killed. A record of height and width 0 gets the size of its file.

    Args:
        method: ``"dense"``, ``"selective_search"`` or ``"module:function"``, a function of yours from an
            image (H, W, 3) uint8 RGB and ``parameters`` as keywords to boxes (P, 4), or boxes and scores
            (P,).
        read_image: decodes a file of the given (height, width), or of any size for None.
        check_image: a cheap check of a file of the given (height, width), or of any size for None, which
            raises InputError where ``read_image`` would. If it is given, nothing is made unless every image
            that is to be made passes.
        workers: the number of processes that share the work; with 0 this process does it.
        time_limit: seconds per image. An image that takes longer, or ends its process, fails; this needs a
            process, so that 0 workers count as 1.
        progress: called with images done and images to do.
        on_failure: called with an image's key and what is wrong with it, at most once per image. Such an
            image has no entry and is tried again the next time.
        on_damage: called with a sentence for each damaged segment of the store; its images are made again.
        wait, on_wait: seconds to wait for another process that makes this store, and what to call once then.

    Raises InputError before any work for an image whose id no store can hold and for images that do not
    pass ``check_image``; where the store was made with other parameters, or another process is still writing
    it; and, without ``on_failure`` and after all other images are done, for images that failed.
    """
    parameters = full_parameters(method, parameters or {})
    records = list({record.key: record for record in records}.values())
    for record in records:
        check_image_id(record.key, repr(str(record.path)))
    store = ProposalStore.create(store_path, generator=method, parameters=parameters)
    if not store.damaged() and not stale_records(records, store):
        return store
    prepare(method)
    make = partial(_make, method, parameters, read_image)
    with store.lock(wait, on_wait), Journal(store.path) as journal:
        store.append(journal.entries())
        journal.clear()
        store.reload()
        for damage in store.damaged():
            store.discard(damage.image_ids)
            on_damage(f"{damage.reason}; their proposals are made again")
        todo = stale_records(records, store)  # again: another process may have done some until now
        if check_image is not None:
            _check_images(todo, check_image)
        processes = max(workers, 1) if time_limit else workers
        results = _run(make, partial(prepare, method), todo, processes, time_limit)
        failures = _store_results(store, journal, results, lambda done: progress(done, len(todo)))
        # Boxes of another image are worse than none; a file that is only out of reach keeps its own.
        failed = [record for record in todo if record.key in failures and record.key in store]
        if outdated := [record.key for record in failed if _differs(record, record.key, store)]:
            store.discard(outdated)
        if store.segment_count() > _MANY_SEGMENTS:
            store.compact()
    if on_failure is not None:
        for key, reason in failures.items():
            on_failure(key, reason)
    elif failures:
        raise InputError(
            f"{len(failures)} of {len(todo)} images got no proposals; the first: "
            f"{next(iter(failures.values()))}. All others are done and kept. {HOW_TO_LEAVE_OUT}"
        )
    return store


def _check_images(records: Sequence[ImageRecord], check_image: ImageCheck) -> None:
    """Raise one InputError for all ``records`` whose file cannot be read."""

    def fault_of(record: ImageRecord) -> str | None:
        size = (record.height, record.width)
        try:
            check_image(record.path, size if all(size) else None)
        except InputError as error:
            return str(error)
        return None

    with ThreadPoolExecutor() as threads:
        faults = [fault for fault in threads.map(fault_of, records) if fault is not None]
    if faults:
        raise InputError(
            f"{len(faults)} of {len(records)} images cannot be read, so no proposals were made; the first: "
            f"{faults[0]}. {HOW_TO_LEAVE_OUT}"
        )


def stale_records(records: Iterable[ImageRecord], store: ProposalStore) -> list[ImageRecord]:
    """Return the records whose image the store does not hold, or holds with another content of the file.

    An image that cannot be read counts as changed.
    """

    def is_stale(record: ImageRecord) -> bool:
        name = record.key if record.key in store else record.image_id
        return name not in store or _differs(record, name, store) is not False

    records = list(records)
    with ThreadPoolExecutor() as threads:  # reading and hashing leave the interpreter free
        return [
            record for record, stale in zip(records, threads.map(is_stale, records), strict=True) if stale
        ]


def _differs(record: ImageRecord, name: str, store: ProposalStore) -> bool | None:
    """Whether the boxes of ``name`` are for another content of the file; None if it cannot be read."""
    try:
        return store.content_hash(name) != file_hash(record.path)
    except InputError:
        return None


class _Task(NamedTuple):
    key: str
    path: Path
    size: tuple[int, int]


def _make(method: str, parameters: dict[str, Any], read_image: ImageReader, task: _Task) -> bytes | str:
    """Return the journal's record of an image, or what is wrong with the image."""
    try:
        content_hash = file_hash(task.path)
        height, width = task.size if all(task.size) else read_image(task.path, None).shape[:2]
        proposals = propose(method, parameters, task.path, (height, width), read_image)
    except InputError as error:
        return str(error)
    entry = Entry(filter_proposals(proposals, (height, width)), content_hash, (height, width))
    return encode_entry(task.key, entry)


def _run(
    make: Callable[[_Task], bytes | str],
    load_method: Callable[[], None],
    records: list[ImageRecord],
    workers: int,
    time_limit: float | None,
) -> Iterator[tuple[str, bytes | str]]:
    """Yield keys and what ``make`` returns for them, in the order in which they are done."""
    tasks = [_Task(record.key, record.path, (record.height, record.width)) for record in records]
    if workers == 0:
        yield from ((task.key, make(task)) for task in tasks)
        return
    for task, answer in run_tasks(make, tasks, workers=workers, time_limit=time_limit, prepare=load_method):
        yield task.key, f"{task.path} {answer.reason}" if isinstance(answer, Lost) else answer


def _store_results(
    store: ProposalStore,
    journal: Journal,
    results: Iterator[tuple[str, bytes | str]],
    progress: Callable[[int], None],
) -> dict[str, str]:
    """Keep each result in the journal immediately, and put them into the store one segment at a time.

    Returns why images failed, by key.
    """
    failures: dict[str, str] = {}
    batch: dict[str, Entry] = {}
    for done, (key, result) in enumerate(results, 1):
        if isinstance(result, str):
            failures[key] = result
        else:
            journal.add(result)
            _, batch[key] = decode_entry(result)
        if len(batch) >= _SEGMENT_IMAGES:
            store.append(batch)
            journal.clear()
            batch = {}
        progress(done)
    store.append(batch)
    journal.clear()
    return failures
