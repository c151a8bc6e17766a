"""The demo of a classifier: the classes of any image files, through the same code as evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from detector.config import Config
from detector.core.errors import listed
from detector.core.progress import note, track
from detector.core.structures import ImageRecord
from detector.data.loader import workers_watched
from detector.engine.determinism import cuda_algorithms
from detector.evaluation.report import write_json
from detector.factory.loaders import inference_views, naming, no_proposals
from detector.factory.model import build_predictor
from detector.models.detector import RegionDetector
from detector.tasks.classification import classified_image
from detector.tasks.demo import picture_name, record_of, refuse_overwriting, unique_stems
from detector.visualize import draw_class_scores, save_image


@workers_watched()
def run_class_demo(
    config: Config,
    model: RegionDetector,
    classes: Sequence[str],
    images: Sequence[Path],
    folder: Path,
    device: str,
    score_threshold: float,
) -> int:
    """Score ``images``, draw into ``folder``, write ``classes.json``; return how many classes were named.

    A line an image names the classes that score ``score_threshold`` and more.
    """
    records = [record_of(path, stem) for path, stem in zip(images, unique_stems(images), strict=True)]
    refuse_overwriting(records, folder)
    results: list[dict[str, Any]] = []
    predict = build_predictor(config, model, device)
    views = inference_views(config, records, no_proposals, device)
    # The algorithms of evaluation, whose scores these are.
    with cuda_algorithms(device, deterministic=config.train.deterministic):
        for record, image in zip(records, track(views, len(records), "classifying"), strict=True):
            with naming(image[0].metas):
                scores = predict(image)
            shown = classified_image(record, scores)._replace(presence=None)
            save_image(folder / picture_name(record), draw_class_scores(shown, classes))
            results.append(_as_json(record, scores, classes))
    write_json(folder / "classes.json", {"classes": list(classes), "images": results})
    return sum(_say(result, score_threshold) for result in results)


def _say(result: dict[str, Any], score_threshold: float) -> int:
    named = [found for found in result["scores"] if found["score"] >= score_threshold]
    shown = listed(f"{found['class']} {found['score']:.2f}" for found in named)
    note(f"{result['image']}: {shown or 'none of the classes'}")
    return len(named)


def _as_json(record: ImageRecord, scores: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Return an image's size and all its classes' scores, the highest first, for the JSON."""
    ranked = sorted(zip(classes, scores.tolist(), strict=True), key=lambda pair: -pair[1])
    return {
        "image": str(record.path),
        "drawn": picture_name(record),
        "height": record.height,
        "width": record.width,
        "scores": [{"class": name, "score": score} for name, score in ranked],
    }
