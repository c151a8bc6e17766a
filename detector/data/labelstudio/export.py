"""A Label Studio export in the format "JSON": which annotation of each task is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detector.core.errors import FaultHandler, InputError, faults_to
from detector.core.files import read_json
from detector.core.label_studio_file import image_reference, is_skipped, objects_in, read_regions
from detector.core.shapes import Shape


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelStudioTask:
    """One task of a Label Studio export.

    ``image`` is the reference to the image as written. ``size`` is (height, width), None where nothing is
    drawn. ``annotations`` is how many people's annotations there are, without skipped ones; the ``shapes``
    are those of one of them.
    """

    image: str
    size: tuple[int, int] | None
    shapes: list[Shape]
    annotations: int
    place: str


def read_label_studio(path: Path, on_fault: FaultHandler | None = None) -> list[LabelStudioTask]:
    """Read a Label Studio export in the format "JSON", a list of tasks.

    Of several annotations of a task one is read: one that is marked as the ground truth, otherwise the one
    that was made last; skipped ones never are. `detector.core.label_studio_file.read_regions` says what is
    read of it; each region must have a label.

    Raises:
        InputError: a file that cannot be read or another format, a task without an image, or a faulty
            region; the message names file, task and region. With ``on_fault`` a faulty region or task is
            passed to it and left out.
    """
    content = read_json(path)
    if not isinstance(content, list) or not all(isinstance(task, dict) for task in content):
        raise InputError(
            f"{path}: expected a Label Studio export in the format JSON, a list of tasks; not JSON-MIN"
        )
    tasks = []
    for number, task in enumerate(content):
        with faults_to(on_fault):
            tasks.append(_task(task, path, f"tasks[{number}]", on_fault))
    return tasks


def _task(task: dict[str, Any], path: Path, place: str, on_fault: FaultHandler | None) -> LabelStudioTask:
    where = f"{path}: {place}"
    found = task.get("annotations", task.get("completions"))
    if found is None and "annotations" not in task:
        raise InputError(
            f"{where} has no 'annotations'; export the project in the format JSON, which is not JSON-MIN"
        )
    found = objects_in(found, "annotations", where)
    image = image_reference(task, where)
    kept = [one for one in found if not is_skipped(one)]
    size, shapes = read_regions(_chosen(kept), path, place, on_fault=on_fault) if kept else (None, [])
    return LabelStudioTask(image=image, size=size, shapes=shapes, annotations=len(kept), place=place)


def _chosen(annotations: Sequence[dict[str, Any]]) -> dict[str, Any]:
    def rank(number: int) -> tuple[bool, str, int]:
        one = annotations[number]
        return bool(one.get("ground_truth")), str(one.get("created_at", "")), number

    return annotations[max(range(len(annotations)), key=rank)]
