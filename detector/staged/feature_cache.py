"""A split's feature maps on the disk: every image once through the convolutions at every scale.

Staged SPP-net looks at each image's features again and again, in fine-tuning, for the SVMs and for the box
regression, while the convolutions stay as they are (He et al. 2014, section 4.2). So they run once.

A cache is a folder of three files: ``maps.bin``, all maps one after another; ``done.bin``, the CRC-32 of each
image's maps (four bytes, little-endian; 0 until the maps are on the disk, and 1 where the sum is 0);
``cache.json``, which says what the features were made with. A process killed at any moment loses the images
whose checksum is not written yet and no others. Each process compares an image's checksum when it first reads
the image.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detector.core.errors import InputError
from detector.core.files import read_json, require_regular, write_text
from detector.core.progress import ReportProgress
from detector.staged.cache_plan import CachePlan, StoredMap

FLUSH_EVERY = 16
"""Images after which maps, and then their checksums, are forced to the disk: what a crash loses at most."""
_CHECKSUM = struct.Struct("<I")


class FeatureCache:
    """A finished cache, opened for reading; any number of processes may share it.

    Raises:
        InputError: no cache, an unfinished one, or one made with other weights, scales or images.
    """

    def __init__(self, folder: Path, plan: CachePlan) -> None:
        _check_manifest(folder, plan)
        missing = _missing(folder, plan)
        if missing:
            raise InputError(
                f"{folder}: the feature cache holds {len(plan.images) - len(missing)} of {len(plan.images)} "
                "images; let the run that makes it finish"
            )
        self.folder = folder
        self.plan = plan
        self._index = {image.key: number for number, image in enumerate(plan.images)}
        self._maps: np.memmap | None = None
        self._checksums = _checksums(folder)
        self._checked: set[int] = set()

    def levels(self, key: str) -> list[Tensor]:
        """Return the maps of one image, (1, C, h, w) float32 each, in the order of its views.

        Raises InputError where they are not what was written.
        """
        if self._maps is None:
            self._maps = np.memmap(self.folder / "maps.bin", dtype=np.uint8, mode="r")
        number = self._index[key]
        if number not in self._checked:
            self._check(self._maps, number)
            self._checked.add(number)
        return [self._map(self._maps, stored) for stored in self.plan.maps[number]]

    def _check(self, maps: np.memmap, number: int) -> None:
        checksum = 0
        for stored in self.plan.maps[number]:
            checksum = zlib.crc32(self._bytes(maps, stored).data, checksum)
        if (checksum or 1) != self._checksums[number]:
            raise InputError(
                f"{self.folder / 'maps.bin'} is damaged: the features of image "
                f"{self.plan.images[number].key!r} are not as they were written; remove its "
                "cache.json and it is made again"
            )

    def _bytes(self, maps: np.memmap, stored: StoredMap) -> NDArray[Any]:
        return maps[stored.offset : stored.offset + prod(stored.shape) * self.plan.dtype.itemsize]

    def _map(self, maps: np.memmap, stored: StoredMap) -> Tensor:
        values = self._bytes(maps, stored).view(self.plan.dtype)
        return torch.from_numpy(values.reshape(1, *stored.shape).astype(np.float32)).permute(0, 3, 1, 2)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_maps": None}  # a worker process opens the file itself


def fill_cache(
    folder: Path,
    plan: CachePlan,
    features: Callable[[Tensor], Tensor],
    load: Callable[[Sequence[int]], Iterable[Sequence[Tensor]]],
    progress: ReportProgress = lambda _done, _total: None,
) -> FeatureCache:
    """Make what ``folder`` lacks of the cache that ``plan`` describes, and open it.

    ``features`` maps a normalised image (1, 3, h, w) to its map (1, C, h, w); ``load`` takes numbers of
    images in the plan and yields, in that order, each one's views as such images. ``progress`` is called
    with images done and images in all.

    Raises:
        InputError: too little free disk (found out before any work), a folder that holds the cache of
            something else, or a map that float16 cannot hold.
    """
    _prepare(folder, plan)
    missing = _missing(folder, plan)
    done = len(plan.images) - len(missing)
    try:
        with (folder / "maps.bin").open("r+b") as maps, (folder / "done.bin").open("r+b") as flags:
            unflagged: dict[int, int] = {}
            for number, views in zip(missing, load(missing), strict=True):
                checksum = 0
                for place, view in enumerate(views):
                    checksum = _write_map(maps, plan, number, place, features(view), checksum)
                unflagged[number] = checksum or 1
                if len(unflagged) == FLUSH_EVERY or number == missing[-1]:
                    _flag(maps, flags, unflagged)
                    unflagged = {}
                done += 1
                progress(done, len(plan.images))
    except OSError as error:
        raise InputError(f"{folder}: cannot write the feature cache: {error.strerror or error}") from None
    return FeatureCache(folder, plan)


def _write_map(
    maps: BinaryIO, plan: CachePlan, number: int, place: int, features: Tensor, checksum: int
) -> int:
    """Write one map; return the CRC-32 that ``checksum``, of the image's maps before it, becomes."""
    stored = plan.maps[number][place]
    values = features[0].permute(1, 2, 0).float().cpu().numpy()
    if values.shape != stored.shape:
        raise ValueError(f"a feature map of shape {values.shape} where {stored.shape} was planned")
    limit = float(np.finfo(plan.dtype).max)
    if not np.abs(values).max() <= limit:
        raise InputError(
            f"image {plan.images[number].key}: its features reach {np.abs(values).max():g}, which "
            f"{plan.dtype.name} cannot hold; cache in float32, or lower model.backbone.feature_scale"
        )
    maps.seek(stored.offset)
    content = values.astype(plan.dtype).tobytes()
    maps.write(content)
    return zlib.crc32(content, checksum)


