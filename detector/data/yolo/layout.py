"""The files of a data set in YOLO's layout: data.yaml, the images of each split, and their labels.

Source: "Dataset YAML format" at docs.ultralytics.com, and the files that Roboflow and CVAT export. The rules
by which Ultralytics finds a file are kept, except that nothing outside the data root is ever read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from detector.core.errors import FaultHandler, InputError, faults_to, nearest
from detector.core.files import ASCII_SPACE, IMAGE_SUFFIXES, is_hidden, read_short_text
from detector.core.yolo_file import keypoint_numbers, read_data_yaml
from detector.data.paths import inside

SPLITS = ("train", "val", "test", "minival")
"""The keys of data.yaml that name images."""


@dataclass(frozen=True, kw_only=True)
class YoloYaml:
    """The content of a data.yaml.

    ``path`` is the file, and ``base`` the folder that its relative paths start at. ``names`` are those of
    the classes 0, 1, ...; ``keypoints`` is how many numbers of keypoints the label files have behind each
    box. ``splits`` has the folders, lists or images of each split as written.
    """

    path: Path
    base: Path
    names: tuple[str, ...]
    keypoints: int
    splits: dict[str, tuple[str, ...]]


def read_yolo_yaml(path: Path, root: Path) -> YoloYaml:
    """Read a data.yaml below ``root``.

    Its ``path`` is followed to a folder below ``root``. Any other ``path``, such as a folder on the computer
    where the data set was made, stands for the folder of the file itself: the data are below ``root``.

    Raises InputError for a file that cannot be read, or whose classes or splits have another form.
    """
    values = read_data_yaml(path)
    names = _names(values.get("names"), path)
    count = values.get("nc", len(names))
    if count != len(names):
        raise InputError(
            f"{path}: nc is {count!r:.40}, and 'names' has {len(names)} names; correct one of them"
        )
    splits = {key: _entries(values[key], key, path) for key in SPLITS if values.get(key) not in (None, "")}
    if not splits:
        raise InputError(f"{path}: names no images; expected train, val or test with a folder or a list")
    return YoloYaml(
        path=path,
        base=_base(values.get("path"), path.parent, root, path),
        names=names,
        keypoints=keypoint_numbers(values, path),
        splits=splits,
    )


def _names(names: Any, path: Path) -> tuple[str, ...]:
    if isinstance(names, dict):
        if sorted(map(repr, names)) != sorted(map(repr, range(len(names)))):
            raise InputError(
                f"{path}: the keys of 'names' must be the numbers 0 to {len(names) - 1}, each once"
            )
        names = [names[number] for number in range(len(names))]
    if not isinstance(names, list) or not names:
        raise InputError(f"{path}: 'names' is {names!r:.60}; expected a list of class names, or a mapping")
    found: dict[str, int] = {}
    for number, name in enumerate(names):
        text = str(name).strip() if isinstance(name, str | int | float) and not isinstance(name, bool) else ""
        if not text or text.encode("utf-8", errors="replace").decode() != text:
            raise InputError(f"{path}: the name of class {number} is {name!r:.60}; write it in quotes")
        if text in found:
            raise InputError(
                f"{path}: classes {found[text]} and {number} are both named {text!r}; rename one"
            )
        found[text] = number
    return tuple(found)


def _entries(value: Any, key: str, path: Path) -> tuple[str, ...]:
    entries = value if isinstance(value, list) else [value]
    if not entries or not all(isinstance(one, str) and one.strip() and "\0" not in one for one in entries):
        raise InputError(
            f"{path}: {key} is {value!r:.60}; expected a folder or a text file, or a list of these"
        )
    return tuple(one.strip() for one in entries)


def _base(value: Any, folder: Path, root: Path, path: Path) -> Path:
    if value is None:
        return folder
    if not isinstance(value, str) or "\0" in value:
        raise InputError(f"{path}: path is {value!r:.60}; expected the folder of the data set")
    for start in (folder, root):
        place = inside(start / value.replace("\\", "/"), root)
        if place is not None and place.is_dir():
            return place
    return folder


@dataclass(frozen=True)
class YoloLayout:
    """Finds the images of the splits of ``description`` below ``root``, and the labels of an image."""

    root: Path
    description: YoloYaml

    def require_split(self, split: str) -> tuple[str, ...]:
        """Return the folders and lists of a split. Raises InputError where data.yaml does not name it."""
        splits = self.description.splits
        if split not in splits:
            raise InputError(
                f"{self.description.path}: names no split {split!r}{nearest(split, splits)}; it names "
                f"{', '.join(splits)}: set data.train_split and data.test_split"
            )
        return splits[split]

    def places(self, split: str) -> list[Path]:
        """Return the folders, lists and images of a split, which need not exist.

        Raises InputError for one that leads out of the root.
        """
        return [self._place(entry, split) for entry in self.require_split(split)]

    def _place(self, entry: str, split: str) -> Path:
        written = entry.replace("\\", "/")
        base = self.description.base
        found = inside(base / written, self.root)
        if found is None or not found.exists():
            # Roboflow writes ../train/images for a folder beside data.yaml; so do other tools.
            stripped = inside(base / written.lstrip("/").removeprefix("../"), self.root)
            if written.startswith("../") and stripped is not None:
                found = stripped if found is None or stripped.exists() else found
        if found is None:
            raise InputError(
                f"{self.description.path}: {split}: {entry!r:.80} leads out of the data root {self.root}; "
                "give a path below it"
            )
        return found

    def images(self, split: str, on_fault: FaultHandler | None = None) -> list[str]:
        """Return the images of a split as paths below the root, in the order of data.yaml, folders sorted.

        Raises InputError for a place that does not exist or has no images, or for a faulty line of a list.
        """
        found: dict[str, None] = {}
        for place in self.places(split):
            with faults_to(on_fault):
                before = len(found)
                found |= dict.fromkeys(self._images_at(place, split, on_fault))
                if len(found) == before:
                    raise InputError(f"{place}: no image for {split!r} that is not listed already")
        if not found:
            raise InputError(f"{self.description.path}: {split}: no image")
        return list(found)

    def _images_at(self, place: Path, split: str, on_fault: FaultHandler | None) -> Iterator[str]:
        if place.is_dir():
            for path in sorted(place.rglob("*")):
                if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and not is_hidden(path, place):
                    yield self._below_root(path)
        elif place.suffix.lower() in IMAGE_SUFFIXES:
            yield self._below_root(place)
        elif place.is_file():
            yield from self._listed(place, on_fault)
        else:
            raise InputError(
                f"{self.description.path}: {split}: {place} does not exist; expected a folder of images, or "
                "a text file with one image per line"
            )

    def _listed(self, path: Path, on_fault: FaultHandler | None) -> Iterator[str]:
        """Yield the images of a text file, one path per line, relative to it, to the data set or absolute."""
        for number, line in enumerate(read_short_text(path, "the list of images").split("\n"), start=1):
            name = line.strip(ASCII_SPACE).replace("\\", "/")
            if not name:
                continue
            with faults_to(on_fault):
                starts = (path.parent, self.description.base, self.root)
                places = [inside(start / name, self.root) for start in starts] if "\0" not in name else []
                known = [place for place in dict.fromkeys(places) if place is not None]
                if not known:
                    raise InputError(
                        f"{path}: line {number}: {name!r:.80} leads out of the data root {self.root}"
                    )
                yield self._below_root(next(filter(Path.is_file, known), known[0]))

    def _below_root(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def labels(self, image: str) -> Path:
        """Return the file of an image's labels: ``labels`` replaces the last folder ``images``."""
        parts = PurePosixPath(image).with_suffix(".txt").parts
        folders = [number for number, part in enumerate(parts[:-1]) if part == "images"]
        if folders:
            parts = (*parts[: folders[-1]], "labels", *parts[folders[-1] + 1 :])
        return self.root.joinpath(*parts)
