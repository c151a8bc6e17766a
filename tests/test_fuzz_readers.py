"""A few hundred of the damaged files of `make fuzz-readers`, with another seed."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import pytest

from tests.fuzz_readers import make_seeds, run_case
from tests.run_records import REPAIRED


def test_damaged_files_are_read_or_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    seeds = make_seeds(tmp_path)
    for valid in seeds.values():
        valid.read(valid.path)
    outcomes = [run_case(case, seeds, seed=1) for case in range(20 * len(seeds))]
    assert [one for one in outcomes if one.fault is not None] == []
    refused = Counter(one.kind for one in outcomes if one.refused)
    assert all(1 < refused[kind] <= 20 for kind in seeds if kind not in REPAIRED), refused
    assert not REPAIRED & refused.keys()
