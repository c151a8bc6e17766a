"""The features of the regions of a split on the disk: every image goes once through the convolutions.

Classifiers of regions are trained on them in seconds, without an image being read again. A set of features is
a folder, named by its key, with arrays that NumPy reads by itself, the regions of all images one after
another:

    features.npy   (T, D) float16: the region pool's output, flattened, or the last hidden layer's
    boxes.npy      (T, 4) float32: x1, y1, x2, y2, half-open, in pixels of the original image
    scores.npy     (T,) float32: the proposals' scores, NaN for an image without; absent where none has any
    offsets.npy    (N + 1,) int64: the regions of image i are the rows offsets[i] to offsets[i + 1]
    features.json  what the features were made with, and each image's key, file hash, size and regions
    done.bin       a checksum per image: see `detector.staged.cache_folder`

The key is made from the weights, the settings of backbone and pool, the transform of the image, the content
of the image files and the regions. Labels, class names and settings of the training have no part in it.
"""

from __future__ import annotations

import io
import json
import zlib
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detector.config import Config
from detector.config.schema import pools_by_masks
from detector.core.errors import InputError
from detector.core.files import file_hash, read_json
from detector.core.progress import note, progress_bar
from detector.core.structures import Batch, ImageRecord, Proposals, ProposalSource
from detector.engine.inference import RegionPredictor
from detector.factory.data import split_records
from detector.factory.loaders import inference_views, naming
from detector.factory.model import build_normalization, build_predictor
from detector.factory.proposals import open_proposals, stored_proposals, with_proposals
from detector.models.detector import RegionDetector
from detector.staged.cache_folder import (
    CacheFolder,
    Outputs,
    PlannedFile,
    bytes_digest,
    digest_of,
    json_bytes,
    shared_texts,
    size_text,
    tensors_digest,
)

FORMAT = 1
RECORD = "features.json"
FEATURES, BOXES, SCORES, OFFSETS = "features.npy", "boxes.npy", "scores.npy", "offsets.npy"
DTYPES: dict[str, np.dtype[Any]] = {
    FEATURES: np.dtype("<f2"),
    BOXES: np.dtype("<f4"),
    SCORES: np.dtype("<f4"),
}
FLOAT16_MAX = 65504.0
_OF_THE_HEAD = ("box_head.", "predictor.", "box_coder.")
_WHAT = "set of region features"


@dataclass(frozen=True, kw_only=True)
class EmbeddedImage:
    """One image: its ``key``, the hash of its file, its size in pixels, and its ``count`` regions.

    ``scored`` says whether the regions have scores; ``regions`` is a digest of the boxes and scores, and of
    the masks where the region pool uses them.
    """

    key: str
    hash: str
    height: int
    width: int
    count: int
    scored: bool
    regions: str


class EmbeddedRegions(NamedTuple):
    """One image as it is written: its regions (P, 4), their scores (P,) or None, their features (P, D)."""

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32] | None
    features: NDArray[np.float16]


