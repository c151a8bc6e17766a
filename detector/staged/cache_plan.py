"""What a feature cache holds and where: known, down to the byte, before any convolution runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from torch import nn

from detector.core.errors import InputError
from detector.core.structures import ImageMeta

DTYPES: dict[str, np.dtype[Any]] = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}
FORMAT = 2


@dataclass(frozen=True, kw_only=True)
class CachedImage:
    """One image: its ``key``, its ``views``, one a scale (or flip), and a digest of its file's content."""

    key: str
    views: tuple[ImageMeta, ...]
    content: str


@dataclass(frozen=True, kw_only=True)
class StoredMap:
    """Where one feature map lies: ``offset`` in bytes, shape (h, w, C), channels last as it is pooled."""

    offset: int
    shape: tuple[int, int, int]


class CachePlan:
    """The layout of a cache, its size in ``bytes`` and its ``key``.

    ``source`` names what the features are made with (weights, backbone, scales, normalisation, ...), a text
    each; with the images and the number type it makes the key. So a cache is used for exactly the features
    it was made for, and an error can say which part differs. ``map_size`` is the backbone's.

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
        self.parts = {**source, "images": _images_digest(images), "dtype": dtype, "channels": str(channels)}
        self.key = hashlib.blake2b(_json(self.parts), digest_size=16).hexdigest()

    def manifest(self) -> dict[str, object]:
        """Return what is written beside the features, so that they can be recognised."""
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
        shape = (height, width, channels)
        stored = StoredMap(offset=self.bytes, shape=shape)
        self.bytes += prod(shape) * self.dtype.itemsize
        return stored


def weights_digest(module: nn.Module) -> str:
    """Return a digest of all parameters and buffers of ``module``: names, types, shapes and values."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(module.state_dict().items()):
        values = tensor.detach().cpu().contiguous().numpy()
        digest.update(_json([name, str(values.dtype), list(values.shape)]))
        digest.update(values.tobytes())
    return digest.hexdigest()


def _images_digest(images: Sequence[CachedImage]) -> str:
    rows = [[image.key, image.content, [_view(view) for view in image.views]] for image in images]
    return hashlib.blake2b(_json(rows), digest_size=16).hexdigest()


def _view(view: ImageMeta) -> list[object]:
    return [*view.original_size, *view.input_size, view.flipped, view.flipped_vertically]


def _json(value: object) -> bytes:
    return json.dumps(value, sort_keys=True).encode()
