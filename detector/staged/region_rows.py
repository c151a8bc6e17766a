"""What a head learns from: the stored regions of a split, compared with the annotations of its images.

The rules are those of ``train.sampling``, applied to all regions of all images at once: which region is
foreground, which is background near or far from the objects, and which is not used. Only proposals are
stored, so annotated boxes are not among the regions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detector.config.schema import RandomSamplingConfig
from detector.core import boxes as box_ops
from detector.core.errors import InputError
from detector.core.progress import note
from detector.core.structures import ImageRecord
from detector.models.box_coder import box_deltas
from detector.models.roi_sampler import in_crowds, joined_labels, match_proposals, trained_objects
from detector.staged.region_features import RegionFeatures

MAX_FIT_BYTES = 2**31
"""Bytes of features, as float32, that a fit holds in memory at a time."""
_UNUSED, _NEAR, _FAR = 0, 1, 2


class OnObjects(NamedTuple):
    """The F regions that lie on objects, in the order of their ``rows`` (F,) among all stored regions.

    ``labels`` (F,) int64 are 1..K; ``overlaps`` (F,) are the IoU with the object; ``boxes`` (F, 4) are the
    regions and ``objects`` (F, 4) their objects, both in original-image pixels. ``label_sets`` (F, K+1) bool
    are all labels of each object where it can have several, of which ``labels`` has the first; column 0 is
    False. Elsewhere ``label_sets`` is None.
    """

    rows: NDArray[np.int64]
    labels: NDArray[np.int64]
    overlaps: NDArray[np.float32]
    boxes: NDArray[np.float32]
    objects: NDArray[np.float32]
    label_sets: NDArray[np.bool_] | None = None

    def take(self, keep: NDArray[np.bool_] | NDArray[np.int64]) -> OnObjects:
        """Return those that ``keep`` selects, a mask (F,) or indices (n,)."""
        columns: Any = self
        taken: list[Any] = [None if column is None else column[keep] for column in columns]
        return OnObjects(*taken)

    def of(self, label: int) -> NDArray[np.bool_]:
        """Return the mask (F,) of the regions on objects that have ``label``."""
        if self.label_sets is not None:
            return self.label_sets[:, label]
        return np.asarray(self.labels == label)

    def counts(self, num_classes: int) -> list[int]:
        """Return how many regions lie on objects of each of the labels 1..K, one with two labels for both."""
        return [int(np.count_nonzero(self.of(label))) for label in range(1, num_classes + 1)]

    def deltas(self) -> Tensor:
        """Return the box deltas (F, 4) from the regions to their objects, not standardised."""
        return box_deltas(torch.from_numpy(self.boxes), torch.from_numpy(self.objects))


@dataclass(frozen=True, eq=False, kw_only=True)
class RegionRows:
    """The stored regions of a split with their labels.

    ``foreground`` are the regions that count as objects; ``on_objects`` also has those with a lower IoU, down
    to the limit that `label_regions` was given. ``near`` and ``far`` are the rows of the background, by the
    interval ``train.sampling.background_iou`` and below it.
    """

    features: RegionFeatures
    foreground: OnObjects
    on_objects: OnObjects
    near: NDArray[np.int64]
    far: NDArray[np.int64]

    @property
    def width(self) -> int:
        """Number of features D of a region."""
        return self.features.width

    def read(self, rows: NDArray[np.int64]) -> Tensor:
        """Return the features (n, D) float32 of ``rows`` (n,), in that order.

        The file is read in rising order, each row once.
        """
        wanted, places = np.unique(rows, return_inverse=True)
        stored = torch.from_numpy(np.asarray(self.features.all_features[wanted]))
        return stored[torch.from_numpy(places)].float()  # torch converts several times as fast as NumPy


def label_regions(
    features: RegionFeatures,
    records: Sequence[ImageRecord],
    sampling: RandomSamplingConfig,
    *,
    use_difficult: bool,
    lowest_iou: float,
    multi_label: int | None = None,
) -> RegionRows:
    """Compare the stored regions of ``records`` with their objects, as `RoISampler` does.

    A region whose best IoU reaches ``sampling.foreground_iou`` is foreground; one in
    ``sampling.background_iou`` is background near objects, and one below it is far from them. On an image
    without objects every region is near background. Regions without an area, and those in crowd regions, are
    no background. ``on_objects`` has all regions with an IoU of ``lowest_iou`` or more. ``multi_label`` is
    the number of classes K where an object can have several labels: objects with exactly the same box are
    then one object with the labels of all.

    Raises:
        InputError: an image without stored features, or of another size than when they were made.
    """
    numbers = _image_numbers(features, records)
    state = np.zeros(int(features.offsets[-1]), np.uint8)
    found: list[OnObjects] = []
    low, high = sampling.background_iou
    lowest = min(lowest_iou, sampling.foreground_iou)
    for record, number in zip(records, numbers, strict=True):
        boxes = torch.from_numpy(np.array(features.boxes(record.key), np.float32))
        start = int(features.offsets[number])
        objects = trained_objects(record.targets, use_difficult=use_difficult)
        label_sets = None
        if multi_label is not None:
            objects, label_sets = joined_labels(objects, multi_label)
        overlap, match = match_proposals(boxes, objects)
        usable = box_ops.area(boxes) > 0
        crowds = record.targets.boxes[record.targets.crowd]
        background = usable & (overlap < high) & ~in_crowds(boxes, crowds)
        is_far = (overlap < low) & bool(len(objects))
        state[start : start + len(boxes)] = torch.where(background, torch.where(is_far, _FAR, _NEAR), _UNUSED)
        on = torch.nonzero(usable & (overlap >= lowest) & bool(len(objects)))[:, 0]
        if len(on):
            matched = match[on]
            found.append(
                OnObjects(
                    rows=(on + start).numpy(),
                    labels=objects.labels[matched].numpy(),
                    overlaps=overlap[on].numpy(),
                    boxes=boxes[on].numpy(),
                    objects=objects.boxes[matched].numpy(),
                    label_sets=None if label_sets is None else label_sets[matched].numpy(),
                )
            )
    every = _joined(found, multi_label)
    return RegionRows(
        features=features,
        foreground=every.take(every.overlaps >= np.float32(sampling.foreground_iou)),
        on_objects=every,
        near=np.flatnonzero(state == _NEAR),
        far=np.flatnonzero(state == _FAR),
    )


def _image_numbers(features: RegionFeatures, records: Sequence[ImageRecord]) -> list[int]:
    """Return the number of each record's image among the stored ones."""
    known = {key: number for number, key in enumerate(features.images)}
    missing = [record for record in records if record.key not in known]
    if missing:
        raise InputError(
            f"{features.folder}: no region features of {len(missing)} of {len(records)} images, the first: "
            f"{missing[0].key!r}; new images have to pass through the convolutions once: train with "
            "train.head_only, which makes the features that are missing"
        )
    sizes = {one["key"]: (one["height"], one["width"]) for one in features.manifest["images"]}
    for record in records:
        if sizes[record.key] != (record.height, record.width):
            height, width = sizes[record.key]
            raise InputError(
                f"{record.path}: annotated as {record.width}x{record.height} pixels, and its features were "
                f"made of {width}x{height} pixels ({features.folder}); correct the annotation, or make the "
                "features again with train.head_only"
            )
    return [known[record.key] for record in records]


