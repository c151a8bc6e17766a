#!/usr/bin/env python3
"""Compile the native sources against the headers of the oldest supported torch and of the installed one.

No GPU is needed and nothing is linked. The headers of the oldest torch come from its macOS wheel, which has
the same headers in a seventh of the size. If the machine has no CUDA compiler, it comes from NVIDIA's pip
packages. Both are downloaded once, into build/headers.
"""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from detector.commands import cli
from detector.core.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / "build" / "headers"
ARCHITECTURE = "sm_90"
"""One architecture is enough to find missing names; a build compiles the kernels for all."""

BUILD = runpy.run_path(str(ROOT / "setup.py"))
"""What setup.py defines: its flags, its sources and the compiler that it would use."""

from torch.utils import cpp_extension  # noqa: E402  (after setup.py has chosen CUDA_HOME)


def pip(what: str, *arguments: str) -> None:
    """Run pip to get ``what``; raise InputError, with what pip reported, if it fails."""
    command = [sys.executable, "-m", "pip", *arguments, "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise InputError(f"{what} could not be downloaded; `{' '.join(command)}` reported:\n{done.stderr}")


def cached(name: str, fill: Callable[[Path], None]) -> Path:
    """Return the folder ``name`` in the cache; ``fill`` fills it once, completely or not at all."""
    folder = CACHE / name
    if not folder.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as temporary:
            filled = Path(temporary, "filled")
            fill(filled)
            filled.rename(folder)
    return folder


def oldest_torch() -> str:
    """Return the version of the oldest torch that may load the libraries, from setup.py's definition."""
    target = int(dict(BUILD["DEFINES"])["TORCH_TARGET_VERSION"], 16)
    return f"{target >> 56}.{target >> 48 & 0xFF}.0"


def headers_of(version: str) -> Path:
    """Return the folder torch/include of another torch."""

    def fill(folder: Path) -> None:
        with tempfile.TemporaryDirectory() as downloads:
            pip(
                f"torch {version}, for its headers,",
                *("download", f"torch=={version}", "--no-deps", "--only-binary=:all:", "--dest", downloads),
                *("--python-version", "3.11", "--platform", "macosx_11_0_arm64"),
                *("--platform", "macosx_14_0_arm64"),
            )
            (wheel,) = Path(downloads).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                names = [name for name in archive.namelist() if name.startswith("torch/include/")]
                archive.extractall(folder, names)

    return cached(f"torch-{version}", fill) / "torch" / "include"


def cuda_home() -> Path:
    """Return the folder of the CUDA compiler that a build would use, or else of NVIDIA's pip packages."""
    if BUILD["CUDA_FOUND"] is not None:
        return Path(BUILD["CUDA_FOUND"])
    packages = BUILD["compiler_packages"]()
    if packages is None:
        raise InputError(
            f"no nvcc was found, and pip has none for CUDA {torch.version.cuda}, which torch uses; install "
            "that version of the CUDA toolkit"
        )

    def fill(folder: Path) -> None:
        pip("NVIDIA's compiler", "install", packages, "--target", str(folder))

    target = cached(f"cuda-{torch.version.cuda}", fill)
    (home,) = target.glob("nvidia/cu*")
    return home


def commands(includes: list[str], home: Path, temporary: Path) -> list[list[str]]:
    """Return the compiler calls, one per source file, with the flags that setup.py uses."""

    def definitions(pairs: list[tuple[str, str | None]]) -> list[str]:
        return [f"-D{name}" if value is None else f"-D{name}={value}" for name, value in pairs]

    searched = ["-Icsrc", *(word for path in includes for word in ("-isystem", path))]
    host = [
        *(os.environ.get("CXX", "c++"), "-fsyntax-only", *BUILD["CXX_FLAGS"]),
        *(*definitions(BUILD["DEFINES"]), *searched),
    ]
    device = [
        *(str(home / "bin" / "nvcc"), "-c", f"-arch={ARCHITECTURE}"),
        *(*cpp_extension.COMMON_NVCC_FLAGS, *BUILD["NVCC_FLAGS"]),
        *(*definitions(BUILD["DEFINES"] + BUILD["CUDA_DEFINES"]), *searched),
    ]
    on_host = [[*host, source] for source in BUILD["cpu_sources"]()]
    on_device = [
        [*device, source, "-o", str(temporary / f"{number}.o")]
        for number, source in enumerate(BUILD["cuda_sources"]())
    ]
    return on_device + on_host


def compile_all(name: str, includes: list[str], home: Path) -> bool:
    """Compile every source against the headers in ``includes``; return whether all of them compile."""

    def compile_one(command: list[str]) -> str:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        return f"with the headers of {name}:\n{done.stdout}{done.stderr}" if done.returncode else ""

    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(int(os.environ["MAX_JOBS"])) as pool:
        errors = list(pool.map(compile_one, commands(includes, home, Path(temporary))))
    failed = [error for error in errors if error]
    for error in failed:
        print(error, file=sys.stderr)
    print(f"{name}: {len(errors) - len(failed)} of {len(errors)} sources compile")
    return not failed


def main() -> int:
    """Return 0 if every source compiles, 1 if one does not; InputError if something cannot be downloaded."""
    cli.make_parser(__doc__ or "", "python tools/check_headers.py").parse_args()
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        raise InputError("no C++ compiler; on Debian and Ubuntu: apt-get install g++")
    home, oldest = cuda_home(), oldest_torch()
    old = str(headers_of(oldest))
    print(f"compiler: {home}")
    compiled = [
        compile_all(f"torch {oldest}", [old, f"{old}/torch/csrc/api/include"], home),
        compile_all(f"torch {torch.__version__}", cpp_extension.include_paths(), home),
    ]
    return 0 if all(compiled) else 1


if __name__ == "__main__":
    cli.run(main)
