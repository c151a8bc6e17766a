"""The network of a config, and what belongs to it: sampler, loss, optimizer, post-processing, predictor."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from detector.config import Config
from detector.config.files import value_at
from detector.config.load import parse_config
from detector.config.schema import (
    CropPoolConfig,
    FunctionHeadConfig,
    FunctionPoolConfig,
    KnnHeadConfig,
    OhemSamplingConfig,
    PrototypesHeadConfig,
    RoIAlignPoolConfig,
    RoIPoolConfig,
    SoftmaxHeadConfig,
    SPPPoolConfig,
    TrainedHead,
)
from detector.core import distributed
from detector.core.errors import InputError
from detector.core.progress import note
from detector.core.structures import Batch, HeadOutput, Normalization
from detector.engine import optim
from detector.engine.checkpoint import check_model_state, weights_to_use
from detector.engine.inference import ImagePredictor, RegionPredictor, number_type, with_weights_in
from detector.factory.weights import check_scores, differences, load_initial, load_published
from detector.models import weights
from detector.models.backbones import Backbone, identity_backbone
from detector.models.backbones import build_backbone as make_backbone
from detector.models.batch_norm import SharedBatchNorm2d
from detector.models.box_coder import BoxCoder, fixed_coder
from detector.models.compiled import CompiledDetector
from detector.models.crops import CropPooling
from detector.models.detector import RegionDetector, RegionPool
from detector.models.feature_pyramid import FeaturePyramid
from detector.models.hard_examples import EveryRegion, HardExamples
from detector.models.heads import (
    MAX_STORED_EXAMPLES,
    BoxHead,
    BoxPredictor,
    NearestExamples,
    Prototypes,
)
from detector.models.losses import DetectionLoss
from detector.models.own_head import own_head
from detector.models.own_pool import own_pool
from detector.models.postprocess import (
    Postprocess,
    class_scores,
    independent_scores,
    margin_scores,
    softmax_scores,
)
from detector.models.quantized import with_int8_head
from detector.models.region_pools import PyramidPooling, RoIAlignPooling, RoIPooling
from detector.models.roi_sampler import RoISampler
from detector.models.whole_map import WholeMapPool, whole_image_rois
from detector.models.wsddn import TwoStreamPredictor, two_stream_scores

SCORES = {"softmax": softmax_scores, "sigmoid": independent_scores, "svm": margin_scores}
"""What turns a network's output into scores, by ``model.head.scores``."""


def build_backbone(config: Config) -> Backbone:
    """Return the backbone with random weights, cut off and frozen as configured."""
    chosen = config.model.backbone
    return make_backbone(
        chosen.name,
        stage=chosen.stage,
        freeze="all" if config.train.trainable == "boxes" else chosen.freeze,
        feature_scale=chosen.feature_scale,
        reduce_channels=chosen.reduce_channels,
        pyramid=config.model.neck is not None,
    )


def build_neck(config: Config, backbone: Backbone) -> FeaturePyramid | None:
    """Return the feature pyramid over the maps of ``backbone``; None without ``model.neck``."""
    if config.model.neck is None:
        return None
    widths, strides, centers, _ = zip(*backbone.maps, strict=True)
    return FeaturePyramid(widths, strides, centers, config.model.fpn.channels)


def build_normalization(config: Config) -> Normalization:
    """Return the normalisation of images that the configured weights expect."""
    chosen = config.model.backbone
    mean, deviation = chosen.pixel_mean, chosen.pixel_std
    if chosen.convention == "torchvision" and mean is None and deviation is None:
        mean, deviation = weights.library_normalization(chosen.name)
    return weights.normalization(chosen.convention, mean, deviation)


def build_model(config: Config, num_classes: int, coder: BoxCoder | None = None) -> RegionDetector:
    """Return the network with seeded random weights, and pretrained ones where the config names a file.

    ``num_classes`` counts the foreground classes. ``coder`` None takes the fixed constants of the config; a
    checkpoint that is loaded afterwards brings its own.
    """
    torch.manual_seed(config.seed)
    model = _random_model(config, num_classes, coder)
    if config.model.backbone.weights is not None:
        head = model.box_head.layers if config.model.published_head else None
        load_published(config, convolutions(model), head)
    return model


