"""Reading data sets annotated with Label Studio: its JSON export, a list of tasks, and a folder of images."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from detector.core.errors import FaultHandler, InputError
from detector.core.files import IMAGE_SUFFIXES, file_hash, is_hidden
from detector.core.label_studio_file import UPLOADED, reference_parts
from detector.data.annotation_cache import AnnotationCache, Entry, Layout
from detector.data.file_columns import UNKNOWN, FileAnnotation, FileColumns
from detector.data.image_set import ImageSet, ImageSetSource, distinct_ids, objects_of
from detector.data.labelstudio.export import LabelStudioTask, read_label_studio
from detector.data.paths import image_key, require_inside
from detector.data.problems import Problem
from detector.data.source import for_split


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class TaskColumns(FileColumns):
    """The N tasks of an export: ``files`` are their places in it, ``filenames`` the references to images.

    ``counts`` (N,) is how many annotations each task has, of which one is read.
    """

    counts: NDArray[np.int32]

    LAYOUT: ClassVar[Layout] = {**FileColumns.LAYOUT, "counts": ("<i4", None)}

    def __post_init__(self) -> None:
        """Raise ValueError for columns that do not fit, which only a file from elsewhere has."""
        super(TaskColumns, self).__post_init__()
        if len(self.counts) != len(self):
            raise ValueError("the lengths of its columns do not fit")

    def _more_at(self, rows: NDArray[np.int64]) -> dict[str, Any]:
        return {"counts": self.counts[rows]}


@dataclass(frozen=True, kw_only=True)
class LabelStudioSource(ImageSetSource):
    """A `detector.data.source.DataSource` of a Label Studio export in the format "JSON".

    ``annotations`` is the JSON file and ``images`` the folder of the images, both below ``root``;
    ``{split}`` in them is replaced by the split's name. A task's image is looked for in that folder by the
    path, or the end of it, that the task names. Its id is its path below the folder, without suffix. Tasks
    that nobody has annotated are left out, unless no task is annotated. Sizes are those that Label Studio
    gives, otherwise those of the images.
    """

    annotations: str = "{split}.json"

    def image_list(self, split: str) -> Path:
        return self.root / for_split(self.annotations, split)

    def open(self, split: str, on_fault: FaultHandler | None = None) -> LabelStudioSet:
        folder = self.root / for_split(self.images, split)
        path = self.image_list(split)
        if on_fault is None:
            columns, objects = _read_columns(path, self.cache), None
        else:
            columns, objects = _read_to_check(path, on_fault)
        return LabelStudioSet(self.root, folder, path, columns, objects)

    def every_image(self, *splits: str) -> list[ImageSet]:
        return [self.open(split) for split in {self.image_list(split): split for split in splits}.values()]

    def _check_others(self, *_: object) -> None:
        """Do nothing: with a split, every task of its file has been read."""


class LabelStudioSet(ImageSet):
    """The annotated images of an export; ``objects`` are those of each task where the file is checked."""

    def __init__(
        self,
        root: Path,
        folder: Path,
        path: Path,
        columns: TaskColumns,
        objects: Sequence[FileAnnotation] | None,
    ) -> None:
        if not len(columns):
            raise InputError(f"{path}: there is no task; export a project with images")
        self.root, self.listed_in, self._tasks = root, path, columns
        rows = np.flatnonzero(columns.counts) if columns.counts.any() else np.arange(len(columns))
        self._columns = columns.take(rows)
        self._objects = None if objects is None else [objects[row] for row in rows.tolist()]
        finder = _ImageFinder(folder)
        places = [f"{path}: {place}" for place in self._columns.files]
        found = [
            finder.find(reference, place)
            for place, reference in zip(places, self._columns.filenames, strict=True)
        ]
        self.images = [image_key(image, root) for image in found]
        self.image_ids = [image.relative_to(folder).with_suffix("").as_posix() for image in found]
        distinct_ids(self.image_ids, places, "merge the two tasks, or rename one of the images")
        self.annotations = [path] * len(found)

    def is_annotated(self, row: int) -> bool:
        return bool(self._columns.counts[row])

    def columns(self, rows: Sequence[int]) -> FileColumns:
        return self._columns.take(rows)

    def annotation(self, row: int, on_fault: FaultHandler) -> FileAnnotation:
        assert self._objects is not None  # only a check asks, which has opened the file with ``on_fault``
        return self._objects[row]

    def suspicions(self) -> Iterator[Problem]:
        several = np.flatnonzero(self._tasks.counts > 1)
        if len(several):
            message = (
                f"{len(several)} tasks have several annotations, the first is {self._tasks.files[several[0]]}"
                "; the ground truth is read, or the last one"
            )
            yield Problem(kind="several annotations", file=str(self.listed_in), message=message)
        left_out = len(self._tasks) - len(self._columns)
        if left_out:
            message = f"{left_out} tasks have no annotation and are left out"
            yield Problem(kind="tasks without annotation", file=str(self.listed_in), message=message)


class _ImageFinder:
    """Finds the images that tasks name in ``folder``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, reference: str, place: str) -> Path:
        """Return the image that ``reference`` means, its expected place in the folder if it is missing.

        The reference is a path or an address. The image has that path below the folder, or the longest end
        of it that a file has; else the file anywhere below the folder that has its name. Each is tried
        without the eight characters that Label Studio puts before an uploaded file's name, too.

        Raises InputError for a reference that is no path, or a name that several files have.
        """
        parts = reference_parts(reference)
        if not parts:
            raise InputError(f"{place}: {reference!r:.80} names no image; expected a path or an address")
        require_inside("/".join(parts[-1:]), f"{place}: the image", "a file name")
        plain = UPLOADED.sub("", parts[-1])
        names = list(dict.fromkeys((parts[-1], plain)))
        for start in range(len(parts)):
            for name in names:
                path = self._folder.joinpath(*parts[start:-1], name)
                if "/".join(parts[start:]).isprintable() and path.is_file():
                    return path
        for name in names:
            found = self._by_name.get(name, [])
            if len(found) > 1:
                raise InputError(
                    f"{place}: the image {name!r} could be {found[0]} or {found[1]}; name it with its "
                    "folder, or set data.images to one folder"
                )
            if found:
                return found[0]
        return self._folder / parts[-1]

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        found: defaultdict[str, list[Path]] = defaultdict(list)
        for path in sorted(self._folder.rglob("*")):
            if path.suffix.lower() in IMAGE_SUFFIXES and not is_hidden(path, self._folder):
                found[path.name].append(path)
        return found


