"""The network."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from detector.config.sections.base import Four, Positive, Section


class BackboneConfig(Section):
    """The convolutions, up to which stage, and where their weights come from."""

    name: Literal["vgg16", "alexnet", "caffenet", "resnet18", "resnet50", "squeezenet1_0", "small"]
    stage: str | None = None
    """The last stage that is kept; None is the last convolution stage (ResNet: C4)."""
    weights: str | None = None
    """A state dict file under torchvision's, timm's or Caffe's names; None starts from random weights."""
    allow_partial: bool = False
    """Take what fits of a weights file that does not fit in whole, and begin the rest at random."""
    convention: Literal["torchvision", "caffe"] = "torchvision"
    """What input the weights expect: RGB in [0, 1] with mean and deviation, or BGR in 0..255 minus a
    mean (102.9801, 115.9465, 122.7717, as the release)."""
    pixel_mean: tuple[float, float, float] | None = None
    """Another mean, in the convention's own channel order and range."""
    freeze: int | Literal["none", "all"] = 0
    """How many of the first stages do not train, or "none", or "all"."""
    feature_scale: Positive = 1.0
    """Factor on the features: brings activations of other networks to the size a new head expects."""
    reduce_channels: Annotated[int, Field(ge=1, le=65536)] | None = None
    """Width of a 1x1 convolution after the features, which makes fc6 cheaper; None has none (paper)."""


Cells = Annotated[int, Field(ge=1, le=128)]
"""Bins or cells on a side of what is pooled."""
MAX_CROPS = 2**30
"""Pixels of all crops that go through the network at a time."""
_POOL_KEYS = {
    "roi": {"output_size", "center"},
    "spp": {"levels", "reduction", "rule", "window", "center", "shrink"},
    "warp": {"output_size", "crop_size", "context"},
    "crop": {"output_size", "crop_size", "context"},
}


class PoolConfig(Section):
    """What makes a fixed-length row of a region: RoI pooling, a spatial pyramid, or a crop of the image."""

    kind: Literal["roi", "spp", "warp", "crop"] = "roi"
    """"roi" is Fast R-CNN's pooling, "spp" SPP-net's pyramid. "warp" and "crop" are R-CNN's: each region is
    cut out of the image, brought to ``crop_size``, and goes through the convolutions by itself."""
    output_size: Cells = 7
    """roi: bins a side (paper: 7 for VGG16, 6 for AlexNet). warp, crop: cells a side to which the crop's
    feature map is pooled before fc6."""
    center: Literal["caffe", "network"] | None = None
    """roi, spp: "caffe" takes cell k to stand at k * stride, as the release does; "network" at its
    receptive field's centre. None is "caffe" for roi and "network" for spp, as both were published."""
    levels: Annotated[tuple[Cells, ...], Field(min_length=1, max_length=16)] = (6, 3, 2, 1)
    """spp: bins a side of each level of the pyramid (SPP-net's release: 6, 3, 2, 1)."""
    reduction: Literal["max", "avg"] = "max"
    """spp: what is kept of a bin."""
    rule: Literal["adaptive", "sliding"] = "adaptive"
    """spp, whole images: "adaptive" bins fit any map; "sliding" has windows of ceil(a/n) cells every
    floor(a/n), as the paper trains on a map of a x a cells."""
    window: Literal["spp", "roi"] = "spp"
    """spp, regions: the cells a box covers, by SPP-net's projection or as RoI pooling rounds."""
    shrink: float | None = None
    """spp: input pixels that the projection draws a box's edges inwards; None is half a stride."""
    crop_size: int = Field(default=224, ge=1, le=2048)
    """warp, crop: side of the network's input in pixels (R-CNN: 227)."""
    context: int = Field(default=16, ge=0)
    """warp, crop: pixels of ``crop_size`` that show what lies around the region, on each side (R-CNN)."""

    @model_validator(mode="after")
    def _keys_belong_to_the_kind(self) -> PoolConfig:
        for name in sorted(self.model_fields_set - {"kind"} - _POOL_KEYS[self.kind]):
            if getattr(self, name) != PoolConfig.model_fields[name].default:
                raise ValueError(f"model.pool.{name} does not apply to model.pool.kind: {self.kind}")
        if 2 * self.context >= self.crop_size:
            raise ValueError("model.pool.context leaves nothing of model.pool.crop_size for the region")
        return self


class HeadConfig(Section):
    hidden: Annotated[tuple[Annotated[int, Field(ge=1, le=65536)], ...], Field(max_length=16)] = (4096, 4096)
    """Widths of fc6, fc7, ..."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.5
    weights: bool = False
    """Take fc6 and fc7 from the backbone's weights file (VGG16, AlexNet and CaffeNet)."""
    class_agnostic: bool = False
    """One box regressor for all classes instead of one a class."""
    scores: Literal["softmax", "svm"] = "softmax"
    """How cls_score's output is read: "softmax" as probabilities, "svm" as the margins of linear SVMs, as
    the stage ``svm`` leaves them. Margins may be negative: mind ``test.score_threshold``."""


class BoxConfig(Section):
    """Whether and how boxes are regressed, and how their targets are standardised."""

    regression: Literal["linear", "ridge", "none"] = "linear"
    """"linear" is bbox_pred on fc7, trained with the network; "ridge" is SPP-net's, on the pooled features,
    as the stage ``box_ridge`` leaves it; "none" has no box layer."""

    normalize: Literal["fixed", "dataset"] = "dataset"
    """"dataset" measures mean and deviation a class on the training set, as the release does, or over
    all classes with ``head.class_agnostic``; "fixed" uses ``means`` and ``deviations`` for all classes."""
    means: Four = (0.0, 0.0, 0.0, 0.0)
    deviations: tuple[Positive, Positive, Positive, Positive] = (0.1, 0.1, 0.2, 0.2)


class ModelConfig(Section):
    backbone: BackboneConfig
    pool: PoolConfig = PoolConfig()
    head: HeadConfig = HeadConfig()
    box: BoxConfig = BoxConfig()
    roi_chunk: int = Field(default=1024, ge=1, le=16384)
    """RoIs that inference pools and classifies at a time; bounds memory, changes results by no more than
    the last digits."""

    @model_validator(mode="after")
    def _parts_fit(self) -> ModelConfig:
        if self.head.weights and self.backbone.weights is None:
            raise ValueError(
                "model.head.weights takes fc6 and fc7 from model.backbone.weights, which is null; name the "
                "file there, or set model.head.weights to false"
            )
        crops = self.roi_chunk * self.pool.crop_size**2
        if self.pool.kind in ("warp", "crop") and crops > MAX_CROPS:
            raise ValueError(
                f"model.roi_chunk crops of model.pool.crop_size are {crops} pixels, over {MAX_CROPS}; take a "
                "smaller model.roi_chunk"
            )
        if self.box.regression == "ridge" and self.head.class_agnostic:
            raise ValueError("model.box.regression: ridge is one regression a class; unset class_agnostic")
        return self