def initial_model(config: Config, classes: Sequence[str], coder: BoxCoder | None = None) -> RegionDetector:
    """Return the network that a run starts from: another run's weights, published ones, or random ones.

    Prints a warning if random convolutions are frozen: the network is then trained on random filters.
    """
    if config.train.initial_weights is None:
        frozen = config.train.trainable == "boxes" or config.train.head_only
        freezes = frozen or config.model.backbone.freeze not in (0, "none")
        if config.model.backbone.weights is None and freezes:
            note(
                "warning: the run starts from random convolutions and keeps them, because of "
                "model.backbone.freeze, train.trainable or train.head_only; name trained ones in "
                "model.backbone.weights or train.initial_weights, unless you want to study random filters"
            )
        return build_model(config, len(classes), coder)
    torch.manual_seed(config.seed)
    model = _random_model(config, len(classes), coder)
    load_initial(config, model, classes)
    return model


def restore_model(
    config: Config, checkpoint: dict[str, Any], source: str, *, raw: bool = False
) -> RegionDetector:
    """Return the network with a checkpoint's weights, in evaluation mode; no weights file is read.

    These are the averaged weights where there are any; ``raw`` takes those that were trained, for resuming.
    Where the config has no ``model.head.rank``, the checkpoint's holds: a compressed network takes the place
    of the whole one.

    Raises:
        InputError: the weights do not fit the config's network or its kind of scores, or its settings fit no
            network; ``source`` is named. Only shapes are compared, before memory is allocated for a network.
    """
    check_scores(config, checkpoint, source)
    config = _with_stored_rank(config, checkpoint, source)
    classes = len(checkpoint["classes"])
    examples = _stored_examples(config, checkpoint, source)
    try:
        with torch.device("meta"):
            shapes = _random_model(config, classes, None, examples)
    except InputError as error:
        raise InputError(f"{source}: {error}") from None
    check_model_state(shapes, checkpoint, source, differences(config, checkpoint.get("config")))
    model = _random_model(config, classes, None, examples)
    model.load_state_dict(checkpoint["model"] if raw else weights_to_use(checkpoint))
    cls_score = model.predictor.cls_score
    fault = cls_score.fault() if isinstance(cls_score, Prototypes | NearestExamples) else None
    if fault is not None:
        raise InputError(f"{source}: predictor.cls_score: {fault}; use another checkpoint")
    return model.eval()


def _with_stored_rank(config: Config, checkpoint: dict[str, Any], source: str) -> Config:
    """Return ``config`` with the ranks of the checkpoint's layers, if it has none of its own."""
    head = config.model.head
    stored = next(iter(value_at(checkpoint.get("config"), ["model", "head", "rank"])), None)
    if not isinstance(head, SoftmaxHeadConfig) or head.rank is not None or stored is None:
        return config
    values = config.model_dump(mode="json")
    values["model"]["head"] |= {"rank": stored, "weights": False}  # a file's fc6 is whole; none is read here
    return parse_config(values, source)


def _stored_examples(config: Config, checkpoint: dict[str, Any], source: str) -> int:
    """Return how many examples the checkpoint's ``knn`` head stores, the only shape that no setting decides.

    Its other shapes and its type are checked with those of all tensors.
    """
    stored = checkpoint["model"].get("predictor.cls_score.examples")
    if not isinstance(config.model.head, KnnHeadConfig) or stored is None or stored.dim() != 2:
        return 1
    if not 1 <= len(stored) <= MAX_STORED_EXAMPLES:
        raise InputError(
            f"{source}: predictor.cls_score has {len(stored)} examples; expected 1 to {MAX_STORED_EXAMPLES}"
        )
    return len(stored)


def check_network(config: Config) -> None:
    """Raise InputError for a network that cannot be built, before hours are spent on proposals."""
    with torch.device("meta"):
        _random_model(config, 1, None)


def convolutions(model: RegionDetector) -> Backbone:
    """Return the network's convolutions; R-CNN's run on regions and belong to the pool."""
    pool = model.region_pool
    return pool.convolutions if isinstance(pool, CropPooling) else model.backbone


