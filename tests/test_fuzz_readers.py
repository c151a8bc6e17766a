"""A few of the changed files of `make fuzz-readers`, with another seed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz_readers import prepare, run_case
from tests.fuzz_targets import TARGETS, Target


@pytest.mark.parametrize("target", TARGETS, ids=[target.kind for target in TARGETS])
def test_changed_files_are_read_or_refused_by_name(tmp_path: Path, target: Target) -> None:
    prepared = prepare(target, tmp_path)
    outcomes = [run_case(prepared, number, seed=1) for number in range(20)]
    assert [one for one in outcomes if one.fault is not None] == []
    assert prepared.path.read_bytes() == prepared.content
    assert any(one.refused for one in outcomes) != target.repaired


def test_every_kind_has_one_target() -> None:
    assert len({target.kind for target in TARGETS}) == len(TARGETS)
