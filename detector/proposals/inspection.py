"""What an unknown proposal file seems to be: its format, its counts and ranges, and remarks for a person."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from detector.core.errors import InputError
from detector.core.files import is_hidden
from detector.proposals.readers import read_images
from detector.proposals.readers.pickles import read_pickle
from detector.proposals.readers.raw_images import RawImage
from detector.proposals.store import ProposalStore


def inspect(source: Path | str, file_format: str | None = None) -> dict[str, Any]:
    """Return what ``source`` seems to be; the boxes are described as they are in the file.

    Keys: ``format``, ``images``, ``ids`` (the first few), ``boxes``, ``boxes_per_image`` (least, mean,
    most), ``columns`` (least and greatest of each of the four), ``whole_numbers``, ``scores`` (least and
    greatest, or None), ``not_finite`` (boxes) and ``remarks``; for a store also ``generator``,
    ``parameters`` and ``notes``. Raises InputError as the readers do.
    """
    source = Path(source)
    file_format = file_format or guess_format(source)
    if file_format != "store":
        return {"format": file_format} | _describe(read_images(source, file_format))
    store = ProposalStore.open(source)
    origin = {"generator": store.generator, "parameters": store.parameters, "notes": store.notes}
    return {"format": "store"} | origin | _describe(_stored_images(store))


def describe(summary: Mapping[str, Any]) -> list[str]:
    """Return the lines in which a person reads what `inspect` has returned."""
    least, mean, most = summary["boxes_per_image"]
    ids = f", such as {', '.join(summary['ids'])}" if summary["ids"] else ", without names"
    lines = [
        f"format: {summary['format']}",
        f"images: {summary['images']}{ids}",
        f"boxes: {summary['boxes']}, {least} to {most} per image, {mean:g} on average",
    ]
    for number, (low, high) in enumerate(summary["columns"], 1):
        lines.append(f"column {number}: {low:g} to {high:g}")
    lines.append(
        "scores: none" if summary["scores"] is None else "scores: {:g} to {:g}".format(*summary["scores"])
    )
    for name in ("generator", "parameters"):
        if name in summary:
            lines.append(f"{name}: {summary[name]}")
    return lines + [f"note: {text}" for text in [*summary.get("notes", []), *summary["remarks"]]]


def guess_format(source: Path) -> str:
    """Return the format that ``source`` seems to have, or "store"; InputError where nothing fits."""
    name: str | None
    if source.is_dir():
        shown = (path for path in source.rglob("*") if not is_hidden(path, source))
        suffixes = {path.suffix.lower() for path in islice(shown, 1000) if path.is_file()}
        name = next((kind for kind in ("npy", "mat", "txt") if f".{kind}" in suffixes), None)
        name = "store" if (source / "manifest.json").exists() else "text" if name == "txt" else name
    elif source.suffix.lower() in (".pkl", ".pickle"):
        content = read_pickle(source)
        detectron = isinstance(content, dict) and "boxes" in content
        name = "mmdetection" if not detectron else "detectron" if "indexes" in content else "detectron2"
    else:
        name = {".npz": "npz", ".mat": "mat", ".json": "coco"}.get(source.suffix.lower())
    if name is None:
        raise InputError(f"{source} is not a proposal file whose format its name shows; give the format")
    return name


def _stored_images(store: ProposalStore) -> Iterator[RawImage]:
    for image_id in store.ids():
        boxes, scores = store[image_id].boxes, store[image_id].scores
        yield RawImage(image_id, boxes.numpy(), None if scores is None else scores.numpy(), "xyxy")


def _describe(images: Iterable[RawImage]) -> dict[str, Any]:
    statistics = _Statistics()
    for image in images:
        statistics.add(image)
    return statistics.report()


class _Statistics:
    """Ranges and counts over images, in the memory that one image takes."""

    def __init__(self) -> None:
        self._ids: list[str] = []
        self._conventions: set[str] = set()
        self._counts: list[int] = []
        self._least, self._most = np.full(4, np.inf), np.full(4, -np.inf)
        self._scores = [np.inf, -np.inf]
        self._whole = True
        self._not_finite = 0
        self._backward = 0

    def add(self, image: RawImage) -> None:
        if isinstance(image.key, str) and len(self._ids) < 3:
            self._ids.append(image.key)
        self._conventions.add(image.convention)
        self._counts.append(len(image.boxes))
        boxes = np.asarray(image.boxes, np.float64)
        finite = np.isfinite(boxes).all(axis=1)
        self._not_finite += int((~finite).sum())
        boxes = boxes[finite]
        self._least = np.minimum(self._least, boxes.min(axis=0, initial=np.inf))
        self._most = np.maximum(self._most, boxes.max(axis=0, initial=-np.inf))
        self._whole &= bool((boxes == np.rint(boxes)).all())
        self._backward += int((boxes[:, 2:] < boxes[:, :2]).any(axis=1).sum())
        if image.scores is not None:
            scores = np.asarray(image.scores, np.float64)
            scores = scores[np.isfinite(scores)]
            self._scores[0] = min(self._scores[0], float(scores.min(initial=np.inf)))
            self._scores[1] = max(self._scores[1], float(scores.max(initial=-np.inf)))

    def report(self) -> dict[str, Any]:
        images, boxes = len(self._counts), sum(self._counts)
        per_image = (
            (min(self._counts), round(boxes / images, 1), max(self._counts)) if images else (0, 0.0, 0)
        )
        return {
            "images": images,
            "ids": self._ids,
            "boxes": boxes,
            "boxes_per_image": per_image,
            "columns": list(zip(self._least.tolist(), self._most.tolist(), strict=True)) if boxes else [],
            "whole_numbers": self._whole,
            "scores": tuple(self._scores) if self._scores[0] <= self._scores[1] else None,
            "not_finite": self._not_finite,
            "remarks": list(self._remarks(boxes)),
        }

    def _remarks(self, boxes: int) -> Iterator[str]:
        if not boxes:
            yield "it has no boxes"
            return
        if not self._ids:
            yield "it names no images; they are those of a data set, in its order"
        if self._conventions == {"auto"}:
            yield "axis order and first pixel are determined from annotated images when it is converted"
        if self._backward > boxes // 100 and self._conventions != {"xywh"}:
            yield f"{self._backward} boxes end before they begin, as if columns 3 and 4 were width and height"
        if self._whole and self._least[:2].min() == 1:
            yield "whole numbers from 1: it may count pixels from 1 and include the last"
        if self._not_finite:
            yield f"{self._not_finite} boxes are not finite"
