"""Overlaps of whole data sets against torch, image by image, bit for bit."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.core.boxes import iou
from detector.core.records import Records, Texts
from detector.core.structures import ImageRecord, Proposals, Targets
from detector.factory.proposals import StoredProposals, target_sums
from detector.models.box_coder import TargetSums, measured_coder
from detector.models.roi_sampler import trained_objects
from detector.proposals.bulk import BulkObjects, best_overlaps_of_all, content_digest
from detector.proposals.filtering import Limits, filter_proposals
from detector.proposals.recall import ALL_PROPOSALS, recall
from detector.proposals.segments import DamagedStore
from detector.proposals.store import Entry, ProposalStore
from tests.proposals.reference import image_overlaps, image_targets, numpy_filter

SIZE = (60, 80)


def draw_boxes(rng: np.random.Generator, count: int, whole: bool, flat: float) -> torch.Tensor:
    """Boxes inside and outside an image of `SIZE`, some of them equal, empty or turned around."""
    corners = rng.uniform(-20, 100, (count, 2, 2)).astype(np.float32)
    corners = np.round(corners) if whole else corners
    boxes = np.sort(corners, axis=1).reshape(count, 4)
    boxes[rng.random(count) < flat, 2:] -= 60
    if count:
        boxes = np.where(rng.random((count, 1)) < 0.3, boxes[rng.integers(0, count, count)], boxes)
        boxes[rng.random((count, 4)) < 0.02] = -0.0
        boxes[rng.random((count, 4)) < 0.005] = 3e38
    return torch.from_numpy(boxes.astype(np.float32))


def draw_record(rng: np.random.Generator, number: int, whole: bool) -> ImageRecord:
    count = int(rng.integers(0, 6))
    targets = Targets(
        boxes=draw_boxes(rng, count, whole, 0.1),
        labels=torch.from_numpy(rng.integers(1, 4, count)),
        difficult=torch.from_numpy(rng.random(count) < 0.3),
        crowd=torch.from_numpy(rng.random(count) < 0.2),
        area=torch.zeros(count),
    )
    height, width = SIZE
    return ImageRecord(
        image_id=f"{number}",
        path=Path("none"),
        height=height,
        width=width,
        targets=targets,
        key=f"k/{number}",
    )


def draw_proposals(rng: np.random.Generator, record: ImageRecord, whole: bool) -> Proposals:
    count = int(rng.integers(0, 60))
    boxes = torch.cat((draw_boxes(rng, count, whole, 0.2), record.targets.boxes + float(rng.integers(0, 3))))
    scores = torch.from_numpy(np.round(rng.random(len(boxes)), 1).astype(np.float32))
    scores[rng.random(len(boxes)) < 0.05] = float("nan")
    return Proposals(boxes=boxes, scores=scores if rng.random() < 0.6 else None)


def draw_set(
    seed: int, folder: Path, images: int = 12, whole: bool = True, missing: float = 0.2
) -> tuple[list[ImageRecord], ProposalStore]:
    """Records and a store of several segments, in another order, that lacks some of the images."""
    rng = np.random.default_rng(seed)
    records = [draw_record(rng, number, whole) for number in range(images)]
    store = ProposalStore.create(folder / "store", generator="drawn", parameters={})
    kept = [record for record in records if rng.random() >= missing]
    order = rng.permutation(len(kept)).tolist()
    for part in (order[::3], order[1::3], order[2::3]):
        store.append({kept[i].key: Entry(draw_proposals(rng, kept[i], whole)) for i in part})
    return records, ProposalStore.open(store.path)


seeds = st.integers(0, 2**32)
limits_drawn = st.builds(
    Limits, st.sampled_from([0.0, 1.0, 12.5]), st.sampled_from([None, 1, 7, 30]), st.booleans()
)


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.view(torch.int32), b.view(torch.int32))


@settings(max_examples=60, deadline=None)
@given(seeds, st.booleans(), limits_drawn)
def test_the_filter_and_what_a_store_reads_equal_numpy(seed: int, whole: bool, limits: Limits) -> None:
    with tempfile.TemporaryDirectory() as folder:
        records, store = draw_set(seed, Path(folder), 5, whole)
        for record in records:
            found = store.filtered(record.key, SIZE, limits)
            assert (found is None) == (record.key not in store)
            if found is None:
                continue
            wanted = numpy_filter(store[record.key], SIZE, limits)
            for one in (found, filter_proposals(store[record.key], SIZE, **limits._asdict())):
                assert same_bits(one.boxes, wanted.boxes)
                assert (one.scores is None) == (wanted.scores is None)
                assert one.scores is None or wanted.scores is None or torch.equal(one.scores, wanted.scores)


@settings(max_examples=60, deadline=None)
@given(
    seeds,
    st.booleans(),
    st.sampled_from([None, Limits(), Limits(12.5, 7)]),
    st.booleans(),
    st.integers(1, 40),
)
def test_best_overlaps_equal_those_image_by_image(
    seed: int, whole: bool, limits: Limits | None, difficult: bool, most_boxes: int
) -> None:
    """``most_boxes`` cuts the data set into parts of several images or of one."""
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch("detector.proposals.store._SCAN_BOXES", most_boxes),
    ):
        records, store = draw_set(seed, Path(folder), whole=whole)
        columns = Records.of(records)
        keep = ~columns.objects.crowd if difficult else ~(columns.objects.crowd | columns.objects.difficult)
        objects = BulkObjects.select(columns.objects, keep)
        counts = (1, 5, ALL_PROPOSALS)
        found = best_overlaps_of_all(store, columns, objects, counts, limits)
        best, held = image_overlaps(records, store, limits, difficult)
        assert torch.equal(torch.from_numpy(found.best[:, 2]), best)  # 0 and -0 are equal
        assert found.held.tolist() == held
        if limits is not None:
            for column in (0, 1):
                first, _ = image_overlaps(records, store, limits._replace(top_k=counts[column]), difficult)
                if limits.top_k is None:
                    assert torch.equal(torch.from_numpy(found.best[:, column]), first)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(
    seeds, st.booleans(), st.sampled_from([0.3, 0.5, 0.7]), st.booleans(), st.booleans(), st.integers(1, 40)
)
def test_target_statistics_equal_those_image_by_image(
    seed: int, whole: bool, threshold: float, difficult: bool, full_image: bool, most_boxes: int
) -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch("detector.proposals.store._SCAN_BOXES", most_boxes),
    ):
        records, store = draw_set(seed, Path(folder), whole=whole)
        source = StoredProposals(store, 30, 2.0, full_image)
        found = target_sums(records, source, 3, threshold, use_difficult=difficult)
        wanted = image_targets(
            records, store, source.limits, 3, threshold, use_difficult=difficult, full_image=full_image
        )
        assert torch.equal(found.count, wanted.count)
        torch.testing.assert_close(found.total, wanted.total, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found.squares, wanted.squares, rtol=1e-6, atol=1e-6)
        again = target_sums(records, source, 3, threshold, use_difficult=difficult)
        if not found.count.any():
            with pytest.raises(ValueError, match="cannot be measured"):
                measured_coder(found)
        else:
            for agnostic in (False, True):
                first, second = (measured_coder(one, class_agnostic=agnostic) for one in (found, again))
                assert torch.equal(first.means, second.means)
                assert torch.equal(first.deviations, second.deviations)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(max_size=6), max_size=8), st.lists(st.text(max_size=8), max_size=8))
def test_all_ids_are_found_as_each_alone(stored: list[str], wanted: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        store = ProposalStore.create(Path(folder) / "store", generator="g", parameters={})
        rows = {f"a{name}": name for name in stored if name.isprintable()}
        store.append({key: Entry(Proposals(boxes=torch.zeros(len(name), 4))) for key, name in rows.items()})
        names = [*rows, *wanted, *(f"a{name}" for name in wanted), "a\0", ""]
        named = store.with_names({"other": next(iter(rows), "none")})
        for one in (store, named):
            for chosen in (names, [name for name in names if "\0" not in name], []):
                found = one.find_all(Texts.of([*chosen, "other"])) >= 0
                assert found.tolist() == [name in one for name in [*chosen, "other"]]
                counts = one.counts(Texts.of(chosen))
                assert counts.tolist() == [one.count(name) if name in one else -1 for name in chosen]


def test_a_damaged_image_is_named(tmp_path: Path) -> None:
    records, store = draw_set(3, tmp_path, missing=0.0)
    path = sorted(store.path.glob("segment_*.boxes.npy"))[1]
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    for call in (
        lambda one: recall(records, one),
        lambda one: target_sums(records, StoredProposals(one, 99, 1.0), 3, 0.0, use_difficult=True),
    ):
        with pytest.raises(DamagedStore, match=rf"{path.name} is damaged: image 'k/\d+' is not .*; make the"):
            call(ProposalStore.open(store.path))
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DamagedStore, match=rf"{path.name} is damaged: its end is missing"):
        recall(records, ProposalStore.open(store.path))
    path.unlink()
    with pytest.raises(DamagedStore, match=rf"{path.name} is missing"):
        recall(records, ProposalStore.open(store.path))


def test_a_store_that_is_compacted_meanwhile_is_read_again(tmp_path: Path) -> None:
    records, store = draw_set(4, tmp_path, missing=0.0)
    wanted, _ = image_overlaps(records, store, None, True)
    reader = ProposalStore.open(store.path)
    store.compact()
    columns = Records.of(records)
    objects = BulkObjects.select(columns.objects, ~columns.objects.crowd)
    found = best_overlaps_of_all(reader, columns, objects, [ALL_PROPOSALS], None)
    assert torch.equal(torch.from_numpy(found.best[:, 0]), wanted)


def test_the_digest_changes_with_all_that_counts_and_with_nothing_else(tmp_path: Path) -> None:
    records, store = draw_set(5, tmp_path, missing=0.0)
    columns = Records.of(records)
    before = content_digest(store, columns)
    assert content_digest(store, columns[:-1]) != before
    assert content_digest(store, columns.take([1, 0, *range(2, len(columns))])) != before
    store.append({"another": Entry(Proposals(boxes=torch.ones(2, 4)))})
    store.compact()
    assert content_digest(ProposalStore.open(store.path), Records.of(list(columns))) == before
    store.append({records[2].key: Entry(Proposals(boxes=torch.ones(2, 4)))})
    assert content_digest(store, columns) != before


@settings(max_examples=8, deadline=None)
@given(seeds, st.booleans())
def test_target_statistics_count_each_label_of_an_object(seed: int, difficult: bool) -> None:
    """The same as where each object is matched once, and its targets are added for each of its labels."""
    with tempfile.TemporaryDirectory() as folder:
        drawn, store = draw_set(seed, Path(folder), whole=False)
        rng, records = np.random.default_rng(seed), []
        for record in drawn:  # some objects are annotated again with other labels
            again = torch.from_numpy(rng.integers(0, 3, len(record.targets)))
            rows = torch.cat((torch.arange(len(again)), torch.arange(len(again)).repeat_interleave(again)))
            targets = record.targets.select(rows)
            labels = targets.labels.clone()
            labels[len(again) :] = torch.from_numpy(rng.integers(1, 4, len(rows) - len(again)))
            records.append(replace(record, targets=replace(targets, labels=labels)))
        source = StoredProposals(store, 30, 2.0)
        found = target_sums(records, source, 3, 0.5, use_difficult=difficult, multi_label=True)
        wanted = TargetSums.empty(3)
        for record in records:
            labels_of: dict[tuple[float, ...], set[int]] = {}
            objects = trained_objects(record.targets, use_difficult=difficult)
            for box, label in zip(objects.boxes.tolist(), objects.labels.tolist(), strict=True):
                labels_of.setdefault(tuple(box), set()).add(label)
            boxes = torch.tensor(list(labels_of)).reshape(-1, 4)
            regions = torch.cat((boxes, source(record).boxes))
            if not len(boxes):
                continue
            overlap, match = iou(regions, boxes).max(dim=1)
            for region, best, at in zip(regions, overlap.tolist(), match.tolist(), strict=True):
                for label in labels_of[tuple(boxes[at].tolist())] if best >= 0.5 else ():
                    wanted.add(region[None], boxes[at, None], torch.tensor([label]))
        assert torch.equal(found.count, wanted.count)
        torch.testing.assert_close(found.total, wanted.total, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(found.squares, wanted.squares, rtol=1e-6, atol=1e-6)
