"""A folder of files that are filled image by image: resumed after a kill, shared by processes, checked.

What the files hold and where is planned before any work, so they have their full size from the beginning.
Beside them lie ``done.bin``, a checksum per image (CRC-32, four bytes, little-endian; 0 until the image's
content is on the disk, and 1 where the CRC-32 is 0), and a manifest in JSON, which says what the content was
made with. A process that is killed loses only the images whose checksum is not written yet.

Several processes (`detector.core.distributed`) fill one folder together, which all of them share.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from detector.core import distributed
from detector.core.errors import InputError
from detector.core.files import file_hash, read_json, require_regular, write_text
from detector.core.progress import ReportProgress
from detector.core.structures import ImageRecord

Result = TypeVar("Result")

FLUSH_EVERY = 16
"""Number of images after which their content, and then their checksums, are forced to the disk: a crash loses
at most these."""
_WAITING = 2
"""Results that wait to be written while the next one is computed; more would only take memory."""
_DONE = "done.bin"
_CHECKSUM = struct.Struct("<I")


@dataclass(frozen=True)
class PlannedFile:
    """A file of ``size`` bytes that begins with ``head``; the rest is filled image by image."""

    size: int
    head: bytes = b""


class Output:
    """A file in which several processes write different parts at the same time.

    It is opened for writing only, and nothing is buffered: a network file system would read, and later write
    back, whole pages, with what another machine has changed in them since.
    """

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_WRONLY)

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)

    def write_at(self, offset: int, content: bytes | memoryview) -> None:
        left = memoryview(content).cast("B")
        while left:
            written = os.pwrite(self._handle, left, offset)
            left, offset = left[written:], offset + written

    def sync(self) -> None:
        """Wait until all is on the disk."""
        os.fsync(self._handle)


Outputs = Mapping[str, Output]
"""The files of a folder by their names."""


@dataclass(frozen=True, kw_only=True)
class CacheFolder:
    """A folder with ``files`` of ``images`` images, as a plan describes it before it is made.

    ``what`` is the content's name in messages, ``record`` the name of the manifest. ``manifest`` holds
    ``format``, ``key`` and ``parts``, what the content was made with, by names; more may be in it.
    ``cheaper`` says in an error how the files become smaller.
    """

    folder: Path
    what: str
    record: str
    manifest: Mapping[str, Any]
    files: Mapping[str, PlannedFile]
    images: int
    cheaper: str

    @property
    def make_again(self) -> str:
        """How damage is repaired, as the end of a message."""
        return f"remove {self.record} in its folder, and the {self.what} is made again"

    def fill(
        self,
        results: Callable[[Sequence[int]], Generator[Result, None, None]],
        write: Callable[[Outputs, int, Result], int],
        progress: ReportProgress = lambda _done, _total: None,
    ) -> None:
        """Compute and write what the folder lacks; where there are several processes, each does a share.

        ``results`` takes numbers of images and yields the result of each, in that order. ``write`` writes one
        to its place and returns the CRC-32 of its content. It is called by a thread of its own, one image at
        a time, while ``results`` computes the next one. ``progress`` is called with the number of images done
        and the number of all images; of several processes, each counts its share.

        Raises:
            InputError: too little free disk (checked before any work), or a folder that holds something else.
        """
        with distributed.main_first():
            self._prepare()
        # The share does not depend on what is done, which another process may be changing already.
        own, checksums = distributed.share(range(self.images)), self.checksums()
        missing = [number for number in own if not checksums[number]]
        done = len(own) - len(missing)
        try:
            with ExitStack() as stack:
                outputs = {
                    name: stack.enter_context(Output(self.folder / name)) for name in (*self.files, _DONE)
                }
                writer = _Writer(outputs, write)
                thread = stack.enter_context(ThreadPoolExecutor(1, "writer"))
                computed = stack.enter_context(closing(results(missing)))  # closing ends the loader's threads
                waiting: deque[Future[None]] = deque()
                for number, result in zip(missing, computed, strict=True):
                    waiting.append(thread.submit(writer.add, number, result))
                    _finish(waiting, _WAITING)
                    done += 1
                    progress(done, len(own))
                waiting.append(thread.submit(writer.flush))
                _finish(waiting, 0)
        except OSError as error:
            raise InputError(
                f"{self.folder}: cannot write the {self.what}: {error.strerror or error}"
            ) from None
        distributed.barrier()

    def require_complete(self) -> NDArray[np.uint32]:
        """Return the checksum of each image.

        Raises:
            InputError: nothing like what is planned is there, or not all of it, or files of another size.
        """
        self.check_manifest()
        checksums = self.checksums()
        if (done := np.count_nonzero(checksums)) < self.images:
            raise InputError(
                f"{self.folder}: the {self.what} holds {done} of {self.images} images; let the run that "
                "makes it finish"
            )
        return checksums

    def checksums(self) -> NDArray[np.uint32]:
        """Return the checksum of each image, 0 where it is not done; InputError for damaged files."""
        try:
            require_regular(self.folder / _DONE)
            data = (self.folder / _DONE).read_bytes()
            sizes = {name: self._check_head(name) for name in self.files}
        except (InputError, OSError) as error:
            raise InputError(f"{self.folder}: a damaged {self.what} ({error}); {self.make_again}") from None
        sizes[_DONE] = len(data)
        planned = {name: file.size for name, file in self.files.items()}
        planned[_DONE] = _CHECKSUM.size * self.images
        for name, size in planned.items():
            if sizes[name] != size:
                raise InputError(
                    f"{self.folder}: a damaged {self.what}: {name} has {sizes[name]} bytes and must have "
                    f"{size}; {self.make_again}"
                )
        return np.frombuffer(data, "<u4")

    def _check_head(self, name: str) -> int:
        """Return the size of a file in bytes; InputError where it does not begin as planned."""
        path, head = self.folder / name, self.files[name].head
        require_regular(path)
        with path.open("rb") as file:
            if file.read(len(head)) != head:
                raise InputError(f"{path}: its first bytes are not as they were written")
        return path.stat().st_size

    def check_manifest(self) -> None:
        """Raise InputError unless the folder's manifest is the planned one; the message says what differs."""
        path = self.folder / self.record
        if not path.is_file():
            raise InputError(f"{self.folder}: holds no {self.what}")
        found = read_json(path)
        parts = found.get("parts") if isinstance(found, dict) else None
        if not isinstance(parts, dict):
            raise InputError(f"{path}: not the record of a {self.what}; {self.make_again}")
        if found == self.manifest:
            return
        planned = self.manifest["parts"]
        differing = sorted(name for name in planned | parts if planned.get(name) != parts.get(name))
        raise InputError(
            f"{self.folder}: a {self.what} made with different {', '.join(differing) or 'format'}; "
            f"{self.make_again}"
        )

    def _prepare(self) -> None:
        """Make the files at their full size, or check those that are there."""
        if (self.folder / self.record).exists():
            self.check_manifest()
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for name in self.files:  # of a run killed right here; their space counts as free
                (self.folder / name).unlink(missing_ok=True)
            self._require_space()
            for name, planned in self.files.items():
                with (self.folder / name).open("wb") as file:
                    file.write(planned.head)
                    file.truncate(planned.size)
                    if planned.size and hasattr(os, "posix_fallocate"):  # macOS has none; a disk may fill up
                        os.posix_fallocate(file.fileno(), 0, planned.size)
            (self.folder / _DONE).write_bytes(bytes(_CHECKSUM.size * self.images))
        except OSError as error:
            raise InputError(
                f"{self.folder}: cannot make the {self.what}: {error.strerror or error}"
            ) from None
        write_text(self.folder / self.record, json.dumps(self.manifest, indent=1) + "\n")

    def _require_space(self) -> None:
        needed = sum(planned.size for planned in self.files.values())
        if needed > (free := shutil.disk_usage(self.folder).free):
            raise InputError(
                f"{self.folder}: the {self.what} needs {size_text(needed)} and the disk has "
                f"{size_text(free)} free; free some space, put it on another disk, or {self.cheaper}"
            )


