"""The score threshold of a trained detector: chosen on validation images, kept, reported, and used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from detector.core.progress import note
from detector.evaluation.operating_point import OperatingPoint, at_threshold, best_f1
from detector.tasks.evaluation import Evaluation


def choose_point(validation: Evaluation | None) -> OperatingPoint | None:
    """Return the F1-best operating point of an evaluation on validation images; None where there is none."""
    if validation is None:
        return None
    return best_f1(validation.evaluator.precision_recall().values(), validation.figures["images"])


def with_point(
    evaluation: Evaluation, validation: Evaluation | None, point: OperatingPoint | None
) -> Evaluation:
    """Return ``evaluation`` with what was chosen on validation images among its figures.

    ``score_threshold`` is the threshold, ``validation`` what it brings there with the split's mAP, and
    ``at_score_threshold`` what it brings on the evaluation's own images.
    """
    if validation is None:
        return evaluation
    figures = validation_figures(validation.figures)
    found = {**evaluation.figures, "validation": figures | (point.figures() if point else {})}
    return at_own_threshold(replace(evaluation, figures=found), point.score_threshold if point else None)


def validation_figures(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return what metrics.json keeps of the ``figures`` of an evaluation on validation images."""
    kept = ("split", "annotated", "voc07_mAP", "voc_mAP", "AP", "AP50", "images")
    return {name: figures[name] for name in kept if name in figures}


def at_own_threshold(evaluation: Evaluation, score_threshold: float | None) -> Evaluation:
    """Return ``evaluation`` with ``score_threshold``, unless it is None, and what it brings on its images."""
    if score_threshold is None:
        return evaluation
    figures = {**evaluation.figures, "score_threshold": score_threshold}
    point = at_threshold(evaluation.evaluator.precision_recall().values(), figures["images"], score_threshold)
    if point is not None:
        figures["at_score_threshold"] = point.figures()
    return replace(evaluation, figures=figures)


def say_point(point: OperatingPoint | None, validation: Evaluation | None) -> None:
    """Say which score threshold is stored and what it brings on the validation images, or why none is."""
    if validation is None:
        note(
            "no score threshold is stored: there are no validation images to choose one on; data.val_split "
            "names a split of them, and train.validation_fraction sets training images aside"
        )
    elif not validation.figures.get("annotated", True):
        note("no score threshold is stored: the validation images have no annotations to choose one by")
    elif point is None:
        note("no score threshold is stored: no object of the validation images was found")
    else:
        note(
            f"score threshold {point.score_threshold:.3f}, with the best F1 on {point.images} validation "
            f"images of {validation.figures['split']}: precision {point.precision:.3f}, recall "
            f"{point.recall:.3f}, {point.false_positives_per_image:.2f} false positives per image"
        )
