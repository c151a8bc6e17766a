"""What is left of a classifier's scoring: files in VOC's form, images with scores, the one-page picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from detector.config import Config
from detector.core.files import file_name_of
from detector.core.progress import note
from detector.core.structures import ImageRecord
from detector.data.images import read_image
from detector.engine.run_files import note_pictures
from detector.evaluation.report import write_json
from detector.evaluation.result_files import write_class_scores
from detector.tasks.classified import Classified, LabelledImages
from detector.tasks.evaluation import DRAWN
from detector.tasks.report import run_series
from detector.visualize import ClassifiedImage, classifier_picture, draw_class_scores, save_image

EXTREMES = 4
"""Images on the picture that fit their truth best, and as many that fit it worst."""


def scores_picture(record: ImageRecord, scores: Tensor, classes: tuple[str, ...]) -> np.ndarray:
    """Return a record's image with its scores (K,) beside it."""
    return draw_class_scores(classified_image(record, scores, classes), classes)


def classified_image(record: ImageRecord, scores: Tensor, classes: tuple[str, ...]) -> ClassifiedImage:
    """Return a record's image with what is on it and what the scores (K,) say."""
    image = read_image(record.path, (record.height, record.width))
    presence = record.targets.presence(len(classes)).tolist()
    return ClassifiedImage(image, scores.tolist(), presence)


def write_classes(folder: Path, images: LabelledImages, evaluation: Classified) -> None:
    """Write VOC's classification files to ``folder/results`` and drawn images to ``folder/classified``."""
    write_class_scores(folder / "results", evaluation.scores, images.classes, images.split)
    names = []
    for record in images.records[:DRAWN]:
        picture = scores_picture(record, evaluation.scores[record.image_id], images.classes)
        names.append(f"{file_name_of(record.image_id)}.jpg")
        save_image(folder / "classified" / names[-1], picture)
    note_pictures(folder / "classified", names)
    note(f"wrote VOC result files to {folder / 'results'} and pictures to {folder / 'classified'}")


def write_classifier_report(
    config: Config, folder: Path, images: LabelledImages, evaluation: Classified, figures: dict[str, Any]
) -> None:
    """Write ``metrics.json`` and ``run.png`` into a run's folder."""
    losses, evaluations = run_series(folder)
    best, worst = _extremes(images, evaluation) if images.annotated else ([], [])
    classifier_picture(
        folder / "run.png",
        losses=losses,
        evaluations=evaluations,
        pr_curves=evaluation.evaluator.precision_recall() if images.annotated else {},
        figures=figures,
        best=best,
        worst=worst,
        classes=images.classes,
        title=f"{folder.name}: {config.model.backbone.name} on {Path(config.data.root).name}",
    )
    write_json(folder / "metrics.json", figures)
    note(f"wrote {folder / 'metrics.json'} and {folder / 'run.png'}")


def _extremes(
    images: LabelledImages, evaluation: Classified
) -> tuple[list[ClassifiedImage], list[ClassifiedImage]]:
    """Return the images whose scores fit what is on them best, and those with the worst first.

    The best are chosen among images that show something: low scores of an empty image prove little.
    """
    records = sorted(images.records, key=lambda record: _misfit(record, evaluation.scores[record.image_id]))
    shows = [record for record in records if (record.targets.presence(len(images.classes)) > 0).any()]
    worst_first = records[len(records) - min(EXTREMES, len(records) // 2) :][::-1]
    chosen = [record for record in shows if record not in worst_first][:EXTREMES], worst_first
    best, worst = (
        [classified_image(record, evaluation.scores[record.image_id], images.classes) for record in group]
        for group in chosen
    )
    return best, worst


def _misfit(record: ImageRecord, scores: Tensor) -> float:
    """Return the mean distance of the scores (K,) from 1 and 0, over the classes that count."""
    presence = record.targets.presence(len(scores))
    off = (scores - (presence > 0).float()).abs()[presence != 0]
    return float(off.mean()) if len(off) else 0.0
