"""Makes the proposals of a data set, only for images that are new or whose file has changed.

Several processes (`detector.core.distributed`) make one store together, in a folder that all of them share:
rank 0 decides what is to be made, and every process makes its share.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from detector.core import distributed
from detector.core.errors import InputError
from detector.core.files import file_hash
from detector.core.listing import asked
from detector.core.progress import ReportProgress, note
from detector.core.records import Records
from detector.core.structures import ImageRecord
from detector.proposals.checked import Checked, file_states, image_mark, store_mark
from detector.proposals.filtering import filter_proposals
from detector.proposals.index import check_image_id
from detector.proposals.journal import Journal, decode_entry, encode_entry, entries, journals
from detector.proposals.methods import ImageReader, full_parameters, prepare, propose
from detector.proposals.store import Damage, Entry, ProposalStore
from detector.proposals.workers import Lost, run_tasks

_SEGMENT_IMAGES = 256
_SHARE = "proposals have to be in a folder that all machines share"
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
    processed again only if the content of its file has changed; its content is compared unless its size and
    times say that it is as in the last comparison (`detector.proposals.checked`). Finished images are kept,
    even if this process is killed. A record of height and width 0 gets the size of its file. Where there are
    several processes, all of them call this alike; rank 0 reports failures and damage.

    Args:
        method: ``"dense"``, ``"selective_search"`` or ``"module:function"``, a function of yours from an
            image (H, W, 3) uint8 RGB and ``parameters`` as keywords to boxes (P, 4), or boxes and scores
            (P,).
        read_image: decodes a file of the given (height, width), or of any size for None.
        check_image: a cheap check of a file of the given (height, width), or of any size for None, which
            raises InputError where ``read_image`` would. If it is given, nothing is made unless every image
            that is to be made passes.
        workers: the number of worker processes that do the work of this process; with 0 it does it itself.
        time_limit: seconds per image. An image that takes longer, or ends its process, fails; this needs a
            process, so that 0 workers count as 1.
        progress: called with images done and images to do; of several processes, rank 0 takes the others
            to be as fast as itself.
        on_failure: called with an image's key and what is wrong with it, at most once per image. Such an
            image has no entry and is tried again the next time.
        on_damage: called with a sentence for each damaged segment of the store; its images are made again.
        wait, on_wait: seconds to wait for another process that makes this store, and what to call once then.

    Raises InputError before any work for an image whose id no store can hold and for images that do not
    pass ``check_image``; where the store was made with other parameters, or another process is still writing
    it; and, without ``on_failure`` and after all other images are done, for images that failed.
    """
    parameters = full_parameters(method, parameters or {})
    columns = _distinct(Records.of(records))
    for key, path in zip(columns.keys, columns.paths(), strict=True):
        check_image_id(key, repr(path))
    processes = max(workers, 1) if time_limit else workers
    make = partial(_make, method, parameters, read_image)

    def results_of(records: list[ImageRecord]) -> Iterator[tuple[str, bytes | str]]:
        return _run(make, partial(prepare, method), records, processes, time_limit)

    if not distributed.is_main():
        _make_share(Path(store_path), columns, results_of)
        distributed.barrier()  # until rank 0 has finished the store
        return ProposalStore.open(store_path)
    store = ProposalStore.create(store_path, generator=method, parameters=parameters)
    _finish_killed_job(store)
    comparison = _Comparison(columns, store)
    failures: dict[str, str] = {}
    rows: list[int] = []
    if not comparison.damaged() and not comparison.stale():
        _hand_out([])
        _gather_reports(0, {})
        comparison.save()
    else:
        prepare(method)
        with store.lock(wait, on_wait):
            _take_over(store)
            for damage in comparison.damaged():
                store.discard(damage.image_ids)
                on_damage(f"{damage.reason}; their proposals are made again")
            rows = comparison.stale()  # again: another process may have done some until now
            if check_image is not None:
                _check_images([columns[row] for row in rows], check_image)
            failures = _make_together(store, columns, rows, results_of, progress)
            # Boxes of another image are worse than none; a file that is only out of reach keeps its own.
            todo = (columns[row] for row in rows)
            failed = [record for record in todo if record.key in failures and record.key in store]
            if outdated := [record.key for record in failed if _differs(record, store)]:
                store.discard(outdated)
            if store.segment_count() > _MANY_SEGMENTS:
                store.compact()
            store.tidy()
            comparison.save(written=True, failed=failures)
    distributed.barrier()
    if on_failure is not None:
        for key, reason in failures.items():
            on_failure(key, reason)
    elif failures:
        raise InputError(
            f"{len(failures)} of {len(rows)} images got no proposals; the first: "
            f"{next(iter(failures.values()))}. All others are done and kept. {HOW_TO_LEAVE_OUT}"
        )
    return store


def _hand_out(rows: list[int]) -> list[int]:
    """Return which rows this process is to make of those that rank 0 gives; the others give none."""
    distributed.barrier()  # rank 0 may have waited for another job for hours
    return list(distributed.share(distributed.gather_rows(torch.tensor(rows, dtype=torch.int64))[0].tolist()))


def _gather_reports(made: int, failures: Mapping[str, str]) -> list[tuple[int, dict[str, str]]]:
    """Return how many images each process has made, and why others failed, by rank."""
    distributed.barrier()  # one process may take hours longer than another
    return [
        (count, why) for count, why in map(json.loads, distributed.gather_texts(json.dumps([made, failures])))
    ]


