"""Runs the emulated CUDA kernels in place of the project's CPU operators."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

import detector.ops  # noqa: F401  (registers the CPU operators)

ORDERS = 3  # of threads in a block, of blocks in a grid: ascending, descending, shuffled
_COUNTS = (
    "launches",
    "blocks",
    "threads",
    "block barriers",
    "warp barriers",
    "votes",
    "switches",
    "most shared bytes",
)


class EmulatedKernels(TorchDispatchMode):
    """Inside ``with EmulatedKernels(library):`` the operators run the emulated CUDA kernels.

    CPU tensors play the part of CUDA tensors. The public functions and their gradients work as they do on a
    device, so nothing here depends on what arguments the operators take.
    """

    def __init__(self, library: Path) -> None:
        super().__init__()
        torch.ops.load_library(library)
        self._library = ctypes.CDLL(os.fspath(library))
        self._library.emulator_configure.argtypes = [
            ctypes.c_int,
            ctypes.c_int,
            ctypes.c_uint64,
            ctypes.c_int,
        ]

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        return (emulated(func) or func)(*args, **(kwargs or {}))

    def configure(self, threads: int = 0, blocks: int = 0, seed: int = 0, fill: int = 0xFF) -> None:
        """Choose the orders of threads and blocks, 0 to ORDERS - 1, and the bytes of fresh shared memory."""
        self._library.emulator_configure(threads, blocks, seed, fill)

    def counts(self) -> dict[str, int]:
        """Return the counts of events since the library was loaded."""
        numbers = (ctypes.c_longlong * len(_COUNTS))()
        self._library.emulator_counts(numbers)
        return dict(zip(_COUNTS, numbers, strict=True))


def emulated(func: Any) -> Callable[..., Any] | None:
    """Return the emulated kernel of an operator of the project, None for any other operator."""
    if func.namespace != "detector":
        return None
    packet = getattr(torch.ops.emulated, func._opname, None)
    return None if packet is None else getattr(packet, func._overloadname)
