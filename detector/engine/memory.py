"""The peak memory of a run: of the main process, its workers, and the GPU."""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import time
from pathlib import Path

import torch

_PROC = Path("/proc")
SAMPLE_SECONDS = 0.5
"""The least time between two samples of steps: a sample takes about 10 ms, as long as a small step."""
SHARED_TWICE = "shared pages are counted once per process: this system has no /proc/PID/smaps_rollup"


class PeakMemory:
    """Peak memory of this process and its workers; a page that several of them share counts once.

    This is the largest sum, over all samples, of the processes' proportional set sizes (PSS), or this
    process's own peak if that is larger. Where the system does not report the PSS, peak resident sets are
    added up, and the metrics have a note about it. For a CUDA ``device``, the peak of the memory of this
    process's tensors is measured too.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._peak = 0.0
        self._workers_resident = 0.0
        self._next_step = 0.0
        self._gpu = torch.device(device) if torch.device(device).type == "cuda" else None
        self._shares_known = pss_mib(os.getpid()) is not None

    def sample(self) -> None:
        """Measure the processes that are alive now; to be called repeatedly while workers run."""
        workers = [child.pid for child in multiprocessing.active_children() if child.pid is not None]
        if self._shares_known:
            self._peak = max(self._peak, sum(pss_mib(pid) or 0.0 for pid in (os.getpid(), *workers)))
        else:
            self._workers_resident = max(self._workers_resident, sum(map(_resident_peak_mib, workers)))

    def sample_step(self) -> None:
        """Measure, unless a step less than ``SAMPLE_SECONDS`` ago was measured already."""
        now = time.monotonic()
        if now >= self._next_step:
            self._next_step = now + SAMPLE_SECONDS
            self.sample()

    def mib(self) -> float:
        """Return the peak in MiB."""
        self.sample()
        return max(self._peak, _own_peak_mib() + self._workers_resident)

    def gpu_metrics(self) -> dict[str, float]:
        """Return ``peak_gpu_memory_mib``, or nothing on the CPU; this only reads a counter."""
        if self._gpu is None:
            return {}
        return {"peak_gpu_memory_mib": round(torch.cuda.max_memory_allocated(self._gpu) / (1 << 20), 1)}

    def metrics(self) -> dict[str, float | str]:
        """Return the entries of ``metrics.json`` on memory: ``peak_rss_mib``, the peak of the GPU, and, where
        shared pages are counted more than once, ``peak_rss_note`` with the reason."""
        note = {} if self._shares_known else {"peak_rss_note": SHARED_TWICE}
        return {"peak_rss_mib": round(self.mib(), 1), **self.gpu_metrics(), **note}


def pss_mib(pid: int) -> float | None:
    """Return the proportional set size of a process in MiB: each page divided by how many processes map it.

    None where the system does not report it, or the process has ended.
    """
    return _kib_line(_PROC / str(pid) / "smaps_rollup", "Pss:")


def _resident_peak_mib(pid: int) -> float:
    """Return the peak resident set of another process in MiB; 0 where the system does not report it."""
    return _kib_line(_PROC / str(pid) / "status", "VmHWM:") or 0.0


def _own_peak_mib() -> float:
    own = _resident_peak_mib(os.getpid())
    if own:
        return own
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / (1 << 20)


def _kib_line(path: Path, name: str) -> float | None:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(name)), None)
