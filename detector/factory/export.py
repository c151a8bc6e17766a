"""What a checkpoint's network becomes in an export: the portable network, its limits, and its description."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from detector.config import Config
from detector.core.errors import InputError
from detector.core.libraries import LIBRARIES
from detector.data.transforms import ImageTransform
from detector.factory.loaders import inference_transforms
from detector.factory.model import build_normalization, region_scores
from detector.models.detector import RegionDetector
from detector.models.portable import (
    Limits,
    PortableClassifier,
    PortableDetector,
    PortablePostprocess,
    smallest_side,
)
from detector.models.postprocess import class_scores

_OWN = ("model.backbone.name", "model.pool.kind", "model.head.kind")
"""The keys that may name code of the user which computes a part of the network."""


def refuse_own_parts(values: Mapping[str, Any], source: str) -> None:
    """Raise InputError if the stored config ``values`` names code of the user for a part of the network."""
    for key in _OWN:
        value: Any = values
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if isinstance(value, str) and ":" in value and value.partition(":")[0] not in LIBRARIES:
            raise InputError(
                f"{source}: {key} = {value!r:.80} is code of yours; an exported network has to run without "
                "it, and this program cannot know whether its operators can be exported. Export a network of "
                "parts that are this project's or a library's"
            )


def check_exportable(config: Config, source: str) -> None:
    """Raise InputError, with the reason and the fix, for what an exported network cannot do."""
    test, head = config.test, config.model.head
    if head.scores == "svm":
        fix = (
            "Give model.head.scores=softmax on the command line to read them as logits, or fit another head, "
            "such as model.head.kind: logistic"
            if head.kind == "svm"
            else "Export the network that the SVMs were trained on (the checkpoint of the stage before)"
        )
        raise InputError(
            f"{source}: its scores are margins of SVMs (model.head.scores: svm). These are not "
            "probabilities, and the thresholds of an export and the accuracy that it is checked for are for "
            f"probabilities. {fix}"
        )
    if head.kind == "knn":
        raise InputError(
            f"{source}: model.head.kind: knn counts the votes of stored examples, which torch exports only "
            "for a fixed number of regions; export a network with another head, for instance prototypes"
        )
    several = inference_transforms(config)
    if len(several) > 1:
        raise InputError(
            f"{source}: it is tested on {len(several)} views of each image (test.scales, test.flip), and an "
            f"exported network sees one; choose it on the command line: test.scales=[{test.scales[0]}] "
            "test.flip=false"
        )
    if test.refinements:
        raise InputError(
            f"{source}: test.refinements = {test.refinements} classifies detections again, and an exported "
            "network classifies the given regions once; give test.refinements=0 on the command line"
        )


def check_postprocess(config: Config, source: str) -> None:
    """Raise InputError for a suppression that the standard operator does not know."""
    if config.task == "classification":
        raise InputError(
            f"{source} classifies whole images, which needs no post-processing; omit --postprocess"
        )
    if config.test.nested_threshold is not None:
        raise InputError(
            f"{source}: test.nested_threshold drops boxes that lie within others, which the standard "
            "operator NonMaxSuppression cannot; give test.nested_threshold=null on the command line, or omit "
            "--postprocess"
        )


def view_of(config: Config) -> ImageTransform:
    """Return the transform of the only view of a test image."""
    (view,) = inference_transforms(config)
    return view


def limits_of(config: Config, model: RegionDetector) -> Limits:
    """Return the sizes of the inputs that the transform of ``config`` can give."""
    view = view_of(config)
    side = round(view.scales[0]) if view.resize == "square" else view.max_size
    return Limits(smallest_side(model), (side, side))


def portable_network(
    config: Config, model: RegionDetector, *, postprocess: bool, dense: bool
) -> PortableDetector | PortableClassifier:
    """Return the network of a checkpoint in standard operators, in evaluation mode.

    ``dense`` is that of `PortablePostprocess`.

    Raises:
        InputError: a pool that has no counterpart in standard operators.
    """
    normalization, limits = build_normalization(config), limits_of(config, model)
    if config.task == "classification":
        return PortableClassifier(model, normalization, limits, class_scores).eval()
    test, selection = config.test, None
    if postprocess:
        selection = PortablePostprocess(
            test.score_threshold, test.nms_threshold, test.max_detections, dense=dense
        )
    return PortableDetector(
        model,
        normalization,
        limits,
        region_scores(config),
        box_regression=test.box_regression,
        postprocess=selection,
    ).eval()


def describe(
    config: Config, checkpoint: Mapping[str, Any], limits: Limits, *, postprocess: bool
) -> dict[str, Any]:
    """Return what ``model.json`` says of the network: classes, sizes, normalisation and thresholds."""
    normalization, view, test = build_normalization(config), view_of(config), config.test
    detects = config.task != "classification"
    about: dict[str, Any] = {
        "task": config.task,
        "classes": list(checkpoint["classes"]),
        "scores": config.model.head.scores if config.task == "detection" else config.task,
        "image": {
            "channels": "RGB, uint8, (height, width, 3)",
            "resize": view.resize,
            "scale": view.scales[0],
            "max_size": view.max_size,
            "smallest_side": limits.smallest,
            "largest_size": list(limits.largest),
        },
        "normalization": {
            "where": "inside the network",
            "formula": "(pixel / maximum - mean) / deviation",
            "maximum": normalization.maximum,
            "mean": list(normalization.mean),
            "deviation": list(normalization.deviation),
            "channels": "BGR" if normalization.bgr else "RGB",
        },
        "best_threshold": checkpoint.get("score_threshold"),
    }
    if detects:
        about["regions"] = {"boxes": "x1, y1, x2, y2, half-open, in pixels of the original image"}
        about["postprocess"] = {
            "inside": postprocess,
            "score_threshold": test.score_threshold,
            "nms_threshold": test.nms_threshold,
            "max_detections": test.max_detections,
        }
    return about
