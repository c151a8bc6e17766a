"""How a network trains."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from detector.config.sections.base import Count, Fraction, Pixels, Positive, Resize, Scales, Section

Jitter = Annotated[float, Field(gt=0.0, le=16.0)]


class SamplingConfig(Section):
    """Which RoIs a step trains on (paper, section 2.3)."""

    rois_per_image: int = Field(default=64, ge=1, le=100_000)
    foreground_fraction: Fraction = 0.25
    foreground_iou: Fraction = 0.5
    background_iou: tuple[Fraction, Fraction] = (0.1, 0.5)
    """Background RoIs have their best IoU in [low, high)."""
    far_background_fraction: Fraction = 0.0
    """Share of the background RoIs that is drawn from those with a best IoU below ``background_iou``'s low,
    far from all objects. The paper draws none, and a detector that never saw such places reports objects
    there; with ``background_iou: [0.0, 0.5]`` they would be nearly all of the background, and what lies
    near objects, which is harder, would be rare."""
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
    """Learning rate over the run; points are fractions of its steps."""

    kind: Literal["step", "cosine"] = "step"
    milestones: Annotated[tuple[Fraction, ...], Field(max_length=1000)] = (0.75,)
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
    steps: Count | None = None
    """Optimizer steps of the run; exactly one of this and ``epochs`` is given."""
    epochs: Positive | None = None
    """Passes over the training images: the run has ceil(epochs * images / ``images_per_batch``) steps, which
    its log keeps. In a config that inherits the other of the two, the one that is given replaces it."""
    images_per_batch: int = Field(default=2, ge=1, le=4096)
    scales: Scales = (600,)
    """Sides of the input in pixels, the shorter one by ``resize``; one is drawn at random for each image,
    or as ``scale_per`` says."""
    scale_per: Literal["image", "batch", "epoch"] = "image"
    """What shares a scale and a jitter: nothing, the images of a batch, or those of an epoch, as SPP-net
    was trained (180 in one epoch, 224 in the next)."""
    resize: Resize = "shorter"
    """"shorter" brings the shorter side to the scale; "square" both sides, whatever the proportions; "none"
    leaves the image its own size, and the scales unused."""
    max_size: Pixels = 1000
    """Cap on the longer side in pixels, but for "square"."""
    scale_jitter: tuple[Jitter, Jitter] | None = None
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
    deterministic: bool = True
    """On a GPU, only algorithms that give the same bits on every run: two runs of one config are equal, and a
    run that was stopped goes on exactly. false lets cuDNN measure its algorithms on each new input size and
    take the fastest, which can pay where sizes repeat. On the CPU every run is exact."""
    log_every: Count = 20
    checkpoint_every: Count = 1000
    keep_checkpoints: Count | None = None
    """How many numbered checkpoints stay; None removes none."""
    evaluate_every: Count | None = None
    """Steps between evaluations, of which the best one chooses ``best.pt``; None evaluates only at the end.
    They are made on validation images: those of ``data.val_split``, or of ``validation_fraction``."""
    evaluate_split: str | None = None
    """The split that is scored at the end; None is ``data.test_split``. Where it is given and there are no
    validation images, ``evaluate_every`` uses it too, and ``best.pt`` is then chosen on it."""
    validation_fraction: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Share of the training images that is set aside for validation where there is no validation split; which
    images these are depends on ``data.split_seed`` and the images' names alone. None sets none aside, except
    that ``evaluate_every`` without a validation split and without ``evaluate_split`` sets aside 0.15."""
    trainable: Literal["all", "boxes"] = "all"
    """"boxes" trains bbox_pred alone, as the second stage of stage-wise training does. Which convolutions
    train is ``model.backbone.freeze``."""
    cache_dtype: Literal["float16", "float32"] = "float16"
    """How stages that work on cached features keep them on the disk."""
    draw_images: int = Field(default=4, ge=0, le=1000)
    """Images drawn into TensorBoard at each evaluation."""
    initial_weights: str | None = None
    """A checkpoint whose weights are taken and nothing else. cls_score, bbox_pred and the constants of the
    box targets start from scratch where the classes or the task differ."""
    allow_partial: bool = False
    """Take what fits of ``initial_weights`` that do not fit in whole, and begin the rest at random."""

    @model_validator(mode="after")
    def _has_one_length(self) -> TrainConfig:
        if (self.steps is None) == (self.epochs is None):
            given = "neither" if self.steps is None else "both"
            raise ValueError(f"train needs exactly one of train.steps and train.epochs; {given} is given")
        return self

    @model_validator(mode="after")
    def _jitter_is_ordered(self) -> TrainConfig:
        if self.scale_jitter is not None and self.scale_jitter[0] > self.scale_jitter[1]:
            raise ValueError("train.scale_jitter must be [low, high] with low <= high")
        return self


class SVMConfig(Section):
    """Per-class linear SVMs with hard negative mining; defaults of SPP-net's release."""

    features: Literal["fc7", "pooled"] = "fc7"
    """What they are trained on: the head's last hidden features, or the pooled ones."""
    c: Positive = 1e-3
    positive_weight: Positive = 2.0
    bias_multiplier: Positive = 10.0
    feature_norm: Positive = 20.0
    """Features are scaled to this mean norm."""
    negative_iou: Fraction = 0.3
    """Regions with a best IoU below this with every object of a class are its negatives."""
    hard_score: float = -1.0001
    """Negatives that score above this are added."""
    evict_score: float = -1.2
    """Negatives that score below this after a retraining are forgotten."""
    retrain_after: int = Field(default=2000, ge=1, le=10_000_000)
    """A class is retrained once it has this many new negatives, and after the last image."""
    negative_overlap: Fraction | None = None
    """Drop a new negative that overlaps another by more than this (the paper: 0.7; release: not at all)."""
    missing_positives: Literal["error", "never"] = "error"
    """A class without a positive: an error, or a class that never fires."""


class RidgeConfig(Section):
    """Class-wise ridge regression of boxes on pooled features; defaults of SPP-net's release."""

    penalty: Positive = 4000.0
    """Lambda; the bias is penalised too."""
    min_iou: Fraction = 0.5
    """Regions with an IoU above this with an object of the class are its rows."""
    max_rows: int = Field(default=20000, ge=1, le=10_000_000)
    """Rows of a class, drawn at random where there are more."""
    whitening: Positive = 1e-3
    """Added to the diagonal of the targets' covariance before it is inverted."""


class StageConfig(Section):
    """One stage of a staged training, which starts from the weights that the stage before it left.

    "train" trains on images as a config without stages does; "fine_tune" trains the fully connected layers
    on cached features; "svm" and "box_ridge" fit their layer on cached features.
    """

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
    kind: Literal["train", "fine_tune", "svm", "box_ridge"]
    settings: dict[str, Any] = Field(default_factory=dict)
    """Changes to the config for this stage, written as the config itself."""
    svm: SVMConfig = SVMConfig()
    ridge: RidgeConfig = RidgeConfig()