def _joined(found: Sequence[OnObjects], multi_label: int | None) -> OnObjects:
    nothing = OnObjects(
        np.zeros(0, np.int64),
        np.zeros(0, np.int64),
        np.zeros(0, np.float32),
        np.zeros((0, 4), np.float32),
        np.zeros((0, 4), np.float32),
        None if multi_label is None else np.zeros((0, multi_label + 1), np.bool_),
    )
    columns: Any = zip(nothing, *found, strict=True)
    joined: list[Any] = [None if parts[0] is None else np.concatenate(parts) for parts in columns]
    every = OnObjects(*joined)
    return every.take(np.argsort(every.rows, kind="stable"))  # images may come in another order than stored


class FitSample(NamedTuple):
    """The features (n, D) float32 of n regions and their labels (n,) int64 in 0..K, 0 for background.

    ``label_sets`` (n, K+1) bool are all labels of each region where it can have several, None elsewhere.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    label_sets: NDArray[np.bool_] | None = None


def draw_sample(
    rows: RegionRows, num_classes: int, *, max_examples: int, max_background: int, far: float, seed: int
) -> FitSample:
    """Return the features of the regions that `draw_rows` draws, each region once."""
    chosen, labels = draw_rows(
        rows, num_classes, max_examples=max_examples, max_background=max_background, far=far, seed=seed
    )
    every = rows.foreground
    if every.label_sets is None:
        return FitSample(rows.read(chosen).numpy(), labels)
    chosen, first = np.unique(chosen, return_index=True)  # a region with two labels may be drawn for both
    labels, label_sets = labels[first], np.zeros((len(chosen), num_classes + 1), np.bool_)
    on = labels > 0
    label_sets[on] = every.label_sets[np.searchsorted(every.rows, chosen[on])]
    return FitSample(rows.read(chosen).numpy(), labels, label_sets)


def draw_rows(
    rows: RegionRows, num_classes: int, *, max_examples: int, max_background: int, far: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows (n,) and labels (n,) of the regions that a head is fitted on.

    These are at most ``max_examples`` per class and ``max_background``, and all where there are fewer.
    ``far`` is the share of the background that is drawn far from objects, as in training on images. The
    seed draws them. Where their features would take more than `MAX_FIT_BYTES`, every limit is lowered by the
    same factor, and the log says so.
    """
    rng = np.random.default_rng((seed, 0))
    by_label = [rows.foreground.rows[rows.foreground.of(label)] for label in range(1, num_classes + 1)]
    counts = [min(len(one), max_examples) for one in by_label]
    background = draw_background(rows, max_background, far, rng)
    most = MAX_FIT_BYTES // (4 * rows.width)
    total = sum(counts) + len(background)
    if total > most:
        note(
            f"the head is fitted on {most} of {total} drawn regions, which take {MAX_FIT_BYTES / 2**30:g} GiB"
        )
        counts = [max(count * most // total, 1) if count else 0 for count in counts]
        background = background[: max(len(background) * most // total, 1)]
    drawn = [rng.permutation(one)[:count] for one, count in zip(by_label, counts, strict=True)]
    labels = np.repeat(np.arange(num_classes + 1), [len(background), *map(len, drawn)])
    return np.concatenate((background, *drawn)), labels


def draw_background(rows: RegionRows, count: int, far: float, rng: np.random.Generator) -> NDArray[np.int64]:
    """Draw ``count`` rows of background without repetition, the share ``far`` of them far from objects.

    If one part of the background has too few regions, the other part replaces them.
    """
    wanted = min(round(count * far), len(rows.far))
    far_count = max(wanted, min(count - len(rows.near), len(rows.far)) if far else 0)
    near_count = min(count - far_count, len(rows.near))
    near = rng.choice(rows.near, near_count, replace=False, shuffle=False)
    return np.concatenate((near, rng.choice(rows.far, far_count, replace=False, shuffle=False)))