def _random_model(
    config: Config, num_classes: int, coder: BoxCoder | None, examples: int = 1
) -> RegionDetector:
    settings = config.model
    backbone = build_backbone(config)
    neck = build_neck(config, backbone)
    pool = build_region_pool(config, backbone, neck)
    head, predictor = _random_head(config, pool.out_features, num_classes, examples)
    if coder is None:  # ridge regression standardises its targets itself
        ridge = settings.box.regression == "ridge"
        constants = ((0.0,) * 4, (1.0,) * 4) if ridge else (settings.box.means, settings.box.deviations)
        coder = fixed_coder(num_classes, *constants)
    if isinstance(pool, CropPooling):
        backbone = identity_backbone()  # the convolutions belong to the pool: one pass per region
    model = RegionDetector(
        backbone, pool, head, predictor, coder, settings.roi_chunk, build_normalization(config), neck
    )
    if config.train.trainable == "boxes":  # stage-wise training: Fast R-CNN, section 5.1
        if predictor.bbox_pred is None:
            raise InputError("train.trainable: boxes needs a box layer; set model.box.regression to linear")
        model.requires_grad_(False)
        predictor.bbox_pred.requires_grad_(True)
    return model


def _random_head(config: Config, width: int, num_classes: int, examples: int) -> tuple[BoxHead, BoxPredictor]:
    """Return the layers after a pool of ``width`` features; ``examples`` are those of a ``knn`` head."""
    boxes = config.model.box.regression if config.task == "detection" else "none"
    box_features = {"linear": None, "ridge": width, "none": 0}[boxes]
    chosen = config.model.head
    if isinstance(chosen, TrainedHead):
        layers = _hidden_layers(chosen, width, num_classes)
        if config.task == "weak_detection":
            return layers, TwoStreamPredictor(layers.out_features, num_classes)
        independent = chosen.scores == "sigmoid" and config.task == "detection"
        return layers, BoxPredictor(
            layers.out_features, num_classes, chosen.class_agnostic, box_features, independent=independent
        )
    cls_score: Prototypes | NearestExamples | None = None  # of logistic regression and SVMs: a linear layer
    if isinstance(chosen, PrototypesHeadConfig):
        cls_score = Prototypes(
            width, num_classes, background=chosen.background_prototypes, temperature=chosen.temperature
        )
    elif isinstance(chosen, KnnHeadConfig):
        cls_score = NearestExamples(
            width, num_classes, examples=examples, k=chosen.k, temperature=chosen.temperature
        )
    return BoxHead(width, ()), BoxPredictor(width, num_classes, False, box_features, cls_score)


def _hidden_layers(chosen: TrainedHead, width: int, num_classes: int) -> BoxHead:
    if isinstance(chosen, FunctionHeadConfig):
        return own_head(chosen.kind, chosen.options, width, num_classes)
    return BoxHead(width, chosen.hidden, chosen.dropout, chosen.rank)


def measures_targets(config: Config) -> bool:
    """Return whether the coder's constants have to be measured on the training set.

    Ridge regression, which also fits the boxes of heads that are fitted, standardises its targets itself.
    """
    box, trained = config.model.box, isinstance(config.model.head, TrainedHead)
    return trained and box.regression == "linear" and box.normalize == "dataset"


def build_region_pool(config: Config, backbone: Backbone, neck: FeaturePyramid | None = None) -> RegionPool:
    """Return the pool of regions, or of whole images for classification, for the levels of ``neck`` or, where
    there is none, the map of ``backbone``.
    """
    channels = backbone.channels if neck is None else neck.channels
    strides = (backbone.stride,) if neck is None else neck.strides
    centers = (backbone.center,) if neck is None else neck.centers
    # RoI pooling assumes cell k at k * stride; +0.5 goes from the index of a pixel to its centre.
    edges = tuple(center + 0.5 for center in centers)
    match config.model.pool:
        case RoIPoolConfig() as pool:
            placed = edges if pool.center == "network" else 0.0
            return RoIPooling(channels, pool.output_size, strides, placed, mask=pool.mask)
        case RoIAlignPoolConfig() as pool:
            return RoIAlignPooling(
                channels,
                pool.output_size,
                strides,
                edges if pool.center == "network" else None,
                sampling_ratio=pool.sampling_ratio,
                mask=pool.mask,
            )
        case SPPPoolConfig() as pool if config.task == "classification":
            return WholeMapPool(channels, pool.levels, pool.reduction, pool.rule)
        case SPPPoolConfig() as pool:
            return PyramidPooling(
                channels,
                pool.levels,
                strides,
                reduction=pool.reduction,
                window=pool.window,
                center=0.0 if pool.center == "caffe" or pool.window == "roi" else centers,
                shrink=pool.shrink,
                mask=pool.mask,
            )
        case CropPoolConfig() as pool:
            return CropPooling(
                backbone,
                pool.output_size,
                crop_size=pool.crop_size,
                context=pool.context,
                square=pool.kind == "crop",
            )
        case FunctionPoolConfig() as pool:
            return own_pool(pool.kind, pool.options, channels, strides, centers)


