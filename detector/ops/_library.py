"""Loads the native libraries once, when ``detector.ops`` is imported; loading registers the operators.

``_C`` holds the CPU kernels and is always needed. ``_C_cuda`` holds the CUDA kernels: it exists only where
nvcc was available at build time, and only a torch with the same CUDA major version loads it.
``cuda_kernels_missing`` returns why the operators cannot run on CUDA tensors, ``built_for_cuda`` the CUDA
major version that ``_C_cuda`` was built for.
"""

from __future__ import annotations

import mmap
import re
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


def _cuda_major(library: Path) -> str | None:
    """Return the major version of the CUDA runtime that a library names as one that it needs.

    The list of needed libraries stands in the file in plain text: libcudart.so.13, cudart64_13.dll.
    """
    with library.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        found = re.search(rb"libcudart\.so\.(\d+)|cudart64_(\d+)", content)
        return (found[1] or found[2]).decode() if found else None


def _torch_cuda_major() -> str | None:
    return None if torch.version.cuda is None else torch.version.cuda.split(".")[0]


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
    if (
        cuda is not None
        and _torch_cuda_major() is not None
        and _cuda_major(cuda) in (None, _torch_cuda_major())
    ):
        _load(cuda)


def _why_no_cuda_kernels() -> str | None:
    if torch._C._dispatch_has_kernel_for_dispatch_key("detector::roi_pool", "CUDA"):
        return None
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA; install one with CUDA, then build again."
    built = built_for_cuda()
    if built not in (None, _torch_cuda_major()):
        return (
            f"the CUDA kernels of this project were built for CUDA {built}, but torch {torch.__version__} "
            f"uses CUDA {torch.version.cuda}. Install a torch for CUDA {built}, or the wheel of this project "
            f"for CUDA {_torch_cuda_major()}, or build it from source. Or run on the CPU (--device cpu)."
        )
    return f"the CUDA kernels of this project were not built ({_PACKAGE}/_C_cuda is missing). {_CUDA_ADVICE}"


def built_for_cuda() -> str | None:
    """Return the CUDA major version that the CUDA library was built for ("13"); None if it was not built."""
    library = _find("_C_cuda")
    return None if library is None else _cuda_major(library)


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
