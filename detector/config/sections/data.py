"""What the images and annotations are."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from detector.config.sections.base import Section, Seed


class GenerateConfig(Section):
    """How to make the data set where ``data.root`` does not exist (quick start only)."""

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
    """A text file with the ids of images that no split shall have, as ``tools/check_data.py --fix-list``
    writes it."""
    train_split: str = "trainval"
    test_split: str = "test"
    classes: tuple[str, ...] | Literal["voc"] | None = None
    """Class names; "voc" is the twenty of PASCAL VOC; None takes the names found in the annotations."""
    difficult: Literal["train", "skip"] = "train"
    """Objects marked ``difficult`` in training: "train" as the paper does, or "skip". Evaluation always
    follows the VOC rules."""
    invalid_boxes: Literal["drop", "clip", "error"] = "drop"
    """Boxes that would corrupt training (swapped corners, a side under ``min_box_size``, outside)."""
    min_box_size: float = Field(default=2.0, ge=0.0)
    """Pixels of the original image."""
    workers: int = Field(default=2, ge=0, le=256)
    """DataLoader worker processes."""
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
        for key in ("train_split", "test_split"):
            if getattr(self, key) not in self.split_ratio:
                raise ValueError(f"data.{key}: {getattr(self, key)} is not in data.split_ratio; set {key}")
        return self

    @model_validator(mode="after")
    def _classes_are_distinct(self) -> DataConfig:
        if isinstance(self.classes, tuple) and (
            not self.classes or len(set(self.classes)) != len(self.classes)
        ):
            raise ValueError("data.classes must name at least one class, and none twice")
        return self
