"""The feature maps of a split on the disk: every image goes once through the convolutions, at every scale.

Staged SPP-net needs the features of each image many times, for fine-tuning, for the SVMs and for the box
regression, while the convolutions stay as they are (He et al. 2014, section 4.2). So they run only once.

A cache is a folder of three files: ``maps.bin``, all maps one after another; ``done.bin``, the CRC-32 of each
image's maps (four bytes, little-endian; 0 until the maps are on the disk, and 1 where the CRC-32 is 0);
``cache.json``, which says what the features were made with. A process that is killed loses only the images
whose checksum is not written yet. Each process compares an image's checksum when it first reads the image.

Several processes (`detector.core.distributed`) fill one cache together, in a folder that all of them share.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from detector.config import Config
from detector.core import distributed
from detector.core.errors import InputError
from detector.core.files import file_hash, read_json, require_regular, write_text
from detector.core.progress import ReportProgress, note, progress_bar
from detector.core.structures import ImageMeta, ImageRecord
from detector.factory.loaders import inference_transforms, inference_views, no_proposals
from detector.factory.model import build_normalization
from detector.models.detector import RegionDetector

DTYPES: dict[str, np.dtype[Any]] = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}
FORMAT = 2
FLUSH_EVERY = 16
"""Number of images after which maps, and then their checksums, are forced to the disk: a crash loses at most
these."""
_CHECKSUM = struct.Struct("<I")
_MAKE_AGAIN = "remove cache.json in its folder, and the feature cache is made again"


@dataclass(frozen=True, kw_only=True)
class CachedImage:
    """One image: its ``key``, its ``views`` in the order of the scales, and a digest of its file."""

    key: str
    views: tuple[ImageMeta, ...]
    content: str


@dataclass(frozen=True, kw_only=True)
class StoredMap:
    """Where a feature map lies in ``maps.bin``: ``offset`` in bytes, ``shape`` (h, w, C), channels last."""

    offset: int
    shape: tuple[int, int, int]


class CachePlan:
    """What a cache holds and where, its size in ``bytes`` and its ``key``, before any convolution runs.

    ``source`` names what the features are made with (weights, backbone, scales, normalisation, ...), each as
    a text; the key is made from it, the images and the number type. So a cache is used only for the features
    that it was made for, and an error can say which part differs. ``map_size`` is the backbone's.

    Raises:
        InputError: an image whose input is smaller than one cell of the map.
    """

    def __init__(
        self,
        images: Sequence[CachedImage],
        source: Mapping[str, str],
        *,
        map_size: Callable[[tuple[int, int]], tuple[int, int]],
        channels: int,
        dtype: str = "float16",
    ) -> None:
        self.images = tuple(images)
        self.dtype: np.dtype[Any] = DTYPES[dtype]
        self.maps: list[tuple[StoredMap, ...]] = []
        self.bytes = 0
        for image in images:
            self.maps.append(tuple(self._place(image.key, view, map_size, channels) for view in image.views))
        contents = [[image.key, image.content, list(map(_geometry, image.views))] for image in images]
        self.parts = {**source, "images": _digest(contents), "dtype": dtype, "channels": str(channels)}
        self.key = _digest(self.parts)

    def manifest(self) -> dict[str, object]:
        """Return the content of ``cache.json``, by which the features are recognised."""
        return {"format": FORMAT, "key": self.key, "parts": self.parts, "bytes": self.bytes}

    def _place(
        self, key: str, view: ImageMeta, map_size: Callable[[tuple[int, int]], tuple[int, int]], channels: int
    ) -> StoredMap:
        height, width = map_size(view.input_size)
        if min(height, width) < 1:
            raise InputError(
                f"image {key}: at {view.input_size[1]}x{view.input_size[0]} pixels it is smaller "
                "than one cell of the feature map; raise the scales in the config, or leave the image out"
            )
        stored = StoredMap(offset=self.bytes, shape=(height, width, channels))
        self.bytes += prod(stored.shape) * self.dtype.itemsize
        return stored


def plan_cache(config: Config, model: RegionDetector, records: Sequence[ImageRecord]) -> CachePlan:
    """Return the plan for the features of ``records`` at every test scale, not mirrored."""
    transforms = inference_transforms(_unflipped(config))
    contents = _contents(records)
    images = [
        CachedImage(
            key=record.key,
            views=tuple(
                ImageMeta(
                    image_id=record.image_id,
                    original_size=(record.height, record.width),
                    input_size=transform.size_of((record.height, record.width)),
                )
                for transform in transforms
            ),
            content=content,
        )
        for record, content in zip(records, contents, strict=True)
    ]
    backbone = model.backbone
    source = {
        "weights": weights_digest(backbone),
        "backbone": json.dumps(config.model.backbone.model_dump(mode="json", exclude={"weights", "freeze"})),
        "normalization": repr(build_normalization(config)),
        "decoding": "JPEG files in a smaller size where that suffices",
        "scales": json.dumps([list(config.test.scales), config.test.max_size]),
    }
    return CachePlan(
        images, source, map_size=backbone.map_size, channels=backbone.channels, dtype=config.train.cache_dtype
    )


def _contents(records: Sequence[ImageRecord]) -> list[str]:
    """Return a digest of each image's file; every process reads its share of the files."""
    own = [file_hash(record.path) for record in distributed.share(records)]
    distributed.barrier()  # a process may take long, on another machine with a slow disk
    return distributed.interleaved([text.split() for text in distributed.gather_texts(" ".join(own))])