Results = Callable[[list[ImageRecord]], Iterator[tuple[str, bytes | str]]]
"""Yields the keys of images and what `_make` returns for them."""


def _make_share(folder: Path, columns: Records, results_of: Results) -> None:
    """Make what rank 0 gives to this process, and leave it in a journal."""
    own = [columns[row] for row in _hand_out([])]
    made, failures = 0, {}
    if own:
        if not folder.is_dir():
            raise InputError(f"{folder}: rank 0 has made this folder, and it is not here; {_SHARE}")
        with Journal(folder, distributed.rank()) as journal:
            for key, result in results_of(own):
                if isinstance(result, str):
                    failures[key] = result
                else:
                    journal.add(result)
                    made += 1
    _gather_reports(made, failures)


def _make_together(
    store: ProposalStore, columns: Records, rows: list[int], results_of: Results, progress: ReportProgress
) -> dict[str, str]:
    """Make ``rows`` with all processes, and put the results into the store; return why images failed, by key.

    Only rank 0 calls this, and only it writes segments and index.
    """
    own = [columns[row] for row in _hand_out(rows)]

    def report(done: int) -> None:
        progress(min(done * distributed.world_size(), len(rows)), len(rows))

    with Journal(store.path) as journal:
        failures = _store_results(store, journal, results_of(own), report)
    for rank, (made, others) in enumerate(_gather_reports(0, {})):
        failures |= others
        if made and _take_in(store, Journal.path_of(store.path, rank)) != made:
            raise InputError(f"{store.path}: what rank {rank} has made is not here; {_SHARE}")
    return failures


def _take_in(store: ProposalStore, path: Path) -> int:
    """Move the records of a journal into the store, without those that it has; return how many there are."""
    count = 0

    def counted() -> Iterator[tuple[str, Entry]]:
        nonlocal count
        for found in entries(path):
            count += 1
            key, entry = found
            if key not in store or store.content_hash(key) != entry.content_hash:
                yield found

    store.append_all(counted())
    path.unlink()
    return count


def _finish_killed_job(store: ProposalStore) -> None:
    """Put into the store what a killed job has finished, and remove what it has left unfinished.

    Nothing is done while another job is writing, which does it, or in a folder that cannot be written.
    """
    with suppress(InputError), store.lock():
        _take_over(store)
        store.tidy()


def _take_over(store: ProposalStore) -> None:
    """Move the records of all journals into the store, whichever process has left them."""
    store.reload()
    for path in journals(store.path):
        _take_in(store, path)


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


def _distinct(records: Records) -> Records:
    """Return ``records`` with each key once; the last record of a key counts."""
    row_of = {key: row for row, key in enumerate(records.keys)}
    return records if len(row_of) == len(records) else records.take(list(row_of.values()))


class _Comparison:
    """Compares ``records`` with what ``store`` holds; reads only what may have changed since last time."""

    def __init__(self, records: Records, store: ProposalStore) -> None:
        self._records, self._store = records, store
        self._paths = records.paths()
        self._states = file_states(self._paths)  # before any image is read
        self._before = Checked.load(store.path)
        self._sound = self._before.store
        self._same = set(self._before.images)

    def damaged(self) -> list[Damage]:
        """Return what each damaged segment has lost."""
        mark = store_mark(self._store.path)
        if mark == self._sound:
            return []
        found = self._store.damaged()
        if not found:
            self._sound = mark
        return found

    def stale(self) -> list[int]:
        """Return the rows of the records whose image the store lacks, or holds with another content.

        An image that cannot be read counts as changed.
        """
        known = self._store.content_hashes(self._records.keys, self._records.image_ids)
        marks = self._marks(known)
        unsure = [row for row, mark in enumerate(marks) if mark not in self._same]
        present = [row for row in unsure if known[row] is not None]
        contents = asked([self._paths[row] for row in present], _content)
        same = {row for row, content in zip(present, contents, strict=True) if content == known[row]}
        self._same.update(mark for row in same if (mark := marks[row]) is not None)
        return [row for row in unsure if row not in same]

    def save(self, *, written: bool = False, failed: Collection[str] = ()) -> None:
        """Keep what is as it should be: all images but those ``failed``.

        If the store was ``written``, its lock must be held.
        """
        known = self._store.content_hashes(self._records.keys, self._records.image_ids)
        marks = zip(self._records.keys, self._marks(known), strict=True)
        images = {mark for key, mark in marks if mark is not None and key not in failed}
        others = self._before.images | images  # the store may hold the images of other splits
        sound = store_mark(self._store.path) if written else self._sound
        now = Checked(sound, others if len(others) <= 2 * len(self._store) else frozenset(images))
        if now == self._before:
            return
        try:
            now.save(self._store.path)
        except InputError as error:
            note(f"each start compares all images of {self._store.path} again: {error}")

    def _marks(self, known: Sequence[str | None]) -> list[bytes | None]:
        """Return the mark of each image whose file has the content ``known``; None where it can have none."""
        every = zip(self._records.keys, self._paths, known, self._states, strict=True)
        return [
            None if content is None or state is None else image_mark(key, path, content, state)
            for key, path, content, state in every
        ]


def _content(path: str) -> str | None:
    """Return the hash of a file's content, None if it cannot be read."""
    try:
        return file_hash(Path(path))
    except InputError:
        return None


def _differs(record: ImageRecord, store: ProposalStore) -> bool:
    """Whether the boxes of an image are for another content of its file, which can be read."""
    content = _content(str(record.path))
    return content is not None and store.content_hash(record.key) != content


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
