"""Stores whose images have other names than the keys of a data set."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from detector.core.errors import InputError
from detector.core.structures import ImageRecord, Proposals, Targets
from detector.proposals.hashing import file_hash
from detector.proposals.matched import match_store
from detector.proposals.store import Entry, ProposalStore


def record(root: Path, image_id: str, key: str) -> ImageRecord:
    path = root / key
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(key)
    return ImageRecord(image_id=image_id, key=key, path=path, height=9, width=9, targets=Targets.empty())


def store_of(path: Path, entries: dict[str, int], hashes: dict[str, str] | None = None) -> ProposalStore:
    """A store in which an image has as many boxes as ``entries`` says."""
    store = ProposalStore.create(path / "store", generator="test", parameters={})
    boxes = {name: Proposals(boxes=torch.ones(count, 4).cumsum(1)) for name, count in entries.items()}
    store.append({name: Entry(found, (hashes or {}).get(name)) for name, found in boxes.items()})
    return store


@pytest.fixture
def train(tmp_path: Path) -> list[ImageRecord]:
    return [record(tmp_path, str(number), f"train/{name}.jpg") for number, name in enumerate("abc", 1)]


@pytest.fixture
def valid(tmp_path: Path) -> list[ImageRecord]:
    return [record(tmp_path, str(number), f"valid/{name}.jpg") for number, name in enumerate("xy", 1)]


def counts(store: ProposalStore, records: list[ImageRecord]) -> list[int | None]:
    return [store.count(one.key) if one.key in store else None for one in records]


def test_a_store_of_keys_is_taken_as_it_is(tmp_path: Path, train: list[ImageRecord]) -> None:
    store = store_of(tmp_path, {one.key: place for place, one in enumerate(train, 1)})
    assert match_store(store, train, lambda: pytest.fail("read")) is store


@pytest.mark.parametrize("name", ["{0.image_id}", "{0.path.name}", "{0.path.stem}"])
def test_other_names_of_one_split(tmp_path: Path, train: list[ImageRecord], name: str) -> None:
    store = store_of(tmp_path, {name.format(one): place for place, one in enumerate(train, 1)})
    matched = match_store(store, train)
    assert counts(matched, train) == [1, 2, 3]
    assert [len(matched[one.key]) for one in train] == [1, 2, 3]
    assert counts(pickle.loads(pickle.dumps(matched)), train) == [1, 2, 3]
    assert matched.content_hash(train[0].key) is None
    assert matched.image_size(train[0].key) is None
    assert matched.fingerprint(train[1].key)[0] == 2


def test_the_content_decides_where_an_older_store_has_ids_of_two_splits(
    tmp_path: Path, train: list[ImageRecord], valid: list[ImageRecord]
) -> None:
    """The images of the second split have taken the place of those of the first with the same ids."""
    holders = {"1": valid[0], "2": valid[1], "3": train[2]}
    hashes = {name: file_hash(one.path) for name, one in holders.items()}
    store = store_of(tmp_path, {"1": 1, "2": 2, "3": 3}, hashes)
    everything = [*train, *valid]
    assert counts(match_store(store, train, lambda: everything), train) == [None, None, 3]
    assert counts(match_store(store, valid, lambda: everything), valid) == [1, 2]


def test_without_content_an_id_of_two_splits_is_an_error(
    tmp_path: Path, train: list[ImageRecord], valid: list[ImageRecord]
) -> None:
    store = store_of(tmp_path, {"1": 1, "2": 2, "3": 3})
    with pytest.raises(InputError, match=r"store: '1' could be 'train/a\.jpg' or 'valid/x\.jpg'"):
        match_store(store, train, lambda: [*train, *valid])


def test_an_image_that_has_changed_or_is_gone_is_not_matched(
    tmp_path: Path, train: list[ImageRecord]
) -> None:
    store = store_of(
        tmp_path, {"1": 1, "2": 2, "3": 3}, {str(n): file_hash(train[n - 1].path) for n in (1, 2, 3)}
    )
    train[0].path.write_text("another picture")
    train[1].path.unlink()
    assert counts(match_store(store, train), train) == [None, None, 3]