@dataclass(eq=False)
class _Writer:
    """Writes results, and marks their images as done in groups."""

    outputs: Outputs
    write: Callable[[Outputs, int, Any], int]
    unflagged: dict[int, int] = field(default_factory=dict)

    def add(self, number: int, result: object) -> None:
        self.unflagged[number] = self.write(self.outputs, number, result) or 1
        if len(self.unflagged) == FLUSH_EVERY:
            self.flush()

    def flush(self) -> None:
        """Mark images as done: their content reaches the disk before the checksums that say so."""
        if not self.unflagged:
            return
        flags = self.outputs[_DONE]
        for output in self.outputs.values():
            if output is not flags:
                output.sync()
        for number, checksum in self.unflagged.items():
            flags.write_at(number * _CHECKSUM.size, _CHECKSUM.pack(checksum))
        flags.sync()
        self.unflagged = {}


def _finish(waiting: deque[Future[None]], most: int) -> None:
    """Wait until no more than ``most`` are left; raise what one of them has raised."""
    while len(waiting) > most:
        waiting.popleft().result()


def content_hashes(records: Sequence[ImageRecord]) -> list[str]:
    """Return a hash of each image's file; every process reads its share of the files."""
    return shared_texts(records, lambda record: file_hash(record.path))


def shared_texts(records: Sequence[ImageRecord], text: Callable[[ImageRecord], str]) -> list[str]:
    """Return ``text``, without blanks, of each record; every process computes its share."""
    own = [text(record) for record in distributed.share(records)]
    distributed.barrier()  # a process may take long, on another machine with a slow disk
    return distributed.interleaved([part.split() for part in distributed.gather_texts(" ".join(own))])


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """Return a digest of ``tensors``: names, types, shapes and values."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(tensors.items()):
        values = tensor.detach().cpu().contiguous().numpy()
        digest.update(json_bytes([name, str(values.dtype), list(values.shape)]))
        digest.update(values.tobytes())
    return digest.hexdigest()


def digest_of(value: object) -> str:
    """Return a digest of ``value``, plain data as JSON has it."""
    return hashlib.blake2b(json_bytes(value), digest_size=16).hexdigest()


def bytes_digest(parts: Iterable[bytes]) -> str:
    """Return a digest of the ``parts``, one after another."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def json_bytes(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()


def size_text(count: int) -> str:
    """Return ``count`` bytes in words."""
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
