"""The network."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from detector.config.sections.base import Count, Four, Positive, Section


class BackboneConfig(Section):
    """The convolutions, up to which stage, and where their weights come from."""

    name: Literal["vgg16", "alexnet", "resnet18", "resnet50", "squeezenet1_0", "small"]
    stage: str | None = None
    """The last stage that is kept; None is the last convolution stage (ResNet: C4)."""
    weights: str | None = None
    """A state dict file; None starts from random weights."""
    convention: Literal["torchvision", "caffe"] = "torchvision"
    """What input the weights expect: RGB in [0, 1] with mean and deviation, or BGR in 0..255 minus a
    mean (102.9801, 115.9465, 122.7717, as the release)."""
    pixel_mean: tuple[float, float, float] | None = None
    """Another mean, in the convention's own channel order and range."""
    freeze: int | Literal["none", "all"] = 0
    """How many of the first stages do not train, or "none", or "all"."""
    feature_scale: Positive = 1.0
    """Factor on the features: brings activations of other networks to the size a new head expects."""
    reduce_channels: Count | None = None
    """Width of a 1x1 convolution after the features, which makes fc6 cheaper; None has none (paper)."""


class PoolConfig(Section):
    output_size: Count = 7
    """Bins a side (paper: 7 for VGG16, 6 for AlexNet)."""
    center: Literal["caffe", "network"] = "caffe"
    """"caffe" rounds x/stride as the release does; "network" first subtracts the receptive-field centre
    of the first cell, so that a cell stands where its centre is."""


class HeadConfig(Section):
    hidden: tuple[Count, ...] = (4096, 4096)
    """Widths of fc6, fc7, ..."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    weights: bool = False
    """Take fc6 and fc7 from the backbone's weights file (VGG16 and AlexNet)."""
    class_agnostic: bool = False
    """One box regressor for all classes instead of one a class."""


class BoxConfig(Section):
    """How box targets are standardised."""

    normalize: Literal["fixed", "dataset"] = "dataset"
    """"dataset" measures mean and deviation a class on the training set, as the release does;
    "fixed" uses ``means`` and ``deviations`` for all classes."""
    means: Four = (0.0, 0.0, 0.0, 0.0)
    deviations: tuple[Positive, Positive, Positive, Positive] = (0.1, 0.1, 0.2, 0.2)


class ModelConfig(Section):
    backbone: BackboneConfig
    pool: PoolConfig = PoolConfig()
    head: HeadConfig = HeadConfig()
    box: BoxConfig = BoxConfig()
    roi_chunk: Count = 512
    """RoIs that inference pools and classifies at a time; bounds memory, changes results by no more than
    the last digits."""

    @model_validator(mode="after")
    def _parts_fit(self) -> ModelConfig:
        if self.head.weights and self.backbone.weights is None:
            raise ValueError(
                "model.head.weights takes fc6 and fc7 from model.backbone.weights, which is null; name the "
                "file there, or set model.head.weights to false"
            )
        if self.head.class_agnostic and self.box.normalize == "dataset":
            raise ValueError(
                "model.head.class_agnostic has one box regressor for all classes, model.box.normalize: "
                "dataset one scale a class; set model.box.normalize to fixed"
            )
        return self
