"""Builds the emulated kernels: translated to C++ and registered as ``torch.ops.emulated``.

    python -m tests.emulator.build [plain|quick|address|thread]

All files are written below ``build/emulator``. Objects and libraries are named by a hash of their inputs, so
that a change compiles only what it affects; ``make clean`` removes them.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import torch

from tests.emulator.translate import translate

HERE = Path(__file__).parent
PROJECT = HERE.parents[1]
CACHE = PROJECT / "build" / "emulator"
FOLDERS = ("images", "pooling")  # of csrc/; each holds schemas.cpp and the kernels, in cuda/
VARIANTS = {
    "plain": [],
    "quick": ["-O0"],  # to compile
    "address": ["-fsanitize=address"],
    "thread": ["-fsanitize=thread"],
}

CUDA_REGISTRATION = "LIBRARY_IMPL(detector, CUDA,"
_SCHEMA = re.compile(r"\b(STABLE_TORCH_LIBRARY(?:_FRAGMENT)?)\(detector,")

# As setup.py compiles: no fused multiply-add, the oldest torch's stable ABI.
COMMON_FLAGS = [
    "-std=c++20",
    "-O2",
    "-g1",
    "-fPIC",
    "-ffp-contract=off",
    "-fvisibility=hidden",
    "-Wno-unknown-pragmas",
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
    "-DUSE_CUDA",
]
# Finds what makes a GPU fail or give another number, such as an address that is not aligned for the type read
# from it. scheduler.cpp holds the runtime of these checks.
CHECKS = "-fsanitize=alignment,bounds,shift,signed-integer-overflow,integer-divide-by-zero"


def why_not() -> str | None:
    """Return why the emulator cannot be built on this machine, or None if it can."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return "the emulator's fibers need Linux on x86-64"
    if shutil.which("g++") is None:
        return "the emulator needs g++"
    return None


def build(variant: str = "plain", csrc: Path = PROJECT / "csrc", folder: Path | None = None) -> Path:
    """Return the emulator's library for the kernels below ``csrc``; build what has changed.

    With ``folder`` the cache is read but nothing is added to it, for kernels that are changed temporarily.
    """
    target = folder or CACHE
    target.mkdir(parents=True, exist_ok=True)
    with _locked(target / "lock"):
        return _build(VARIANTS[variant], csrc, target, variant)


def build_features() -> Path:
    """Return a library of the kernels in ``features.cu``, which test the emulator itself."""
    tree = CACHE / "translated" / "features"
    tree.mkdir(parents=True, exist_ok=True)
    with _locked(CACHE / "lock"):
        source = tree / "features.cpp"
        source.write_text(translate((HERE / "features.cu").read_text(), "features.cu"))
        return _library("features", [source], [HERE / "include"], [], CACHE)


def _build(more: list[str], csrc: Path, target: Path, variant: str) -> Path:
    tree = target / "translated" / variant
    shutil.rmtree(tree, ignore_errors=True)
    sources = _write_tree(csrc, tree)
    return _library(variant, sources, [tree, HERE / "include", csrc], more, target)


def _library(name: str, sources: list[Path], ours: list[Path], more: list[str], target: Path) -> Path:
    include = [*ours, *_torch_includes()]
    headers = _short(*(path.read_text() for folder in ours for path in sorted(folder.rglob("*.h"))))
    jobs: list[tuple[Path, list[str]]] = [(source, [*COMMON_FLAGS, CHECKS, *more]) for source in sources]
    jobs.append((HERE / "scheduler.cpp", COMMON_FLAGS))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda job: _compile(job[0], job[1], include, headers, target), jobs))
    library = target / f"{name}-{_short(*(path.name for path in objects))}.so"
    if not library.exists():
        torch_libraries = Path(torch.__file__).parent / "lib"
        link = ["-shared", "-Wl,-Bsymbolic", f"-L{torch_libraries}", "-ltorch_cpu", "-lc10", *more]
        _run("g++", *map(str, objects), *link, "-o", str(library))
    return library


def _write_tree(csrc: Path, tree: Path) -> list[Path]:
    """Write the kernels and the operators' schemas to ``tree`` as C++; return the files to compile."""
    return [file for folder in FOLDERS for file in _write_folder(csrc, folder, tree)]


def _write_folder(csrc: Path, folder: str, tree: Path) -> list[Path]:
    target = tree / folder / "cuda"
    target.mkdir(parents=True)
    texts = {
        path.relative_to(csrc): translate(path.read_text(), f"csrc/{folder}/cuda/{path.name}")
        for path in sorted((csrc / folder / "cuda").iterdir())
    }
    schemas = csrc / folder / "schemas.cpp"
    texts[schemas.relative_to(csrc)] = schemas.read_text()
    if sum(text.count(CUDA_REGISTRATION) for text in texts.values()) != 1:
        raise ValueError(f"{CUDA_REGISTRATION} does not stand once in the kernels of csrc/{folder}/cuda")
    compiled = []
    for path, text in texts.items():
        file = tree / path
        if path.suffix in (".cu", ".cpp"):
            file = file.with_suffix(".cpp")
            compiled.append(file)
        text = text.replace(CUDA_REGISTRATION, "LIBRARY_IMPL(emulated, CPU,")
        file.write_text(_SCHEMA.sub(r"\1(emulated,", text))
    return compiled


def _compile(source: Path, flags: list[str], include: list[Path], headers: str, target: Path) -> Path:
    name = f"{source.stem}-{_short(source.read_text(), headers, *flags, _versions())}.o"
    for folder in (CACHE, target):
        if (folder / "objects" / name).exists():
            return folder / "objects" / name
    result = target / "objects" / name
    result.parent.mkdir(exist_ok=True)
    partial = result.with_suffix(".partial")
    _run("g++", *flags, *(f"-I{path}" for path in include), "-c", str(source), "-o", str(partial))
    partial.rename(result)
    return result


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command[0]} failed:\n{done.stderr[:6000]}")


@cache
def _torch_includes() -> list[Path]:
    root = Path(torch.__file__).parent / "include"
    return [root, root / "torch" / "csrc" / "api" / "include"]


@cache
def _versions() -> str:
    compiler = subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout
    return f"{torch.__version__} {compiler}"


def _short(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    print(build(sys.argv[1] if len(sys.argv) > 1 else "plain"))
