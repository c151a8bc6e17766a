"""Exports of Label Studio: which annotation of a task is read, and what is no export."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from detector.core.errors import InputError
from detector.data.labelstudio.export import read_label_studio
from tests.data.layouts import label_studio_region

SIZE = (200, 400)


def written(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "file.txt"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_which_annotation_of_a_task_is_read(tmp_path: Path) -> None:
    def annotation(label: str, **more: Any) -> dict[str, Any]:
        return {"result": [label_studio_region(1, [label], (1, 2, 3, 4), SIZE)], **more}

    early, late = {"created_at": "2024-01-01"}, {"created_at": "2024-02-01"}
    cases = [
        ([annotation("a", **late), annotation("b", **early)], "a"),
        ([annotation("a", **early, ground_truth=True), annotation("b", **late)], "a"),
        ([annotation("a", **early), annotation("b", **late, was_cancelled=True)], "a"),
        ([annotation("a"), annotation("b")], "b"),
    ]
    content = [{"annotations": found, "data": {"image": "a.jpg"}} for found, _ in cases]
    content.append({"annotations": [annotation("a", was_cancelled=True)], "data": {"img": "x/b.PNG?v=1"}})
    tasks = read_label_studio(written(tmp_path, content))
    assert [task.shapes[0].labels[0] for task in tasks[:-1]] == [label for _, label in cases]
    assert [task.annotations for task in tasks] == [2, 2, 1, 2, 0]
    assert tasks[-1].image == "x/b.PNG?v=1"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "expected a Label Studio export"),
        ([{"image": "a.jpg", "label": []}], "not JSON-MIN"),
        ([{"annotations": [{"result": []}], "data": {"text": "hello"}}], "0 texts in 'data' name an image"),
        ([{"annotations": [{"result": []}]}], "has no 'data'"),
        ([{"annotations": 3, "data": {"image": "a.jpg"}}], "annotations is 3"),
        ([{"annotations": [{"result": 3}], "data": {"image": "a.jpg"}}], "result is 3"),
    ],
)
def test_what_is_no_label_studio_export(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_label_studio(written(tmp_path, content))
