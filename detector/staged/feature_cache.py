"""The feature maps of a split on the disk: every image goes once through the convolutions, at every scale.

Staged SPP-net needs the features of each image many times, for fine-tuning, for the SVMs and for the box
regression, while the convolutions stay as they are (He et al. 2014, section 4.2). So they run only once.

A cache is a folder as `detector.staged.cache_folder` describes it: ``maps.bin`` holds all maps one after
another, and ``cache.json`` says what the features were made with. Each process compares an image's checksum
when it first reads the image.
"""

from __future__ import annotations

import json
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
from torch import Tensor

from detector.config import Config
from detector.core.errors import InputError
from detector.core.progress import ReportProgress, note, progress_bar
from detector.core.structures import ImageMeta, ImageRecord
from detector.factory.loaders import inference_transforms, inference_views, no_proposals
from detector.factory.model import build_normalization
from detector.models.detector import RegionDetector
from detector.staged.cache_folder import (
    CacheFolder,
    Outputs,
    PlannedFile,
    content_hashes,
    digest_of,
    tensors_digest,
)

DTYPES: dict[str, np.dtype[Any]] = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}
FORMAT = 2
_MAPS = "maps.bin"


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
        self.parts = {**source, "images": digest_of(contents), "dtype": dtype, "channels": str(channels)}
        self.key = digest_of(self.parts)

    def manifest(self) -> dict[str, object]:
        """Return the content of ``cache.json``, by which the features are recognised."""
        return {"format": FORMAT, "key": self.key, "parts": self.parts, "bytes": self.bytes}

    def folder(self, place: Path) -> CacheFolder:
        """Return the cache's folder ``place``, which may not exist yet."""
        return CacheFolder(
            folder=place,
            what="feature cache",
            record="cache.json",
            manifest=self.manifest(),
            files={_MAPS: PlannedFile(self.bytes)},
            images=len(self.images),
            cheaper="take fewer or smaller scales",
        )

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
    """Return the plan for the features of ``records`` at every test scale, not mirrored.

    Raises:
        InputError: a network with a feature pyramid, of which a cache cannot hold the levels.
    """
    if config.model.neck is not None:
        raise InputError(
            f"model.neck: {config.model.neck}: stages that work on cached features keep one map per scale; "
            "set model.neck to null, or train end to end, without stages"
        )
    transforms = inference_transforms(_unflipped(config))
    contents = content_hashes(records)
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
    left_out = {"weights", "freeze", *(() if config.model.backbone.pixel_std else ("pixel_std",))}
    source = {
        "weights": tensors_digest(backbone.state_dict()),
        "backbone": json.dumps(config.model.backbone.model_dump(mode="json", exclude=left_out)),
        "normalization": repr(build_normalization(config)),
        "decoding": "JPEG files in a smaller size where that suffices",
        "scales": json.dumps([list(config.test.scales), config.test.max_size]),
    }
    return CachePlan(
        images, source, map_size=backbone.map_size, channels=backbone.channels, dtype=config.train.cache_dtype
    )


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
        self._checksums = plan.folder(folder).require_complete()
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
                f"{self.folder / _MAPS} is damaged: the features of image "
                f"{self.plan.images[number].key!r} are not as they were written; "
                f"{self.plan.folder(self.folder).make_again}"
            )

    @cached_property
    def _maps(self) -> NDArray[np.uint8]:
        return np.memmap(self.folder / _MAPS, dtype=np.uint8, mode="r")


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

    def results(numbers: Sequence[int]) -> Generator[list[Tensor], None, None]:
        with closing(load(numbers)) as images:  # closing ends the threads that load them
            for views in images:
                yield [features(view).cpu() for view in views]

    def write(outputs: Outputs, number: int, maps: list[Tensor]) -> int:
        checksum = 0
        for place, values in enumerate(maps):
            checksum = zlib.crc32(_write_map(outputs, plan, number, place, values), checksum)
        return checksum

    plan.folder(folder).fill(results, write, progress)
    return FeatureCache(folder, plan)


def _write_map(outputs: Outputs, plan: CachePlan, number: int, place: int, features: Tensor) -> bytes:
    """Write one map, and return its bytes."""
    stored = plan.maps[number][place]
    values = features[0].permute(1, 2, 0).float().numpy()
    if values.shape != stored.shape:
        raise ValueError(f"a feature map of shape {values.shape} where {stored.shape} was planned")
    limit = float(np.finfo(plan.dtype).max)
    if not np.abs(values).max() <= limit:
        raise InputError(
            f"image {plan.images[number].key}: its features reach {np.abs(values).max():g}, which "
            f"{plan.dtype.name} cannot hold; cache in float32, or lower model.backbone.feature_scale"
        )
    content = values.astype(plan.dtype).tobytes()
    outputs[_MAPS].write_at(stored.offset, content)
    return content


def _geometry(view: ImageMeta) -> list[object]:
    return [*view.original_size, *view.input_size, view.flipped, view.flipped_vertically]
