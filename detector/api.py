"""The Python API: a checkpoint as a function from images to detections.

    from detector import Detector

    detector = Detector.load("runs/quickstart/checkpoints/best.pt")
    result = detector("photo.jpg")
    print(result.names, result.scores, result.boxes)

Everything goes through the preprocessing, the predictor and the suppression of evaluation.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from itertools import repeat
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from detector.config import Config
from detector.config.load import override, parse_config, parse_stored
from detector.core.errors import InputError
from detector.core.machine import available_cores
from detector.core.pipeline import Pipeline, Worker
from detector.core.structures import Batch, Detections, ImageRecord, Proposals, Targets
from detector.data.given_regions import checked_boxes, checked_masks
from detector.data.images import LoadedImage, upright_size
from detector.data.in_memory import ImageLike, load_image
from detector.data.paths import image_key
from detector.data.samples import collate, make_sample
from detector.data.video import Frame, Video, VideoPlace
from detector.engine.checkpoint import load_checkpoint
from detector.engine.determinism import cuda_algorithms
from detector.engine.inference import RegionPredictor, Regions, check_precision
from detector.evaluation.coco_results import to_results
from detector.factory.loaders import inference_transforms, naming, no_proposals
from detector.factory.model import build_postprocess, build_predictor, restore_model
from detector.factory.proposals import (
    check_complete,
    file_override,
    image_proposals,
    stored_proposals,
    temporary_store,
)
from detector.factory.resources import choose_device
from detector.proposals.image_names import match_store
from detector.proposals.store import ProposalStore
from detector.visualize import ClassifiedImage, draw_class_scores, draw_detections

ProposalPlace = str | os.PathLike[str] | ProposalStore
Container = TypeVar("Container", Detections, Regions)
Source = Callable[[ImageRecord, LoadedImage], Proposals]

_GPU = threading.RLock()
"""Held while a network runs on a GPU: CUDA's choice of algorithms belongs to the process, not to a thread."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Result:
    """The detections of one image, by falling score.

    For a classifier these are the K classes, by falling score, each with the box of the whole image.
    """

    detections: Detections
    classes: tuple[str, ...]
    """The K class names; label k is ``classes[k - 1]``."""
    size: tuple[int, int]
    """(height, width) of the image in pixels, upright."""
    image: str | None = None
    """The image's path, or None for an image that was given as pixels."""
    draw_threshold: float | None = None
    """The lowest score that `draw` shows; None means 0.5."""
    class_scores: Tensor | None = None
    """A classifier's scores (K,) in the order of ``classes``; None for a detector."""

    def __len__(self) -> int:
        return len(self.detections)

    @property
    def boxes(self) -> Tensor:
        """Boxes (D, 4): x1, y1, x2, y2, half-open, in pixels of the original image."""
        return self.detections.boxes

    @property
    def scores(self) -> Tensor:
        """Scores (D,): probabilities, with sigmoid scores independent of each other, or margins of SVMs."""
        return self.detections.scores

    @property
    def labels(self) -> Tensor:
        """Labels (D,) int64, 1..K."""
        return self.detections.labels

    @property
    def names(self) -> list[str]:
        """The class name of each detection."""
        return [self.classes[label - 1] for label in self.labels.tolist()]

    def draw(self, image: ImageLike, score_threshold: float | None = None) -> np.ndarray:
        """Return ``image`` with the detections drawn on it, (H, W, 3) uint8 RGB.

        ``image`` is of any kind that `Detector` takes. A classifier's classes and scores are drawn beside it.
        ``score_threshold`` None takes the threshold of the call, else ``Detector.best_threshold``, else 0.5.

        Raises:
            InputError: an image that cannot be read, or of another size than the result's.
        """
        pixels = load_image(image, "the image to draw on").pixels()
        if pixels.shape[:2] != self.size:
            raise InputError(
                f"the image to draw on is {pixels.shape[1]}x{pixels.shape[0]} pixels, the result's image "
                f"{self.size[1]}x{self.size[0]}; give the image that the result is of"
            )
        if self.class_scores is not None:
            return draw_class_scores(ClassifiedImage(pixels, self.class_scores.tolist()), self.classes)
        threshold = self.draw_threshold if score_threshold is None else score_threshold
        return draw_detections(pixels, self.detections, self.classes, threshold)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values: ``image``, ``height``, ``width`` and ``detections``, or a classifier's
        ``scores``. Each has ``class`` and ``score``; a detection also has ``box``: x1, y1, x2, y2.
        """
        rows = zip(self.names, self.scores.tolist(), self.boxes.tolist(), strict=True)
        classifies = self.class_scores is not None
        named = [
            {"class": name, "score": score} | ({} if classifies else {"box": box})
            for name, score, box in rows
        ]
        height, width = self.size
        return {
            "image": self.image,
            "height": height,
            "width": width,
            "scores" if classifies else "detections": named,
        }

    def to_json(self) -> str:
        """Return `to_dict` as JSON text, all digits kept."""
        return json.dumps(self.to_dict(), allow_nan=False)

    def to_coco(self, image_id: int = 1, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Return COCO results: ``image_id``, ``category_id``, ``bbox`` (x, y, width, height) and ``score``.

        ``category_ids`` are the annotation file's ids of ``classes``, in this order. None numbers the classes
        1..K, since a checkpoint does not know the ids.

        Raises:
            InputError: a classifier's result, which has no boxes, or not one id per class.
        """
        if self.class_scores is not None:
            raise InputError("to_coco: a classifier of whole images has no boxes; use to_json")
        ids = range(1, len(self.classes) + 1) if category_ids is None else category_ids
        if len(ids) != len(self.classes):
            raise InputError(
                f"category_ids: {len(ids)} ids for {len(self.classes)} classes; give one per class"
            )
        return to_results(image_id, self.detections, ids)


