"""Several processes make proposals together: each image once, also after a kill."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from detector.commands import propose
from detector.proposals.journal import journals
from detector.proposals.store import ProposalStore
from tests.multiprocess.conftest import Start
from tests.multiprocess.launch import below, started, tool, torchrun, wait_until


def calls(folder: Path, name: str = "calls") -> list[Counter[str]]:
    """Return how often each process has been given each image."""
    return [Counter(path.read_text().splitlines()) for path in sorted(folder.glob(f"{name}_*.txt"))]


def assert_same_stores(first: ProposalStore, second: ProposalStore) -> None:
    assert first.ids() == second.ids()
    for name in first.ids():
        assert torch.equal(first[name].boxes, second[name].boxes)
        assert first.fingerprint(name) == second.fingerprint(name)
        assert first.image_size(name) == second.image_size(name)


@pytest.mark.parametrize("count", [2, 3])
def test_each_image_is_done_once_and_the_store_is_that_of_one_process(start: Start, count: int) -> None:
    folders = [start(number) / "proposals" for number in (1, count)]
    alone, shared = (calls(folder) for folder in folders)
    assert len(shared) == count
    assert all(set(one.values()) == {1} for one in shared)
    assert sum(shared, Counter()) == alone[0]
    assert len(alone[0]) == 8  # one of them fails
    assert max(map(len, shared)) - min(map(len, shared)) <= 1
    stores = [ProposalStore.open(folder / "store") for folder in folders]
    assert_same_stores(*stores)
    assert not journals(stores[1].path)


@pytest.mark.slow
def test_a_killed_job_has_lost_only_unfinished_images(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It goes on in one process, which takes over what both have finished."""
    method = {"method": "tests.multiprocess.boxes:boxes_of", "top_k_train": 300, "top_k_test": 300}
    options = {"calls": str(place / "killed"), "slow": 0.3}
    given = ["--config", "tiny.yaml", "--output", "store", "--workers", "0"]
    proposals = f"proposals={json.dumps({**method, 'options': options})}"
    store = place / "store"

    def done() -> list[int]:
        return [path.stat().st_size for path in journals(store) if path.stat().st_size]

    with started(torchrun(2, tool("propose"), *given, proposals), place) as job:
        wait_until(lambda: store.is_dir() and len(done()) == 2, job)
        for number in [job.pid, *below(job.pid)]:
            os.kill(number, signal.SIGKILL)
    finished = len(journals(store))
    assert finished == 2
    before = sum(calls(place, "killed"), Counter())
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["propose", *given, proposals])
    assert propose.main() == 0
    assert store.name in capsys.readouterr().out.splitlines()
    after = sum(calls(place, "killed"), Counter())
    again = sum(after.values()) - len(after)
    assert len(after) == 12
    assert again <= 2 < sum(before.values())  # each process had one image in work
    assert not journals(store)
    assert len(ProposalStore.open(store)) == 12
