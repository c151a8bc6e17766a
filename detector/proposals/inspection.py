"""What an unknown proposal file seems to be: its format, counts and ranges, and remarks about its boxes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from detector.proposals.conventions import find_convention
from detector.proposals.readers import read_images
from detector.proposals.readers.raw_images import RawImage
from detector.proposals.recognition import guess_format
from detector.proposals.store import ProposalStore


def inspect(source: Path | str, file_format: str | None = None) -> dict[str, Any]:
    """Return what ``source`` seems to be; the boxes are described as they are in the file.

    Keys: ``format``, ``images``, ``ids`` (the first few), ``boxes``, ``boxes_per_image`` (least, mean,
    most), ``masks`` (how many regions have one), ``columns`` (least and greatest of each of the four),
    ``whole_numbers``, ``scores`` (least and greatest, or None), ``not_finite`` (boxes) and ``remarks``; for a
    store also ``generator``, ``parameters`` and ``notes``. Raises InputError as the readers do.
    """
    source = Path(source)
    file_format = file_format or guess_format(source)
    if file_format != "store":
        return {"format": file_format} | _describe(read_images(source, file_format))
    store = ProposalStore.open(source)
    origin = {"generator": store.generator, "parameters": store.parameters, "notes": store.notes}
    return {"format": "store"} | origin | _describe(_stored_images(store))


def describe(summary: Mapping[str, Any]) -> list[str]:
    """Return the result of `inspect` as lines of text."""
    least, mean, most = summary["boxes_per_image"]
    ids = f", such as {', '.join(summary['ids'])}" if summary["ids"] else ", without names"
    lines = [
        f"format: {summary['format']}",
        f"images: {summary['images']}{ids}",
        f"boxes: {summary['boxes']}, {least} to {most} per image, {mean:g} on average",
    ]
    if summary["masks"]:
        lines.append(f"masks: {summary['masks']} of the regions have one")
    for number, (low, high) in enumerate(summary["columns"], 1):
        lines.append(f"column {number}: {low:g} to {high:g}")
    lines.append(
        "scores: none" if summary["scores"] is None else "scores: {:g} to {:g}".format(*summary["scores"])
    )
    for name in ("generator", "parameters"):
        if name in summary:
            lines.append(f"{name}: {summary[name]}")
    return lines + [f"note: {text}" for text in [*summary.get("notes", []), *summary["remarks"]]]


def _stored_images(store: ProposalStore) -> Iterator[RawImage]:
    for image_id in store.ids():
        stored = store[image_id]
        scores = None if stored.scores is None else stored.scores.numpy()
        yield RawImage(image_id, stored.boxes.numpy(), scores, "xyxy", masks=stored.masks)


def _describe(images: Iterable[RawImage]) -> dict[str, Any]:
    """Return the counts, ranges and remarks of ``images``, one of which is in memory at a time."""
    ids: list[str] = []
    conventions: set[str] = set()
    counts: list[int] = []
    least, most = np.full(5, np.inf), np.full(5, -np.inf)  # of the columns and of the score
    whole, not_finite, backward, masks = True, 0, 0, 0
    for image in images:
        if isinstance(image.key, str) and len(ids) < 3:
            ids.append(image.key)
        conventions.add(image.convention)
        counts.append(len(image.boxes))
        masks += 0 if image.masks is None else int(image.masks.present.sum())
        boxes = np.asarray(image.boxes, np.float64)
        finite = np.isfinite(boxes).all(axis=1)
        not_finite += int((~finite).sum())
        boxes = boxes[finite]
        scores = np.asarray(() if image.scores is None else image.scores, np.float64)
        scores = scores[np.isfinite(scores)]
        least = np.minimum(least, [*boxes.min(axis=0, initial=np.inf), scores.min(initial=np.inf)])
        most = np.maximum(most, [*boxes.max(axis=0, initial=-np.inf), scores.max(initial=-np.inf)])
        whole &= bool((boxes == np.rint(boxes)).all())
        backward += int((boxes[:, 2:] < boxes[:, :2]).any(axis=1).sum())
    total = sum(counts)
    *columns, (lowest, highest) = zip(least.tolist(), most.tolist(), strict=True)
    remarks = {
        "it names no images; they are those of a data set, in its order": not ids,
        "axis order and first pixel are determined from annotated images when it is converted": (
            conventions == {"auto"}
        ),
        f"{backward} boxes end before they begin, as if columns 3 and 4 were width and height": (
            backward > total // 100 and not any(name.startswith(("xywh", "cxcywh")) for name in conventions)
        ),
        "boxes are parts of the image; the sizes of the images are needed to convert it": any(
            name != "auto" and find_convention(name).whole is not None for name in conventions
        ),
        "whole numbers from 1: it may count pixels from 1 and include the last": (
            whole and least[:2].min() == 1 and not masks and "xyxy_inclusive_1" not in conventions
        ),
        f"{not_finite} boxes are not finite": not_finite > 0,
    }
    return {
        "images": len(counts),
        "ids": ids,
        "boxes": total,
        "boxes_per_image": (
            (min(counts), round(total / len(counts), 1), max(counts)) if counts else (0, 0.0, 0)
        ),
        "masks": masks,
        "columns": columns if total else [],
        "whole_numbers": whole,
        "scores": (lowest, highest) if lowest <= highest else None,
        "not_finite": not_finite,
        "remarks": [text for text, holds in remarks.items() if holds] if total else ["it has no boxes"],
    }
