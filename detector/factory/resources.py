"""How many threads compute and how many load images, chosen by the number of available cores."""

from __future__ import annotations

import cv2
import torch

from detector.config import Config
from detector.core.errors import InputError
from detector.core.machine import available_cores, loader_workers, threads_set_by
from detector.core.progress import note


def choose_device(name: str) -> str:
    """Return the device for ``name``: "gpu" is "cuda", and a number N is "cuda:N".

    "auto" is "cuda" if there is a GPU and the CUDA kernels were built, otherwise "cpu".

    Raises:
        InputError: this machine has no such device, or there are no kernels for it.
    """
    from detector.ops import cuda_kernels_missing

    missing = cuda_kernels_missing()
    name = "cuda" if name == "gpu" else f"cuda:{name}" if name.isdecimal() else name
    if name == "auto":
        if not torch.cuda.is_available():
            return "cpu"
        if missing is not None:
            note(f"note: the GPU is not used: {missing}")
        return "cuda" if missing is None else "cpu"
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name}: not usable here: {str(error).splitlines()[0]}") from None
    if torch.device(name).type == "cuda" and missing is not None:
        raise InputError(f"device {name}: {missing}")
    return name


def use_cores(config: Config, device: str, *, loaders: bool = True) -> None:
    """Set the number of threads of torch and OpenCV for this process, and print the numbers in one line.

    ``loaders`` says whether threads will load images; their number is then printed too.
    ``OMP_NUM_THREADS``, ``MKL_NUM_THREADS`` and ``data.workers`` take precedence. Torch never gets more
    threads than its own default, which is the number of physical cores.
    """
    cores, set_by = available_cores(), threads_set_by()
    if set_by is None:
        torch.set_num_threads(min(torch.get_num_threads(), cores))
    threads, workers = torch.get_num_threads(), worker_count(config, device)
    # The threads that load images resize several at once; OpenCV's own threads would be in their way.
    cv2.setNumThreads(1 if loaders and workers > 1 else threads)
    computing = f"set by {set_by}" if set_by else "chosen; OMP_NUM_THREADS sets it"
    loading = "chosen; data.workers sets it" if config.data.workers is None else "set by data.workers"
    line = f"{_counted(cores, 'CPU core')}: {_counted(threads, 'compute thread')} ({computing})"
    note(f"{line}, {_counted(workers, 'loader thread')} ({loading})" if loaders else line)


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"


def worker_count(config: Config, device: str) -> int:
    """Return ``data.workers``, or a number chosen by the available cores if it is None."""
    if config.data.workers is not None:
        return config.data.workers
    return loader_workers(available_cores(), gpu=torch.device(device).type == "cuda")
