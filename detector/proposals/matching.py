"""Which image of a data set a proposal file or store means: the same image has many names."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Protocol

from detector.errors import InputError

_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
_COCO_PREFIX = re.compile(r"COCO_(train|val|test)\d{4}_")
_VOC_NUMBER = re.compile(r"(\d{4})_(\d{6})", re.ASCII)


class NamedImage(Protocol):
    """What matching has to know of an image; see `detector.structures.ImageRecord`."""

    @property
    def image_id(self) -> str: ...

    @property
    def key(self) -> str: ...


class ImageMatcher:
    """Finds the key of an image of ``images`` by what a file calls it.

    ``everything`` gives the images of all splits of the data set, so that the boxes of another split are
    never taken. It is called only where a name is not a key of ``images``.

    These rules are tried in order, and the first one that finds exactly one image decides:

    1. the name is the image's key or its id;
    2. file name: the name is the end of the key or the key the end of the name, in whole parts of a path,
       so that ``cam1/1.jpg`` is ``images/cam1/1.jpg`` and never ``images/cam2/1.jpg``;
    3. file name without suffix: the same without the suffixes of image files.

    If a file has no name for which a rule found an image of any split, the number of a name without folders
    is compared with those of image ids and file names: 4 is ``000004``, 2008000001 is ``2008_000001``, and
    ``COCO_val2014_000000000042`` is 42.
    """

    def __init__(
        self, images: Iterable[NamedImage], everything: Callable[[], Sequence[NamedImage]] = tuple
    ) -> None:
        self._own = {image.key: image for image in images}
        self._everything = everything
        self._names: _Names | None = None

    def match(self, names: Iterable[str], source: Path | str) -> dict[str, str]:
        """Return the keys of the images that ``names``, all names of the file ``source``, mean.

        A name that means no image, or one of another split, is not in the result. Raises InputError for two
        names of one image, and for a name that two images share if it could be the only one of either.
        """
        names = list(dict.fromkeys(names))
        found = {name: {name} for name in names if name in self._own}
        unknown = [name for name in names if name not in found]
        if unknown:
            if self._names is None:
                self._names = _Names([*self._own.values(), *self._everything()])
            more = {name: self._names.find(name) for name in unknown}
            if not found and not any(more.values()):
                more = {name: self._names.by_number(name) for name in unknown}
            found |= more
        return self._unique(found, source)

    def candidates(self, name: str) -> set[str]:
        """Return the keys of all images of ``images`` that ``name`` means by one of the rules 1 to 3."""
        if self._names is None:
            self._names = _Names([*self._own.values(), *self._everything()])
        return self._own.keys() & set().union(*self._names.rules(name))

    def _unique(self, found: Mapping[str, Collection[str]], source: Path | str) -> dict[str, str]:
        sure = {name: next(iter(keys)) for name, keys in found.items() if len(keys) == 1}
        matched: dict[str, str] = {}
        by_key: dict[str, str] = {}
        for name, key in sure.items():
            if key not in self._own:
                continue  # of another split
            if key in by_key:
                raise InputError(
                    f"{source} has image {key!r} twice, as {by_key[key]!r} and as {name!r}; keep one"
                )
            matched[name], by_key[key] = key, name
        for name, keys in found.items():
            unnamed = sorted(key for key in keys if key in self._own and key not in by_key)
            if len(keys) > 1 and unnamed:
                first, second = sorted([unnamed[0], min(set(keys) - {unnamed[0]})])
                raise InputError(
                    f"{source}: {name!r} could be {first!r} or {second!r}; use these paths as names in the "
                    "file, or give each split a file of its own (proposals.file: {SPLIT: FILE, ...})"
                )
        return matched


class _Names:
    """The images of a data set by everything that they can be called."""

    def __init__(self, images: Iterable[NamedImage]) -> None:
        self._keys: set[str] = set()
        self._by_id = _Table()
        self._by_tail = _Table()
        self._by_stem = _Table()
        self._by_stem_tail = _Table()
        self._by_number = _Table()
        for image in images:
            self._by_id.add(image.image_id, image.key)
            self._by_number.add(number_of(image.image_id), image.key)
            if image.key in self._keys:
                continue
            self._keys.add(image.key)
            stem = without_suffix(image.key)
            self._by_stem.add(stem, image.key)
            self._by_number.add(number_of(stem.rpartition("/")[2]), image.key)
            for table, path in ((self._by_tail, image.key), (self._by_stem_tail, stem)):
                for tail in _tails(path):
                    table.add(tail, image.key)

    def find(self, name: str) -> set[str]:
        """Return the keys that the first rule with one image gives, else those of the first with several."""
        several: set[str] = set()
        for keys in self.rules(name):
            if len(keys) == 1:
                return keys
            several = several or keys
        return several

    def rules(self, name: str) -> Iterator[set[str]]:
        """Yield what each of the rules 1 to 3 finds."""
        plain = PurePosixPath(name.replace("\\", "/")).as_posix()
        yield {one for one in (name, plain) if one in self._keys}
        yield self._by_id[name]
        longer = next(({tail} for tail in _tails(plain) if tail in self._keys), set[str]())
        yield self._by_tail[plain] or longer
        stem = without_suffix(plain)
        longer = next((self._by_stem[tail] for tail in _tails(stem) if self._by_stem[tail]), set[str]())
        yield self._by_stem_tail[stem] or longer

    def by_number(self, name: str) -> set[str]:
        return self._by_number[number_of(name)]


class _Table:
    """Sets of keys by a name."""

    def __init__(self) -> None:
        self._keys: defaultdict[str, set[str]] = defaultdict(set)

    def add(self, name: str | None, key: str) -> None:
        if name is not None:
            self._keys[name].add(key)

    def __getitem__(self, name: str | None) -> set[str]:
        return self._keys.get(name, set()) if name is not None else set()


def number_of(name: str) -> str | None:
    """Return the number, without zeros at its front, that a name without folders is, or None."""
    text = without_suffix(name)
    text = _VOC_NUMBER.sub(r"\1\2", _COCO_PREFIX.sub("", text))
    return (text.lstrip("0") or "0") if text.isdecimal() and text.isascii() else None


def without_suffix(path: str) -> str:
    """Return ``path`` without the suffix of an image file."""
    stem, dot, suffix = path.rpartition(".")
    return stem if stem and f"{dot}{suffix.lower()}" in _IMAGE_SUFFIXES else path


def _tails(path: str) -> Iterator[str]:
    """Yield a path and the ends of it, in whole parts, the longest first."""
    while True:
        yield path
        _, slash, path = path.partition("/")
        if not slash:
            return
