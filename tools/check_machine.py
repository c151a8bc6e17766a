#!/usr/bin/env python3
"""Check that the project can be installed on this machine; print one line for each thing that is missing.

Needs only Python itself. With --compiler it needs torch, too, and prints the packages that pip has to install
so that the CUDA library can be built. It prints nothing if there is no NVIDIA GPU, or if there is a compiler
of torch's CUDA version already.
"""

import argparse
import os
import runpy
import shutil
import sys
from pathlib import Path
from typing import Any

EXAMPLE = "example:\n  python3 tools/check_machine.py && make install"


def missing_tools(uv: bool) -> list[str]:
    """Return what is missing and must be there before anything can be installed, with pip or with ``uv``."""
    problems = []
    if sys.version_info < (3, 11):  # noqa: UP036 (this runs before pip could refuse)
        version = ".".join(map(str, sys.version_info[:3]))
        problems.append(f"Python 3.11 or newer is needed, this is {version}; use make PYTHON=python3.11")
    if not (shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")):
        problems.append("a C++ compiler is needed; on Debian and Ubuntu: apt-get install g++")
    if uv:
        return problems  # uv makes environments without Python's own module
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        problems.append("Python's venv is needed; on Debian and Ubuntu: apt-get install python3-venv")
    return problems


def missing_libraries() -> list[str]:
    """Return why OpenCV cannot be imported; its wheel needs two system libraries that it does not contain."""
    try:
        import cv2  # noqa: F401
    except ImportError as error:
        return [
            f"OpenCV cannot start: {error}. On Debian and Ubuntu: apt-get install libgl1 libglib2.0-0; "
            "on Fedora: dnf install mesa-libGL glib2"
        ]
    return []


def has_nvidia_gpu() -> bool:
    """Return whether torch sees an NVIDIA GPU, or at least its driver is loaded."""
    import torch

    return torch.cuda.is_available() or Path("/proc/driver/nvidia/version").exists()


def missing_compiler(build: dict[str, Any]) -> str | None:
    """Return the packages that pip has to install so that the CUDA library can be built, or None.

    ``build`` holds the names that setup.py defines.
    """
    import torch

    wanted = has_nvidia_gpu() and torch.version.cuda is not None and os.environ.get("DETECTOR_CUDA") != "0"
    if not wanted or build["CUDA_FOUND"] is not None:
        return None
    packages: str | None = build["compiler_packages"]()
    if packages is None:
        print(
            f"warning: the GPU will not be used: there is no nvcc for CUDA {torch.version.cuda}, which torch "
            "uses, and pip has none. Install that version of the CUDA toolkit, then run make -B install.",
            file=sys.stderr,
        )
    return packages


def main() -> int:
    """Return 0, or 2 if something is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--imports", action="store_true", help="check the libraries of installed packages")
    parser.add_argument("--compiler", action="store_true", help="print the pip packages of a missing nvcc")
    parser.add_argument("--uv", action="store_true", help="uv installs, so that Python's venv is not needed")
    arguments = parser.parse_args()
    if arguments.compiler:
        packages = missing_compiler(runpy.run_path(str(Path(__file__).resolve().parents[1] / "setup.py")))
        print(packages or "", end="")
        return 0
    problems = missing_libraries() if arguments.imports else missing_tools(arguments.uv)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 2 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