class Detector:
    """A checkpoint as a function from images to a `Result` for each; several threads may call it at once.

    Calls on the CPU run side by side; on a GPU one network runs at a time. ``classes`` are the K class names,
    ``config`` is the checkpoint's, ``best_threshold`` the score threshold that training chose on its
    validation images, or None.
    """

    def __init__(self, config: Config, checkpoint: dict[str, Any], device: str = "cpu") -> None:
        """Build the network of ``config`` with the weights of a checkpoint that `load_checkpoint` has read.

        Raises:
            InputError: the weights do not fit the config.
        """
        self.config = config
        self.device = device
        self.classes: tuple[str, ...] = tuple(checkpoint["classes"])
        self.best_threshold: float | None = checkpoint.get("score_threshold")
        self._source: str = checkpoint["file"]
        self._model = restore_model(config, checkpoint, self._source).to(device)
        self._predictor = build_predictor(config, self._model, device)
        self._transforms = inference_transforms(config)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        device: str | int | torch.device = "auto",
        allow_code: Iterable[str] = (),
        overrides: Sequence[str] = (),
        precision: str | None = None,
    ) -> Detector:
        """Read a checkpoint; nothing else is needed, and nothing that it names is opened or imported.

        Args:
            device: "auto" (a GPU if one can be used), "cpu", "cuda", "cuda:1" or a `torch.device`.
            allow_code: names of functions that the checkpoint may call, such as ``"my_boxes:propose"``.
            overrides: config values to replace, such as ``"test.scales=[480,600]"``.
            precision: "float32", "bfloat16", "int8" on a CPU, or "float16" on a GPU (docs/compress.md). None
                takes ``test.precision`` of the overrides or the checkpoint, which is float32 unless it was
                changed.

        Raises:
            InputError: no checkpoint of this project, one that names code which ``allow_code`` does not list,
                a device that this machine does not have, or a precision that the device does not have.
        """
        state = load_checkpoint(Path(path))
        allowed = {allow_code} if isinstance(allow_code, str) else set(allow_code or ())
        overrides = [overrides] if isinstance(overrides, str) else overrides
        if precision is not None:
            overrides = [*overrides, f"test.precision={check_precision(precision, 'precision')}"]
        config = parse_stored(state["config"], overrides, state["file"], allow_code=allowed)
        return cls(config, state, choose_device(str(device)))

    @overload
    def __call__(
        self,
        image: ImageLike,
        *,
        boxes: object = None,
        masks: object = None,
        score_threshold: float | None = None,
        proposals: ProposalPlace | None = None,
    ) -> Result: ...
    @overload
    def __call__(
        self,
        image: list[Any] | tuple[Any, ...],
        *,
        boxes: object = None,
        masks: object = None,
        score_threshold: float | None = None,
        proposals: ProposalPlace | None = None,
    ) -> list[Result]: ...
    def __call__(
        self,
        image: ImageLike | list[Any] | tuple[Any, ...],
        *,
        boxes: object = None,
        masks: object = None,
        score_threshold: float | None = None,
        proposals: ProposalPlace | None = None,
    ) -> Result | list[Result]:
        """Return the detections of an image, or a list of them for a list of images.

        Args:
            image: a path, the bytes of an image file, an array (H, W, 3) uint8 in RGB order (BGR cannot be
                recognised), a Pillow image, or a list of these. EXIF orientation is applied to files and
                Pillow images.
            boxes: regions of your own to classify instead of proposals, (P, 4): x1, y1, x2, y2, half-open, in
                pixels of the upright image; for a list of images, a list with one such array per image.
            masks: the same as masks instead of boxes: a boolean array (P, H, W), or a list of run-length
                encodings with ``size`` and ``counts`` as pycocotools and COCO's files have them. A region is
                the box of its mask; a network with ``model.pool.mask`` also pools only the mask's cells.
            score_threshold: only detections that score more are returned. None takes ``test.score_threshold``
                and gives the results of evaluation, bit for bit; a classifier then returns all its classes.
            proposals: a `ProposalStore` or the path of one, or a proposal file of any format that the tools
                read, with boxes of these images by file name. None uses the checkpoint's method.

        Raises:
            InputError: an image, box or file is faulty; the message names it and the fix.
        """
        options: dict[str, Any] = {"score_threshold": score_threshold, "proposals": proposals}
        if isinstance(image, list | tuple):
            return list(self.stream(image, **_one_per_image(len(image), boxes, masks), **options))
        own = _one_per_image(1, *(None if given is None else [given] for given in (boxes, masks)))
        (result,) = self.stream([image], **own, **options)
        return result

    def stream(
        self,
        images: Iterable[ImageLike],
        *,
        boxes: Iterable[object] | None = None,
        masks: Iterable[object] | None = None,
        score_threshold: float | None = None,
        proposals: ProposalPlace | None = None,
    ) -> Iterator[Result]:
        """Yield the result of each image as soon as it is computed; the arguments are those of a call.

        ``images`` may be a generator; with ``proposals`` it is read completely at the start. Errors are
        raised while the results are iterated over.
        """
        if isinstance(images, str | os.PathLike | bytes | np.ndarray | Image.Image):
            raise InputError(
                "stream: expected several images; for a single one, call the detector with it; for a video "
                "use detector.video"
            )
        predictor = self._with_threshold(score_threshold)
        if proposals is not None:
            images = list(images)
        with self._source_of(images, boxes, masks, proposals) as source:
            own_regions = boxes is not None or masks is not None
            pairs = _pairs(images, boxes, masks) if own_regions else zip(images, repeat(source), strict=False)
            for number, (image, own) in enumerate(pairs):
                views = self._views(image, _name_of(image) or f"image {number}", own)
                with self._running(views):
                    predicted = predictor(views)
                yield self._result(image, views[0].metas[0].original_size, predicted, score_threshold)

    def video(
        self,
        source: VideoPlace,
        *,
        every: int = 1,
        max_frames: int | None = None,
        seconds: float | None = None,
        score_threshold: float | None = None,
        proposal_threads: int | None = None,
    ) -> Generator[tuple[Frame, Result], None, None]:
        """Yield each frame of a video with its result, in order; a `Frame` has the pixels and their time.

        While the network runs, other threads decode the next frames and make their proposals. The results are
        those of a call with the frame's pixels, bit for bit. A camera is never made to wait: it drops the
        frames for which there is no time. Closing the generator ends the threads and closes the video.

        Args:
            source: the path of a video file, or the number of a camera, 0 for the first one.
            every: take each ``every``-th frame only.
            max_frames: end after so many frames.
            seconds: end after so many seconds of the video, or of the camera's time.
            score_threshold: as in a call.
            proposal_threads: as in `frame_workers`.

        Raises:
            InputError: no video or camera, or an argument out of range. `DamagedVideo`, which is one, comes
                after the last frame where the file announces more, or when a camera stops.
        """
        with (
            Video(source, every=every, max_frames=max_frames, seconds=seconds) as frames,
            frame_pipeline(frames, self.frame_workers(score_threshold, proposal_threads)) as results,
        ):
            yield from results

    def frame_workers(
        self, score_threshold: float | None = None, proposal_threads: int | None = None
    ) -> list[Worker]:
        """Return the workers of a `Pipeline` that turn each `Frame` into (frame, result).

        ``proposal_threads`` make the proposals of as many frames at once; None takes one per core, less one
        for the network, and at least one. Raises InputError for fewer than one.
        """
        threads = max(available_cores() - 1, 1) if proposal_threads is None else proposal_threads
        if threads < 1:
            raise InputError(f"proposal_threads: expected 1 or more, not {threads}")
        predictor, source = self._with_threshold(score_threshold), self._own_source()

        def prepare(frame: Frame) -> tuple[Frame, list[Batch]]:
            return frame, self._views(frame.pixels, f"frame {frame.number}", source)

        def predict(prepared: tuple[Frame, list[Batch]]) -> tuple[Frame, Result]:
            frame, views = prepared
            with self._running(views):
                predicted = predictor(views)
            size = views[0].metas[0].original_size
            return frame, self._result(frame.pixels, size, predicted, score_threshold)

        name = "prepare" if self.config.task == "classification" else "proposals"
        return [Worker(name, prepare, threads), Worker("network", predict)]

    def classify(
        self, image: ImageLike, boxes: object = None, features: bool = False, *, masks: object = None
    ) -> Regions:
        """Return the scores and refined boxes of each region of one image, in the order given.

        Nothing is suppressed or thresholded: the scores are those of all K classes and of the background, for
        every kind of ``model.head.scores``; `Regions` says what they are. ``boxes`` or ``masks`` are as in a
        call. With ``features`` the result holds the pooled and hidden features too. `RegionPredictor.regions`
        says how several test scales and mirrored images are merged: the mean of scores and boxes, and the
        features of the straight image.

        Raises:
            InputError: as in a call, without regions, and for a classifier of whole images.
        """
        predictor = self._predictor
        if not isinstance(predictor, RegionPredictor):
            raise InputError(
                f"{self._source} classifies whole images and not regions; call it with the image"
            )
        views = self._views(image, _name_of(image) or "image 0", _given(boxes, masks))
        with self._running(views):
            return _ordinary(predictor.regions(views, features=features))

    def _views(self, image: ImageLike, name: str, source: Source) -> list[Batch]:
        """Return the views of one image, made as the data pipeline makes those of a test image."""
        loaded = load_image(image, name)
        record = record_of(Path(name), loaded.size)
        proposals = source(record, loaded)
        metas = [view.plan(loaded.size, record.image_id) for view in self._transforms]
        return [collate([make_sample(record, loaded, proposals, meta)]) for meta in metas]

    @contextmanager
    def _running(self, views: Sequence[Batch]) -> Iterator[None]:
        """Run the network with the algorithms of evaluation; errors name the image."""
        lock = _GPU if torch.device(self.device).type == "cuda" else nullcontext()
        algorithms = cuda_algorithms(self.device, deterministic=self.config.train.deterministic)
        with naming(views[0].metas), lock, algorithms:
            yield

    def _with_threshold(self, score_threshold: float | None) -> Callable[[Sequence[Batch]], Any]:
        if score_threshold is None:
            return self._predictor
        if isinstance(score_threshold, bool) or not isinstance(score_threshold, Real):
            raise InputError(f"score_threshold: expected a number, not {score_threshold!r:.80}")
        if not math.isfinite(score_threshold):
            raise InputError(f"score_threshold {score_threshold:g}: expected a finite number")
        if not isinstance(self._predictor, RegionPredictor):
            return self._predictor
        return replace(
            self._predictor,
            postprocess=build_postprocess(self.config, self._model.box_coder, float(score_threshold)),
        )

    def _result(
        self, image: ImageLike, size: tuple[int, int], predicted: Any, score_threshold: float | None
    ) -> Result:
        scores = None if isinstance(predicted, Detections) else predicted.clone()
        detections = predicted if scores is None else _ranked(scores, size, score_threshold)
        return Result(
            detections=_ordinary(detections),
            classes=self.classes,
            size=size,
            image=_name_of(image),
            draw_threshold=self.best_threshold if score_threshold is None else score_threshold,
            class_scores=scores,
        )

    @contextmanager
    def _source_of(
        self, images: Iterable[ImageLike], boxes: object, masks: object, proposals: ProposalPlace | None
    ) -> Iterator[Source]:
        """Provide each image's proposals; those of a store are looked up by path and file name."""
        if sum(regions is not None for regions in (boxes, masks, proposals)) > 1:
            raise InputError("give only one of boxes, masks and proposals")
        if self.config.task == "classification":
            if not boxes is masks is proposals is None:
                raise InputError(
                    f"{self._source} classifies whole images; it takes no boxes, masks or proposals"
                )
            yield self._own_source()
        elif proposals is not None:
            records = [_record_on_disk(image, number) for number, image in enumerate(images)]
            with self._opened(proposals, records) as store:
                check_complete(self.config, store, records)
                look_up = stored_proposals(self.config, store, training=False)

                yield lambda record, _image: look_up(record)
        else:
            yield self._own_source()

    def _own_source(self) -> Source:
        """Return what makes the proposals of an image by the checkpoint's method; a classifier needs none."""
        if self.config.task == "classification":
            return lambda record, _: no_proposals(record)
        return self._made

    def _made(self, record: ImageRecord, image: LoadedImage) -> Proposals:
        """Return the proposals that the checkpoint's method makes for an image."""
        if self.config.proposals.method is None:
            raise InputError(
                f"{self._source} was trained on a proposal file, which has no boxes for {record.path}; give "
                "boxes=..., or proposals=... with a file that has some, or load the checkpoint with "
                'overrides=["proposals.method=selective_search"]'
            )
        return image_proposals(self.config, image.pixels(), record.image_id)

    @contextmanager
    def _opened(self, proposals: ProposalPlace, records: list[ImageRecord]) -> Iterator[ProposalStore]:
        if isinstance(proposals, ProposalStore):
            yield match_store(proposals, records)
        elif isinstance(proposals, str | os.PathLike):
            if not Path(proposals).exists():
                raise InputError(f"proposals: {Path(proposals)}: no such proposal file or store")
            values = override(self.config.model_dump(mode="json"), [file_override(Path(proposals))])
            with temporary_store(parse_config(values, self._source), records) as store:
                yield store
        else:
            raise InputError(
                f"proposals: expected a path or a ProposalStore, not {type(proposals).__name__}; regions of "
                "your own go into boxes=..."
            )


