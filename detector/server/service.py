"""What the server computes for one request: decoding, proposals, detections or scores, without any HTTP."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from detector import __version__
from detector.api import Detector
from detector.config import Config
from detector.config.load import parse_config
from detector.core.errors import InputError
from detector.data.given_regions import checked_boxes
from detector.data.images import FORMATS, LoadedImage, decode_image
from detector.factory.proposals import image_proposals
from detector.visualize.drawing import USUAL_THRESHOLD, class_colour

MAX_BOXES = 4000
"""The most regions that a request may give: twice the number of proposals per image in Fast R-CNN's paper."""
MAX_PIXELS = 50_000_000
"""The default limit of pixels per image: 0.15 GB decoded, such as 8,660 x 5,770 pixels."""
CHECKPOINT = "checkpoint"
_IMAGE = "the image"  # its name in errors: the file name of the client is never used
_NUMBERED = re.compile(r"\A(?:image '?(?:image )?0'?: )+")
_METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "selective_search_fast": ("Selective search, fast", {"method": "selective_search", "mode": "fast"}),
    "selective_search_quality": (
        "Selective search, quality (slow)",
        {"method": "selective_search", "mode": "quality"},
    ),
    "dense": ("Dense grid of windows", {"method": "dense"}),
}


class Service:
    """A detector with the proposals that a request may choose; several threads may use it at once.

    ``proposals`` has the config of each choice by its name, the default first: the checkpoint's own method
    where it has one. It is empty for a classifier of whole images.
    """

    def __init__(self, detector: Detector, max_pixels: int = MAX_PIXELS) -> None:
        self.detector = detector
        self.max_pixels = max_pixels
        self.classifies = detector.config.task == "classification"
        self.proposals: dict[str, Config] = {} if self.classifies else _choices(detector.config)

    def detect(
        self,
        content: bytes,
        proposals: str | None = None,
        boxes: Sequence[Sequence[float]] | None = None,
        score_threshold: float | None = None,
    ) -> dict[str, Any]:
        """Return `Result.to_dict` of an image file's ``content``, its classes, proposals and times.

        ``proposals`` is a key of `proposals`, None the first. With ``boxes`` (P, 4), in pixels of the upright
        image, these are the proposals. ``score_threshold`` is as in a call of `Detector`.

        Raises:
            InputError: the image cannot be decoded, or a box is faulty. `TooManyPixels` and `NotAnImage` are
                special cases.
        """
        clock = _Clock()
        with clock("decode"):
            image = self._decoded(content)
        regions, made = None, None
        if not self.classifies:
            with clock("proposals"):
                name, regions = self._regions(image, proposals, boxes)
            made = {"method": name, "count": len(regions)}
        with clock("network"), _named():
            result = self.detector(image, boxes=regions, score_threshold=score_threshold)
        answer = {**result.to_dict(), "classes": list(result.classes), "seconds": clock.seconds}
        return answer if made is None else answer | {"proposals": made}

    def classify(self, content: bytes, boxes: Sequence[Sequence[float]]) -> dict[str, Any]:
        """Return the scores of all classes for each of ``boxes``, and its best class with the box it gives.

        Raises InputError as `detect`.
        """
        clock = _Clock()
        with clock("decode"):
            image = self._decoded(content)
            checked = checked_boxes(boxes, image.size, _IMAGE)
        with clock("network"), _named():
            found = self.detector.classify(image, checked)
        best = found.scores[:, 1:].argmax(dim=1).tolist()
        rows = zip(boxes, found.scores.tolist(), best, found.boxes[:, 1:].tolist(), strict=True)
        classes = list(self.detector.classes)
        regions = [
            {
                "box": list(box),
                "scores": scores[1:],
                "background": scores[0],
                "best": {"class": classes[top], "score": scores[1 + top], "box": moved[top]},
            }
            for box, scores, top, moved in rows
        ]
        height, width = image.size
        size = {"image": None, "height": height, "width": width}
        return {**size, "regions": regions, "classes": classes, "seconds": clock.seconds}

    def facts(self) -> dict[str, Any]:
        """Return what a client must know of the checkpoint: classes, thresholds, sizes and limits."""
        config, detector = self.detector.config, self.detector
        usual = USUAL_THRESHOLD if config.model.head.scores != "svm" else 0.0
        threshold = usual if detector.best_threshold is None else detector.best_threshold
        labels = range(1, len(detector.classes) + 1)
        test = config.test
        return {
            "version": __version__,
            "task": "classification" if self.classifies else "detection",
            "classes": list(detector.classes),
            "colours": ["#{:02x}{:02x}{:02x}".format(*class_colour(label)) for label in labels],
            "scores": config.model.head.scores,
            "shown_threshold": threshold,
            "chosen_threshold": detector.best_threshold,
            "score_threshold": None if self.classifies else test.score_threshold,
            "nms_threshold": None if self.classifies else test.nms_threshold,
            "max_detections": None if self.classifies else test.max_detections,
            "scales": list(test.scales),
            "max_size": test.max_size,
            "proposals": [{"name": name, "title": self._title(name)} for name in self.proposals],
            "max_pixels": self.max_pixels,
            "max_boxes": 0 if self.classifies else MAX_BOXES,
            "formats": list(FORMATS),
        }

    def _title(self, name: str) -> str:
        if name != CHECKPOINT:
            return _METHODS[name][0]
        method = self.detector.config.proposals.method or ""
        return f"The checkpoint's: {method.replace('_', ' ')}"

    def _decoded(self, content: bytes) -> LoadedImage:
        return decode_image(content, _IMAGE, self.max_pixels)

    def _regions(
        self, image: LoadedImage, proposals: str | None, boxes: Sequence[Sequence[float]] | None
    ) -> tuple[str, Any]:
        """Return where the regions of a request come from, and the regions (P, 4)."""
        if boxes is not None:
            if proposals is not None:
                raise InputError("give only one of boxes and proposals")
            return "boxes", checked_boxes(boxes, image.size, _IMAGE)
        name = proposals or next(iter(self.proposals))
        if name not in self.proposals:
            raise InputError(f"proposals: {name!r:.80} is unknown; known: {', '.join(self.proposals)}")
        return name, image_proposals(self.proposals[name], image.pixels(), _IMAGE).boxes


def _choices(config: Config) -> dict[str, Config]:
    """Return the config of each choice of proposals: a detector's own limits with another method."""
    values = config.model_dump(mode="json")
    limits = {key: values["proposals"][key] for key in ("top_k_train", "top_k_test", "min_size")}
    choices = {} if config.proposals.method is None else {CHECKPOINT: config}
    for name, (_, method) in _METHODS.items():
        choices[name] = parse_config({**values, "proposals": limits | method}, name)
    return choices


@contextmanager
def _named() -> Iterator[None]:
    """Let errors say "the image", not "image 0" as the API does: a request has only one."""
    try:
        yield
    except InputError as error:
        raise InputError(_NUMBERED.sub(f"{_IMAGE}: ", str(error))) from None


class _Clock:
    """The seconds of each part of a request."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[part] = time.perf_counter() - start
