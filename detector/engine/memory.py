"""How much memory a run needed at most: the main process and its workers."""

from __future__ import annotations

import multiprocessing
import resource
import sys
from pathlib import Path


class PeakMemory:
    """Peak resident memory of this process plus, for the fullest moment sampled, that of its workers."""

    def __init__(self) -> None:
        self._workers = 0.0

    def sample(self) -> None:
        """Look at the workers that are alive now; call it now and then while they run."""
        peaks = [_peak_mib(child.pid) for child in multiprocessing.active_children()]
        self._workers = max(self._workers, sum(peaks))

    def mib(self) -> float:
        """Return the peak in MiB."""
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        unit = 1 << 20 if sys.platform == "darwin" else 1 << 10  # bytes there, KiB on Linux
        return own * unit / (1 << 20) + self._workers


def _peak_mib(pid: int | None) -> float:
    """Return the peak resident set of another process in MiB; 0 where the system does not tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), "VmHWM: 0 kB")
    return int(line.split()[1]) / 1024
