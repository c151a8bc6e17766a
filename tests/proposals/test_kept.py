"""Results that are kept with a store: found again, computed again when damaged, never in the way."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from detector.core.structures import ImageRecord, Proposals, Targets
from detector.proposals import kept as kept_module
from detector.proposals.inspection import inspect
from detector.proposals.kept import kept
from detector.proposals.recall import read_recall, recall
from detector.proposals.store import Entry, ProposalStore, merge_stores


class Counted:
    """A computation that counts its calls."""

    calls = 0

    def __call__(self) -> dict[str, float]:
        self.calls += 1
        return {"third": 1 / 3, "calls": float(self.calls)}


read = partial(read_recall, names=("third", "calls"))


def given(facts: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    return lambda: facts


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("kept_*"))


def test_a_result_is_computed_once_for_the_same_facts(tmp_path: Path) -> None:
    work = Counted()
    first = kept(tmp_path, "recall", given({"limit": 3}), work, read)
    assert first == kept(tmp_path, "recall", given({"limit": 3}), work, read) == {"third": 1 / 3, "calls": 1}
    kept(tmp_path, "recall", given({"limit": 4}), work, read)
    kept(tmp_path, "other", given({"limit": 3}), work, read)
    assert work.calls == 3
    assert len(files(tmp_path)) == 3


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b"\xff" * 20, b'{"facts": 1, "result": {"third": 2}, "crc32": 0}', b"[" * 5000],
)
def test_a_damaged_file_is_said_and_replaced(
    tmp_path: Path, content: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    work = Counted()
    kept(tmp_path, "recall", given({}), work, read)
    files(tmp_path)[0].write_bytes(content)
    assert kept(tmp_path, "recall", given({}), work, read)["calls"] == 2
    assert kept(tmp_path, "recall", given({}), work, read)["calls"] == 2
    said = capfd.readouterr().err
    assert said.count("is damaged") == 1
    assert "computed again" in said


def test_every_changed_byte_is_noticed_or_harmless(tmp_path: Path) -> None:
    work = Counted()
    wanted = kept(tmp_path, "recall", given({}), work, read)
    path = files(tmp_path)[0]
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 2]) + content[place + 1 :])
        assert kept(tmp_path, "recall", given({}), Counted(), read) == wanted


def test_a_file_of_other_facts_or_values_is_not_used(tmp_path: Path) -> None:
    work = Counted()
    kept(tmp_path, "recall", given({"limit": 1}), work, read)
    first = files(tmp_path)[0]
    kept(tmp_path, "recall", given({"limit": 2}), work, read)
    second = next(path for path in files(tmp_path) if path != first)
    shutil.copy(second, first)
    assert kept(tmp_path, "recall", given({"limit": 1}), work, read)["calls"] == 3
    whole = json.loads(first.read_text())
    for calls, third in enumerate(("x", 1e999, -1.0, None), 4):
        whole["result"] = {"calls": 1.0} if third is None else {"third": third, "calls": 1.0}
        whole["crc32"] = kept_module._checksum(whole["facts"], whole["result"])
        first.write_text(json.dumps(whole).replace("Infinity", "1e999"))
        assert kept(tmp_path, "recall", given({"limit": 1}), work, read)["calls"] == calls


def test_a_result_is_not_kept_if_what_it_depends_on_changes_meanwhile(tmp_path: Path) -> None:
    facts = {"content": "old"}

    def compute() -> dict[str, float]:
        facts["content"] = "new"
        return {"third": 1 / 3, "calls": 1.0}

    assert kept(tmp_path, "recall", facts.copy, compute, read)["calls"] == 1
    assert not files(tmp_path)


def test_a_folder_that_cannot_be_written_is_said_once(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_module, "_noted", set())

    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "replace", refuse)  # the tests may run as root, which every folder lets write
    work = Counted()
    for limit in (1, 1, 2):
        kept(tmp_path, "recall", given({"limit": limit}), work, read)
    assert work.calls == 3
    assert not list(tmp_path.iterdir())
    assert " ".join(capfd.readouterr().err.split()).count("Read-only file system") == 1


def test_old_files_and_those_of_killed_writers_are_removed(tmp_path: Path) -> None:
    (tmp_path / f".kept_recall_{'0' * 32}.json.77.tmp").touch()
    with (tmp_path / f".kept_recall_{'1' * 32}.json.78.tmp").open("wb") as living:
        fcntl.flock(living, fcntl.LOCK_SH)
        for limit in range(40):
            kept(tmp_path, "recall", given({"limit": limit}), Counted(), read)
            newest = max(files(tmp_path), key=lambda path: path.stat().st_mtime_ns)
            os.utime(newest, (1000 + limit, 1000 + limit))
    assert len(files(tmp_path)) == kept_module._MOST
    assert [path.name[-6:] for path in tmp_path.glob(".kept*")] == ["78.tmp"]
    work = Counted()
    kept(tmp_path, "recall", given({"limit": 39}), work, read)
    assert work.calls == 0


def test_what_was_just_kept_stays_although_the_clock_was_set_back(tmp_path: Path) -> None:
    for limit in range(40):
        kept(tmp_path, "recall", given({"limit": limit}), Counted(), read)
        for path in files(tmp_path):
            os.utime(path, (2**31, 2**31))  # all others are from the future
        work = Counted()
        kept(tmp_path, "recall", given({"limit": limit}), work, read)
        assert work.calls == 0


def test_a_store_lives_with_them(tmp_path: Path) -> None:
    store = ProposalStore.create(tmp_path / "store", generator="g", parameters={})
    boxes = torch.tensor([[0.0, 0, 10, 10], [5, 5, 9, 9]])
    store.append({"a": Entry(Proposals(boxes=boxes))})
    targets = Targets.make(boxes[:1], torch.ones(1, dtype=torch.int64))
    record = ImageRecord(image_id="a", path=Path("none"), height=20, width=20, targets=targets)
    wanted = recall([record], store, limit=1)
    assert len(files(store.path)) == 1
    store.compact()
    assert recall([record], ProposalStore.open(store.path), limit=1) == wanted
    assert len(files(store.path)) == 1
    assert ProposalStore.create(store.path, generator="g", parameters={}).ids() == ["a"]
    assert inspect(store.path)["images"] == 1
    merged = merge_stores([store.path], tmp_path / "merged")
    assert merged.ids() == ["a"]
    shutil.copytree(store.path, tmp_path / "copy")
    moved = files(tmp_path / "copy")[0].stat().st_mtime_ns
    assert recall([record], ProposalStore.open(tmp_path / "copy"), limit=1) == wanted
    assert files(tmp_path / "copy")[0].stat().st_mtime_ns == moved
