"""A data set as the rest of the project sees it, whatever the format of its annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from detector.core.structures import ImageName, ImageRecord
from detector.data.check.problem import CheckList
from detector.data.selection import Selection
from detector.data.suspicions import Suspicion
from detector.data.targets import ObjectRules


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

    records: list[ImageRecord]
    classes: tuple[str, ...]
    dropped: dict[str, int]
    coco_ids: dict[str, int]
    annotated: bool = True
    suspicions: tuple[Suspicion, ...] = ()


class DataSource(Protocol):
    """A data set on disk: one class per format of annotations.

    A split is known by its name; which images it has is written in a file or a folder (`image_list`), and a
    `Selection` may choose some of them.
    """

    @property
    def rules(self) -> ObjectRules:
        """What happens to objects with invalid boxes and to objects of other classes."""
        ...

    @property
    def declares_classes(self) -> bool:
        """Whether the format lists its classes; otherwise every name that an object has is a class."""
        ...

    def image_list(self, split: str) -> Path:
        """Return the file or folder that names the images of ``split``; it need not exist."""
        ...

    def image_names(self, split: str) -> list[ImageName]:
        """Return the names of all images of ``split``. Raises InputError where they cannot be read."""
        ...

    def class_names(self, *splits: str, choose: Selection | None = None) -> tuple[str, ...]:
        """Return the names of the annotated classes in the order of their labels.

        Where the format declares classes, they are those of the first split. Otherwise they are the names in
        all annotations of the folders of ``splits``, sorted, where ``choose`` may pick some of the images.

        Raises InputError where annotations are missing or malformed.
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

        Args:
            split: the split's name.
            classes: the names that labels stand for; None takes the names in the annotations.
            training: apply the rules about invalid boxes; otherwise keep every object exactly as annotated.
            choose: which of the images to read; None reads all.
            unannotated: accept a split that is wholly without annotations; its records have no objects.
            require_images: check that the image files exist. Without it the size of an image whose
                annotation gives none may be (0, 0), which needs ``training=False``.

        Raises:
            InputError: a missing or malformed file, an object of a class that is not in ``classes``, or an
                invalid box that the rules treat as an error.
        """
        ...

    def coco_annotations(self, split: str, classes: Sequence[str], train_split: str) -> dict[str, Any] | None:
        """Return the split's own COCO annotations with every one of ``classes`` as a category.

        ``train_split`` may supply missing categories. None where the annotations are not in COCO's format.

        Raises InputError for a class that is no category.
        """
        ...

    def images_to_check(
        self, selections: Mapping[str, Selection], train_split: str, kept: Selection | None
    ) -> CheckList:
        """Return the images of the splits that ``selections`` names, and the faults in what lists them.

        A split other than ``train_split`` may be without annotations. With ``kept``, annotations that belong
        to no split are included too, where the class names are taken from all of them.
        """
        ...


def for_split(name: str, split: str) -> str:
    """Return the name of a file or folder for one split, which stands in place of ``{split}``."""
    return name.replace("{split}", split)