class FeaturePlan:
    """What a set of region features holds and where, and its ``key``, before any convolution runs.

    ``source`` names what the features are made with (weights, backbone, pool, scales, ...), each as a text;
    ``width`` is D, the number of features per region.
    """

    def __init__(self, images: Iterable[EmbeddedImage], source: Mapping[str, str], width: int) -> None:
        self.images = tuple(images)
        self.width = width
        self.source = dict(source)
        counts = [image.count for image in self.images]
        self.offsets: NDArray[np.int64] = np.cumsum([0, *counts], dtype=np.int64)
        self.parts = {
            **source,
            "width": str(width),
            "images": digest_of([_without_regions(image) for image in self.images]),
            "regions": digest_of([[image.count, image.scored, image.regions] for image in self.images]),
        }
        self.key = digest_of(self.parts)

    @property
    def total(self) -> int:
        """The number of regions T of all images."""
        return int(self.offsets[-1])

    @property
    def scored(self) -> bool:
        return any(image.scored for image in self.images)

    @cached_property
    def files(self) -> dict[str, PlannedFile]:
        """The arrays, each as NumPy writes it."""
        offsets = io.BytesIO()
        np.save(offsets, self.offsets)
        planned = {
            FEATURES: _array_file(FEATURES, (self.total, self.width)),
            BOXES: _array_file(BOXES, (self.total, 4)),
            OFFSETS: PlannedFile(len(offsets.getvalue()), offsets.getvalue()),
        }
        return planned | ({SCORES: _array_file(SCORES, (self.total,))} if self.scored else {})

    def manifest(self) -> dict[str, Any]:
        """Return the content of ``features.json``, by which the features are recognised."""
        return {
            "format": FORMAT,
            "key": self.key,
            "parts": self.parts,
            "source": self.source,
            "width": self.width,
            "images": [asdict(image) for image in self.images],
        }

    def write(self, outputs: Outputs, number: int, image: EmbeddedRegions) -> int:
        """Write what is stored of image ``number`` to its place, and return its checksum."""
        boxes, scores, features = image
        if features.shape != (self.images[number].count, self.width):
            raise ValueError(f"features {features.shape} for {self.images[number].count} regions")
        rows: dict[str, NDArray[Any]] = {FEATURES: features, BOXES: boxes}
        if self.scored:
            rows[SCORES] = np.full(len(boxes), np.nan, np.float32) if scores is None else scores
        content = {name: np.ascontiguousarray(array, DTYPES[name]) for name, array in rows.items()}
        for name, array in content.items():
            row = prod(array.shape[1:]) * array.itemsize
            begin = len(self.files[name].head) + int(self.offsets[number]) * row
            outputs[name].write_at(begin, _bytes(array))
        return _checksum(content.values())

    def folder(self, place: Path) -> CacheFolder:
        """Return the folder ``place``, which may not exist yet."""
        return CacheFolder(
            folder=place,
            what=_WHAT,
            record=RECORD,
            manifest=self.manifest(),
            files=self.files,
            images=len(self.images),
            cheaper="take fewer regions (--top-k) or a smaller pool (model.pool.output_size)",
        )


def _without_regions(image: EmbeddedImage) -> list[object]:
    return [image.key, image.hash, image.height, image.width]


def _array_file(name: str, shape: tuple[int, ...]) -> PlannedFile:
    """Return the file that NumPy would write for such an array, with what stands before the values."""
    head, dtype = io.BytesIO(), DTYPES[name]
    np.lib.format.write_array_header_1_0(head, {"descr": dtype.str, "fortran_order": False, "shape": shape})
    return PlannedFile(len(head.getvalue()) + prod(shape) * dtype.itemsize, head.getvalue())


