"""Loads the native libraries, once, when ``detector.ops`` is imported; that registers the operators.

``_C`` holds the CPU kernels and is always needed. ``_C_cuda`` holds the CUDA kernels; it exists only where
nvcc was found at build time, and is loaded only by a torch with CUDA.
"""

from __future__ import annotations

from pathlib import Path

import torch

_PACKAGE = Path(__file__).resolve().parents[1]
_MEND = "Build it with `make install`, or in a source tree with `python setup.py build_ext --inplace`."


def _find(name: str) -> Path | None:
    return next(iter(sorted(_PACKAGE.glob(f"{name}.*so"))), None)


def _load(path: Path) -> None:
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise ImportError(f"{path} does not load with torch {torch.__version__}: {error}\n{_MEND}") from error


def load() -> None:
    """Load the native libraries.

    Raises ImportError, which says how to build, where the CPU library is missing or one does not load.
    """
    cpu = _find("_C")
    if cpu is None:
        raise ImportError(f"The native library detector/_C is missing in {_PACKAGE}. {_MEND}")
    _load(cpu)
    cuda = _find("_C_cuda")
    if cuda is not None and torch.version.cuda is not None:
        _load(cuda)


load()
