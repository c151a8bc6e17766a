"""Deterministic algorithms on CUDA, so that a resumed run gives the same bits there too."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.backends import cudnn

from detector.core.errors import InputError

_memory: Any = torch.utils.deterministic  # mypy does not know the module's property


@contextmanager
def cuda_algorithms(device: torch.device | str, *, deterministic: bool) -> Iterator[None]:
    """Choose CUDA's algorithms within the context; on other devices, which have no choice, do nothing.

    With ``deterministic`` cuDNN, cuBLAS and torch's own kernels only use algorithms that add in the same
    order every time. Otherwise cuDNN measures its algorithms on each new input size and takes the fastest.
    The earlier settings are restored afterwards, except for an environment variable that cuBLAS reads when
    it is first used; so the context has to begin before that.

    Raises:
        InputError: ``deterministic``, and an operation that has no deterministic algorithm on CUDA.
    """
    if torch.device(device).type != "cuda":
        yield
        return
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.get_deterministic_debug_mode()
    flags = cudnn.deterministic, cudnn.benchmark, _memory.fill_uninitialized_memory
    try:
        torch.set_deterministic_debug_mode("error" if deterministic else "default")
        _memory.fill_uninitialized_memory = False  # nothing here reads memory before it is written
        cudnn.deterministic, cudnn.benchmark = deterministic, not deterministic
        yield
    except RuntimeError as error:
        if deterministic and "deterministic" in str(error):
            raise InputError(
                f"train.deterministic: {str(error).splitlines()[0]} (set train.deterministic to false to "
                "train with it; runs then differ in the last bits, and a resumed run is not exact)"
            ) from error
        raise
    finally:
        torch.set_deterministic_debug_mode(before)
        cudnn.deterministic, cudnn.benchmark, _memory.fill_uninitialized_memory = flags
