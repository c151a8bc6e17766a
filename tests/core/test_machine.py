"""Cores, quotas, and how a run divides the cores."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from detector.core import machine
from detector.core.machine import available_cores, cgroup_quota, loader_workers
from tests.conftest import PROJECT


def test_the_smallest_quota_of_all_groups_above_counts(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "membership").write_text("0::/a/b\n")
    for group, text in ((".", "max 100000"), ("a", "150000 100000"), ("a/b", "400000 100000")):
        (tmp_path / group / "cpu.max").write_text(text)
    assert cgroup_quota(tmp_path, tmp_path / "membership") == 1.5


def test_quotas_of_version_one_and_no_quota(tmp_path: Path) -> None:
    membership = tmp_path / "membership"
    membership.write_text("4:memory:/x\n3:cpu,cpuacct:/docker/1234\n")
    folder = tmp_path / "cpu,cpuacct"  # a container sees its own group as the root
    folder.mkdir()
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    (folder / "cpu.cfs_quota_us").write_text("-1\n")
    assert cgroup_quota(tmp_path, membership) is None
    (folder / "cpu.cfs_quota_us").write_text("250000\n")
    assert cgroup_quota(tmp_path, membership) == 2.5
    assert cgroup_quota(tmp_path, tmp_path / "none") is None


def test_cores_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    for quota, cores in ((None, 16), (64.0, 16), (2.5, 3), (0.3, 1)):
        monkeypatch.setattr(machine, "cgroup_quota", lambda quota=quota: quota)
        assert available_cores() == cores


def test_threads_leave_a_core_for_the_loop_where_there_are_several() -> None:
    assert [loader_workers(cores, gpu=False) for cores in (1, 2, 4, 8, 16, 64)] == [0, 1, 1, 1, 2, 4]
    assert [loader_workers(cores, gpu=True) for cores in (1, 2, 4, 8, 16, 64)] == [1, 1, 3, 7, 8, 8]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, ["PASSIVE", "1"]),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, ["ACTIVE", "1"]),
        ({"THP_MEM_ALLOC_ENABLE": "0"}, ["PASSIVE", "0"]),
    ],
)
def test_the_tools_choose_waiting_and_pages_before_torch_is_there(
    given: dict[str, str], expected: list[str]
) -> None:
    code = """
import os, sys
from detector.commands import cli
print(os.environ["OMP_WAIT_POLICY"], os.environ["THP_MEM_ALLOC_ENABLE"], "torch" in sys.modules)
"""
    chosen = ("OMP_WAIT_POLICY", "THP_MEM_ALLOC_ENABLE")
    environment = {name: value for name, value in os.environ.items() if name not in chosen}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PROJECT,
        env={**environment, **given},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.split() == [*expected, "False"]
