"""Finds the image of a data set that a name in a proposal file or store means."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np

from detector.core.errors import InputError
from detector.core.files import IMAGE_SUFFIXES, file_hash
from detector.core.records import Records, Texts
from detector.core.structures import ImageName, ImageRecord
from detector.proposals.store import ProposalStore

_COCO_PREFIX = re.compile(r"COCO_(train|val|test)\d{4}_")
_VOC_NUMBER = re.compile(r"(\d{4})_(\d{6})", re.ASCII)


NamedImage = ImageName | ImageRecord
"""An image whose id and key are known."""


def match_store(
    store: ProposalStore,
    records: Sequence[ImageRecord],
    everything: Callable[[], Sequence[NamedImage]] = tuple,
) -> ProposalStore:
    """Return ``store`` in a form that can be read by the keys of ``records``.

    An image whose key is not in the store is looked up by the rules of `ImageMatcher`, which receives
    ``everything``. Where the store has the content hash of an image file, the content decides: an image that
    is in the store under another name than its key must have the same content. What the store has under a
    record's key is used without reading the image file.

    Raises InputError where a name in the store could mean two images.
    """
    known = store.find_all(keys_of(records)) >= 0
    if known.all():
        return store
    images = _names_of(records)
    wanted = {images[row].key: row for row in np.flatnonzero(~known).tolist()}
    present = {image.key for image in images} - wanted.keys()
    others = [name for name in store.ids() if name not in present]
    hashes = {name: content for name in others if (content := store.content_hash(name)) is not None}
    names = _match_by_content(hashes, wanted, records) if hashes else {}
    matcher = ImageMatcher(images, everything)
    matched = matcher.match((name for name in store.ids() if name not in hashes), store.path)
    names |= {key: name for name, key in matched.items() if key in wanted and key not in names}
    return store.with_names(names) if names else store


def keys_of(records: Sequence[ImageRecord]) -> Texts:
    """Return the keys of ``records``, without making records of columns."""
    return records.keys if isinstance(records, Records) else Texts.of(record.key for record in records)


def _names_of(records: Sequence[ImageRecord]) -> list[ImageName]:
    if isinstance(records, Records):
        return list(map(ImageName, records.image_ids, records.keys))
    return [ImageName(record.image_id, record.key) for record in records]


def _match_by_content(
    hashes: Mapping[str, str], wanted: Mapping[str, int], records: Sequence[ImageRecord]
) -> dict[str, str]:
    """Return, by key, the names whose content hash is that of an image of ``wanted``, rows of ``records``."""
    names: dict[str, str] = {}
    matcher = ImageMatcher(ImageName(records[row].image_id, key) for key, row in wanted.items())
    for name, content in hashes.items():
        for key in matcher.candidates(name):
            with suppress(InputError):  # a file that cannot be read has the content of no stored image
                if file_hash(records[wanted[key]].path) == content:
                    names[key] = name
    return names


class ImageMatcher:
    """Finds the key of an image of ``images`` by the name that a file gives it.

    ``everything`` returns the images of all splits of the data set, so that the boxes of another split are
    never used. It is called only where a name is not a key of ``images``.

    A name that is the key of an image means this image. Every other name is read in two ways:

    1. as an id: it is the id of the image;
    2. as a file name: the key ends with the name, or the name ends with the key, in whole parts of a path,
       so that ``cam1/1.jpg`` is ``images/cam1/1.jpg`` and never ``images/cam2/1.jpg``; where no image fits,
       the same is tried without the suffixes of image files.

    Where both ways find images, the name means those that both find. If these have none in common, all names
    of the file are read in one of the two ways: the one that finds images for more of them.

    If no name in a file finds an image of any split, the number of a name without folders is compared with
    those of image ids and file names: 4 is ``000004``, 2008000001 is ``2008_000001``, and
    ``COCO_val2014_000000000042`` is 42.
    """

    def __init__(
        self, images: Iterable[NamedImage], everything: Callable[[], Sequence[NamedImage]] = tuple
    ) -> None:
        self._own = {image.key: image for image in images}
        self._everything = everything

    @cached_property
    def _names(self) -> _Names:
        return _Names([*self._own.values(), *self._everything()])

    def match(self, names: Iterable[str], source: Path | str) -> dict[str, str]:
        """Return the keys of the images that ``names``, all names in the file ``source``, mean.

        A name that means no image, or one of another split, is not in the result. Raises InputError for two
        names of one image, for a name that two images share if it could be the only name of either, and
        where ids and file names contradict each other and find images for equally many names.
        """
        names = list(dict.fromkeys(names))
        keys = {name: {name} for name in names if name in self._own}
        unknown = [name for name in names if name not in keys]
        if unknown:
            more = self._read_all(unknown, source)
            if not keys and not any(more.values()):
                more = {name: self._names.by_number[number_of(name)] for name in unknown}
            keys |= more
        return self._unique(keys, source)

    def candidates(self, name: str) -> set[str]:
        """Return the keys of all images of ``images`` whose key, id or file name can be ``name``."""
        return self._own.keys() & self._names.all_of(name)

    def _read_all(self, names: Sequence[str], source: Path | str) -> dict[str, set[str]]:
        """Return the keys that each of ``names`` can mean as an id or as a file name."""
        exact = {name: keys for name in names if (keys := self._names.exact(name))}
        ids = {name: self._names.by_id[name] for name in names if name not in exact}
        files = {name: self._names.by_file_name(name) for name in ids}
        contrary = [name for name in ids if ids[name] and files[name] and not ids[name] & files[name]]
        if not contrary:
            both = {name: ids[name] & files[name] or ids[name] | files[name] for name in ids}
            return exact | both
        explained = [sum(map(bool, reading.values())) for reading in (ids, files)]
        if explained[0] == explained[1]:
            name = contrary[0]
            raise self._ambiguous(name, min(ids[name]), min(files[name]), source)
        return exact | (ids if explained[0] > explained[1] else files)

    def _unique(self, keys_of: Mapping[str, Collection[str]], source: Path | str) -> dict[str, str]:
        matched: dict[str, str] = {}
        by_key: dict[str, str] = {}
        for name, keys in keys_of.items():
            if len(keys) != 1 or (key := next(iter(keys))) not in self._own:
                continue  # unknown, of two images, or of another split
            if key in by_key:
                raise InputError(
                    f"{source} has image {key!r} twice, as {by_key[key]!r} and as {name!r}; keep one"
                )
            matched[name], by_key[key] = key, name
        for name, keys in keys_of.items():
            unnamed = sorted(key for key in keys if key in self._own and key not in by_key)
            if len(keys) > 1 and unnamed:
                raise self._ambiguous(name, unnamed[0], min(set(keys) - {unnamed[0]}), source)
        return matched

    def _ambiguous(self, name: str, one: str, other: str, source: Path | str) -> InputError:
        first, second = sorted([one, other])
        of_two_splits = (one in self._own) != (other in self._own)
        more = ", or give each split a file of its own (proposals.file: {SPLIT: FILE, ...})"
        return InputError(
            f"{source}: {name!r} could be {first!r} or {second!r}; use these paths as names in the file"
            f"{more if of_two_splits else ''}"
        )


class _Names:
    """The images of a data set by every name that they can have."""

    def __init__(self, images: Iterable[NamedImage]) -> None:
        self._keys: set[str] = set()
        self.by_id = _Table()
        self._by_tail = _Table()
        self._by_stem = _Table()
        self._by_stem_tail = _Table()
        self.by_number = _Table()
        for image in images:
            self.by_id.add(image.image_id, image.key)
            self.by_number.add(number_of(image.image_id), image.key)
            if image.key in self._keys:
                continue
            self._keys.add(image.key)
            stem = without_suffix(image.key)
            self._by_stem.add(stem, image.key)
            self.by_number.add(number_of(stem.rpartition("/")[2]), image.key)
            for table, path in ((self._by_tail, image.key), (self._by_stem_tail, stem)):
                for tail in _tails(path):
                    table.add(tail, image.key)

    def exact(self, name: str) -> set[str]:
        return self._keys & {name, _plain(name)}

    def by_file_name(self, name: str) -> set[str]:
        return self._with_suffix(name) or self._without_suffix(name)

    def all_of(self, name: str) -> set[str]:
        """Return the keys that the name means, read in every way but as a number."""
        return self.exact(name) | self.by_id[name] | self._with_suffix(name) | self._without_suffix(name)

    def _with_suffix(self, name: str) -> set[str]:
        path = _plain(name)
        longer = next(({tail} for tail in _tails(path) if tail in self._keys), set[str]())
        return self._by_tail[path] or longer

    def _without_suffix(self, name: str) -> set[str]:
        stem = without_suffix(_plain(name))
        longer = next((self._by_stem[tail] for tail in _tails(stem) if self._by_stem[tail]), set[str]())
        return self._by_stem_tail[stem] or longer


class _Table:
    """Sets of keys by a name; most names have one key, and a set of one takes ten times its memory."""

    def __init__(self) -> None:
        self._first: dict[str, str] = {}
        self._more: defaultdict[str, set[str]] = defaultdict(set)

    def add(self, name: str | None, key: str) -> None:
        if name is not None and self._first.setdefault(name, key) != key:
            self._more[name].add(key)

    def __getitem__(self, name: str | None) -> set[str]:
        if name is None or name not in self._first:
            return set()
        return {self._first[name], *self._more.get(name, ())}


def number_of(name: str) -> str | None:
    """Return the number that a name without folders stands for, without leading zeros, or None."""
    text = without_suffix(name)
    text = _VOC_NUMBER.sub(r"\1\2", _COCO_PREFIX.sub("", text))
    return (text.lstrip("0") or "0") if text.isdecimal() and text.isascii() else None


def without_suffix(path: str) -> str:
    """Return ``path`` without the suffix of an image file."""
    stem, dot, suffix = path.rpartition(".")
    return stem if stem and f"{dot}{suffix.lower()}" in IMAGE_SUFFIXES else path


def _plain(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).as_posix()


def _tails(path: str) -> Iterator[str]:
    """Yield a path and its ends in whole parts, the longest first."""
    while True:
        yield path
        _, slash, path = path.partition("/")
        if not slash:
            return