def open_cache(
    config: Config, model: RegionDetector, records: Sequence[ImageRecord], folder: Path, device: str
) -> FeatureCache:
    """Return the features of ``records`` at every test scale, and compute those that ``folder`` lacks.

    Each cache lies in a subfolder named by its key, so other weights or scales make another cache. Where
    there are several processes, all of them call this alike, and each computes a share.

    Raises:
        InputError: an image that cannot be read, or too little free disk.
    """
    plan = plan_cache(config, model, records)
    model.eval()

    def load(numbers: Sequence[int]) -> Generator[Sequence[Tensor], None, None]:
        missing = [records[number] for number in numbers]
        with closing(inference_views(_unflipped(config), missing, no_proposals, device)) as images:
            for views in images:
                yield [model.inputs(view.to(device).images, view.sizes) for view in views]

    @torch.inference_mode()
    def features(image: Tensor) -> Tensor:
        return model.features(image)[0]

    place = folder / plan.key[:16]
    scales = len(config.test.scales)
    note(f"features of {len(records)} images at {scales} scales: {plan.bytes / 2**20:.1f} MiB in {place}")
    with progress_bar("convolutions") as advance:
        return fill_cache(place, plan, features, load, advance)


def _unflipped(config: Config) -> Config:
    return config.model_copy(update={"test": config.test.model_copy(update={"flip": False})})


