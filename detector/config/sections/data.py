"""What the images and annotations are."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from detector.config.sections.base import Section, Seed


class GenerateConfig(Section):
    """How to make the images of ``data.root`` where they are missing; for the quick start and lessons.

    They are made in a folder that the shipped configs name (``data/quickstart``, ``data/arrangements``), and
    in a folder of another name only if it is there and empty. With a data set of your own this is null.
    """

    kind: Literal["scenes", "arrangements"] = "scenes"
    """"scenes" has shapes as classes; "arrangements" has ways in which two shapes stand to each other, which
    only their layout tells apart (see ``train.flip``: a mirrored image is another class)."""
    train_images: int = Field(default=240, ge=1, le=100_000)
    test_images: int = Field(default=80, ge=1, le=100_000)
    seed: Seed = 0


class DataConfig(Section):
    """A data set, how it is divided, and what is done about faulty annotations."""

    format: Literal["voc", "coco"] = "voc"
    """How objects are annotated: an XML file an image, or one JSON file for all."""
    root: str
    """Folder of the data set; any path. A relative one starts at the working directory."""
    annotations: str = "Annotations"
    """voc: the folder of the XML files. coco: the JSON file, unless given
    ``annotations/instances_{split}.json``. In this and in ``images``, ``{split}`` stands for the split."""
    images: str = "JPEGImages"
    """The folder of the images; with coco, unless given, ``{split}``."""
    splits: str | None = "ImageSets/Main"
    """voc: the folder with a text file a split; None takes every annotated image for every split."""
    split_ratio: dict[str, Annotated[float, Field(gt=0.0, le=1.0)]] | None = None
    """Divides all annotated images at random, for instance ``{train: 0.8, test: 0.2}``, in the place of
    split files."""
    split_seed: Seed = 0
    """Another seed divides the images in another way; ``seed`` has no part in it."""
    leave_out: str | None = None
    """A text file with the paths, below ``root``, of images that no split shall have, one a line, as
    ``tools/check_data.py --fix-list`` writes it. An id that only one image has will do as well."""
    train_split: str = "trainval"
    test_split: str = "test"
    val_split: str | None = None
    """A split of images that are not trained on: ``train.evaluate_every`` chooses ``best.pt`` on it, and
    the score threshold that ``tools/demo.py`` uses is chosen on it. None takes the split that is customary
    beside a ``train_split`` such as "train" or "train2017": with "val" or "valid" in its name, where the data
    set has one and it is not the test split. An image that is trained on too is an error. Where there is no
    such split, see ``train.validation_fraction``."""
    classes: tuple[str, ...] | Literal["voc"] | None = None
    """Class names; "voc" is the twenty of PASCAL VOC; None takes the names found in the annotations."""
    other_classes: Literal["error", "ignore"] = "error"
    """Objects of a class that ``classes`` does not name: an error, or left out of training and evaluation."""
    first_pixel: Literal[0, 1] = 1
    """voc: the number of an image's first pixel in the XML files and in VOC result files. The standard counts
    from 1; some tools write corners that count from 0."""
    difficult: Literal["train", "skip"] = "train"
    """Objects marked ``difficult`` in training: "train" as the paper does, or "skip". Evaluation always
    follows the VOC rules."""
    invalid_boxes: Literal["drop", "clip", "error"] = "drop"
    """Boxes that would corrupt training (swapped corners, a side under ``min_box_size``, outside)."""
    min_box_size: float = Field(default=2.0, ge=0.0)
    """Pixels of the original image."""
    workers: Annotated[int, Field(ge=0, le=64)] | None = None
    """Processes that load images; None chooses from the cores, the device and the shared memory that are
    there. Results are the same with any number."""
    generate: GenerateConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _coco_has_its_own_names(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("format") == "coco":
            return {"annotations": "annotations/instances_{split}.json", "images": "{split}", **values}
        return values

    @model_validator(mode="after")
    def _division_is_whole(self) -> DataConfig:
        if self.format == "coco" and self.splits not in (None, DataConfig.model_fields["splits"].default):
            raise ValueError("data.splits names folders of data.format: voc; name the JSON of each split")
        if self.split_ratio is None:
            return self
        if "{split}" in self.annotations:
            raise ValueError("data.split_ratio divides one set, data.annotations has one a {split}; drop one")
        if sum(self.split_ratio.values()) > 1 + 1e-9:
            raise ValueError("data.split_ratio must not add up to more than 1")
        for key in ("train_split", "test_split", "val_split"):
            if getattr(self, key) not in (None, *self.split_ratio):
                raise ValueError(f"data.{key}: {getattr(self, key)} is not in data.split_ratio; set {key}")
        return self

    @model_validator(mode="after")
    def _keys_of_one_format(self) -> DataConfig:
        if self.format == "coco" and self.first_pixel == 0:
            raise ValueError("data.first_pixel is for data.format: voc; COCO's boxes always count from 0")
        if self.other_classes == "ignore" and self.classes is None:
            raise ValueError("data.other_classes: ignore needs the names of data.classes; add them")
        return self

    @model_validator(mode="after")
    def _validation_is_apart(self) -> DataConfig:
        if self.val_split is not None and self.val_split in (self.train_split, self.test_split):
            raise ValueError(
                f"data.val_split: {self.val_split} is the training or the test split as well; name one of "
                "other images, or leave it out and set train.validation_fraction"
            )
        return self

    @model_validator(mode="after")
    def _classes_are_distinct(self) -> DataConfig:
        if isinstance(self.classes, tuple) and (
            not self.classes or len(set(self.classes)) != len(self.classes)
        ):
            raise ValueError("data.classes must name at least one class, and none twice")
        return self
