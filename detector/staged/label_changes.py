"""How the annotations of the same images differ: classes added, renamed and removed, and corrected labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from detector.core import boxes as box_ops
from detector.core.records import Records
from detector.core.structures import ImageRecord

SAME_OBJECT = 0.5
"""Two annotated boxes with an IoU of at least this are the same object, whatever its class."""


@dataclass(frozen=True, kw_only=True)
class LabelChanges:
    """The differences between annotations before and after; lists of names are in the order of the classes.

    ``renamed`` maps old names to new ones: most objects of a class that is gone have a class that is new.
    ``relabelled`` has (before, after, count) for all other objects whose class has changed. ``added`` and
    ``removed`` are numbers of objects that only one of the two has, ``compared`` of objects that both have.
    None stands for all of these where the earlier annotations are not there any more.
    """

    classes_before: tuple[str, ...]
    classes_after: tuple[str, ...]
    renamed: dict[str, str] = field(default_factory=dict)
    relabelled: tuple[tuple[str, str, int], ...] | None = None
    compared: int | None = None
    added: int | None = None
    removed: int | None = None

    @property
    def added_classes(self) -> list[str]:
        new = set(self.renamed.values())
        return [name for name in self.classes_after if name not in {*self.classes_before, *new}]

    @property
    def removed_classes(self) -> list[str]:
        return [name for name in self.classes_before if name not in {*self.classes_after, *self.renamed}]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            **asdict(self),
            "added_classes": self.added_classes,
            "removed_classes": self.removed_classes,
            "relabelled": None if self.relabelled is None else [list(one) for one in self.relabelled],
        }

    def lines(self) -> list[str]:
        """Return the changes as lines of text."""
        lines = [f"class {before!r} is now called {after!r}" for before, after in self.renamed.items()]
        lines += [f"class added: {name!r}" for name in self.added_classes]
        lines += [f"class removed: {name!r}" for name in self.removed_classes]
        if self.relabelled is None:
            return [*lines, "the earlier annotations are not there any more: only class names were compared"]
        lines += [f"labels corrected: {n} from {old!r} to {new!r}" for old, new, n in self.relabelled]
        lines += [f"objects added: {self.added}"] if self.added else []
        lines += [f"objects removed: {self.removed}"] if self.removed else []
        return lines or ["the labels are the same as before"]


def compare_labels(
    before: Records, classes_before: Sequence[str], after: Records, classes_after: Sequence[str]
) -> LabelChanges:
    """Compare the objects of the images that both have, and count those of images that only one has."""
    earlier = {record.key: record for record in before}
    moves: Counter[tuple[str, str]] = Counter()
    added = removed = 0
    for record in after:
        old = earlier.pop(record.key, None)
        if old is None:
            added += len(record.targets)
            continue
        pairs = _matched(old, classes_before, record, classes_after)
        added, removed = added + len(record.targets) - len(pairs), removed + len(old.targets) - len(pairs)
        for one, other in pairs:
            names = (
                classes_before[int(old.targets.labels[one]) - 1],
                classes_after[int(record.targets.labels[other]) - 1],
            )
            moves[names] += 1
    removed += sum(len(record.targets) for record in earlier.values())
    renamed = _renamed(moves, classes_before, classes_after)
    relabelled = [
        (old, new, count)
        for (old, new), count in sorted(moves.items())
        if old != new and renamed.get(old) != new
    ]
    return LabelChanges(
        classes_before=tuple(classes_before),
        classes_after=tuple(classes_after),
        renamed=renamed,
        relabelled=tuple(relabelled),
        compared=sum(moves.values()),
        added=added,
        removed=removed,
    )


def _matched(
    before: ImageRecord, classes_before: Sequence[str], after: ImageRecord, classes_after: Sequence[str]
) -> list[tuple[int, int]]:
    """Pair the objects of an image, those with the highest IoU first.

    Of equal overlaps a pair with the same class comes first, since an object with several labels is several
    objects with the same box. Then comes one with the same number in both files: they are in the same order.
    """
    names_before = [classes_before[label - 1] for label in before.targets.labels.tolist()]
    names_after = [classes_after[label - 1] for label in after.targets.labels.tolist()]
    overlaps = box_ops.iou(before.targets.boxes, after.targets.boxes)
    rows, columns = torch.nonzero(overlaps >= SAME_OBJECT, as_tuple=True)
    order = sorted(
        zip((-overlaps[rows, columns]).tolist(), rows.tolist(), columns.tolist(), strict=True),
        key=lambda pair: (
            pair[0],
            names_before[pair[1]] != names_after[pair[2]],
            abs(pair[1] - pair[2]),
            pair[1],
        ),
    )
    used: tuple[set[int], set[int]] = set(), set()
    pairs = []
    for _, one, other in order:
        if one not in used[0] and other not in used[1]:
            used[0].add(one)
            used[1].add(other)
            pairs.append((one, other))
    return pairs


def _renamed(moves: Counter[tuple[str, str]], before: Sequence[str], after: Sequence[str]) -> dict[str, str]:
    """Return the classes that are gone, most of whose objects have the same class, which is new."""
    renamed: dict[str, str] = {}
    for name in before:
        if name in after:
            continue
        ways = Counter({new: count for (old, new), count in moves.items() if old == name})
        if not ways:
            continue
        best, count = ways.most_common(1)[0]
        if best not in before and best not in renamed.values() and 2 * count > sum(ways.values()):
            renamed[name] = best
    return renamed
