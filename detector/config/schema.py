"""The typed schema of an experiment: every key, its unit, its default and where the default comes from.

"Paper" is Girshick, "Fast R-CNN" (2015); "release" is the code published with it. A schema object is
frozen and knows no unknown keys. Whatever can be checked without reading a file is checked here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[float, Field(gt=0.0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]
Four = tuple[float, float, float, float]


class Section(BaseModel):
    """Base of all sections: immutable, strict about names, no silent conversion of types, no infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class GenerateConfig(Section):
    """How to make the data set where ``data.root`` does not exist (quick start only)."""

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


class ProposalsConfig(Section):
    """Where the proposals come from: a ``file`` of some ``format``, or a ``method`` that makes them."""

    file: str | None = None
    """A proposal file, or the folder of a ProposalStore."""
    format: Literal["npz", "store"] | None = None
    method: Literal["dense"] | None = None
    scales: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    """dense: window sides as fractions of the image's shorter side; None takes the method's own."""
    aspects: Annotated[tuple[Positive, ...], Field(min_length=1)] | None = None
    """dense: width over height; None takes the method's own."""
    stride_fraction: Annotated[float, Field(gt=0.0, le=1.0)] | None = None
    """dense: step between windows as a fraction of their side; None takes the method's own."""
    top_k_train: Count = 2000
    top_k_test: Count = 2000
    """Proposals used of each image, the best ranked first (paper: about 2000)."""
    min_size: float = Field(default=0.0, ge=0.0)
    """Proposals with a side below this many pixels of the original image are left out."""
    missing: Literal["error", "skip"] = "error"
    """Images without an entry in the file: an error, or left out of training (never of evaluation)."""

    @model_validator(mode="after")
    def _one_source(self) -> ProposalsConfig:
        if (self.file is None) == (self.method is None):
            raise ValueError("proposals needs either 'file' with 'format', or 'method', and not both")
        if (self.file is None) != (self.format is None):
            raise ValueError("proposals.file and proposals.format go together: give both or neither")
        dense_only = {"scales": self.scales, "aspects": self.aspects, "stride_fraction": self.stride_fraction}
        given = [name for name, value in dense_only.items() if value is not None]
        if given and self.method != "dense":
            raise ValueError(f"proposals.{given[0]} only applies to proposals.method: dense")
        return self


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


class SamplingConfig(Section):
    """Which RoIs a step trains on (paper, section 2.3)."""

    rois_per_image: Count = 64
    foreground_fraction: Fraction = 0.25
    foreground_iou: Fraction = 0.5
    background_iou: tuple[Fraction, Fraction] = (0.1, 0.5)
    """Background RoIs have their best IoU in [low, high)."""
    add_targets: bool = True
    """Put the ground-truth boxes among the proposals."""

    @model_validator(mode="after")
    def _ordered(self) -> SamplingConfig:
        low, high = self.background_iou
        if low >= high:
            raise ValueError("train.sampling.background_iou must be [low, high) with low < high")
        if high > self.foreground_iou:
            raise ValueError("train.sampling.background_iou must end at or below foreground_iou")
        return self


class ScheduleConfig(Section):
    """Learning rate over the run; points are fractions of ``train.steps``."""

    kind: Literal["step", "cosine"] = "step"
    milestones: tuple[Fraction, ...] = (0.75,)
    """step: the rate is multiplied by ``gamma`` at each (paper: 30k of 40k steps)."""
    gamma: Positive = 0.1
    final: Fraction = 0.0
    """cosine: the last rate as a fraction of ``learning_rate``."""
    warmup: Fraction = 0.0
    """Linear warm-up over this fraction of the run."""
    warmup_start: Fraction = 0.1
    """First rate of the warm-up as a fraction of ``learning_rate``."""

    @model_validator(mode="after")
    def _ordered(self) -> ScheduleConfig:
        if list(self.milestones) != sorted(self.milestones):
            raise ValueError("train.schedule.milestones must rise")
        return self


class TrainConfig(Section):
    steps: Count
    images_per_batch: Count = 2
    scales: tuple[Count, ...] = Field(default=(600,), min_length=1)
    """Shorter side of the input in pixels; one is drawn at random for each image."""
    max_size: Count = 1000
    """Cap on the longer side in pixels."""
    scale_jitter: tuple[Positive, Positive] | None = None
    """A further random factor on the size, drawn log-uniformly from [low, high]."""
    flip: Fraction = 0.5
    """Chance of a left-right flip."""
    vertical_flip: Fraction = 0.0
    """Chance of a top-bottom flip, for images without an upside: microscopy, aerial."""
    group_by_aspect: bool = True
    """Batch landscape with landscape and portrait with portrait, which saves padding."""
    sampling: SamplingConfig = SamplingConfig()
    learning_rate: Positive = 1e-3
    bias_lr_factor: Positive = 2.0
    """Rate of biases over that of weights (release: 2; the paper's text: 1)."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    weight_decay: float = Field(default=5e-4, ge=0.0)
    bias_decay: bool = False
    """Whether biases decay (release: no; the paper's text: yes)."""
    schedule: ScheduleConfig = ScheduleConfig()
    clip_gradient_norm: Positive | None = None
    box_loss_weight: float = Field(default=1.0, ge=0.0)
    smooth_l1_beta: Positive = 1.0
    """Where smooth L1 turns from squared to linear (paper: 1)."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """"bfloat16" runs the network under autocast; RoIs and losses stay float32."""
    log_every: Count = 20
    checkpoint_every: Count = 1000
    keep_checkpoints: Count | None = None
    """How many numbered checkpoints stay; None removes none."""
    evaluate_every: Count | None = None
    """None evaluates at the end alone."""
    evaluate_split: str | None = None
    """None is ``data.test_split``."""
    draw_images: int = Field(default=4, ge=0)
    """Images drawn into TensorBoard at each evaluation."""
    initial_weights: str | None = None
    """A checkpoint whose model is taken and nothing else."""

    @model_validator(mode="after")
    def _jitter_is_ordered(self) -> TrainConfig:
        if self.scale_jitter is not None and self.scale_jitter[0] > self.scale_jitter[1]:
            raise ValueError("train.scale_jitter must be [low, high] with low <= high")
        return self


class TestConfig(Section):
    __test__ = False  # not a test class, whatever its name

    metric: Literal["voc07", "voc"] = "voc07"
    """The headline figure and the one that chooses the best checkpoint: 11-point or area AP."""
    scales: tuple[Count, ...] = Field(default=(600,), min_length=1)
    """Shorter sides in pixels. With several, each proposal is scored at the scale that brings its area
    closest to 224 x 224 (release)."""
    max_size: Count = 1000
    score_threshold: Fraction = 0.05
    nms_threshold: Fraction = 0.3
    max_detections: Count = 100
    """Detections kept of an image, all classes together."""
    refinements: int = Field(default=0, ge=0)
    """How often detections are pooled and classified again from their own boxes (iterative localisation);
    costs little, since the features are there. The paper does not do it."""
    precision: Literal["float32", "bfloat16"] = "float32"


class StageConfig(Section):
    """One stage of a staged training; none is defined for ``task: detection``."""

    name: str


class Config(Section):
    seed: Seed = 0
    task: Literal["detection"] = "detection"
    data: DataConfig
    proposals: ProposalsConfig
    model: ModelConfig
    train: TrainConfig
    test: TestConfig = TestConfig()
    stages: tuple[StageConfig, ...] = Field(default=(), max_length=0)