class RegionFeatures:
    """A finished set of region features, opened for reading; processes and threads may share it.

    Everything is memory-mapped and cannot be written to. What was written for an image is compared with its
    checksum when this process first reads it.
    """

    def __init__(self, folder: Path, plan: FeaturePlan) -> None:
        """Open the features in ``folder`` that ``plan`` describes.

        Raises:
            InputError: none are there, unfinished or damaged ones, or some made with anything else.
        """
        self.folder = folder
        self.plan = plan
        self._checksums = plan.folder(folder).require_complete()
        self._numbers = {image.key: number for number, image in enumerate(plan.images)}
        self._checked: set[int] = set()

    @classmethod
    def open(cls, folder: Path | str) -> RegionFeatures:
        """Open the features in ``folder``, which ``tools/embed.py`` or `embed_split` has made.

        Raises:
            InputError: none are there, or unfinished or damaged ones.
        """
        folder = Path(folder)
        path = folder / RECORD
        if not path.is_file():
            raise InputError(
                f"{folder}: holds no {_WHAT}; make one with tools/embed.py, which prints its folder"
            )
        return cls(folder, _read_plan(path))

    @property
    def images(self) -> tuple[str, ...]:
        """The keys of the N images, in order."""
        return tuple(self._numbers)

    @property
    def width(self) -> int:
        """The number of features D of a region."""
        return self.plan.width

    @property
    def offsets(self) -> NDArray[np.int64]:
        """(N + 1,): the regions of image i are the rows ``offsets[i]`` to ``offsets[i + 1]``."""
        return self.plan.offsets

    @property
    def manifest(self) -> dict[str, Any]:
        """What ``features.json`` holds."""
        return self.plan.manifest()

    def __contains__(self, key: object) -> bool:
        return key in self._numbers

    def __len__(self) -> int:
        """Return the number of regions T of all images."""
        return self.plan.total

    def boxes(self, key: str) -> NDArray[np.float32]:
        """Return the regions (P, 4) of an image: half-open, in pixels of the original image."""
        return self._checked_part(key, self._boxes)

    def scores(self, key: str) -> NDArray[np.float32] | None:
        """Return the scores (P,) of an image's proposals, None where they have none."""
        if self._scores is None or not self.plan.images[self._number(key)].scored:
            return None
        return self._checked_part(key, self._scores)

    def features(self, key: str) -> NDArray[np.float16]:
        """Return the features (P, D) of an image's regions, float16.

        Raises:
            InputError: an unknown key, or a file that does not hold what was written.
        """
        return self._checked_part(key, self._features)

    @property
    def all_features(self) -> NDArray[np.float16]:
        """The features (T, D) of all images; every image is compared with its checksum first."""
        self.check()
        return self._features

    @property
    def all_boxes(self) -> NDArray[np.float32]:
        """The regions (T, 4) of all images."""
        self.check()
        return self._boxes

    @property
    def all_scores(self) -> NDArray[np.float32] | None:
        """The scores (T,) of all regions, NaN in images without; None where no image has any."""
        self.check()
        return self._scores

    def check(self) -> None:
        """Compare every image that was not read yet with its checksum; InputError for damage."""
        for number in range(len(self.plan.images)):
            self._check(number)

    def embedded(self, key: str) -> EmbeddedRegions:
        """Return all that is stored of an image."""
        return EmbeddedRegions(self.boxes(key), self.scores(key), self.features(key))

    def _number(self, key: str) -> int:
        try:
            return self._numbers[key]
        except KeyError:
            raise InputError(f"{self.folder}: no region features of image {key!r}") from None

    def _checked_part(self, key: str, array: NDArray[Any]) -> NDArray[Any]:
        number = self._number(key)
        self._check(number)
        return array[self._rows(number)]

    def _rows(self, number: int) -> slice:
        return slice(int(self.offsets[number]), int(self.offsets[number + 1]))

    def _check(self, number: int) -> None:
        if number in self._checked:
            return
        rows = self._rows(number)
        arrays: list[NDArray[Any]] = [self._features, self._boxes]
        arrays += [] if self._scores is None else [self._scores]
        if _checksum(array[rows] for array in arrays) != self._checksums[number]:
            raise InputError(
                f"{self.folder}: damaged: the region features of image {self.plan.images[number].key!r} are "
                f"not as they were written; {self.plan.folder(self.folder).make_again}"
            )
        self._checked.add(number)

    @cached_property
    def _features(self) -> NDArray[np.float16]:
        return self._map(FEATURES)

    @cached_property
    def _boxes(self) -> NDArray[np.float32]:
        return self._map(BOXES)

    @cached_property
    def _scores(self) -> NDArray[np.float32] | None:
        return self._map(SCORES) if self.plan.scored else None

    def _map(self, name: str) -> NDArray[Any]:
        array: NDArray[Any] = np.load(self.folder / name, mmap_mode="r", allow_pickle=False)
        return array


def _read_plan(path: Path) -> FeaturePlan:
    """Return the plan that ``features.json`` records; InputError where it is damaged."""
    found = read_json(path)
    try:
        images = [EmbeddedImage(**entry) for entry in found["images"]]
        for image in images:
            _require_types(image)
        plan = FeaturePlan(images, found["source"], int(found["width"]))
        known = found["format"] == FORMAT and found["key"] == plan.key and plan.width > 0
        known = known and len({image.key for image in images}) == len(images)
    except (KeyError, TypeError, ValueError, OverflowError):
        known = False
    if not known:
        raise InputError(
            f"{path}: not the record of a {_WHAT} of this version, or a damaged one; make the features again "
            "with tools/embed.py"
        )
    return plan


def _require_types(image: EmbeddedImage) -> None:
    wanted = {"key": str, "hash": str, "regions": str, "scored": bool}
    for name, value in asdict(image).items():
        if type(value) is not wanted.get(name, int) or (type(value) is int and not 0 <= value < 2**40):
            raise ValueError(name)


def _checksum(arrays: Iterable[NDArray[Any]]) -> int:
    """Return the CRC-32 of an image's features, boxes and scores, 1 in place of 0."""
    checksum = 0
    for array in arrays:
        checksum = zlib.crc32(_bytes(array), checksum)
    return checksum or 1


def _bytes(array: NDArray[Any]) -> memoryview | bytes:
    """Return the bytes of ``array``, of which no copy is made where they lie one after another."""
    return np.ascontiguousarray(array).data.cast("B") if array.size else b""


