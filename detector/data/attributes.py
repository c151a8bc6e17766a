"""Labels from the attributes of objects: one whose attribute colour is red has the label "colour=red".

Annotations say more about an object than its class: CVAT writes attributes, LabelMe flags, Label Studio
choices. ``data.attributes`` names those that count as labels. As everywhere, an object with several labels is
several rows with the same box, one for each label.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from detector.core.errors import InputError
from detector.core.records import Texts, ranges
from detector.data.annotation_cache import CachedColumns, Columns, Layout, require_below, texts
from detector.data.targets import AnnotatedObject, Attribute, ObjectColumns

_UNREADABLE = ""
"""The label of an attribute that has none, such as a mapping; it is an error where it is asked for."""


def attribute_labels(attributes: object) -> tuple[Attribute, ...]:
    """Return the name and the label of every attribute that gives one; ``attributes`` are names with values.

    The label is ``name=value``, for true only ``name``. False, null and an empty text give none, and a list
    gives one for each of its values. The texts "true" and "false" mean the same as true and false, because
    XML has only texts. Anything but a mapping has no attributes.
    """
    if not isinstance(attributes, Mapping):
        return ()
    return tuple(
        (str(name), label)
        for name, value in attributes.items()
        for each in (value if isinstance(value, list) else [value])
        if (label := _label(str(name), each)) is not None
    )


def _label(name: str, value: Any) -> str | None:
    if value is None or isinstance(value, bool):
        return name if value else None
    if isinstance(value, int | float):
        return f"{name}={value!r}"
    if not isinstance(value, str):
        return _UNREADABLE
    text = value.strip()
    if text.lower() in ("", "true", "false"):
        return name if text.lower() == "true" else None
    return f"{name}={text}"


def with_attribute_objects(
    objects: Iterable[AnnotatedObject], wanted: Sequence[str]
) -> Iterator[AnnotatedObject]:
    """Yield every object, followed by one with the same box for each label of the attributes ``wanted``.

    Raises InputError for a wanted attribute whose value is neither text, number, true nor false.
    """
    for thing in objects:
        yield thing
        for name, label in dict.fromkeys(thing.attributes):
            if name in wanted:
                yield _labelled(thing, name, label)


def _labelled(thing: AnnotatedObject, name: str, label: str) -> AnnotatedObject:
    place = f"{thing.place}, attribute {name}"
    if label == _UNREADABLE:
        raise InputError(
            f"{thing.file}: {place} is an object or a list in a list; expected a text, a number, true or "
            "false, or take it out of data.attributes"
        )
    return replace(thing, name=label, place=place, attributes=())


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class AttributeColumns(CachedColumns):
    """The M attributes of rows of objects, for columns of objects to inherit.

    ``attribute_rows`` (M,) are numbers of objects, and rise; ``attribute_kinds`` (M,) are numbers of the
    distinct pairs of a name and a label, ``attribute_names`` and ``attribute_labels``.
    """

    attribute_rows: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    attribute_kinds: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    attribute_names: Texts = field(default_factory=lambda: Texts.of([]))
    attribute_labels: Texts = field(default_factory=lambda: Texts.of([]))

    OPTIONAL: ClassVar[Layout] = {
        "attribute_rows": ("<i8", None),
        "attribute_kinds": ("<i4", None),
        **texts("attribute_names", "attribute_labels"),
    }

    def arrays(self) -> Columns:
        """Return every array; without attributes, an entry has no columns for them."""
        arrays = super(AttributeColumns, self).arrays()
        if len(self.attribute_rows):
            return arrays
        return {name: array for name, array in arrays.items() if name not in self.OPTIONAL}

    def require_attributes(self, objects: int) -> None:
        """Raise ValueError for attributes that do not fit, which only a file from elsewhere has."""
        rows, kinds = self.attribute_rows, self.attribute_kinds
        if len(rows) != len(kinds) or len(self.attribute_names) != len(self.attribute_labels):
            raise ValueError("the lengths of its attributes do not fit")
        if len(rows) and not (rows[0] >= 0 and (np.diff(rows) >= 0).all() and rows[-1] < objects):
            raise ValueError("it has attributes of objects that it does not have")
        require_below(kinds, len(self.attribute_names))

    def attributes_at(self, rows: NDArray[np.int64], objects: int) -> dict[str, Any]:
        """Return the columns of the attributes of the objects ``rows`` (n,) of ``objects``, renumbered."""
        counts = np.bincount(self.attribute_rows, minlength=objects)
        begins = np.cumsum(counts) - counts
        own = counts[rows]
        at = ranges(begins[rows], own)
        return {
            "attribute_rows": np.repeat(np.arange(len(rows)), own).astype(np.int64),
            "attribute_kinds": self.attribute_kinds[at],
            "attribute_names": self.attribute_names,
            "attribute_labels": self.attribute_labels,
        }

    def labels_of(self, wanted: Sequence[str]) -> list[str]:
        """Return the sorted labels that the attributes ``wanted`` give."""
        used = set(self.attribute_kinds.tolist())
        pairs = zip(self.attribute_names, self.attribute_labels, strict=True)
        found = {label for kind, (name, label) in enumerate(pairs) if name in wanted and kind in used}
        return sorted(found - {_UNREADABLE})

    def labelled(self, things: ObjectColumns, wanted: Sequence[str]) -> ObjectColumns:
        """Return ``things``, the objects of these columns, with further rows as `with_attribute_objects`.

        Raises InputError as that does.
        """
        if not wanted or not len(self.attribute_rows):
            return things
        names, labels = list(self.attribute_names), list(self.attribute_labels)
        asked = np.array([name in wanted for name in names], np.bool_)[self.attribute_kinds]
        rows, kinds = self.attribute_rows[asked], self.attribute_kinds[asked]
        for row, kind in zip(rows.tolist(), kinds.tolist(), strict=True):
            if labels[kind] == _UNREADABLE:
                _labelled(things.describe(int(things.numbers[row])), names[kind], _UNREADABLE)
        return _joined(things, rows, kinds, names, labels)


def attribute_columns(attributes: Sequence[Sequence[Attribute]]) -> dict[str, Any]:
    """Return the fields of `AttributeColumns` for objects with these ``attributes`` (G,)."""
    kinds: dict[Attribute, int] = {}
    rows: list[int] = []
    numbers: list[int] = []
    for row, own in enumerate(attributes):
        for pair in dict.fromkeys(own):
            rows.append(row)
            numbers.append(kinds.setdefault(pair, len(kinds)))
    return {
        "attribute_rows": np.array(rows, np.int64),
        "attribute_kinds": np.array(numbers, np.int32),
        "attribute_names": Texts.of(name for name, _ in kinds),
        "attribute_labels": Texts.of(label for _, label in kinds),
    }


def joined_attributes(parts: Sequence[AttributeColumns], counts: Sequence[int]) -> dict[str, Any]:
    """Return the fields of `AttributeColumns` for ``parts`` of ``counts`` objects, one after the other."""
    kinds: dict[Attribute, int] = {}
    rows, numbers, start = [np.zeros(0, np.int64)], [np.zeros(0, np.int32)], 0
    for part, count in zip(parts, counts, strict=True):
        pairs = zip(part.attribute_names, part.attribute_labels, strict=True)
        new = np.array([kinds.setdefault(pair, len(kinds)) for pair in pairs], np.int32)
        if len(part.attribute_rows):
            rows.append(part.attribute_rows + start)
            numbers.append(new[part.attribute_kinds])
        start += count
    return {
        "attribute_rows": np.concatenate(rows),
        "attribute_kinds": np.concatenate(numbers),
        "attribute_names": Texts.of(name for name, _ in kinds),
        "attribute_labels": Texts.of(label for _, label in kinds),
    }


def _joined(
    things: ObjectColumns,
    rows: NDArray[np.int64],
    kinds: NDArray[np.int32],
    names: Sequence[str],
    labels: Sequence[str],
) -> ObjectColumns:
    """Return ``things`` with a copy of each of ``rows`` (m,) behind it, with the label of its kind."""
    count = len(things.numbers)
    order = np.argsort(np.concatenate((np.arange(count), rows)), kind="stable")
    at = np.concatenate((np.arange(count), rows))[order]
    added = order >= count
    every = tuple(dict.fromkeys((*things.names, *labels)))
    number_of = {name: number for number, name in enumerate(every)}
    label_of = np.array([number_of[label] for label in labels], np.int32)
    classes = things.classes[at].astype(np.int32)
    classes[added] = label_of[kinds[order[added] - count]]
    kind_at = np.zeros(len(at), np.int64)
    kind_at[added] = kinds[order[added] - count]
    describe: Callable[[int], AnnotatedObject] = things.describe

    def describe_added(number: int) -> AnnotatedObject:
        thing = describe(int(things.numbers[at[number]]))
        return _labelled(thing, names[kind_at[number]], labels[kind_at[number]]) if added[number] else thing

    columns = ("boxes", "difficult", "crowd", "ignore", "area")
    return replace(
        things,
        names=every,
        offsets=things.offsets + np.searchsorted(rows, things.offsets),
        classes=classes,
        numbers=np.arange(len(at)),
        describe=describe_added,
        **{name: getattr(things, name)[at] for name in columns},
    )
