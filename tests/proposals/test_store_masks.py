"""Masks in a proposal store: read as they were written, damage noticed, and nothing else changed by them."""

from __future__ import annotations

import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.core.errors import InputError
from detector.core.masks import Masks
from detector.core.records import Texts
from detector.core.structures import ImageRecord, Proposals, Targets
from detector.proposals.checked import store_mark
from detector.proposals.filtering import Limits, filter_proposals, unique_proposals
from detector.proposals.journal import NAME, Journal, decode_entry, encode_entry, entries
from detector.proposals.recall import recall
from detector.proposals.segments import mask_checksum_of
from detector.proposals.store import Entry, ProposalStore, merge_stores

SIZE = (12, 17)


def make_masked(count: int, seed: int = 0, *, scored: bool = True, every: bool = False) -> Proposals:
    """Random masks; without ``every`` about a third of the regions has only a box."""
    rng = np.random.default_rng(seed)
    masks = Masks.encode(rng.random((count, *SIZE)) < rng.random((count, 1, 1)) * 0.2 + 0.02)
    boxed = (rng.random(count) < 0.3) & (not every)
    masks = Masks(SIZE, tuple(b"" if bare else one for bare, one in zip(boxed, masks.counts, strict=True)))
    written = torch.from_numpy(
        np.sort(rng.random((count, 2, 2)), axis=1).reshape(count, 4).astype(np.float32)
    )
    boxes = torch.where(torch.from_numpy(masks.present)[:, None], masks.boxes(), written * 10)
    scores = torch.from_numpy(rng.random(count).astype(np.float32)) if scored else None
    return Proposals(boxes=boxes, scores=scores, masks=masks)


def make_plain(count: int, seed: int = 0) -> Proposals:
    return replace(make_masked(count, seed), masks=None)


def assert_equal(found: Proposals, wanted: Proposals) -> None:
    assert torch.equal(found.boxes, wanted.boxes)
    assert (found.scores is None) == (wanted.scores is None)
    if found.scores is not None and wanted.scores is not None:
        assert torch.equal(found.scores, wanted.scores)
    if wanted.masks is None or not wanted.masks.present.any():
        assert found.masks is None
    else:
        assert found.masks == wanted.masks


def make_store(path: Path) -> ProposalStore:
    """Two segments: one in which only some images have masks, and one without any."""
    store = ProposalStore.create(path, generator="test", parameters={})
    first = {f"m{i}": Entry(make_masked(i, i), "cafe", SIZE) for i in range(1, 5)}
    store.append({**first, "plain": Entry(make_plain(3, 9), size=(5, 6))})
    store.append({"late": Entry(make_plain(2, 7))})
    return store


def wanted_of_make_store() -> dict[str, Proposals]:
    masked = {f"m{i}": make_masked(i, i) for i in range(1, 5)}
    return {**masked, "plain": make_plain(3, 9), "late": make_plain(2, 7)}


def test_gives_back_what_was_appended_also_after_compaction(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    old_reader = ProposalStore.open(store.path)
    assert not store.damaged()
    for compacted in (False, True):
        if compacted:
            store.compact()
        for reader in (store, ProposalStore.open(store.path), old_reader):
            for image_id, wanted in wanted_of_make_store().items():
                assert_equal(reader[image_id], wanted)
    names = {path.name for path in store.path.glob("segment_*")}
    assert names == {f"segment_000003.{kind}.npy" for kind in ("boxes", "scores", "masks", "mask_offsets")}


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from("abcdef"), st.tuples(st.integers(0, 4), st.integers(0, 2)), max_size=4
        ),
        max_size=4,
    )
)
def test_behaves_like_a_dictionary(
    tmp_path_factory: pytest.TempPathFactory, batches: list[dict[str, tuple[int, int]]]
) -> None:
    store = ProposalStore.create(tmp_path_factory.mktemp("any") / "s", generator="g", parameters={})
    model: dict[str, Proposals] = {}
    for seed, batch in enumerate(batches):
        kinds = (make_plain, make_masked, lambda count, seed: make_masked(count, seed, scored=False))
        added = {key: kinds[kind](count, seed) for key, (count, kind) in batch.items()}
        store.append({key: Entry(value) for key, value in added.items()})
        model |= added
    for compacted in (False, True):
        if compacted:
            store.compact()
        for key, wanted in model.items():
            assert_equal(store[key], wanted)
            assert_equal(ProposalStore.open(store.path).entry(key).proposals, wanted)
        assert not ProposalStore.open(store.path).damaged()