def embed_named_split(
    config: Config, model: RegionDetector, split: str, folder: Path, device: str, *, hidden: bool = False
) -> RegionFeatures:
    """Return the features of the regions of the data set's ``split``, as `embed_split` does.

    The training split's regions are the proposals that training uses (``proposals.top_k_train``), those of
    every other split the ones that are scored (``proposals.top_k_test``). ``proposals.missing`` says what
    happens to images without any. Where there are several processes, all of them call this alike.

    Raises:
        InputError: as `embed_split`, and for data or proposals that are missing or faulty.
    """
    _require_regions(config)
    every = split_records(config, [split])[split]
    store = open_proposals(config, every, split)
    records = with_proposals(config, every, store)
    source = stored_proposals(config, store, training=split == config.data.train_split)
    return embed_split(config, model, records, source, folder, device, hidden=hidden)


def embed_split(
    config: Config,
    model: RegionDetector,
    records: Sequence[ImageRecord],
    source: ProposalSource,
    folder: Path,
    device: str,
    *,
    hidden: bool = False,
) -> RegionFeatures:
    """Return the features of the regions of ``records``, and compute those that ``folder`` lacks.

    The regions are what ``source`` returns. Each is pooled from the straight image at the test scale that
    ``test.scale_rule`` chooses (rule "all": at the first one), as ``Detector.classify(..., features=True)``
    pools it. The features are the region pool's output or, with ``hidden``, the last hidden layer's.

    Each set lies in a subfolder named by its key, so other weights, scales or regions make another set. Where
    there are several processes, all of them call this alike, and each computes a share.

    Raises:
        InputError: a network that classifies whole images, an image that cannot be read, features that
            float16 cannot hold, or too little free disk.
    """
    _require_regions(config)
    view = _one_view(config)
    plan = plan_features(view, model, records, source, hidden=hidden)
    place = folder / plan.key[:16]
    size = size_text(sum(planned.size for planned in plan.files.values()))
    note(f"features of {plan.total} regions of {len(records)} images, {plan.width} each: {size} in {place}")
    embedding = _Embedding(view, build_predictor(view, model.eval(), device), plan, hidden=hidden)

    def results(numbers: Sequence[int]) -> Generator[EmbeddedRegions, None, None]:
        known = _known(folder, plan, numbers)
        missing = [records[number] for number in numbers if number not in known]
        with closing(inference_views(view, missing, source, device)) as images:
            for number in numbers:
                if number in known:
                    yield known[number].embedded(plan.images[number].key)
                else:
                    yield embedding(number, next(images))

    with progress_bar("region features") as advance:
        plan.folder(place).fill(results, plan.write, advance)
    return RegionFeatures(place, plan)


class _Embedding:
    """Computes the features of an image's regions with a predictor of regions."""

    def __init__(self, config: Config, predictor: Any, plan: FeaturePlan, *, hidden: bool) -> None:
        assert isinstance(predictor, RegionPredictor)  # of every task but classification
        network = predictor.model  # may be a copy with weights in half precision
        assert isinstance(network, RegionDetector)
        self.pool = network.hidden if hidden else network.pooled
        self.predictor = predictor
        self.plan = plan
        self.masked = pools_by_masks(config.model.pool)

    def __call__(self, number: int, views: Sequence[Batch]) -> EmbeddedRegions:
        """Return what is stored of image ``number``; InputError where its features do not fit float16."""
        proposals, planned = views[0].proposals[0], self.plan.images[number]
        if _regions_digest(proposals, masked=self.masked) != planned.regions:
            raise InputError(
                f"image {planned.key}: its proposals have changed while the features were computed; start "
                "again"
            )
        if not len(proposals):
            features = np.zeros((0, self.plan.width), np.float16)
        else:
            with naming(views[0].metas):
                features = _half(self.predictor.features(views, self.pool))
        scores = None if proposals.scores is None else proposals.scores.numpy()
        return EmbeddedRegions(proposals.boxes.numpy(), scores, features)


def _require_regions(config: Config) -> None:
    """Raise InputError where the config's network classifies whole images."""
    if config.task == "classification":
        raise InputError("task: classification has no regions; region features need task: detection")