def _read_columns(path: Path, cache: AnnotationCache | None) -> TaskColumns:
    """Return the tasks of the file ``path``, from ``cache`` if it has those of the file as it is now."""
    digest = file_hash(path) if cache is not None else ""
    entry = cache.read(path, TaskColumns) if cache is not None else None
    if entry is not None and entry.content == digest:
        return entry.columns
    tasks = read_label_studio(path)
    columns = _columns(tasks, path)
    if cache is not None and file_hash(path) == digest:
        cache.write(path, Entry(digest, columns))
    return columns


def _columns(tasks: Sequence[LabelStudioTask], path: Path) -> TaskColumns:
    return TaskColumns.of(
        [task.place for task in tasks],
        [UNKNOWN] * len(tasks),
        _annotations(tasks, path),
        counts=np.array([task.annotations for task in tasks], np.int32),
    )


def _annotations(tasks: Sequence[LabelStudioTask], path: Path) -> list[FileAnnotation]:
    return [
        FileAnnotation(path=path, size=task.size, objects=objects_of(task.shapes, path), filename=task.image)
        for task in tasks
    ]


def _read_to_check(path: Path, on_fault: FaultHandler) -> tuple[TaskColumns, list[FileAnnotation]]:
    tasks = read_label_studio(path, on_fault)
    return _columns(tasks, path), _annotations(tasks, path)
