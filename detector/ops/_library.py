"""Loads the native libraries once, when ``detector.ops`` is imported; loading registers the operators.

``_C`` holds the CPU kernels and is always needed. ``_C_cuda`` holds the CUDA kernels: it exists only where
nvcc was available at build time, and only a torch with CUDA loads it. ``cuda_kernels_missing`` returns why
the operators cannot run on CUDA tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch

_PACKAGE = Path(__file__).resolve().parents[1]
_CUDA_ADVICE = (
    "Run `make -B install` in the source tree: on a machine with a GPU it builds the library, and without a "
    "CUDA toolkit it installs NVIDIA's compiler first. Or run on the CPU (--device cpu)."
)
_ADVICE = "Build it with `make install`, or in a source tree with `python setup.py build_ext --inplace`."


def _find(name: str) -> Path | None:
    return next(iter(sorted(_PACKAGE.glob(f"{name}.*so"))), None)


def _load(path: Path) -> None:
    try:
        torch.ops.load_library(path)
    except OSError as error:
        raise ImportError(
            f"{path} does not load with torch {torch.__version__}: {error}\n{_ADVICE}"
        ) from error


def load() -> None:
    """Load the native libraries.

    Raises ImportError, which says how to build, if the CPU library is missing or a library does not load.
    """
    cpu = _find("_C")
    if cpu is None:
        raise ImportError(f"The native library detector/_C is missing in {_PACKAGE}. {_ADVICE}")
    _load(cpu)
    cuda = _find("_C_cuda")
    if cuda is not None and torch.version.cuda is not None:
        _load(cuda)


def _why_no_cuda_kernels() -> str | None:
    if torch._C._dispatch_has_kernel_for_dispatch_key("detector::roi_pool", "CUDA"):
        return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA; install one with CUDA, then build again."
    return f"the CUDA kernels of this project were not built ({_PACKAGE}/_C_cuda is missing). {_CUDA_ADVICE}"


load()
_CUDA_KERNELS_MISSING = _why_no_cuda_kernels()  # asked once, not in every call


def cuda_kernels_missing() -> str | None:
    """Return why the operators cannot run on CUDA tensors and what to do about it; None if it can.

    The answer does not depend on whether the machine has a GPU.
    """
    return _CUDA_KERNELS_MISSING


def numbers_of(enum: str) -> Mapping[str, int]:
    """Return the values of a C++ enum of the operators by name, in the order of its declaration in csrc/."""
    names = torch.ops.detector.enum_names(enum).split(", ")
    return MappingProxyType({name: number for number, name in enumerate(names)})
