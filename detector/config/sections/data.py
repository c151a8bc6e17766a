"""What the images and annotations are."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from detector.config.sections.base import Count, Section, Seed


class GenerateConfig(Section):
    """How to make the data set where ``data.root`` does not exist (quick start only)."""

    kind: Literal["scenes", "arrangements"] = "scenes"
    """"scenes" has shapes as classes; "arrangements" has ways in which two shapes stand to each other, which
    only their layout tells apart (see ``train.flip``: a mirrored image is another class)."""
    train_images: Count = 240
    test_images: Count = 80
    seed: Seed = 0


class DataConfig(Section):
    """A data set in VOC layout and what is done about faulty annotations."""

    root: str
    """Folder of the data set; any path. A relative one starts at the working directory."""
    annotations: str = "Annotations"
    images: str = "JPEGImages"
    splits: str = "ImageSets/Main"
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
    workers: int = Field(default=2, ge=0)
    """DataLoader worker processes."""
    generate: GenerateConfig | None = None

    @model_validator(mode="after")
    def _classes_are_distinct(self) -> DataConfig:
        if isinstance(self.classes, tuple) and (
            not self.classes or len(set(self.classes)) != len(self.classes)
        ):
            raise ValueError("data.classes must name at least one class, and none twice")
        return self