def _name_of(image: object) -> str | None:
    return str(Path(image)) if isinstance(image, str | os.PathLike) else None


def frame_pipeline(video: Video, workers: Sequence[Worker]) -> Pipeline:
    """Return the pipeline of a video's frames; a camera drops frames and keeps no others waiting."""
    room = {"room": 1} if video.is_camera else {}
    return Pipeline(video, workers, reading="decode", newest=video.is_camera, **room)


def record_of(path: Path, size: tuple[int, int] | None = None) -> ImageRecord:
    """Return the record of an image without annotations; ``size`` (height, width) None reads its file."""
    height, width = size or upright_size(path)
    key, targets = image_key(path, Path()), Targets.empty()
    return ImageRecord(image_id=str(path), key=key, path=path, height=height, width=width, targets=targets)


def _record_on_disk(image: ImageLike, number: int) -> ImageRecord:
    name = _name_of(image)
    if name is None:
        raise InputError(
            f"proposals: boxes are looked up by file name, and image {number} has none; give its path, or "
            "boxes=..."
        )
    return record_of(Path(name))


def _one_per_image(count: int, boxes: object, masks: object) -> dict[str, Any]:
    """Return both as arguments of `Detector.stream`; InputError unless they are lists of ``count`` arrays."""
    for name, regions in (("boxes", boxes), ("masks", masks)):
        if regions is not None and not (isinstance(regions, list | tuple) and len(regions) == count):
            raise InputError(f"{name}: for a list of {count} images give a list of as many arrays")
    return {"boxes": boxes, "masks": masks}


