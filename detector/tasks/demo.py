"""The demo: any image files through the same code as evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from detector.config import Config
from detector.core.errors import InputError
from detector.core.files import IMAGE_SUFFIXES, file_name_of, is_hidden, require_regular
from detector.core.progress import track
from detector.core.structures import Detections, ImageRecord, Targets
from detector.data.images import read_image, upright_size
from detector.data.loader import workers_watched
from detector.data.paths import image_key
from detector.engine.determinism import cuda_algorithms
from detector.evaluation.report import write_json
from detector.factory.loaders import inference_views, naming
from detector.factory.model import build_predictor
from detector.factory.proposals import (
    StoredProposals,
    convert_proposals,
    make_proposals,
    stored_proposals,
)
from detector.models.detector import RegionDetector
from detector.visualize import draw_detections, save_image


def find_images(places: Sequence[Path]) -> list[Path]:
    """Return the image files that ``places``, files and folders, name; folders are not searched deeper.

    Hidden files of a folder are passed by.

    Raises:
        InputError: a place that does not exist or is no file, or no image in any of them.
    """
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            found += sorted(
                path
                for path in place.iterdir()
                if path.suffix.lower() in IMAGE_SUFFIXES and not is_hidden(path, place)
            )
        elif place.exists():
            require_regular(place)
            found.append(place)
        else:
            raise InputError(f"{place}: no such image or folder")
    if not found:
        raise InputError(f"no image in {', '.join(map(str, places))}; known: {', '.join(IMAGE_SUFFIXES)}")
    return found


@workers_watched()
def run_demo(
    config: Config,
    model: RegionDetector,
    classes: Sequence[str],
    images: Sequence[Path],
    folder: Path,
    device: str,
    score_threshold: float,
) -> int:
    """Detect in ``images``, draw into ``folder``, write ``detections.json``; return how many were drawn.

    Proposals come from the config's file, by the images' paths or file names, or are made on the spot by
    its method.
    """
    records = [record_of(path, stem) for path, stem in zip(images, unique_stems(images), strict=True)]
    refuse_overwriting(records, folder)
    detect = build_predictor(config, model, device)
    results: list[dict[str, Any]] = []
    drawn = 0
    algorithms = cuda_algorithms(device, deterministic=config.train.deterministic)  # those of evaluation
    with algorithms, demo_proposals(config, records) as source:
        views = inference_views(config, records, source, device)
        for record, image in zip(records, track(views, len(records), "detecting"), strict=True):
            with naming(image[0].metas):
                found = detect(image)
            pixels = read_image(record.path, (record.height, record.width))
            picture = picture_name(record)
            save_image(folder / picture, draw_detections(pixels, found, classes, score_threshold))
            results.append({"drawn": picture, **as_json(record, found, classes)})
            drawn += int((found.scores >= score_threshold).sum())
    write_json(folder / "detections.json", {"classes": list(classes), "images": results})
    return drawn


def refuse_overwriting(records: Sequence[ImageRecord], folder: Path) -> None:
    """Raise InputError where a drawn picture would take the place of one of the images."""
    inputs = {record.path.resolve() for record in records}
    for record in records:
        drawn = (folder / picture_name(record)).resolve()
        if drawn in inputs:
            raise InputError(f"{drawn}: the picture would overwrite this image; give another --output folder")


def picture_name(record: ImageRecord) -> str:
    """Return the file name of an image's drawn picture."""
    return f"{file_name_of(record.image_id)}.jpg"


def record_of(path: Path, image_id: str) -> ImageRecord:
    """Return a record for an image file without annotations."""
    height, width = upright_size(path)
    key = image_key(path, Path())
    return ImageRecord(
        image_id=image_id, key=key, path=path, height=height, width=width, targets=Targets.empty()
    )


@contextmanager
def demo_proposals(config: Config, records: Sequence[ImageRecord]) -> Iterator[StoredProposals]:
    """Give the images' proposals: from the config's file, or made on the spot, in a passing store.

    Raises InputError for an image that the file does not have or that no proposals can be made for.
    """
    with TemporaryDirectory() as folder:
        target = Path(folder, "store")
        if config.proposals.method is not None:
            store = make_proposals(config, records, target)
        else:
            store = convert_proposals(config, records, target=target)
        missing = [record for record in records if record.key not in store]
        if missing and config.proposals.missing == "error":
            raise InputError(
                f"{store.path}: no proposals for {missing[0].path}; give a file "
                "that has them with --proposals, or leave it out to have them made"
            )
        yield stored_proposals(config, store, training=False)


def unique_stems(images: Sequence[Path]) -> list[str]:
    """Return each file's stem; equal ones get a number, so that no picture overwrites another."""
    stems: list[str] = []
    for path in images:
        stem, number = path.stem, 2
        while stem in stems:
            stem, number = f"{path.stem}_{number}", number + 1
        stems.append(stem)
    return stems


def as_json(record: ImageRecord, found: Detections, classes: Sequence[str]) -> dict[str, Any]:
    """Return an image's size and detections for the JSON; boxes are x1, y1, x2, y2, half-open pixels."""
    return {
        "image": str(record.path),
        "height": record.height,
        "width": record.width,
        "detections": [
            {"class": classes[label - 1], "score": score, "box": box}
            for box, score, label in zip(
                found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True
            )
        ],
    }
