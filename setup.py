"""Builds the native libraries from csrc/: detector/_C for the CPU and, if nvcc is found, detector/_C_cuda.

Both use torch's stable ABI, so that one build runs on every torch from 2.11 on and on every Python from
3.11 on. Project metadata is in pyproject.toml. Importing this file builds nothing:
tools/check_headers.py asks it which compiler and which flags a build would use.

Environment: MAX_JOBS (compile jobs, default one per core), CUDA_HOME (the CUDA toolkit to use),
TORCH_CUDA_ARCH_LIST (default below), DETECTOR_CUDA=0 (leave the CUDA library out), DETECTOR_SANITIZE=1
(AddressSanitizer and UBSan, CPU only). DETECTOR_CUDA also takes the CUDA major version that a wheel must
have (DETECTOR_CUDA=13): without such a compiler the build fails.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from setuptools import Extension, find_namespace_packages, find_packages, setup
from setuptools.command.bdist_wheel import bdist_wheel

CUDA_ARCHITECTURES = ("7.5", "8.0", "8.6", "9.0", "10.0", "12.0")


def major_version(cuda: str) -> str:
    return cuda.split(".")[0]


def nvcc_major_version(nvcc: Path) -> str | None:
    """Return the CUDA major version of a compiler, or None if it does not run."""
    try:
        output = subprocess.check_output([nvcc, "--version"], text=True, stderr=subprocess.STDOUT)
    except (OSError, subprocess.CalledProcessError):
        return None
    release = re.search(r"release (\d+)\.", output)
    return release[1] if release else None


def cuda_homes() -> list[Path]:
    """Return the folders in which a CUDA compiler, bin/nvcc, is searched for, in order.

    If CUDA_HOME is set, it is the only one. NVIDIA's pip packages come last; they have a compiler since
    CUDA 13 and put it into nvidia/cu13 beside the libraries that torch's own packages have there.
    """
    chosen = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if chosen:
        return [Path(chosen)]
    # /usr/local/cuda comes before PATH, where nvcc may be a wrapper script outside any toolkit.
    homes = [Path("/usr/local/cuda")]
    in_path = shutil.which("nvcc")
    if in_path:
        homes.append(Path(in_path).resolve().parents[1])
    packages = importlib.util.find_spec("nvidia")
    if packages is not None and torch.version.cuda is not None:
        folders = packages.submodule_search_locations or []
        homes += [Path(folder, f"cu{major_version(torch.version.cuda)}") for folder in folders]
    return homes


def find_cuda_home() -> Path | None:
    """Return the folder of the first CUDA compiler of torch's major version, or None without one."""
    if torch.version.cuda is None:
        return None
    for home in cuda_homes():
        nvcc, header = home / "bin" / "nvcc", "include/cuda_runtime.h"
        complete = nvcc.exists() and ((home / header).exists() or any(home.glob(f"targets/*/{header}")))
        if complete and nvcc_major_version(nvcc) == major_version(torch.version.cuda):
            return home
    return None


def compiler_packages() -> str | None:
    """Return the pip requirement of NVIDIA's compiler for torch's CUDA version; None if there is none.

    An optional dependency in pyproject.toml could not say this: the version follows torch's, and pip builds
    this project before it installs what the project depends on. cuda-toolkit is a package without files
    that fixes the versions of the parts named in brackets; torch itself depends on it.
    """
    if torch.version.cuda is None or int(major_version(torch.version.cuda)) < 13:
        return None
    return f"cuda-toolkit[nvcc,crt,nvvm,cudart,cccl]=={torch.version.cuda}.*"


def architectures(nvcc: Path) -> str:
    """Return those of CUDA_ARCHITECTURES that ``nvcc`` knows, in the form of TORCH_CUDA_ARCH_LIST."""
    known = subprocess.check_output([nvcc, "--list-gpu-arch"], text=True).split()
    names = [name for name in CUDA_ARCHITECTURES if f"compute_{name.replace('.', '')}" in known]
    return ";".join(names) + "+PTX"


