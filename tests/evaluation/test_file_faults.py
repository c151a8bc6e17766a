"""Result files that are well-formed and seem wrong are scored with a warning that says what to look for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from detector.core.structures import ImageRecord, Targets
from detector.evaluation.coco import score_coco_results
from detector.evaluation.result_files import score_result_files

# x, y, width, height on images of 96 x 64 pixels
BOXES = [
    (12, 33, 45, 20),
    (6, 2, 44, 28),
    (52, 8, 30, 24),
    (14, 25, 22, 37),
    (50, 10, 27, 31),
    (1, 1, 94, 62),
]

Box = tuple[float, ...]


def xyxy(box: Box) -> Box:
    return (*box[:2], box[0] + box[2], box[1] + box[3])


def fractions(box: Box) -> Box:
    return box[0] / 96, box[1] / 64, box[2] / 96, box[3] / 64


def warnings_of_coco(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, boxes: list[Box], scores: list[float] | None = None
) -> str:
    """Return what is said of one box an image."""
    numbers = range(1, len(boxes) + 1)
    truth: dict[str, Any] = {
        "images": [{"id": number, "width": 96, "height": 64} for number in numbers],
        "categories": [{"id": 7, "name": "cat"}],
        "annotations": [],
    }
    scores = scores or [number / 10 for number in numbers]
    entries = [
        {"image_id": number, "category_id": 7, "bbox": list(box), "score": score}
        for number, box, score in zip(numbers, boxes, scores, strict=True)
    ]
    path = tmp_path / "results.json"
    path.write_text(json.dumps(entries))
    caplog.clear()
    score_coco_results(path, truth)
    return caplog.text


def test_coco_boxes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert not warnings_of_coco(tmp_path, caplog, [*BOXES, (-1, -1, 98, 66)])
    text = warnings_of_coco(tmp_path, caplog, [xyxy(box) for box in BOXES])
    assert "of 6 boxes, 4 leave their image; as x1, y1, x2, y2 they would fit, but" in text
    text = warnings_of_coco(tmp_path, caplog, [*map(xyxy, BOXES[:3]), *[(2, 2, 40, 40)] * 3])
    assert "of 6 boxes, 2 leave their image; as x1, y1, x2, y2 they would fit" in text
    text = warnings_of_coco(tmp_path, caplog, [(x, y, -5, -5) for x, y, _, _ in BOXES])
    assert "of 6 boxes, 6 have no area" in text
    assert "leave" not in text
    assert "would fit" not in text
    text = warnings_of_coco(tmp_path, caplog, [fractions(box) for box in BOXES])
    assert "of 6 boxes, 6 lie in 0..1; they seem to be fractions of the image's sides" in text
    text = warnings_of_coco(tmp_path, caplog, [*BOXES, (0, 0, 0, 5)])
    assert text.strip().endswith("of 7 boxes, 1 have no area")


def test_scores_and_repetitions(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert not warnings_of_coco(tmp_path, caplog, [*BOXES], [-1.5, 7, 0, 1, 2, 99])  # only the order counts
    assert "all 6 scores are 0.9" in warnings_of_coco(tmp_path, caplog, [*BOXES], [0.9] * 6)
    path = tmp_path / "results.json"
    entries = json.loads(path.read_text())
    entries[3]["score"] = 0.4
    path.write_text(json.dumps([*entries, entries[3], entries[3]]))
    images = [{"id": number} for number in range(1, 7)]  # of unknown size
    caplog.clear()
    score_coco_results(path, {"images": images, "categories": [{"id": 7, "name": "cat"}], "annotations": []})
    assert "2 of 8 detections are repeated" in caplog.text
    assert "leave" not in caplog.text


def test_result_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    records = [
        ImageRecord(image_id=str(n), path=Path("x"), height=64, width=96, targets=Targets.empty())
        for n in range(7)
    ]

    def said(boxes: list[Box]) -> str:
        lines = [f"{n} 0.{n + 1} {' '.join(map(str, box))}\n" for n, box in enumerate(boxes)]
        (tmp_path / "comp4_det_test_cat.txt").write_text("".join(lines))
        caplog.clear()
        score_result_files(tmp_path, records, ["cat"])
        return caplog.text

    assert not said([xyxy(box) for box in BOXES] + [(1, 1, 1, 1)])
    assert "of 6 boxes, 3 have no area; as x, y, width, height they would fit, but the lines are" in said(
        [*BOXES]
    )
    assert "of 6 boxes, 6 lie in 0..1" in said([xyxy(fractions(box)) for box in BOXES])
    assert "of 1 boxes, 1 leave their image" in said([(1, 1, 98, 64)])
    assert not said([])
