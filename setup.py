"""Builds the native libraries from csrc/: detector/_C for the CPU and, where nvcc is, detector/_C_cuda.

Both use torch's stable ABI, so that one build runs on every torch from 2.11 on and on every Python from
3.11 on. Project metadata is in pyproject.toml.

Environment: MAX_JOBS (compile jobs, default one a core), TORCH_CUDA_ARCH_LIST (default below),
DETECTOR_CUDA=0 (leave the CUDA library out), DETECTOR_SANITIZE=1 (AddressSanitizer and UBSan, CPU only).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup

os.environ.setdefault("MAX_JOBS", str(os.cpu_count() or 1))
os.environ.setdefault("TORCH_CUDA_ARCH_LIST", "7.5;8.0;8.6;9.0+PTX")
# A wrapper script called nvcc elsewhere in PATH would make cpp_extension guess a wrong CUDA_HOME.
if Path("/usr/local/cuda/bin/nvcc").exists():
    os.environ.setdefault("CUDA_HOME", "/usr/local/cuda")

import torch
from torch.utils.cpp_extension import CUDA_HOME, BuildExtension, CppExtension, CUDAExtension

SANITIZE = os.environ.get("DETECTOR_SANITIZE") == "1"
DEFINES = [
    ("TORCH_TARGET_VERSION", "0x020b000000000000"),  # the oldest torch that may load the libraries: 2.11
]
# Without -ffp-contract=off the compiler fuses multiply and add where the processor can, and results
# would differ from machine to machine.
CXX_FLAGS = ["-std=c++20", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi"]
if SANITIZE:
    LINK_FLAGS = ["-fsanitize=address,undefined"]
    CXX_FLAGS += ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=undefined", *LINK_FLAGS]
else:
    LINK_FLAGS = []
    CXX_FLAGS += ["-O3"]
NVCC_FLAGS = ["-std=c++20", "-O3", "-fmad=false", "-Wno-deprecated-gpu-targets"]


def sources(*patterns: str) -> list[str]:
    """Return the files under csrc/ that match, as setuptools wants them: relative and in a fixed order."""
    root = Path(__file__).parent
    return sorted(
        str(path.relative_to(root)) for pattern in patterns for path in (root / "csrc").glob(pattern)
    )


def why_no_cuda() -> str | None:
    """Return the reason for which the CUDA library cannot be built here, or None where it can."""
    if os.environ.get("DETECTOR_CUDA") == "0" or SANITIZE:
        return "left out by DETECTOR_CUDA=0 or DETECTOR_SANITIZE=1"
    if torch.version.cuda is None:
        return "this torch was built without CUDA"
    nvcc = Path(CUDA_HOME or "") / "bin" / "nvcc"
    if not nvcc.exists():
        return "no nvcc found (looked in CUDA_HOME, /usr/local/cuda and PATH)"
    release = re.search(r"release (\d+)\.", subprocess.check_output([nvcc, "--version"], text=True))
    if release is None or release[1] != torch.version.cuda.split(".")[0]:
        return f"{nvcc} and torch's CUDA {torch.version.cuda} differ in the major version"
    return None


def extensions() -> list[Extension]:
    cpu = CppExtension(
        "detector._C",
        sources("*.cpp", "cpu/*.cpp", "selective_search/*.cpp"),
        include_dirs=[str(Path(__file__).parent.resolve() / "csrc")],
        define_macros=DEFINES,
        extra_compile_args={"cxx": CXX_FLAGS},
        extra_link_args=LINK_FLAGS,
        py_limited_api=True,
    )
    reason = why_no_cuda()
    if reason is not None:
        print(
            f"detector: the CUDA library is not built: {reason}; the CPU library is enough without a GPU",
            file=sys.stderr,
        )
        return [cpu]
    cuda = CUDAExtension(
        "detector._C_cuda",
        sources("cuda/*.cu"),
        include_dirs=[str(Path(__file__).parent.resolve() / "csrc")],
        define_macros=[*DEFINES, ("USE_CUDA", None)],
        extra_compile_args={"cxx": CXX_FLAGS, "nvcc": NVCC_FLAGS},
        py_limited_api=True,
    )
    return [cpu, cuda]


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