def _pairs(
    images: Iterable[ImageLike], boxes: Iterable[object] | None, masks: Iterable[object] | None
) -> Iterator[tuple[ImageLike, Source]]:
    """Yield each image with the source of its own ``boxes`` or ``masks``, one of which is None."""
    name, regions = ("boxes", boxes) if boxes is not None else ("masks", masks)
    assert regions is not None
    given = iter(regions)
    for number, image in enumerate(images):
        own = next(given, None)
        if own is None:
            raise InputError(f"{name}: no regions for image {number}; give one array per image")
        yield image, _given(own, None) if name == "boxes" else _given(None, own)
    if next(given, None) is not None:
        raise InputError(f"{name}: more arrays than images; give one array per image")


def _given(boxes: object, masks: object) -> Source:
    """Return a source of regions that the caller gives for one image, as boxes or as masks."""
    if (boxes is None) == (masks is None):
        raise InputError("give the regions as boxes or as masks" + ("" if boxes is None else ", not both"))

    def regions(record: ImageRecord, image: LoadedImage) -> Proposals:
        if masks is None:
            return Proposals(boxes=checked_boxes(boxes, image.size, record.image_id))
        checked = checked_masks(masks, image.size, record.image_id)
        return Proposals(boxes=checked.boxes(), masks=checked)

    return regions


def _ordinary(container: Container) -> Container:
    """Return a copy in ordinary tensors; those made in inference mode cannot be used in training."""
    parts = {field.name: getattr(container, field.name) for field in fields(container)}
    return replace(container, **{name: part.clone() for name, part in parts.items() if part is not None})


def _ranked(scores: Tensor, size: tuple[int, int], score_threshold: float | None) -> Detections:
    """Return a classifier's classes by falling score, each with the box of the whole image."""
    order = torch.sort(scores, descending=True, stable=True).indices
    if score_threshold is not None:
        order = order[scores[order] > score_threshold]
    whole = torch.tensor([[0.0, 0.0, size[1], size[0]]])
    return Detections(boxes=whole.repeat(len(order), 1), scores=scores[order], labels=order + 1)
