"""The peak memory of a run: of this process, in which everything runs, and of the GPU."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch


def peak_memory(device: torch.device | str) -> dict[str, float]:
    """Return the entries of ``metrics.json`` on memory: ``peak_rss_mib``, and those of `peak_gpu_memory`."""
    return {"peak_rss_mib": round(_peak_resident_mib(), 1), **peak_gpu_memory(device)}


def peak_gpu_memory(device: torch.device | str) -> dict[str, float]:
    """Return ``peak_gpu_memory_mib``, the peak of the memory of this process's tensors on a CUDA ``device``.

    It is empty on the CPU. Only a counter is read, without waiting for the GPU.
    """
    if torch.device(device).type != "cuda":
        return {}
    return {"peak_gpu_memory_mib": round(torch.cuda.max_memory_allocated(device) / (1 << 20), 1)}


def _peak_resident_mib() -> float:
    """Return the peak resident set of this process in MiB."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:  # macOS
        lines = []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    unit = 1 << 20 if sys.platform == "darwin" else 1 << 10  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / (1 << 20)
