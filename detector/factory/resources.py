"""How many threads compute and how many load images, chosen by the number of available cores."""

from __future__ import annotations

import cv2
import torch

from detector.config import Config
from detector.core import distributed
from detector.core.errors import InputError
from detector.core.machine import available_cores, loader_workers, threads_set_by
from detector.core.progress import note


def choose_device(name: str) -> str:
    """Return the device for ``name``: "gpu" is "cuda", and a number N is "cuda:N".

    "auto" is "cuda" if there is a GPU and the CUDA kernels were built, otherwise "cpu". Where ``torchrun``
    has started several processes, "cuda" is a GPU of this process; they share them where there are fewer.

    Raises:
        InputError: this machine has no such device, or there are no kernels for it; or all processes of this
            machine would use one GPU.
    """
    from detector.ops import cuda_kernels_missing

    missing = cuda_kernels_missing()
    name = "cuda" if name == "gpu" else f"cuda:{name}" if name.isdecimal() else name
    if name == "auto":
        if torch.cuda.is_available() and missing is not None:
            note(f"note: the GPU is not used: {missing}")
        if not torch.cuda.is_available() or missing is not None:
            return "cpu"
        name = "cuda"
    name = _own_gpu(name)
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name}: not usable here: {str(error).splitlines()[0]}") from None
    if torch.device(name).type == "cuda" and missing is not None:
        raise InputError(f"device {name}: {missing}")
    return name


def _own_gpu(name: str) -> str:
    """Return the GPU of this process for "cuda" where ``torchrun`` has started it, with its number."""
    here, count = distributed.local_place()
    if not distributed.launched() or not name.startswith("cuda"):
        return name
    if name != "cuda":
        if count == 1:
            return name
        raise InputError(f"--device {name}: torchrun gives each process its own GPU; leave the number out")
    gpus = torch.cuda.device_count()
    if count > gpus and here == 0:
        shared = f"{count} processes share {_counted(gpus, 'GPU')}"
        note(f"note: {shared}, so they communicate by gloo, not by nccl")
    return f"cuda:{here % gpus}" if gpus else name


def use_cores(config: Config, device: str, *, loaders: bool = True) -> None:
    """Set the number of threads of torch and OpenCV for this process, and print the numbers in one line.

    ``loaders`` says whether threads will load images; their number is then printed too.
    ``OMP_NUM_THREADS``, ``MKL_NUM_THREADS`` and ``data.workers`` take precedence. Torch never gets more
    threads than its own default, which is the number of physical cores.
    """
    cores, set_by = _cores(), threads_set_by()
    if set_by is None:
        torch.set_num_threads(min(torch.get_num_threads(), cores))
    threads, workers = torch.get_num_threads(), worker_count(config, device)
    # The threads that load images resize several at once; OpenCV's own threads would be in their way.
    cv2.setNumThreads(1 if loaders and workers > 1 else threads)
    computing = f"set by {set_by}" if set_by else "chosen; OMP_NUM_THREADS sets it"
    loading = "chosen; data.workers sets it" if config.data.workers is None else "set by data.workers"
    line = f"{_counted(cores, 'CPU core')}: {_counted(threads, 'compute thread')} ({computing})"
    note(f"{line}, {_counted(workers, 'loader thread')} ({loading})" if loaders else line)


def _cores() -> int:
    """Return the cores that this process may use; the processes of one machine divide them among them."""
    return max(available_cores() // distributed.local_place()[1], 1)


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'s' * (number != 1)}"


def worker_count(config: Config, device: str) -> int:
    """Return ``data.workers``, or a number chosen by the available cores if it is None."""
    if config.data.workers is not None:
        return config.data.workers
    return loader_workers(_cores(), gpu=torch.device(device).type == "cuda")