def _flag(maps: BinaryIO, flags: BinaryIO, checksums: Mapping[int, int]) -> None:
    """Note the images as done: their maps reach the disk before the checksums that say so."""
    maps.flush()
    os.fsync(maps.fileno())
    for number, checksum in checksums.items():
        flags.seek(number * _CHECKSUM.size)
        flags.write(_CHECKSUM.pack(checksum))
    flags.flush()
    os.fsync(flags.fileno())


def _prepare(folder: Path, plan: CachePlan) -> None:
    """Make the cache's files at their full size, or check those that are there."""
    if (folder / "cache.json").exists():
        _check_manifest(folder, plan)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "maps.bin").unlink(missing_ok=True)  # of a run killed right here, its space counts as free
        _check_disk(folder, plan.bytes)
        with (folder / "maps.bin").open("wb") as file:
            if plan.bytes:
                os.posix_fallocate(file.fileno(), 0, plan.bytes)  # so that the disk cannot fill up half-way
        (folder / "done.bin").write_bytes(bytes(_CHECKSUM.size * len(plan.images)))
    except OSError as error:
        raise InputError(f"{folder}: cannot make the feature cache: {error.strerror or error}") from None
    write_text(folder / "cache.json", json.dumps(plan.manifest(), indent=1) + "\n")


def _check_disk(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"{folder}: the feature cache needs {_size(needed)} and the disk has {_size(free)} free; free "
            "some, put the run on another disk, or take fewer scales or smaller ones"
        )


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _check_manifest(folder: Path, plan: CachePlan) -> None:
    path = folder / "cache.json"
    if not path.is_file():
        raise InputError(f"{folder}: holds no feature cache")
    found = read_json(path)
    parts = found.get("parts") if isinstance(found, dict) else None
    if not isinstance(parts, dict):
        raise InputError(
            f"{path}: not the record of a feature cache; remove that file and the cache is made again"
        )
    if found == plan.manifest():
        return
    differing = sorted(name for name in plan.parts | parts if plan.parts.get(name) != parts.get(name))
    raise InputError(
        f"{folder}: the feature cache of something else: its {', '.join(differing) or 'format'} "
        f"{'differs' if len(differing) < 2 else 'differ'} from this run's; remove its cache.json and it is "
        "made again"
    )


def _missing(folder: Path, plan: CachePlan) -> list[int]:
    """Return the numbers of the images that are not done."""
    checksums = _checksums(folder)
    try:
        size = (folder / "maps.bin").stat().st_size
    except OSError as error:
        raise InputError(
            f"{folder}: a damaged feature cache ({error.strerror}); remove its cache.json and it is "
            "made again"
        ) from None
    if size != plan.bytes or len(checksums) != len(plan.images):
        raise InputError(
            f"{folder}: a damaged feature cache: maps.bin has {size} bytes, {plan.bytes} are needed, and "
            f"done.bin is of {len(checksums)} images, {len(plan.images)} are needed; "
            "remove its cache.json and it is made again"
        )
    return np.flatnonzero(checksums == 0).tolist()


def _checksums(folder: Path) -> NDArray[np.uint32]:
    """Return what done.bin holds, a number for each whole four bytes."""
    path = folder / "done.bin"
    again = "remove cache.json beside it and the feature cache is made again"
    try:
        require_regular(path)
        data = path.read_bytes()
    except InputError as error:
        raise InputError(f"{error}; {again}") from None
    except OSError as error:
        raise InputError(f"{path}: cannot read the file: {error.strerror}; {again}") from None
    return np.frombuffer(data[: len(data) - len(data) % _CHECKSUM.size], "<u4")
