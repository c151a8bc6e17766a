"""Recall against numbers worked out by hand, average recall and overlaps against the obvious loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from detector.core.errors import InputError
from detector.core.structures import ImageRecord, Proposals, Targets
from detector.proposals.recall import THRESHOLDS, best_overlaps, measure_overlaps, recall, recall_report
from detector.proposals.store import Entry, ProposalStore


def make_record(
    image_id: str, boxes: list[list[float]], difficult: list[bool], crowd: list[bool]
) -> ImageRecord:
    targets = Targets.make(
        torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        torch.ones(len(boxes), dtype=torch.int64),
        torch.tensor(difficult, dtype=torch.bool),
        torch.tensor(crowd, dtype=torch.bool),
    )
    return ImageRecord(image_id=image_id, path=Path("none"), height=100, width=100, targets=targets)


RECORDS = [
    make_record(
        "a",
        [[0, 0, 10, 10], [50, 50, 60, 60], [0, 0, 100, 100]],
        difficult=[False, True, False],
        crowd=[False, False, True],
    ),
    make_record("b", [[20, 20, 40, 40]], difficult=[False], crowd=[False]),
    make_record("empty", [], difficult=[], crowd=[]),
]
BOXES = {
    # IoU 0.6 with the first object of a, 0 with its second
    "a": Proposals(boxes=torch.tensor([[0.0, 0, 10, 6]]), scores=torch.tensor([0.3])),
    # IoU 0.25 and then 1 with the object of b, the better one first by score
    "b": Proposals(
        boxes=torch.tensor([[20.0, 20, 30, 30], [20, 20, 40, 40]]), scores=torch.tensor([0.1, 0.9])
    ),
    "empty": Proposals(boxes=torch.zeros(0, 4)),
}


@pytest.fixture
def small_store(tmp_path: Path) -> ProposalStore:
    store = ProposalStore.create(tmp_path / "small", generator="by hand", parameters={})
    store.append({name: Entry(proposals) for name, proposals in BOXES.items()})
    return store


def test_best_overlaps_of_each_object() -> None:
    assert best_overlaps(RECORDS[0].targets.boxes, BOXES["a"]).tolist() == pytest.approx([0.6, 0, 0.006])
    assert best_overlaps(RECORDS[0].targets.boxes, BOXES["empty"]).tolist() == [0, 0, 0]
    assert best_overlaps(RECORDS[2].targets.boxes, BOXES["b"]).shape == (0,)


def test_crowds_never_count_and_difficult_ones_by_choice(small_store: ProposalStore) -> None:
    metrics = recall(RECORDS, small_store)
    assert metrics == pytest.approx(
        {
            "recall_0.5": 2 / 3,
            "recall_0.7": 1 / 3,
            "mean_best_overlap": 1.6 / 3,
            "objects": 3,
            "images": 3,
            "proposals_per_image": 1,
        }
    )
    easy = recall(RECORDS, small_store, (0.5, 0.6, 0.95), include_difficult=False)
    assert [easy["recall_0.5"], easy["recall_0.6"], easy["recall_0.95"]] == pytest.approx([1, 1, 0.5])
    assert easy["objects"] == 2


def test_the_limit_takes_the_best_by_score(small_store: ProposalStore) -> None:
    metrics = recall(RECORDS[1:2], small_store, limit=1)
    assert (metrics["recall_0.7"], metrics["proposals_per_image"]) == (1, 1)


def test_no_object_at_all(small_store: ProposalStore) -> None:
    assert recall(RECORDS[2:], small_store)["recall_0.5"] == 0
    assert recall([], small_store)["images"] == 0


def test_an_image_without_an_entry_is_an_error(small_store: ProposalStore) -> None:
    unknown = make_record("c", [], difficult=[], crowd=[])
    with pytest.raises(InputError, match="no proposals for image 'c'"):
        recall([*RECORDS, unknown], small_store)


CLASSES = ["cat", "dog", "never"]
COUNTS = (1, 4, 10, 500)


def random_boxes(rng: np.random.Generator, count: int, extent: float = 200.0) -> torch.Tensor:
    corners = rng.uniform(0, extent, (count, 2, 2))
    low, high = corners.min(axis=1), corners.max(axis=1) + 1
    return torch.from_numpy(np.concatenate((low, high), axis=1).astype(np.float32))


def random_record(rng: np.random.Generator, number: int) -> ImageRecord:
    count = number % 4
    targets = Targets(
        boxes=random_boxes(rng, count),
        labels=torch.from_numpy(rng.integers(1, 3, count)),
        difficult=torch.from_numpy(rng.random(count) < 0.3),
        crowd=torch.from_numpy(rng.random(count) < 0.2),
        area=torch.from_numpy(rng.uniform(10, 20000, count).astype(np.float32)),
    )
    return ImageRecord(image_id=f"{number}", path=Path("none"), height=210, width=210, targets=targets)


@pytest.fixture
def records() -> list[ImageRecord]:
    rng = np.random.default_rng(0)
    return [random_record(rng, number) for number in range(40)]


@pytest.fixture
def store(records: list[ImageRecord], tmp_path: Path) -> ProposalStore:
    """Scored boxes for most images, unscored ones for some, none for image 7."""
    rng = np.random.default_rng(1)
    store = ProposalStore.create(tmp_path / "store", generator="random", parameters={})
    entries = {}
    for record in records:
        count = int(rng.integers(0, 30))
        scores = torch.from_numpy(rng.permutation(count).astype(np.float32))
        scored = int(record.image_id) % 5 != 0
        boxes = random_boxes(rng, count)
        entries[record.image_id] = Entry(Proposals(boxes=boxes, scores=scores if scored else None))
    del entries["7"]
    store.append(entries)
    return store


def slow_iou(a: list[float], b: list[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0.0) * max(height, 0.0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def slow_best(
    records: list[ImageRecord], store: ProposalStore, count: int, difficult: bool
) -> list[tuple[float, str, float]]:
    """The best IoU among the first ``count`` proposals, the class and the area of each object."""
    rows = []
    for record in records:
        ranked: list[list[float]] = []
        if record.image_id in store:
            found = store[record.image_id]
            ranked = found.boxes.tolist()
            if found.scores is not None:
                scores = found.scores.tolist()
                ranked = [ranked[i] for i in sorted(range(len(ranked)), key=lambda i: -scores[i])]
        targets = record.targets
        for i in range(len(targets)):
            if targets.crowd[i] or (targets.difficult[i] and not difficult):
                continue
            box = targets.boxes[i].tolist()
            best = max((slow_iou(box, other) for other in ranked[:count]), default=0.0)
            rows.append((best, CLASSES[int(targets.labels[i]) - 1], float(targets.area[i])))
    return rows


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


@pytest.mark.parametrize("difficult", [True, False])
def test_every_metric_equals_the_obvious_loop(
    records: list[ImageRecord], store: ProposalStore, difficult: bool
) -> None:
    overlaps = measure_overlaps(records, store, counts=COUNTS, include_difficult=difficult)
    report = recall_report(overlaps, CLASSES)
    assert report["counts"] == [1, 4, 10, 500]
    assert (report["images"], report["images_without_proposals"]) == (40, 1)
    sizes = {"small": (0, 1024), "medium": (1024, 9216), "large": (9216, 1e9)}
    for place, count in enumerate(COUNTS):
        rows = slow_best(records, store, count, difficult)
        groups: dict[str | None, list[Any]] = {None: rows}
        groups |= {name: [row for row in rows if row[1] == name] for name in CLASSES}
        groups |= {size: [row for row in rows if low <= row[2] < high] for size, (low, high) in sizes.items()}
        for name, group in groups.items():
            found = report if name is None else (report["per_class"] | report["per_size"])[name]
            assert found["objects"] == len(group)
            if not group:
                assert name == "never"
                assert found["recall"] is None
                continue
            best = [row[0] for row in group]
            recalls = [mean([value >= threshold for value in best]) for threshold in THRESHOLDS]
            for threshold, wanted in zip(THRESHOLDS, recalls, strict=True):
                assert found["recall"][f"{threshold:g}"][place] == pytest.approx(wanted)
            assert found["average_recall"][place] == pytest.approx(mean(recalls))
            assert found["mean_best_overlap"][place] == pytest.approx(mean(best), abs=1e-6)
        per_class = [mean([row[0] for row in rows if row[1] == name]) for name in CLASSES[:2]]
        assert report["MABO"][place] == pytest.approx(mean(per_class), abs=1e-6)


def test_counts_go_up_to_all_that_there_are(records: list[ImageRecord], store: ProposalStore) -> None:
    overlaps = measure_overlaps(records, store)
    most = max(store.count(key) for key in store.ids())
    assert overlaps.counts == (1, 3, 10, most)
    assert (np.diff(overlaps.best, axis=1) >= 0).all()


def test_no_objects_at_all(store: ProposalStore, records: list[ImageRecord]) -> None:
    report = recall_report(measure_overlaps(records[:1], store), CLASSES)
    assert (report["objects"], report["recall"], report["MABO"]) == (0, None, None)
    assert recall_report(measure_overlaps([], store), CLASSES)["proposals_per_image"] == 0
