"""One process without ``torchrun``; `tests.multiprocess` tests several."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from detector.core import distributed


def test_one_process_talks_to_nobody() -> None:
    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    distributed.barrier()
    assert distributed.total(1, 2.5) == [1, 2.5]
    rows = torch.rand(3, 2)
    assert distributed.gather_rows(rows) == [rows]
    assert distributed.gather_texts("grün") == ["grün"]
    assert distributed.share("abc") == "abc"
    with distributed.main_first(), distributed.busy(), distributed.joined("cpu"):
        assert distributed.world_size() == 1


def test_one_process_goes_on_with_its_random_numbers() -> None:
    state = torch.get_rng_state()
    distributed.draw_apart(seed=1, step=2)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_ended_process_is_known_on_its_own_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROUP_RANK", "0")
    ended = subprocess.Popen([sys.executable, "-c", ""])
    running = f"0 {ended.pid}".encode()
    assert not distributed._has_ended(running)
    ended.wait()
    assert distributed._has_ended(running)
    assert not distributed._has_ended(f"1 {ended.pid}".encode())  # another machine's
    assert not distributed._has_ended(distributed._process_here().encode())
    assert not distributed._has_ended(b"")


@pytest.mark.parametrize("count", [0, 1, 2, 5, 6, 7])
@pytest.mark.parametrize("processes", [1, 2, 3, 8])
def test_shares_are_put_back_in_their_order(count: int, processes: int) -> None:
    items = list(range(count))
    assert distributed.interleaved([items[rank::processes] for rank in range(processes)]) == items


def test_a_share_must_be_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detector.core.distributed.world_size", lambda: 4)
    distributed.check_shares(24, 3)
    with pytest.raises(distributed.InputError, match=r"_batch: 12 .* 4 processes in 2 parts .* of 8$"):
        distributed.check_shares(12, 2)
