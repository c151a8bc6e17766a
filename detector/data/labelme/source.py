"""Reading data sets annotated with LabelMe or X-AnyLabeling: one JSON file per image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PureWindowsPath

from detector.core.errors import FaultHandler, InputError
from detector.core.files import IMAGE_SUFFIXES, read_json_bytes
from detector.core.labelme_file import read_labelme
from detector.core.listing import Listing
from detector.data.annotation_cache import AnnotationCache
from detector.data.file_columns import FileAnnotation, FileColumns, FileParser, read_files
from detector.data.image_set import ImageSet, ImageSetSource, distinct_ids, objects_of
from detector.data.paths import FileFinder, inside, require_inside
from detector.data.source import for_split
from detector.data.voc.layout import VocLayout

SUFFIX = ".json"


@dataclass(frozen=True, kw_only=True)
class LabelMeSource(ImageSetSource):
    """A `detector.data.source.DataSource` of LabelMe's files.

    ``annotations`` is the folder of the JSON files and ``images`` that of the images, both below ``root``;
    ``{split}`` in them is replaced by the split's name. ``splits`` is the folder of the split files, as in
    VOC layout; None takes every annotated image for every split. An image's id is the path of its JSON file
    below ``annotations``, without suffix. Sizes are those in the files, otherwise those of the images.
    """

    annotations: str = "."
    splits: str | None = None

    def image_list(self, split: str) -> Path:
        if self.splits is None:
            return self.root / for_split(self.annotations, split)
        return self.root / self.splits / f"{split}.txt"

    def open(self, split: str, on_fault: FaultHandler | None = None) -> LabelMeSet:
        layout = self._layout(split)
        ids, listed_in = layout.split_ids(self.splits, split, on_fault=on_fault)
        return LabelMeSet(
            layout, ids, listed_in, self._image_folder(split), self.cache, bool(self.attributes)
        )

    def every_image(self, *splits: str) -> list[ImageSet]:
        """Return all annotated images of the folders of ``splits``."""
        folders = {for_split(f"{self.annotations}\n{self.images}", split): split for split in splits}
        return [replace(self, splits=None).open(split) for split in folders.values()]

    def _layout(self, split: str) -> VocLayout:
        if not self.root.is_dir():
            raise InputError(
                f"data root {self.root} does not exist; expected a folder with one JSON file of LabelMe per "
                "image, and the images"
            )
        return VocLayout(
            self.root, for_split(self.annotations, split), for_split(self.images, split), suffix=SUFFIX
        )

    def _image_folder(self, split: str) -> Path:
        return self.root / for_split(self.images, split)


class LabelMeSet(ImageSet):
    """The images of a split that LabelMe's files annotate.

    A file that cannot be read is an error only where its content is asked for, so that its image can be left
    out.
    """

    def __init__(
        self,
        layout: VocLayout,
        ids: Sequence[str],
        listed_in: Path,
        image_folder: Path,
        cache: AnnotationCache | None,
        attributes: bool,
    ) -> None:
        self.root, self.listed_in, self.image_ids = layout.root, listed_in, ids
        found = [layout.find_annotation(image_id) for image_id in ids]
        self._exists = [path is not None for path in found]
        self.annotations = [
            path or layout.annotations / f"{image_id}{SUFFIX}"
            for image_id, path in zip(ids, found, strict=True)
        ]
        self._errors: dict[Path, InputError] = {}
        self._columns = read_files(
            self.annotations,
            layout.annotations,
            LABELME_FILES,
            cache,
            attributes=attributes,
            errors=self._errors,
        )
        finder = _ImageFinder(layout.root, image_folder)
        written = zip(ids, self.annotations, self._columns.filenames, strict=True)
        self.images = [finder.find(image_id, path, filename) for image_id, path, filename in written]
        distinct_ids(self.images, self.annotations, "both annotate one image: merge the two files")

    def is_annotated(self, row: int) -> bool:
        return self._exists[row]

    def columns(self, rows: Sequence[int]) -> FileColumns:
        for row in rows:
            if not self._exists[row]:
                raise InputError(
                    f"{self.listed_in}: image id {self.image_ids[row]!r} has no annotation: "
                    f"{self.annotations[row]} is missing; put it there or take the id out of the split"
                )
            if self.annotations[row] in self._errors:
                raise self._errors[self.annotations[row]]
        return self._columns.take(rows)

    def annotation(self, row: int, on_fault: FaultHandler) -> FileAnnotation:
        return _read(self.annotations[row], on_fault)


class _ImageFinder:
    """Finds the images that LabelMe's files name, below ``root``; ``folder`` is that of the images."""

    def __init__(self, root: Path, folder: Path) -> None:
        self._root, self._folder = root, folder
        self._real_root = root.resolve()
        self._listing, self._finder = Listing(), FileFinder()

    def find(self, image_id: str, annotation: Path, written: str) -> str:
        """Return the path below the root of the image of ``annotation``, its expected place if it is missing.

        ``written`` is imagePath: relative to the file, in either system's form. An image that is not there is
        looked for by its name in the folder of the images. Without imagePath, the image has the file's id.
        """
        if not written:
            found = self._finder.find(self._folder / image_id, IMAGE_SUFFIXES)
            return self._below_root(found or self._folder / f"{image_id}.jpg", annotation)
        name = PureWindowsPath(written).name  # knows both separators
        beside = inside(annotation.parent / written.replace("\\", "/"), self._real_root)
        places = [*([beside] if beside is not None else []), self._folder / name]
        known = [place for place in places if self._is_file(place)]
        return self._below_root((known or places[-1:])[0], annotation)

    def _is_file(self, path: Path) -> bool:
        return str(path) in self._listing or path.is_file()

    def _below_root(self, path: Path, annotation: Path) -> str:
        found = inside(path, self._root)
        if found is None:
            raise InputError(f"{annotation}: its image {path} lies outside the data root {self._root}")
        key = found.relative_to(self._root).as_posix()
        require_inside(key, f"{annotation}: imagePath", "the path of the image")
        return key


def _read(path: Path, on_fault: FaultHandler | None = None) -> FileAnnotation:
    found = read_labelme(path, on_fault)
    return FileAnnotation(
        path=path, size=found.size, objects=objects_of(found.shapes, path), filename=found.image
    )


LABELME_FILES = FileParser("LabelMe annotations by file and hash", _read, read_json_bytes)
