"""The record of what a run ran on: ``environment.json`` in its folder, one entry per start or resumption.

The record names no user and no host: the home folder is written as ``~``, passwords in addresses are left
out, and of the environment variables only those are kept that change how this project computes.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import torchvision

from detector import __version__
from detector.core.errors import InputError
from detector.core.files import file_hash, read_json, write_text
from detector.core.machine import available_cores
from detector.core.progress import note

ENVIRONMENT = "environment.json"
VARIABLES = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OMP_WAIT_POLICY", "OMP_PROC_BIND", "GOMP_CPU_AFFINITY"),
    *("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "THP_MEM_ALLOC_ENABLE"),
    *("CUDA_VISIBLE_DEVICES", "CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "PYTORCH_CUDA_ALLOC_CONF"),
)
"""The environment variables that are recorded where they are set."""

_PACKAGE = Path(__file__).resolve().parents[1]
_PASSWORD = re.compile(r"(?<=://)[^/@\s]*@")
_DRIVER = re.compile(r"Kernel Module[^\n]*?\s(\d+\.\d+(?:\.\d+)*)\s")
_GIT_SECONDS = 10
_MOST_ENTRIES = 10_000


def environment(
    *,
    step: int,
    seed: int,
    data_fingerprint: Mapping[str, str],
    device: str,
    loader_threads: int,
    processes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Return what this process runs on, as plain values for JSON.

    ``step`` is the number of steps that were done before, ``processes`` what is known of the other processes
    of the run, by default that there are none.
    """
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "step": step,
        "command": [private(word) for word in sys.argv],
        "seed": seed,
        "data_fingerprint": dict(data_fingerprint),
        "device": device,
        "processes": {"world_size": 1} if processes is None else dict(processes),
        "versions": versions(),
        "native_libraries": native_libraries(),
        "git": git_state(_PACKAGE.parent),
        "system": f"{platform.system()} {platform.release()}",
        "processor": {
            "name": processor_name(),
            "architecture": platform.machine(),
            "cores": available_cores(),
            "kernels": torch.backends.cpu.get_cpu_capability(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        },
        "gpus": gpus(),
        "threads": {
            "compute": torch.get_num_threads(),
            "loader": loader_threads,
            "opencv": cv2.getNumThreads(),
        },
        "variables": {name: private(os.environ[name]) for name in VARIABLES if name in os.environ},
    }


def record_environment(folder: Path, entry: Mapping[str, Any], *, resumed: bool) -> None:
    """Write ``entry`` into ``environment.json`` of a run's ``folder``, of a ``resumed`` run after the others.

    The file changes in one step or not at all.

    Raises:
        InputError: the folder cannot be written.
    """
    before = read_environments(folder) if resumed else []
    write_text(folder / ENVIRONMENT, json.dumps([*before, dict(entry)], indent=1) + "\n")


def read_environments(folder: Path) -> list[dict[str, Any]]:
    """Return the entries of a run's ``environment.json``, oldest first; with a warning if it is damaged."""
    path = folder / ENVIRONMENT
    if not path.exists():
        return []
    try:
        entries = read_json(path)
    except InputError as error:
        note(f"warning: {error}; the earlier entries are lost")
        return []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        note(f"warning: {path}: not a list of environments; the earlier entries are lost")
        return []
    return entries[-_MOST_ENTRIES:]


def private(text: str) -> str:
    """Return ``text`` without the name of the home folder and without passwords in addresses."""
    home = os.path.expanduser("~")  # noqa: PTH111 - does not fail without a home
    if home not in ("~", "/", ""):
        text = re.sub(rf"{re.escape(home)}(?=/|$)", "~", text)
    return _PASSWORD.sub("", text)


def versions() -> dict[str, str | None]:
    """Return the versions of the libraries that decide on results; null for a part that is missing."""
    cudnn = torch.backends.cudnn.version() if torch.backends.cudnn.is_available() else None
    return {
        "region-detector": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "numpy": np.__version__,
        "opencv": cv2.__version__,
        "cuda": torch.version.cuda,
        "cudnn": None if cudnn is None else str(cudnn),
        "nvidia_driver": driver_version(),
    }


def native_libraries() -> dict[str, str]:
    """Return the hash of each native library of this project, by its name."""
    found = sorted(_PACKAGE.glob("_C*.so"))
    return {path.name.split(".")[0]: file_hash(path) for path in found}


def processor_name() -> str:
    """Return the processor's name as the system gives it; empty where it gives none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def gpus() -> list[dict[str, Any]]:
    """Return name, compute capability and memory of the GPUs that torch can use."""
    if not torch.cuda.is_available():
        return []
    every = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    return [
        {
            "name": one.name,
            "capability": f"{one.major}.{one.minor}",
            "memory_gib": round(one.total_memory / 2**30, 1),
        }
        for one in every
    ]


def driver_version(path: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """Return the version of NVIDIA's driver, or None where there is none."""
    try:
        found = _DRIVER.search(path.read_text(encoding="utf-8", errors="replace"))
    except OSError:
        return None
    return found[1] if found else None


def git_state(root: Path) -> dict[str, Any] | None:
    """Return the commit of the checkout ``root``, and whether it is dirty; None where there is none.

    Dirty means that a tracked file has changed, or that the package or the native sources hold another file.
    None also where git is missing or refuses, and for a folder inside a checkout of another project.
    """
    if not (root / ".git").exists():
        return None
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    added = _git(root, "ls-files", "--others", "--exclude-standard", "--", "detector", "csrc")
    if commit is None or changed is None or added is None:
        return None
    return {"commit": commit.strip(), "dirty": bool(changed.strip() or added.strip())}


def _git(root: Path, *arguments: str) -> str | None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command: Sequence[str] = ("git", "-c", "core.fsmonitor=false", "-C", str(root), *arguments)
    try:
        done = subprocess.run(
            command,
            env={**environment, "GIT_OPTIONAL_LOCKS": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_GIT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