def build_roi_sampler(config: Config, coder: BoxCoder) -> RoISampler | EveryRegion:
    """Return what draws the RoIs of a training step and their targets, or gives all where the hardest count.

    Random RoIs are those of Fast R-CNN, section 2.3; for the hardest see `build_hard_examples`.
    """
    settings = config.train.sampling.model_dump(exclude={"kind"})
    settings["use_difficult"] = config.data.difficult == "train"
    settings["multi_label"] = config.model.head.scores == "sigmoid"
    if isinstance(config.train.sampling, OhemSamplingConfig):
        del settings["rois_per_image"]  # they are chosen once the network has seen all
        return EveryRegion(coder, **settings)
    return RoISampler(coder, **settings)


def compiled(model: RegionDetector) -> CompiledDetector:
    """Return ``model`` as training calls it, with its convolutions and head compiled.

    Raises:
        InputError: several processes share its batch statistics, for which compiled code cannot wait.
    """
    shared = any(
        isinstance(module, SharedBatchNorm2d) and module.weight.requires_grad for module in model.modules()
    )
    if shared and distributed.world_size() > 1:
        raise InputError(
            "train.compile: several processes compute the batch statistics of this network together, which "
            "compiled code cannot do; set train.compile to false, or train in one process"
        )
    return CompiledDetector(model)


def build_hard_examples(config: Config) -> HardExamples | None:
    """Return what chooses the RoIs that a step trains on by their losses; None for random ones."""
    if not isinstance(config.train.sampling, OhemSamplingConfig):
        return None
    return HardExamples(config.train.sampling.rois_per_image, build_loss(config))


def build_loss(config: Config) -> DetectionLoss:
    """Return the loss of classes and boxes (Fast R-CNN, section 2.3)."""
    return DetectionLoss(config.train.box_loss_weight, config.train.smooth_l1_beta)


def build_optimizer(config: Config, model: nn.Module) -> torch.optim.SGD | torch.optim.AdamW:
    """Return the config's optimizer for the parameters of ``model`` that train."""
    settings = config.train
    return optim.build_optimizer(
        settings.optimizer,
        model,
        learning_rate=settings.learning_rate,
        momentum=settings.momentum,
        weight_decay=settings.weight_decay,
        bias_lr_factor=settings.bias_lr_factor,
        bias_decay=settings.bias_decay,
    )


def build_postprocess(config: Config, coder: BoxCoder, score_threshold: float | None = None) -> Postprocess:
    """Return the post-processing that turns outputs into detections; None takes ``test.score_threshold``."""
    settings = config.test
    return Postprocess(
        coder,
        score_threshold=settings.score_threshold if score_threshold is None else score_threshold,
        nms_threshold=settings.nms_threshold,
        nested_threshold=settings.nested_threshold,
        max_detections=settings.max_detections,
        box_regression=settings.box_regression,
        scores=region_scores(config),
    )


def region_scores(config: Config) -> Callable[[HeadOutput], Tensor]:
    """Return how the scores of regions are read from the network's output."""
    if config.task == "weak_detection":
        return two_stream_scores
    return SCORES[config.model.head.scores]


Predictor = Callable[[Sequence[Batch]], Any]
"""Returns the detections of one image, or its scores (K,), from its views: batches of one sample."""


def build_predictor(config: Config, model: RegionDetector, device: str) -> Predictor:
    """Return the `RegionPredictor` or `ImagePredictor` of the config's task, for evaluation and use alike.

    ``model`` has to be in evaluation mode. The predictor may copy its weights: build another one after they
    change.
    """
    precision = number_type(config.test.precision, device, "test.precision")
    model = with_weights_in(model, precision)
    if config.test.precision == "int8":
        model = with_int8_head(model)
    if config.task == "classification":
        rois = partial(whole_image_rois, model.backbone)
        return ImagePredictor(model=model, rois=rois, scores=class_scores, device=device, precision=precision)
    return RegionPredictor(
        model=model,
        postprocess=build_postprocess(config, model.box_coder),
        device=device,
        precision=precision,
        refinements=config.test.refinements,
        scale_rule=config.test.scale_rule,
    )
