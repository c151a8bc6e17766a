"""What every format of annotations provides to the rest of the project: a `DataSource` and its `Dataset`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from detector.core.errors import InputError
from detector.core.records import Records
from detector.core.structures import ImageName
from detector.data.problems import Problem, Reporter
from detector.data.selection import Selection
from detector.data.targets import AnnotatedObject, ObjectRules


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """One split as it was read.

    Attributes:
        records: the images, in the order of the split.
        classes: the K class names; label k is ``classes[k - 1]``.
        dropped: how many boxes were left out ("swapped", "outside", "under 2 px", "of other classes") or
            changed ("clipped"), by reason.
        coco_ids: COCO's id of each image by the record's: the id in a COCO file, otherwise 1, 2, ... in the
            order of the records.
        annotated: False where the split has no annotations at all, as a test set for a server.
        suspicions: probable mistakes, to be shown to the user.
    """

    records: Records
    classes: tuple[str, ...]
    dropped: dict[str, int]
    coco_ids: dict[str, int]
    annotated: bool = True
    suspicions: tuple[Problem, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageToCheck:
    """One image to check: the files of its annotation and of its pixels, and the splits that name it.

    ``objects`` and ``size`` (height, width) are those in a COCO file. ``objects`` None means that
    ``annotation`` is a VOC file, which has not been read yet.
    """

    image_id: str
    key: str
    splits: tuple[str, ...]
    annotation: Path
    path: Path
    size: tuple[int, int] | None = None
    objects: tuple[AnnotatedObject, ...] | None = None


class DataSource(Protocol):
    """A data set on disk: one class per format of annotations.

    A file or a folder says which images belong to a split (`image_list`); a `Selection` may choose some.
    ``declares_classes`` says whether the format lists its classes; otherwise every object's name is a class.
    ``attributes`` are those of the objects that count as labels (`detector.data.attributes`). An object with
    several labels is several rows with the same box.
    All methods raise InputError for a file that is missing or malformed.
    """

    @property
    def rules(self) -> ObjectRules: ...

    @property
    def attributes(self) -> tuple[str, ...]: ...

    declares_classes: ClassVar[bool]

    def image_list(self, split: str) -> Path:
        """Return the file or folder that names the images of ``split``; it need not exist."""
        ...

    def image_names(self, split: str) -> list[ImageName]:
        """Return the names of all images of ``split``."""
        ...

    def class_names(self, *splits: str, choose: Selection | None = None) -> tuple[str, ...]:
        """Return the names of the annotated classes in the order of their labels.

        Where the format declares classes, they are those of the first split, followed by the sorted labels
        of its ``attributes``. Otherwise they are the sorted names, those of attributes too, in all
        annotations of the folders of ``splits``; ``choose`` may pick some of the images.
        """
        ...

    def load(
        self,
        split: str,
        classes: Sequence[str] | None = None,
        *,
        training: bool = True,
        choose: Selection | None = None,
        unannotated: bool = False,
        require_images: bool = True,
    ) -> Dataset:
        """Read the images of ``split`` and their objects.

        ``classes`` are the names that labels stand for; None takes those in the annotations. For ``training``
        the rules about invalid boxes apply; otherwise every object stays exactly as annotated. With
        ``unannotated`` a split may be wholly without annotations, and its records then have no objects.
        Without ``require_images`` the image files need not exist; an image whose annotation gives no size
        then has the size (0, 0), which needs ``training=False``.

        Raises InputError also for an object of a class that is not in ``classes``, and for an invalid box
        that the rules treat as an error.
        """
        ...

    def coco_annotations(self, split: str, classes: Sequence[str], train_split: str) -> dict[str, Any] | None:
        """Return the split's own COCO annotations with each of ``classes`` as a category; None without any.

        ``train_split`` may supply categories that are missing.
        """
        ...

    def images_to_check(
        self, selections: Mapping[str, Selection], train_split: str, kept: Selection | None, report: Reporter
    ) -> Iterator[ImageToCheck]:
        """Yield the images of the splits that ``selections`` names, and ``report`` faults in their lists.

        A split other than ``train_split`` may be without annotations. If the format takes class
        names from all annotations, the images that ``kept`` selects are included even if no split names them.
        """
        ...


def for_split(name: str, split: str) -> str:
    """Return the name of a file or folder for one split, which replaces ``{split}``."""
    return name.replace("{split}", split)


def size_of(image: Path, missing: str, *, required: bool) -> tuple[int, int]:
    """Return the (height, width) of an image file whose annotation gives none.

    It is (0, 0) if the file is missing and not ``required``. Raises InputError for a required image that is
    missing (the message begins with ``missing``, which says what lacks the size), and for an unreadable one.
    """
    if not image.is_file():
        if required:
            raise InputError(f"{missing}, and there is no image at {image} to take it from; add the size")
        return 0, 0
    from detector.data.images import upright_size  # OpenCV only for the few files that need it

    return upright_size(image)
