"""How much memory a run needed at most: the main process, its workers, and the GPU."""

from __future__ import annotations

import multiprocessing
import resource
import sys
from pathlib import Path

import torch


class PeakMemory:
    """Peak resident memory of this process plus, for the fullest moment sampled, that of its workers.

    With a CUDA ``device`` also the most that this process's tensors held there at a time.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self._workers = 0.0
        self._gpu = torch.device(device) if torch.device(device).type == "cuda" else None

    def sample(self) -> None:
        """Look at the workers that are alive now; call it now and then while they run."""
        peaks = [_peak_mib(child.pid) for child in multiprocessing.active_children()]
        self._workers = max(self._workers, sum(peaks))

    def mib(self) -> float:
        """Return the peak in MiB."""
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        unit = 1 << 20 if sys.platform == "darwin" else 1 << 10  # bytes there, KiB on Linux
        return own * unit / (1 << 20) + self._workers

    def gpu_figures(self) -> dict[str, float]:
        """Return ``peak_gpu_memory_mib``, or nothing on the CPU; a counter is read and nothing waited for."""
        if self._gpu is None:
            return {}
        return {"peak_gpu_memory_mib": round(torch.cuda.max_memory_allocated(self._gpu) / (1 << 20), 1)}

    def figures(self) -> dict[str, float]:
        """Return what ``metrics.json`` says of memory: ``peak_rss_mib`` and the figure of the GPU."""
        return {"peak_rss_mib": round(self.mib(), 1), **self.gpu_figures()}


def _peak_mib(pid: int | None) -> float:
    """Return the peak resident set of another process in MiB; 0 where the system does not tell."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    line = next((line for line in status.splitlines() if line.startswith("VmHWM:")), "VmHWM: 0 kB")
    return int(line.split()[1]) / 1024
