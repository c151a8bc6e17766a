"""Data sets of Label Studio: where images are found, which tasks are read, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from detector.core.errors import InputError
from detector.data.annotation_cache import AnnotationCache
from detector.data.labelstudio.source import LabelStudioSource
from tests.data.layouts import label_studio_region, label_studio_task
from tests.data.yolo.test_source import draw

SIZE = (40, 80)


def task(image: str, *labels: str, **annotation: Any) -> dict[str, Any]:
    regions = [label_studio_region(0, labels, (10, 5, 30, 20), SIZE)] if labels else []
    return label_studio_task(1, image, regions, **annotation)


def export(root: Path, *tasks: dict[str, Any], split: str = "x") -> LabelStudioSource:
    root.mkdir(parents=True, exist_ok=True)
    (root / f"{split}.json").write_text(json.dumps(tasks))
    return LabelStudioSource(root, images="photos")


@pytest.mark.parametrize(
    ("reference", "file"),
    [
        ("/data/upload/1/0123abcd-a.jpg", "a.jpg"),
        ("/data/upload/1/0123abcd-a.jpg", "0123abcd-a.jpg"),
        ("/data/local-files/?d=set/photos/a.jpg", "a.jpg"),
        ("/data/local-files/?d=day%201/a.jpg", "day 1/a.jpg"),
        ("https://host/bucket/day1/a.jpg?sig=%2F..%2F", "day1/a.jpg"),
        ("s3://bucket/a.jpg", "anywhere/below/a.jpg"),
        ("a.jpg", "a.jpg"),
    ],
)
def test_images_by_the_names_in_tasks(tmp_path: Path, reference: str, file: str) -> None:
    draw(tmp_path / "photos" / file)
    draw(tmp_path / "photos/other.jpg")
    dataset = export(tmp_path, task(reference, "cat")).load("x")
    (record,) = dataset.records
    assert record.key == f"photos/{file}"
    assert record.image_id == file.removesuffix(".jpg")
    assert record.targets.boxes.tolist() == [[10, 5, 30, 20]]


def test_tasks_without_annotation(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        draw(tmp_path / f"photos/{name}.jpg")
    cancelled = task("b.jpg", "dog", was_cancelled=True)
    twice = task("a.jpg", "cat")
    twice["annotations"].append(task("a.jpg", "bird", created_at="2025-01-01")["annotations"][0])
    source = export(tmp_path, twice, cancelled, task("c.jpg"))
    dataset = source.load("x")
    assert list(dataset.records.keys) == ["photos/a.jpg", "photos/c.jpg"]
    assert dataset.classes == ("bird",)
    assert [one.kind for one in dataset.suspicions] == ["several annotations", "tasks without annotation"]
    source = export(tmp_path, cancelled, split="y")
    with pytest.raises(InputError, match="no image of 'y' is annotated"):
        source.load("y")
    assert not source.load("y", training=False, unannotated=True).annotated


def test_labels_and_choices_per_region(tmp_path: Path) -> None:
    draw(tmp_path / "photos/a.jpg")
    content = task("a.jpg", "cat", "small")
    content["annotations"][0]["result"].append(
        {"id": "r0", "type": "choices", "from_name": "colour", "value": {"choices": ["red"]}}
    )
    export(tmp_path, content)
    for cache in (None, AnnotationCache(tmp_path / "cache"), AnnotationCache(tmp_path / "cache")):
        source = LabelStudioSource(tmp_path, images="photos", attributes=("colour",), cache=cache)
        dataset = source.load("x")
        assert dataset.classes == source.class_names("x") == ("cat", "colour=red", "small")
        (record,) = dataset.records
        assert sorted(record.targets.labels.tolist()) == [1, 2, 3]
        assert len(record.targets.boxes.unique(dim=0)) == 1


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([], "there is no task"),
        (
            [task("a.jpg"), task("photos/a.jpg")],
            r"tasks\[1\]: 'a' is also the id of the image of .*tasks\[0\]",
        ),
        ([task("x/twin.jpg")], r"tasks\[0\]: the image 'twin.jpg' could be"),
        ([task("..")], r"tasks\[0\]: '..' names no image"),
        ([task("gone.jpg", "cat")], r"image 'photos/gone.jpg' is missing"),
        ([task("../../etc/passwd.jpg", "cat")], r"image 'photos/passwd.jpg' is missing"),
    ],
)
def test_what_is_refused(tmp_path: Path, tasks: list[dict[str, Any]], message: str) -> None:
    for name in ("a.jpg", "p/twin.jpg", "q/twin.jpg"):
        draw(tmp_path / "photos" / name)
    with pytest.raises(InputError, match=message) as caught:
        export(tmp_path, *tasks).load("x")
    assert "x.json" in str(caught.value)