# cpp_extension reads CUDA_HOME when it is imported.
CUDA_FOUND = find_cuda_home()
if CUDA_FOUND is not None:
    os.environ["CUDA_HOME"] = str(CUDA_FOUND)
    os.environ.setdefault("TORCH_CUDA_ARCH_LIST", architectures(CUDA_FOUND / "bin" / "nvcc"))
os.environ.setdefault("MAX_JOBS", str(os.cpu_count() or 1))

from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension  # noqa: E402

SANITIZE = os.environ.get("DETECTOR_SANITIZE") == "1"
DEFINES = [
    ("TORCH_TARGET_VERSION", "0x020b000000000000"),  # the oldest torch that may load the libraries: 2.11
]
CUDA_DEFINES = [("USE_CUDA", None)]
# Without -ffp-contract=off the compiler fuses multiply and add where the processor can, and results
# would differ from machine to machine.
CXX_FLAGS = ["-std=c++20", "-ffp-contract=off", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-psabi"]
if SANITIZE:
    LINK_FLAGS = ["-fsanitize=address,undefined"]
    CXX_FLAGS += ["-O1", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=undefined", *LINK_FLAGS]
else:
    # Python's own flags may ask for symbols for a debugger, which are six sevenths of the CPU library.
    LINK_FLAGS = ["-Wl,--strip-debug"] if sys.platform == "linux" else []
    CXX_FLAGS += ["-O3"]
NVCC_FLAGS = ["-std=c++20", "-O3", "-fmad=false", "-Wno-deprecated-gpu-targets"]


def sources(*patterns: str) -> list[str]:
    """Return the files under csrc/ that match, sorted and relative, as setuptools needs them."""
    root = Path(__file__).parent
    return sorted(
        str(path.relative_to(root)) for pattern in patterns for path in (root / "csrc").glob(pattern)
    )


def cpu_sources() -> list[str]:
    folders = ("boxes", "images", "images/cpu", "pooling", "pooling/cpu", "selective_search")
    return sources("*.cpp", *(f"{folder}/*.cpp" for folder in folders))


def cuda_sources() -> list[str]:
    return sources("images/cuda/*.cu", "pooling/cuda/*.cu")


def why_no_cuda() -> str | None:
    """Return why the CUDA library cannot be built on this machine, or None if it can."""
    if os.environ.get("DETECTOR_CUDA") == "0" or SANITIZE:
        return "left out by DETECTOR_CUDA=0 or DETECTOR_SANITIZE=1"
    if torch.version.cuda is None:
        return "this torch was built without CUDA"
    if CUDA_FOUND is None:
        places = ", ".join(map(str, cuda_homes()))
        reason = f"no nvcc of CUDA {major_version(torch.version.cuda)}, which torch uses, in {places}"
        packages = compiler_packages()
        return f'{reason}; on a machine with a GPU: pip install "{packages}"' if packages else reason
    return None


def extensions() -> list[Extension]:
    cpu = CppExtension(
        "detector._C",
        cpu_sources(),
        include_dirs=[str(Path(__file__).parent.resolve() / "csrc")],
        define_macros=DEFINES,
        extra_compile_args={"cxx": CXX_FLAGS},
        extra_link_args=LINK_FLAGS,
        py_limited_api=True,
    )
    standard_library_first(cpu)
    reason = why_no_cuda()
    required = os.environ.get("DETECTOR_CUDA", "0")
    if required != "0" and (reason is not None or required != major_version(torch.version.cuda or "")):
        raise SystemExit(
            f"error: DETECTOR_CUDA={required} asks for the CUDA library of CUDA {required}, but "
            f"{reason or f'torch uses CUDA {torch.version.cuda}'}"
        )
    if reason is not None:
        print(
            f"detector: the CUDA library is not built, and without a GPU not needed: {reason}",
            file=sys.stderr,
        )
        return [cpu]
    cuda = CUDAExtension(
        "detector._C_cuda",
        cuda_sources(),
        include_dirs=[str(Path(__file__).parent.resolve() / "csrc")],
        define_macros=[*DEFINES, *CUDA_DEFINES],
        extra_compile_args={"cxx": CXX_FLAGS, "nvcc": NVCC_FLAGS},
        py_limited_api=True,
    )
    cuda.libraries = [cuda_runtime(name) for name in cuda.libraries]
    standard_library_first(cuda)
    return [cpu, cuda]


def standard_library_first(extension: Extension) -> None:
    """Let the linker find the names of the C++ library in that library itself.

    The libraries of torch's wheels also export some of them. Taken from there, they would be no part of
    torch's stable ABI, and without the version by which a system can be recognised as too old.
    """
    if sys.platform == "linux":
        extension.libraries.insert(0, "stdc++")


def cuda_runtime(library: str) -> str:
    """Return the name under which the linker finds ``library``, one that CUDAExtension asks for.

    The pip package of the CUDA runtime lacks the link libcudart.so that -lcudart would find, so there the
    linker is given the name of the file.
    """
    if library != "cudart" or CUDA_FOUND is None:
        return library
    exact = sorted((CUDA_FOUND / "lib").glob("libcudart.so.*"))
    return f":{exact[0].name}" if exact and not (CUDA_FOUND / "lib" / "libcudart.so").exists() else library


CXX_LIBRARIES = ((24, 28), (28, 31), (29, 34), (30, 35), (32, 38), (33, 39))
"""(n, m): GLIBCXX_3.4.n may be needed from the tag manylinux_2_m on, in the list of auditwheel."""


def manylinux(libraries: list[Path]) -> tuple[int, int]:
    """Return the version of the oldest manylinux tag that fits the symbols of the libraries."""
    contents = [library.read_bytes() for library in libraries]

    def newest(pattern: bytes) -> int:
        return max(int(found) for content in contents for found in [b"0", *re.findall(pattern, content)])

    glibc = newest(rb"\0GLIBC_2\.(\d+)(?=[.\0])")
    cxx = newest(rb"\0GLIBCXX_3\.4\.(\d+)\0")
    minimum = next((tag for version, tag in CXX_LIBRARIES if cxx <= version), None)
    if minimum is None:
        raise SystemExit(
            f"error: no manylinux tag is known for GLIBCXX_3.4.{cxx}; see setup.py: CXX_LIBRARIES"
        )
    return 2, max(28, glibc, minimum)  # torch's own wheels need 2.28


class Wheel(bdist_wheel):
    """A wheel for every Python from 3.11 on, whose name says which systems and which CUDA it is for."""

    def finalize_options(self) -> None:
        if self.build_number is None and "detector._C_cuda" in self.extension_names():
            self.build_number = f"1cu{major_version(torch.version.cuda)}"
        super().finalize_options()

    def extension_names(self) -> list[str]:
        return [extension.name for extension in self.distribution.ext_modules or []]

    def get_tag(self) -> tuple[str, str, str]:
        python, abi, platform = super().get_tag()
        folder = Path(self.get_finalized_command("build").build_lib, "detector")
        libraries = sorted(folder.glob("_C*.so"))
        if libraries and platform.startswith("linux_"):
            version = "_".join(map(str, manylinux(libraries)))
            platform = platform.replace("linux", f"manylinux_{version}", 1)
        return python, abi, platform


if __name__ == "__main__":  # true for setuptools and pip as well
    # The shipped configs lie beside the package in a checkout, and inside it when it is installed.
    configs = [
        "detector.configs",
        *(f"detector.configs.{name}" for name in find_namespace_packages("configs")),
    ]
    setup(
        packages=[*find_packages(include=["detector*"]), *configs],
        package_dir={"detector.configs": "configs"},
        package_data={
            **{name: ["*.yaml", "*.json"] for name in configs},
            "detector": ["py.typed", "**/*.html"],
        },
        ext_modules=extensions(),
        cmdclass={"build_ext": BuildExtension, "bdist_wheel": Wheel},
        options={"bdist_wheel": {"py_limited_api": "cp311"}},
    )