def test_the_files_are_as_documented(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    content = np.load(store.path / "segment_000001.masks.npy")
    offsets = np.load(store.path / "segment_000001.mask_offsets.npy")
    index = np.load(store.path / "index.npy")
    assert (content.dtype, offsets.dtype) == (np.uint8, np.int64)
    for row in index[index["segment"] == 1]:
        wanted = wanted_of_make_store()[row["id"].decode()]
        ends = offsets[row["offset"] : row["offset"] + row["boxes"] + 1]
        found = tuple(content[a:b].tobytes() for a, b in pairwise(ends))
        counts = wanted.masks.counts if wanted.masks is not None else (b"",) * len(wanted)
        assert found == counts
        lengths = np.diff(ends).astype("<i8").tobytes()
        assert row["masked"] == any(counts)
        assert row["mask_checksum"] == (zlib.crc32(lengths + b"".join(found)) if any(counts) else 0)


def test_a_store_without_masks_has_the_index_it_always_had(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    store.discard([f"m{i}" for i in range(1, 5)])
    plain = ProposalStore.create(tmp_path / "plain", generator="test", parameters={})
    plain.append({"plain": Entry(make_plain(3, 9), size=(5, 6)), "late": Entry(make_plain(2, 7))})
    store.compact()
    plain.compact()
    assert (store.path / "manifest.json").read_bytes() == (plain.path / "manifest.json").read_bytes()
    for one in (store, plain):
        assert np.load(one.path / "index.npy").dtype.names == (
            *("id", "segment", "offset", "boxes", "scored", "height", "width", "checksum", "hash"),
        )
    assert sorted(path.name for path in store.path.glob("*.npy"))[1:] == [
        "segment_000003.boxes.npy",
        "segment_000003.scores.npy",
    ]


def test_a_store_of_an_earlier_version_gets_masks(tmp_path: Path) -> None:
    store = ProposalStore.create(tmp_path / "store", generator="test", parameters={})
    store.append({"old": Entry(make_plain(2))})
    store.append({"new": Entry(make_masked(3), "a" * 40)})
    again = ProposalStore.open(store.path)
    assert_equal(again["old"], make_plain(2))
    assert_equal(again["new"], make_masked(3))
    assert again.image_size("new") == SIZE  # that of the masks


@pytest.mark.parametrize("kind", ["masks", "mask_offsets"])
def test_every_flipped_bit_is_noticed_or_harmless(tmp_path: Path, kind: str) -> None:
    store = make_store(tmp_path / "store")
    path = store.path / f"segment_000001.{kind}.npy"
    content = path.read_bytes()
    for place in range(0, len(content), 2):
        changed = bytearray(content)
        changed[place] ^= 1 << (place % 8)
        path.write_bytes(changed)
        reader = ProposalStore.open(store.path)
        lost = {image_id for damage in reader.damaged() for image_id in damage.image_ids}
        for image_id, wanted in wanted_of_make_store().items():
            if image_id in lost:
                with pytest.raises(InputError, match=r"segment_000001\.(masks|mask_offsets)\.npy"):
                    reader[image_id]
            else:
                assert_equal(reader[image_id], wanted)
        if place >= 128 and kind == "masks":  # images without masks have offsets that nobody reads
            assert lost
    for damaged in (content[:-3], b"", None):
        path.write_bytes(damaged) if damaged is not None else path.unlink()
        with pytest.raises(InputError, match=rf"{kind}\.npy"):
            ProposalStore.open(store.path)["m4"]


def test_masks_that_no_encoder_writes_are_never_decoded(tmp_path: Path) -> None:
    """A hostile store can have fitting checksums; pycocotools trusts the counts."""
    store = make_store(tmp_path / "store")
    counts = (b"~~~~~~~~", b"", b"", b"")
    bad = Proposals(boxes=torch.ones(4, 4), masks=Masks(SIZE, counts))
    assert mask_checksum_of(counts) == mask_checksum_of(bad.masks.counts)  # type: ignore[union-attr]
    store.append({"m4": Entry(bad)})
    with pytest.raises(InputError, match=r"segment_000003\.masks\.npy is damaged: .*counts are damaged"):
        store["m4"]


def test_what_needs_boxes_only_reads_no_masks(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    records = [
        ImageRecord(
            image_id=f"m{i}",
            path=Path("x"),
            height=SIZE[0],
            width=SIZE[1],
            targets=Targets.make(make_masked(i, i).boxes[:1], torch.ones(1, dtype=torch.int64)),
        )
        for i in range(1, 5)
    ]
    before = recall(records, ProposalStore.open(store.path), limit=100)
    assert before["recall_0.5"] > 0.5
    for path in store.path.glob("kept_*"):
        path.unlink()
    for path in store.path.glob("*mask*.npy"):
        path.unlink()
    damaged = ProposalStore.open(store.path)
    assert recall(records, damaged, limit=100) == before
    assert damaged.count("m4") == 4
    with pytest.raises(InputError, match=r"mask_offsets\.npy is missing"):
        damaged["m4"]


def test_digest_fingerprint_and_mark_depend_on_the_masks(tmp_path: Path) -> None:
    digests, fingerprints = set(), set()
    whole = make_masked(3, every=True)
    others = [whole, replace(whole, masks=None), replace(whole, masks=make_masked(3, 1, every=True).masks)]
    for number, proposals in enumerate(others):
        store = ProposalStore.create(tmp_path / str(number), generator="g", parameters={})
        store.append({"a": Entry(proposals, "cafe", SIZE)})
        digests.add(store.digest(Texts.of(["a"])))
        fingerprints.add(store.fingerprint("a"))
    assert len(digests) == len(fingerprints) == 3
    mark = store_mark(tmp_path / "0")
    (tmp_path / "0/segment_000001.masks.npy").touch()
    assert store_mark(tmp_path / "0") != mark
    with pytest.raises(InputError, match="hold different proposals for image 'a'"):
        merge_stores([tmp_path / "0", tmp_path / "2"], tmp_path / "merged")


def test_merging_keeps_masks(tmp_path: Path) -> None:
    parts = []
    for number in range(3):
        part = ProposalStore.create(tmp_path / str(number), generator="g", parameters={})
        part.append({f"i{number}": Entry(make_masked(3, number), "cafe", SIZE)})
        parts.append(part.path)
    merged = merge_stores(parts, tmp_path / "merged")
    for number in range(3):
        assert_equal(merged[f"i{number}"], make_masked(3, number))


def test_threads_and_a_reload(tmp_path: Path) -> None:
    store = make_store(tmp_path / "store")
    reader = ProposalStore.open(store.path)
    wanted = wanted_of_make_store()
    with ThreadPoolExecutor(4) as pool:
        names = list(wanted) * 20
        found = pool.map(lambda name: reader[name], names)
        store.compact()
        for name, proposals in zip(names, found, strict=True):
            assert_equal(proposals, wanted[name])
    reader.reload()
    assert_equal(reader["m3"], wanted["m3"])


def test_masks_of_another_size_than_the_image(tmp_path: Path) -> None:
    store = ProposalStore.create(tmp_path / "store", generator="test", parameters={})
    with pytest.raises(ValueError, match="masks of an image of"):
        store.append({"a": Entry(make_masked(2), size=(3, 4))})


def test_the_journal_keeps_masks(tmp_path: Path) -> None:
    wanted = {"a": Entry(make_masked(4), "cafe", SIZE), "b": Entry(make_masked(2, scored=False), None, SIZE)}
    with Journal(tmp_path) as journal:
        for image_id, entry in wanted.items():
            record = encode_entry(image_id, entry)
            assert_equal(decode_entry(record)[1].proposals, entry.proposals)
            journal.add(record)
    found = dict(entries(tmp_path / NAME))
    for image_id, entry in wanted.items():
        assert_equal(found[image_id].proposals, entry.proposals)
        assert found[image_id].size == SIZE
    plain = encode_entry("a", Entry(make_plain(2), "cafe", SIZE))
    assert b"masks" not in plain


@pytest.mark.parametrize("masks", [[1], [-1, 5], "ab", [10**9, 0], None])
def test_a_record_with_wrong_lengths_of_masks(masks: object) -> None:
    record = encode_entry("a", Entry(make_masked(2, every=True), "cafe", SIZE))[8:]
    line, _, rest = record.partition(b"\n")
    changed = json.dumps({**json.loads(line), "masks": masks}).encode() + b"\n" + rest
    with pytest.raises(InputError, match="not a record of a journal"):
        decode_entry(bytes(8) + changed)


def slow_filter(proposals: Proposals, limits: Limits) -> list[tuple[list[float], bytes]]:
    """The rows that stay, one at a time."""
    assert proposals.masks is not None
    rows = list(range(len(proposals)))
    if proposals.scores is not None:
        ranks = proposals.scores.tolist()
        rows = sorted((row for row in rows if ranks[row] == ranks[row]), key=lambda row: -ranks[row])
    kept: list[tuple[list[float], bytes]] = []
    for row in rows:
        x1, y1, x2, y2 = proposals.boxes[row].tolist()
        box = [
            min(max(x1, 0), SIZE[1]),
            min(max(y1, 0), SIZE[0]),
            min(max(x2, 0), SIZE[1]),
            min(max(y2, 0), SIZE[0]),
        ]
        one = (box, proposals.masks.counts[row])
        small = min(box[2] - box[0], box[3] - box[1]) < limits.min_size
        finite = all(np.isfinite([x1, y1, x2, y2]))
        if finite and not small and not (limits.deduplicate and one in kept):
            kept.append(one)
    return kept[: limits.top_k]


@pytest.mark.parametrize("deduplicate", [True, False])
@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize("top_k", [None, 5, 100])
def test_filtering_keeps_boxes_and_masks_together(
    tmp_path: Path, deduplicate: bool, scored: bool, top_k: int | None
) -> None:
    limits = Limits(2.0, top_k, deduplicate)
    proposals = make_masked(12, scored=scored)
    twice = torch.tensor([*range(12), 3, 3, 5, 1])
    proposals = proposals.select(twice)
    boxes = proposals.boxes.clone()
    boxes[4] = torch.tensor([-3.0, 2, 40, 9])
    masks = Masks(SIZE, (*proposals.masks.counts[:13], b"", *proposals.masks.counts[14:]))  # type: ignore[union-attr]
    scores = None if proposals.scores is None else proposals.scores.clone()
    if scores is not None:
        scores[7] = float("nan")
    proposals = Proposals(boxes=boxes, scores=scores, masks=masks)
    found = filter_proposals(proposals, SIZE, **limits._asdict())
    wanted = slow_filter(proposals, limits)
    assert found.masks is not None
    assert list(zip(found.boxes.tolist(), found.masks.counts, strict=True)) == wanted
    store = ProposalStore.create(tmp_path / "store", generator="g", parameters={})
    store.append({"a": Entry(proposals, size=SIZE)})
    stored = store.filtered("a", SIZE, limits)
    assert stored is not None
    assert_equal(stored, found)


def test_equal_boxes_with_different_masks_are_not_equal() -> None:
    mask = np.zeros((4, *SIZE), bool)
    mask[:, 2, 3] = mask[:, 5, 8] = True
    mask[1, 3, 4] = True
    masks = Masks.encode(mask)
    proposals = Proposals(boxes=masks.boxes(), masks=Masks(SIZE, (*masks.counts[:3], b"")))
    found = unique_proposals(proposals)
    assert found.masks is not None
    assert found.masks.counts == (masks.counts[0], masks.counts[1], b"")
