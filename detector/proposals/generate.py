"""Making proposals for a data set: only what is missing or has changed, and nothing twice."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from detector.errors import InputError, nearest
from detector.proposals.dense import ASPECTS, SCALES, STRIDE_FRACTION, dense_proposals
from detector.proposals.prepare import filter_proposals
from detector.proposals.readers.arrays import make_proposals
from detector.proposals.store import Entry, ProposalStore
from detector.structures import ImageRecord, Proposals

METHODS = ("dense", "selective_search")
_SEGMENT_IMAGES = 256  # what a kill loses at most
_MANY_SEGMENTS = 32  # from here on opening them costs more than reading

ImageReader = Callable[[Path, tuple[int, int]], NDArray[np.uint8]]
Progress = Callable[[int, int], None]


def generate_store(
    records: Sequence[ImageRecord],
    store_path: Path | str,
    *,
    method: str,
    read_image: ImageReader,
    parameters: Mapping[str, Any] | None = None,
    workers: int = 0,
    progress: Progress | None = None,
) -> ProposalStore:
    """Bring the store at ``store_path`` up to date with ``records`` and open it.

    An image is done again only when its file's content has changed. ``method`` is ``"dense"``,
    ``"selective_search"`` or ``"module:function"``, a function of yours from an image (H, W, 3) uint8 RGB
    and ``parameters`` as keywords to boxes (P, 4), or boxes and scores (P,). ``read_image`` decodes a file of
    the given (height, width). ``workers`` processes share the work (0: this one does it); what is done is
    on the disk every few hundred images. ``progress`` is called with images done and images to do.

    Raises InputError where the store was made with other parameters, where another process writes it, and,
    after all other images are done, for images that failed.
    """
    parameters = full_parameters(method, parameters or {})
    store = ProposalStore.create(store_path, generator=method, parameters=parameters)
    if not stale_records(records, store):
        return store
    with store.lock():
        store.reload()
        todo = stale_records(records, store)  # again: another process may have done some until now
        failures = _fill(store, _Job(method, parameters, read_image), todo, workers, progress)
        if store.segment_count() > _MANY_SEGMENTS:
            store.compact()
    if failures:
        raise InputError(
            f"{len(failures)} of {len(todo)} images got no proposals; the first: {failures[0]}. "
            "All others are done and stay so"
        )
    return store


def full_parameters(method: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``parameters`` with the method's defaults filled in, as the manifest and the name hold them."""
    match method:
        case "dense":
            defaults: dict[str, Any] = {
                "scales": list(SCALES),
                "aspects": list(ASPECTS),
                "stride_fraction": STRIDE_FRACTION,
                "max_proposals": None,
            }
            return _with_defaults(method, defaults, parameters)
        case "selective_search":
            defaults = {"mode": "fast", "seed": 0, "max_proposals": None}
            return _with_defaults(method, defaults, parameters)
        case _ if ":" in method:
            return dict(parameters)
        case _:
            raise InputError(
                f"proposal method {method!r} is unknown{nearest(method, METHODS)}; use one of "
                f"{', '.join(METHODS)}, or module:function for a function of yours"
            )


def store_name(method: str, parameters: Mapping[str, Any] | None = None) -> str:
    """Return a folder name for the method with these parameters: readable, and another for any other set."""
    text = json.dumps([method, full_parameters(method, parameters or {})], sort_keys=True)
    readable = "".join(letter if letter.isalnum() else "_" for letter in method)
    return f"{readable}_{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"


def content_hash(data: bytes) -> str:
    """Return the BLAKE2b hash, 32 hexadecimal digits, that stores keep of an image file's bytes."""
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def stale_records(records: Iterable[ImageRecord], store: ProposalStore) -> list[ImageRecord]:
    """Return the records whose image the store does not hold, or holds in another content."""

    def is_stale(record: ImageRecord) -> bool:
        known = store.content_hash(record.image_id) if record.image_id in store else None
        return known is None or known != content_hash(_read_bytes(record.path))

    records = list(records)
    with ThreadPoolExecutor() as threads:  # reading and hashing leave the interpreter free
        return [
            record for record, stale in zip(records, threads.map(is_stale, records), strict=True) if stale
        ]