def plan_features(
    config: Config,
    model: RegionDetector,
    records: Sequence[ImageRecord],
    source: ProposalSource,
    *,
    hidden: bool = False,
) -> FeaturePlan:
    """Return the plan for the features of ``records``, for which image files and proposals are read."""

    masked = pools_by_masks(config.model.pool)

    def describe(record: ImageRecord) -> str:
        proposals = source(record)
        scored = int(proposals.scores is not None)
        return (
            f"{file_hash(record.path)},{len(proposals)},{scored},{_regions_digest(proposals, masked=masked)}"
        )

    images = []
    for record, text in zip(records, shared_texts(records, describe), strict=True):
        content, count, scored, regions = text.split(",")
        images.append(
            EmbeddedImage(
                key=record.key,
                hash=content,
                height=record.height,
                width=record.width,
                count=int(count),
                scored=scored == "1",
                regions=regions,
            )
        )
    width = model.box_head.out_features if hidden else model.region_pool.out_features
    return FeaturePlan(images, _made_with(config, model, hidden=hidden), width)


def _made_with(config: Config, model: RegionDetector, *, hidden: bool) -> dict[str, str]:
    """Return all that the features depend on but images and regions: each part as a text."""
    left_out = _OF_THE_HEAD[1:] if hidden else _OF_THE_HEAD
    weights = {name: one for name, one in model.state_dict().items() if not name.startswith(left_out)}
    unused: dict[str, Any] = {
        "head": True,
        "box": True,
        "roi_chunk": True,
        "backbone": {"weights", "freeze", "allow_partial"},
    }
    if config.model.neck is None:
        unused["fpn"] = True  # what a neck that is not there would be like
    network = config.model.model_dump(mode="json", exclude=unused)
    test = config.test
    transform: dict[str, Any] = {"resize": test.resize}
    if test.resize != "none":
        transform["scales"] = list(test.scales)
    if test.resize != "square":
        transform["max_size"] = test.max_size
    return {
        "features": "hidden" if hidden else "pooled",
        "weights": tensors_digest(weights),
        "network": json.dumps(network, sort_keys=True),
        "normalization": repr(build_normalization(config)),
        "transform": json.dumps(transform),
        "scale_rule": test.scale_rule if len(transform.get("scales", ())) > 1 else "one scale",
        "precision": test.precision,
        "decoding": "JPEG files in a smaller size where that suffices",
    }


def _one_view(config: Config) -> Config:
    """Return the config with the views from which features are pooled: those of the straight image."""
    test = config.test.model_copy(update={"flip": False})
    if test.scale_rule == "all":
        test = test.model_copy(update={"scales": test.scales[:1]})
    return config.model_copy(update={"test": test})


def _regions_digest(proposals: Proposals, *, masked: bool) -> str:
    """Return a digest of what is pooled, also the masks if ``masked``, and of the scores beside it."""
    arrays = [proposals.boxes] if proposals.scores is None else [proposals.boxes, proposals.scores]
    parts = [json_bytes(list(one.shape)) + one.numpy().tobytes() for one in arrays]
    if masked and proposals.masks is not None:
        parts.append(json_bytes([proposals.masks.size, list(map(len, proposals.masks.counts))]))
        parts.extend(proposals.masks.counts)
    return bytes_digest(parts)


def _half(features: Tensor) -> NDArray[np.float16]:
    """Return ``features`` (P, D) as float16 on the CPU; InputError where float16 cannot hold them."""
    if features.numel():
        low, high = (float(value) for value in torch.aminmax(features))
        if not (low >= -FLOAT16_MAX and high <= FLOAT16_MAX):
            raise InputError(
                f"the region features reach {max(-low, high):g}, which float16 cannot hold; lower "
                "model.backbone.feature_scale, or correct the weights if it is not a number"
            )
    return features.half().cpu().numpy()


def _known(folder: Path, plan: FeaturePlan, numbers: Sequence[int]) -> dict[int, RegionFeatures]:
    """Return which of the images ``numbers`` another set in ``folder`` holds, made with all the same.

    So an image is embedded once when a split grows, or when a part of it is wanted. Unfinished and damaged
    sets are left out.
    """
    found: dict[int, RegionFeatures] = {}
    for path in sorted(folder.glob(f"*/{RECORD}")) if numbers else []:
        wanted = {plan.images[number]: number for number in numbers if number not in found}
        try:
            other = _read_plan(path)
            shared = [image for image in other.images if image in wanted]
            same = (other.source, other.width) == (plan.source, plan.width) and other.key != plan.key
            if not (same and shared):
                continue
            features = RegionFeatures(path.parent, other)
            features.check()
        except InputError:
            continue
        found |= {wanted[image]: features for image in shared}
    if found:
        note(f"{len(found)} of {len(numbers)} images are copied from other sets in {folder}")
    return found
