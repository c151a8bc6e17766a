"""The folders of a data set in VOC layout: ids in a split file, and the files of an id.

The layout is ``ROOT/Annotations/ID.xml``, ``ROOT/JPEGImages/ID.jpg`` and ``ROOT/ImageSets/Main/SPLIT.txt``
with one ID per line; all three folders can have other names.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from detector.core.catalogue import how_to_get
from detector.core.errors import FaultHandler, InputError, faults_to, nearest
from detector.core.files import ASCII_SPACE, IMAGE_SUFFIXES, is_hidden, read_short_text
from detector.core.structures import ImageName
from detector.data.paths import FileFinder, image_key, require_inside
from detector.data.selection import Selection

# The per-class lists of VOC ("aeroplane_test.txt") have 1, -1 or 0 after each id. Only spaces may separate
# them: a no-break space may be a part of a name.
_CLASS_COLUMN = re.compile(r"(?P<id>.*[^ ])[ ]+(-1|0|1)")


class VocLayout:
    """The annotation folder and the image folder below ``root``, and the files in them by image id.

    Use one object per call of a reader: it remembers which files it has seen. ``require_images`` says that
    the image folder must exist. ``suffix`` is that of the annotation files, in lower case.

    Raises InputError, with the expected layout, if the root or a folder is missing.
    """

    def __init__(
        self, root: Path, annotations: str, images: str, *, require_images: bool = False, suffix: str = ".xml"
    ) -> None:
        self.root, self._suffix = root, suffix
        kind = suffix[1:].upper()
        self.annotations = _resolve(
            root, annotations, f"one {kind} file per image ({images}/ has the images)"
        )
        self.images = _resolve(root, images, "the images") if require_images else root / images
        self._images_as_written = root / images
        self._finder = FileFinder()

    def split_ids(
        self,
        splits: str | None,
        split: str,
        choose: Selection | None = None,
        on_fault: FaultHandler | None = None,
    ) -> tuple[list[str], Path]:
        """Return the ids of a split, and the file or folder that names them.

        ``splits`` is the folder of the split files, None for every annotated image. ``choose`` picks some of
        the images. With ``on_fault`` a faulty line is passed to it and left out, and the rest is read.

        Raises:
            InputError: no such split (the message lists the splits that exist), an unreadable or empty one,
                an id twice, an id that would lead out of the folders, or no image that is chosen.
        """
        if splits is None:
            ids, source = self.annotated_ids(), self.annotations
        else:
            ids, source = self._listed_ids(_split_file(self.root, splits, split), on_fault)
        chosen = self.chosen_ids(ids, choose)
        if not chosen:
            raise InputError(f"{source}: all {len(ids)} images of {split!r} are left out; keep at least one")
        return chosen, source

    def chosen_ids(self, ids: list[str], choose: Selection | None) -> list[str]:
        """Return the ids of the images that ``choose`` picks, all if it is None."""
        return ids if choose is None else [name.image_id for name in choose(self.image_names(ids))]

    def image_names(self, ids: Iterable[str]) -> list[ImageName]:
        return [ImageName(image_id, self.key(self.image(image_id))) for image_id in ids]

    def annotated_ids(self) -> list[str]:
        """Return the ids of all annotation files, sorted; hidden files are skipped.

        Raises InputError if there are none.
        """
        folder = self.annotations
        pattern = "*." + "".join(f"[{letter}{letter.upper()}]" for letter in self._suffix[1:])
        paths = (path for path in folder.rglob(pattern) if not is_hidden(path, folder))
        ids = {path.relative_to(folder).with_suffix("").as_posix() for path in paths}
        if not ids:
            raise InputError(f"{folder}: no annotation file (*{self._suffix}) in this folder")
        return sorted(ids)

    def find_annotation(self, image_id: str) -> Path | None:
        """Return the annotation file of an id, None where there is none."""
        return self._finder.find(self.annotations / image_id, (self._suffix,))

    def annotation(self, image_id: str, listed_in: Path) -> Path:
        """Return the annotation file of an id. Raises InputError naming ``listed_in`` if it is missing."""
        path = self.find_annotation(image_id)
        if path is None:
            expected = f"{self.annotations / image_id}{self._suffix}"
            raise InputError(
                f"{listed_in}: image id {image_id!r} has no annotation: {expected} is missing; put it there "
                "or take the id out of the split"
            )
        return path

    def image(self, image_id: str, listed_in: Path | None = None) -> Path:
        """Return the image file of an id, the expected .jpg where there is none.

        With ``listed_in``, the file that names the id, a missing image is an InputError instead.
        """
        path = self._finder.find(self.images / image_id, IMAGE_SUFFIXES)
        expected = self.images / f"{image_id}.jpg"
        if path is None and listed_in is not None:
            others = ", ".join(IMAGE_SUFFIXES[1:])
            raise InputError(
                f"{listed_in}: image id {image_id!r} has no image: expected {expected} (or {others}); "
                "put it there or take the id out of the split"
            )
        return path or expected

    def key(self, image: Path) -> str:
        """Return the key of a file that `image` returned: its path below the root as in the config."""
        return image_key(self._images_as_written / image.relative_to(self.images), self.root)

    def _listed_ids(self, path: Path, on_fault: FaultHandler | None) -> tuple[list[str], Path]:
        """Return the ids in a split file, in its order, and its path.

        Blank lines, a byte-order mark, Windows line ends and the 1/-1/0 column of per-class lists are
        accepted. A line is taken whole where a file has exactly that name.
        """
        lines = read_short_text(path, "the split").replace("\t", " ").split("\n")
        line_of: dict[str, int] = {}
        for number, line in enumerate((line.strip(ASCII_SPACE) for line in lines), start=1):
            if not line:
                continue
            with faults_to(on_fault):
                place = f"{path}: line {number}: image id"
                require_inside(line, place, "an image's file name without its ending")
                image_id = self._id_in(line)
                if image_id in line_of:
                    raise InputError(f"{place} {image_id!r} is also on line {line_of[image_id]}; remove one")
                line_of[image_id] = number
        if not line_of:
            raise InputError(f"{path}: the split names no image; expected one image id per line")
        return list(line_of), path

    def _id_in(self, line: str) -> str:
        column = _CLASS_COLUMN.fullmatch(line)
        if column is None or self.find_annotation(line):
            return line
        return line if self._finder.find(self.images / line, IMAGE_SUFFIXES) else column["id"]


def _split_file(root: Path, splits: str, split: str) -> Path:
    folder = _resolve(root, splits, "one text file per split, one image id per line")
    path = folder / f"{split}.txt"
    if not path.is_file():
        stems = {path.stem for path in folder.glob("*.txt") if not path.name.startswith(".")}
        # Without the per-class lists, "CLASS_SPLIT".
        names = sorted(name for name in stems if name.rpartition("_")[2] not in stems - {name})
        existing = f"splits there: {', '.join(names)}" if names else "the folder has no split (*.txt)"
        raise InputError(f"{path}: no such split{nearest(split, names)}; {existing}")
    return path


def _resolve(root: Path, name: str, content: str) -> Path:
    """Return the real path of ``ROOT/<name>``, links followed; ``content`` describes what belongs in it.

    Raises InputError, with the expected layout, if the root or the folder is missing.
    """
    if not root.is_dir():
        raise InputError(
            f"data root {root} does not exist; expected a folder in VOC layout: Annotations/ with one XML "
            "file per image, JPEGImages/ with the images, ImageSets/Main/ with one text file per split"
            f"{how_to_get(root)}"
        )
    folder = root / name
    if not folder.is_dir():
        below = sorted(root.glob(f"*/{name}")) if not Path(name).is_absolute() else []
        hint = f"; did you mean the root {below[0].parents[len(Path(name).parts) - 1]}?" if below else ""
        raise InputError(f"{folder} does not exist; expected {content}{hint}{how_to_get(root)}")
    return folder.resolve()