class FeatureCache:
    """A finished cache, opened for reading; any number of processes and threads may share it.

    Raises:
        InputError: no cache, an unfinished one, or one made with other weights, scales or images.
    """

    def __init__(self, folder: Path, plan: CachePlan) -> None:
        _check_manifest(folder, plan)
        self._checksums = _checksums(folder, plan)
        if (done := np.count_nonzero(self._checksums)) < len(plan.images):
            raise InputError(
                f"{folder}: the feature cache holds {done} of {len(plan.images)} images; let the run that "
                "makes it finish"
            )
        self.folder = folder
        self.plan = plan
        self._index = {image.key: number for number, image in enumerate(plan.images)}
        self._checked: set[int] = set()

    def views(self, key: str) -> tuple[ImageMeta, ...]:
        """Return the views of one image, in the order of the scales."""
        return self.plan.images[self._index[key]].views

    def levels(self, key: str, device: str = "cpu") -> list[Tensor]:
        """Return one level per view of an image, (1, C, h, w) float32 on ``device``.

        Raises:
            InputError: the file does not hold what was written.
        """
        number = self._index[key]
        width = self.plan.dtype.itemsize
        maps = [
            self._maps[stored.offset : stored.offset + prod(stored.shape) * width]
            for stored in self.plan.maps[number]
        ]
        if number not in self._checked:
            self._check(number, maps)
            self._checked.add(number)
        levels = []
        for content, stored in zip(maps, self.plan.maps[number], strict=True):
            values = content.view(self.plan.dtype).reshape(1, *stored.shape).astype(np.float32)
            levels.append(torch.from_numpy(values).permute(0, 3, 1, 2).to(device, non_blocking=True))
        return levels

    def _check(self, number: int, maps: Sequence[NDArray[np.uint8]]) -> None:
        checksum = 0
        for content in maps:
            checksum = zlib.crc32(content.data, checksum)
        if (checksum or 1) != self._checksums[number]:
            raise InputError(
                f"{self.folder / 'maps.bin'} is damaged: the features of image "
                f"{self.plan.images[number].key!r} are not as they were written; {_MAKE_AGAIN}"
            )

    @cached_property
    def _maps(self) -> NDArray[np.uint8]:
        return np.memmap(self.folder / "maps.bin", dtype=np.uint8, mode="r")


def fill_cache(
    folder: Path,
    plan: CachePlan,
    features: Callable[[Tensor], Tensor],
    load: Callable[[Sequence[int]], Generator[Sequence[Tensor], None, None]],
    progress: ReportProgress = lambda _done, _total: None,
) -> FeatureCache:
    """Compute what ``folder`` lacks of the cache that ``plan`` describes, and open it.

    ``features`` turns a normalised image (1, 3, h, w) into its map (1, C, h, w); ``load`` takes numbers of
    images in the plan and yields, in that order, the views of each one as such images. ``progress`` is called
    with the number of images done and the number of all images; of several processes, each counts its share.

    Raises:
        InputError: too little free disk (checked before any work), a folder that holds a cache of
            other features, or a map that float16 cannot hold.
    """
    with distributed.main_first():
        _prepare(folder, plan)
    # The share does not depend on what is done, which another process may be changing already.
    own, checksums = distributed.share(range(len(plan.images))), _checksums(folder, plan)
    missing = [number for number in own if not checksums[number]]
    done = len(own) - len(missing)
    try:
        with (
            _Output(folder / "maps.bin") as maps,
            _Output(folder / "done.bin") as flags,
            closing(load(missing)) as images,  # closing ends the threads that load them
        ):
            unflagged: dict[int, int] = {}
            for number, views in zip(missing, images, strict=True):
                checksum = 0
                for place, view in enumerate(views):
                    checksum = _write_map(maps, plan, number, place, features(view), checksum)
                unflagged[number] = checksum or 1
                if len(unflagged) == FLUSH_EVERY or number == missing[-1]:
                    _flag(maps, flags, unflagged)
                    unflagged = {}
                done += 1
                progress(done, len(own))
    except OSError as error:
        raise InputError(f"{folder}: cannot write the feature cache: {error.strerror or error}") from None
    distributed.barrier()
    return FeatureCache(folder, plan)


class _Output:
    """A file in which several processes write different parts at the same time.

    It is opened for writing only, and nothing is buffered: a network file system would read, and later write
    back, whole pages, with what another machine has changed in them since.
    """

    def __init__(self, path: Path) -> None:
        self._handle = os.open(path, os.O_WRONLY)

    def __enter__(self) -> _Output:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._handle)

    def write_at(self, offset: int, content: bytes) -> None:
        left = memoryview(content)
        while left:
            written = os.pwrite(self._handle, left, offset)
            left, offset = left[written:], offset + written

    def sync(self) -> None:
        """Wait until all is on the disk."""
        os.fsync(self._handle)


