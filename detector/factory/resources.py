"""How many threads compute and how many processes load images, chosen by the number of available cores."""

from __future__ import annotations

import cv2
import torch

from detector.config import Config
from detector.core.machine import available_cores, loader_workers, threads_are_chosen
from detector.core.progress import note


def use_cores(config: Config, device: str) -> None:
    """Set the number of threads of torch and OpenCV for this process, and print the numbers.

    ``OMP_NUM_THREADS`` and ``data.workers`` take precedence. Torch never gets more threads than its own
    default, which is the number of physical cores.
    """
    cores = available_cores()
    if not threads_are_chosen():
        torch.set_num_threads(min(torch.get_num_threads(), cores))
    cv2.setNumThreads(torch.get_num_threads())
    threads, workers = torch.get_num_threads(), worker_count(config, device)
    note(
        f"{cores} CPU core{'s' * (cores != 1)}: {threads} compute thread{'s' * (threads != 1)} "
        f"({'OMP_NUM_THREADS' if threads_are_chosen() else 'chosen; OMP_NUM_THREADS sets it'}), "
        f"{workers} loader process{'es' * (workers != 1)} "
        f"({'chosen; data.workers sets it' if config.data.workers is None else 'data.workers'})"
    )


def worker_count(config: Config, device: str) -> int:
    """Return ``data.workers``, or a number chosen by the available cores if it is None."""
    if config.data.workers is not None:
        return config.data.workers
    return loader_workers(available_cores(), gpu=torch.device(device).type == "cuda")