class _Result(NamedTuple):
    image_id: str
    outcome: Entry | str


class _Job(NamedTuple):
    """Everything a worker needs to know; goes to other processes."""

    method: str
    parameters: dict[str, Any]
    read_image: ImageReader

    def run(self, image_id: str, path: Path, size: tuple[int, int]) -> _Result:
        try:
            hashed = content_hash(_read_bytes(path))
            proposals = filter_proposals(self._propose(path, size), size)
        except InputError as error:
            return _Result(image_id, str(error))
        return _Result(image_id, Entry(proposals, hashed, size))

    def _propose(self, path: Path, size: tuple[int, int]) -> Proposals:
        match self.method:
            case "dense":
                return dense_proposals(size, **self.parameters)
            case "selective_search":
                # Imported here: nothing else of this package needs the compiled library.
                selective_search = importlib.import_module("detector.ops").selective_search
                found = selective_search(self.read_image(path, size), **self.parameters)
                return Proposals(boxes=found.boxes, scores=found.scores)
            case _:
                function = _load_function(self.method)
                return _call(function, self.method, self.read_image(path, size), self.parameters, path)


def _fill(
    store: ProposalStore, job: _Job, records: list[ImageRecord], workers: int, progress: Progress | None
) -> list[str]:
    """Do ``records``, store what is done every few hundred images, and return what went wrong."""
    failures: list[str] = []
    batch: dict[str, Entry] = {}
    for done, result in enumerate(_run(job, records, workers), 1):
        if isinstance(result.outcome, Entry):
            batch[result.image_id] = result.outcome
        else:
            failures.append(result.outcome)
        if len(batch) >= _SEGMENT_IMAGES or done == len(records):
            store.append(batch)
            batch = {}
        if progress is not None:
            progress(done, len(records))
    return failures


def _with_defaults(method: str, defaults: dict[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    for name in given:
        if name not in defaults:
            raise InputError(
                f"proposal method {method!r} has no parameter {name!r}{nearest(name, defaults)}; "
                f"it has {', '.join(defaults)}"
            )
    return defaults | dict(given)


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the image {path}: {error.strerror}") from error


def _run(job: _Job, records: list[ImageRecord], workers: int) -> Iterator[_Result]:
    """Yield the results as they come, with a bounded number of images under way."""
    arguments = ((record.image_id, record.path, (record.height, record.width)) for record in records)
    if workers == 0 or not records:
        yield from (job.run(*each) for each in arguments)
        return
    # Fresh processes: forking one that has threads, as this one has, may leave locks held for ever.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        running: set[Future[_Result]] = set()
        for each in arguments:
            running.add(pool.submit(job.run, *each))
            if len(running) >= 4 * workers:
                finished, running = wait(running, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in finished)
        yield from (future.result() for future in wait(running).done)


def _load_function(name: str) -> Callable[..., Any]:
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"proposal method {name!r} cannot be loaded: {error}") from error
    if not callable(function):
        raise InputError(f"proposal method {name!r} is no function")
    return function


def _call(
    function: Callable[..., Any], name: str, image: NDArray[np.uint8], parameters: dict[str, Any], path: Path
) -> Proposals:
    try:
        found = function(image, **parameters)
    except Exception as error:
        raise InputError(f"{name} fails on {path}: {type(error).__name__}: {error}") from error
    boxes, scores = found if isinstance(found, tuple) else (found, None)
    boxes = np.asarray(boxes, dtype=np.float64).reshape(-1, 4) if np.size(boxes) == 0 else np.asarray(boxes)
    if boxes.ndim != 2 or boxes.shape[1] != 4 or (scores is not None and np.shape(scores) != (len(boxes),)):
        raise InputError(f"{name} gave boxes of shape {boxes.shape} for {path}; (P, 4) is wanted")
    return make_proposals(boxes, None if scores is None else np.asarray(scores), f"{name} on {path}")