def _write_map(
    maps: _Output, plan: CachePlan, number: int, place: int, features: Tensor, checksum: int
) -> int:
    """Write one map; return ``checksum``, the CRC-32 of the image's maps before it, continued over it."""
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
    content = values.astype(plan.dtype).tobytes()
    maps.write_at(stored.offset, content)
    return zlib.crc32(content, checksum)


def _flag(maps: _Output, flags: _Output, checksums: Mapping[int, int]) -> None:
    """Mark images as done: their maps reach the disk before the checksums that say so."""
    maps.sync()
    for number, checksum in checksums.items():
        flags.write_at(number * _CHECKSUM.size, _CHECKSUM.pack(checksum))
    flags.sync()


def _prepare(folder: Path, plan: CachePlan) -> None:
    """Make the cache's files at their full size, or check those that are there."""
    if (folder / "cache.json").exists():
        _check_manifest(folder, plan)
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "maps.bin").unlink(missing_ok=True)  # of a run killed right here; its space counts as free
        if plan.bytes > (free := shutil.disk_usage(folder).free):
            raise InputError(
                f"{folder}: the feature cache needs {_size(plan.bytes)} and the disk has {_size(free)} free; "
                "free some space, put the run on another disk, or take fewer or smaller scales"
            )
        with (folder / "maps.bin").open("wb") as file:
            file.truncate(plan.bytes)
            if plan.bytes and hasattr(os, "posix_fallocate"):  # macOS has none; a disk may fill up there
                os.posix_fallocate(file.fileno(), 0, plan.bytes)
        (folder / "done.bin").write_bytes(bytes(_CHECKSUM.size * len(plan.images)))
    except OSError as error:
        raise InputError(f"{folder}: cannot make the feature cache: {error.strerror or error}") from None
    write_text(folder / "cache.json", json.dumps(plan.manifest(), indent=1) + "\n")


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _check_manifest(folder: Path, plan: CachePlan) -> None:
    path = folder / "cache.json"
    if not path.is_file():
        raise InputError(f"{folder}: holds no feature cache")
    manifest = read_json(path)
    parts = manifest.get("parts") if isinstance(manifest, dict) else None
    if not isinstance(parts, dict):
        raise InputError(f"{path}: not the record of a feature cache; {_MAKE_AGAIN}")
    if manifest == plan.manifest():
        return
    differing = sorted(name for name in plan.parts | parts if plan.parts.get(name) != parts.get(name))
    raise InputError(
        f"{folder}: a feature cache made with different {', '.join(differing) or 'format'}; {_MAKE_AGAIN}"
    )


def _checksums(folder: Path, plan: CachePlan) -> NDArray[np.uint32]:
    """Return the checksum of each image, 0 where it is not done; InputError for files of another size."""
    try:
        require_regular(folder / "done.bin")
        data = (folder / "done.bin").read_bytes()
        size = (folder / "maps.bin").stat().st_size
    except (InputError, OSError) as error:
        raise InputError(f"{folder}: a damaged feature cache ({error}); {_MAKE_AGAIN}") from None
    count = len(data) // _CHECKSUM.size
    if size != plan.bytes or count != len(plan.images):
        raise InputError(
            f"{folder}: a damaged feature cache: maps.bin has {size} bytes and must have {plan.bytes}, "
            f"done.bin is of {count} images and must be of {len(plan.images)}; {_MAKE_AGAIN}"
        )
    return np.frombuffer(data, "<u4", count)


def weights_digest(module: nn.Module) -> str:
    """Return a digest of all parameters and buffers of ``module``: names, types, shapes and values."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        values = tensor.detach().cpu().contiguous().numpy()
        digest.update(_json([name, str(values.dtype), list(values.shape)]))
        digest.update(values.tobytes())
    return digest.hexdigest()


def _geometry(view: ImageMeta) -> list[object]:
    return [*view.original_size, *view.input_size, view.flipped, view.flipped_vertically]


def _digest(value: object) -> str:
    return hashlib.blake2b(_json(value), digest_size=16).hexdigest()


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
