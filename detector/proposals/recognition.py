"""Which format a proposal file or folder has, by its content where names do not say it."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from detector.core.errors import InputError
from detector.core.files import is_hidden, require_regular
from detector.core.yolo_file import LONGEST_LINE, line_words, parse_words
from detector.proposals.readers.cellpose import holds_objects
from detector.proposals.readers.json_stream import JsonText, json_text
from detector.proposals.readers.label_images import NAME_ENDS, SUFFIXES, read_labels
from detector.proposals.readers.pickles import read_pickle
from detector.proposals.readers.yolo import keypoints_near

_MOST_FILES = 1000  # of a folder that are listed
_OPENED = 3  # of one kind that are opened
_MOST_LINES = 1000  # of a text file
_SAM_KEYS = frozenset(("predicted_iou", "stability_score", "crop_box", "point_coords"))
_TASK_KEYS = frozenset(("annotations", "predictions", "completions"))
_FOLDERS_OF_JSON = ("sam", "labelme")


def guess_format(source: Path) -> str:
    """Return the format that ``source`` seems to have, or "store"; InputError where nothing fits."""
    found = _of_folder(source) if source.is_dir() else _of_file(source)
    if found is None:
        raise InputError(f"{source} is not a proposal file whose format its content shows; give the format")
    return found


def _of_file(path: Path) -> str | None:
    match path.suffix.lower():
        case ".pkl" | ".pickle":
            content = read_pickle(path)
            if not isinstance(content, dict) or "boxes" not in content:
                return "mmdetection"
            return "detectron" if "indexes" in content else "detectron2"
        case ".json":
            return _of_json(path)
        case ".npy":
            return "cellpose" if holds_objects(path) else None
        case ".txt":
            return "yolo" if _is_yolo([path]) else None
        case suffix if suffix in SUFFIXES:
            return "labels" if _is_label_image(path) else None
        case suffix:
            return {".npz": "npz", ".mat": "mat", ".xml": "voc"}.get(suffix)


def _of_folder(folder: Path) -> str | None:
    """Return the format of the files in ``folder`` and below; images may lie beside them."""
    if (folder / "manifest.json").exists():
        return "store"
    shown = (path for path in folder.rglob("*") if not is_hidden(path, folder))
    paths = sorted(path for path in islice(shown, _MOST_FILES) if path.is_file())
    by_suffix: dict[str, list[Path]] = {}
    for path in paths:
        by_suffix.setdefault(path.suffix.lower(), []).append(path)
    if ".npy" in by_suffix:
        return "cellpose" if any(map(holds_objects, by_suffix[".npy"][:_OPENED])) else "npy"
    if ".mat" in by_suffix:
        return "mat"
    if (found := _of_json_folder(by_suffix.get(".json", ()))) is not None:
        return found
    if ".xml" in by_suffix:
        return "voc"
    if ".txt" in by_suffix:
        return "yolo" if _is_yolo(by_suffix[".txt"]) else "text"
    images = [path for suffix in SUFFIXES for path in by_suffix.get(suffix, ())]
    images = [path for path in images if NAME_ENDS.search(path.stem)] or images
    return "labels" if images and all(map(_is_label_image, images[:_OPENED])) else None


def _of_json_folder(paths: Iterable[Path]) -> str | None:
    """Return the format of JSON files with one image each; files of no known format are passed over.

    Raises InputError for a folder with one file for all images, which must be given itself.
    """
    for path in islice(paths, _OPENED):
        found = None
        with suppress(InputError):
            found = _of_json(path)
        if found in _FOLDERS_OF_JSON:
            return found
        if found is not None:
            raise InputError(f"{path.parent}: {path.name} is a file of the format {found}; give its own path")
    return None


def _of_json(path: Path) -> str | None:
    """Return the format of a JSON file by its first entry or its keys; None for no known one."""
    with json_text(path, "JSON file") as text:
        if text.next_character() != "[":
            return _of_object(text)
        for _ in text.items():
            return _of_element(text.element())
    return "coco"  # an empty list of results


def _of_element(first: dict[str, Any]) -> str | None:
    keys = first.keys()
    if "image_id" in keys and "bbox" in keys:
        return "coco"
    if isinstance(first.get("data"), dict) and keys & _TASK_KEYS:
        return "labelstudio"
    if isinstance(first.get("segmentation"), dict) and keys & _SAM_KEYS:
        return "sam"
    return "sam" if isinstance(first.get("image"), dict) and "annotations" in keys else None


def _of_object(text: JsonText) -> str | None:
    keys = set()
    image = None
    for key in text.members():
        keys.add(key)
        if key == "image" and text.next_character() == "{":
            image = text.value()
        elif key == "images" and text.next_character() == "[":
            for number in text.items():
                if number > 0:
                    text.skip()
                    continue
                first = text.value()
                if isinstance(first, dict) and "file" in first:
                    return "megadetector"
        elif key in ("shapes", "detection_categories"):
            return "labelme" if key == "shapes" else "megadetector"
        else:
            text.skip()
        if {"images", "annotations"} <= keys:
            return "coco_annotations"
        if isinstance(image, dict) and "annotations" in keys:
            return "sam"
    return None


def _is_yolo(paths: Iterable[Path]) -> bool:
    """Say whether text files hold regions as YOLO writes them: fractions of the image after a whole number.

    Plain boxes are four numbers, or five with a score, and in pixels.
    """
    regions = 0
    named = [path for path in paths if path.stem.lower() not in ("classes", "notes", "readme")]
    for path in named[:_OPENED]:
        require_regular(path)
        keypoints = keypoints_near(path)
        try:
            with path.open(encoding="utf-8-sig") as file:
                for line in islice(iter(lambda: file.readline(LONGEST_LINE + 1), ""), _MOST_LINES):
                    words = line_words(line, str(path))
                    if not words:
                        continue
                    _, values, score = parse_words(words, str(path), keypoints=keypoints, confidences=True)
                    if any(not 0 <= value <= 1 for value in (*values, score or 0)):
                        return False
                    regions += 1
        except (InputError, UnicodeDecodeError, OSError):
            return False
    return regions > 0


def _is_label_image(path: Path) -> bool:
    """Say whether a PNG or TIFF file has one whole number per pixel, judged by its header if it is large."""
    with suppress(InputError, OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return read_labels(path).ndim == 2
    return False
