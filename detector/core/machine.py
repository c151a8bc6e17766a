"""The processor cores that this process may use, and how many threads compute and load images on them."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
_GPU_WORKERS = 8
_CPU_WORKERS = 4
_STARTED = time.perf_counter()


def process_seconds() -> float:
    """Return the seconds since this module was imported, which every tool does first."""
    return time.perf_counter() - _STARTED


def available_cores() -> int:
    """Return how many cores this process may use at the same time.

    These are the cores of its affinity, but no more than a container's quota (cgroup versions 1 and 2),
    rounded up.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cgroup_quota()
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def cgroup_quota(root: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> float | None:
    """Return the smallest CPU quota, in cores, of the control groups that this process is in, or None."""
    try:
        lines = membership.read_text().splitlines()
    except OSError:
        return None
    quotas: list[float] = []
    for _, controllers, group in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if controllers == "":
            quotas += _quotas(root, group, "cpu.max", None)
        elif "cpu" in controllers.split(","):
            for mounted in (controllers, "cpu"):
                quotas += _quotas(root / mounted, group, "cpu.cfs_quota_us", "cpu.cfs_period_us")
    return min(quotas, default=None)


def _quotas(root: Path, group: str, quota: str, period: str | None) -> list[float]:
    """Return the quotas of ``group`` and of its parents; a container sees only ``root``."""
    parts = [part for part in group.split("/") if part not in ("", "..")]
    folders = [root.joinpath(*parts[:length]) for length in range(len(parts) + 1)]
    return [value for folder in folders if (value := _read_quota(folder, quota, period)) is not None]


def _read_quota(folder: Path, quota: str, period: str | None) -> float | None:
    try:
        numbers = (folder / quota).read_text().split()
        if period is not None:
            numbers += (folder / period).read_text().split()
        allowed, interval = (float(number) for number in numbers)
    except (OSError, ValueError):  # no such file, or the text "max": no quota
        return None
    return allowed / interval if allowed > 0 and interval > 0 else None


def loader_workers(cores: int, *, gpu: bool) -> int:
    """Return how many threads load images if the config does not say.

    A GPU waits only for images: all cores but the one that drives it load them, up to eight. On the CPU the
    network takes far more time than the images: one thread per eight cores is enough, at least one and at
    most four, and none on a single core.
    """
    if gpu:
        return min(_GPU_WORKERS, max(cores - 1, 1))
    return min(_CPU_WORKERS, max(cores // 8, int(cores > 1)))


def threads_set_by(environment: Mapping[str, str] = os.environ) -> str | None:
    """Return the variable with which the user has set the number of threads, which then stays; or None."""
    return next((name for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name in environment), None)


def wait_without_spinning() -> None:
    """Let threads sleep while they wait for each other. Must be called before torch is imported.

    OpenMP's threads spin by default. Where other processes use the same cores, a spinning thread holds the
    core that the thread it waits for needs: training was 4 to 10 times slower. The results are the same.
    """
    if "GOMP_SPINCOUNT" not in os.environ:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def use_huge_pages() -> None:
    """Let torch ask the system for pages of 2 MiB for large tensors. Must be called before torch makes one.

    Torch returns the memory of every large tensor at once, so each step gets its memory again, in pages of
    4 KiB. Where the system grants huge pages (Linux, ``transparent_hugepage`` "madvise" or "always"), that
    takes a fraction of the time. The results are the same. ``THP_MEM_ALLOC_ENABLE=0`` switches it off.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
