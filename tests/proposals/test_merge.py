"""Several stores become one: all their images, each with its own bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from detector.core.errors import InputError
from detector.core.structures import Proposals
from detector.proposals.merge import merge_stores
from detector.proposals.store import Entry, ProposalStore


def make_entry(seed: int, count: int = 5) -> Entry:
    torch.manual_seed(seed)
    scores = torch.rand(count) if seed % 2 else None
    return Entry(Proposals(boxes=torch.rand(count, 4), scores=scores), f"{seed:032x}", (seed + 1, 9))


def make_store(path: Path, seeds: list[int], side: int = 3, note: str | None = None) -> ProposalStore:
    store = ProposalStore.create(path, generator="mine:boxes", parameters={"side": side})
    store.append({f"image_{seed}": make_entry(seed) for seed in seeds})
    if note:
        store.annotate([note])
    return store


def test_everything_is_there_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detector.proposals.merge._SEGMENT_BOXES", 8)
    make_store(tmp_path / "a", [0, 3, 6], note="first")
    make_store(tmp_path / "b", [1, 4, 3], note="second")
    make_store(tmp_path / "c", [])
    steps: list[tuple[int, int]] = []
    sources = [tmp_path / name for name in "abc"]
    merged = merge_stores(sources, tmp_path / "all", progress=lambda done, total: steps.append((done, total)))
    assert steps == [(3, 6), (6, 6), (6, 6)]
    assert merged.ids() == [f"image_{seed}" for seed in (0, 1, 3, 4, 6)]
    assert (merged.generator, merged.parameters) == ("mine:boxes", {"side": 3})
    assert merged.notes == ["first", "second"]
    assert merged.segment_count() == 1
    assert not merged.damaged()
    for seed in (0, 1, 3, 4, 6):
        wanted = make_entry(seed)
        found = merged[f"image_{seed}"]
        assert torch.equal(found.boxes, wanted.proposals.boxes)
        assert (found.scores is None) == (wanted.proposals.scores is None)
        assert merged.content_hash(f"image_{seed}") == wanted.content_hash
        assert merged.image_size(f"image_{seed}") == wanted.size


def test_merging_again_and_into_a_part_changes_nothing(tmp_path: Path) -> None:
    make_store(tmp_path / "a", [0, 1])
    make_store(tmp_path / "b", [2])
    first = merge_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "a")
    before = {key: first.fingerprint(key) for key in first.ids()}
    again = merge_stores([tmp_path / "b", tmp_path / "a"], tmp_path / "a")
    assert {key: again.fingerprint(key) for key in again.ids()} == before
    assert len(before) == 3


def test_stores_of_other_parameters_are_refused_before_anything_is_copied(tmp_path: Path) -> None:
    make_store(tmp_path / "a", [0])
    make_store(tmp_path / "b", [1], side=4)
    with pytest.raises(InputError, match=r"/b and .*/a were made otherwise.*'side': 4.*'side': 3"):
        merge_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
    assert len(ProposalStore.open(tmp_path / "all")) == 0


def test_two_versions_of_an_image_are_refused_by_name(tmp_path: Path) -> None:
    make_store(tmp_path / "a", [0, 1])
    other = make_store(tmp_path / "b", [2])
    other.append({"image_1": make_entry(7)})
    with pytest.raises(InputError, match=r"/b and .*/all hold different proposals for image 'image_1'"):
        merge_stores([tmp_path / "a", tmp_path / "b"], tmp_path / "all")
    assert ProposalStore.open(tmp_path / "all").ids() == ["image_0", "image_1"]
