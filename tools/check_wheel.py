#!/usr/bin/env python3
"""Check a wheel of this project: its tags, its content, and the symbols that its native libraries need.

The libraries may need only the C and C++ libraries, the CUDA runtime, and the C functions of torch's stable
ABI (https://docs.pytorch.org/docs/stable/notes/libtorch_stable_abi.html). So one wheel works with every
torch from 2.11 on and every Python from 3.11 on. `abi3audit` and `auditwheel` are run, too, unless --symbols
is given. A library (.so) can be checked instead of a wheel. Works on Linux.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from elftools.elf.dynamic import DynamicSection
from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection, GNUVerSymSection
from elftools.elf.sections import SymbolTableSection

from detector.commands import cli
from detector.core.errors import InputError

TORCH = re.compile(r"(aoti_)?torch_[a-z0-9]\w*")
"""Names of torch's stable C functions: those of torch/csrc/inductor/aoti_torch/c and torch/csrc/stable/c."""
SYSTEM = re.compile(r"(GLIBC|GLIBCXX|CXXABI|GCC)_[\d.]+|libcudart\.so\.\d+")
"""Versions under which the C and C++ libraries and the CUDA runtime give their symbols."""
OPTIONAL = {"_ITM_deregisterTMCloneTable", "_ITM_registerTMCloneTable", "__gmon_start__", "__cxa_finalize"}
"""Weak symbols that the compiler adds to every library and that may be missing."""
NEEDED = re.compile(
    r"lib(c|m|dl|rt|pthread|stdc\+\+|gcc_s|c10|torch|torch_cpu|torch_cuda|c10_cuda|cudart)\.so[\d.]*"
)
FILES = (
    "detector/py.typed",
    "detector/configs/quickstart.yaml",
    "detector/configs/schema.json",
    "detector/server/page.html",
    "detector/server/reference.html",
)
"""Files besides Python's that the package reads."""


def undefined(library: Path) -> dict[str, str | None]:
    """Return the symbols that a library takes from others, with the version that it asks for, or None."""
    with library.open("rb") as file:
        elf = ELFFile(file)
        symbols = elf.get_section_by_name(".dynsym")
        if not isinstance(symbols, SymbolTableSection):
            return {}
        versions, names = elf.get_section_by_name(".gnu.version"), {}
        needed = elf.get_section_by_name(".gnu.version_r")
        if isinstance(needed, GNUVerNeedSection):
            for _, auxiliaries in needed.iter_versions():
                names.update({part["vna_other"]: part.name for part in auxiliaries})
        found: dict[str, str | None] = {}
        for number, symbol in enumerate(symbols.iter_symbols()):
            if symbol.name and symbol["st_shndx"] == "SHN_UNDEF":
                index = versions.get_symbol(number)["ndx"] if isinstance(versions, GNUVerSymSection) else None
                found[symbol.name] = names.get(index)
        return found


def needed_libraries(library: Path) -> list[str]:
    """Return the names of the libraries that the loader opens for a library."""
    with library.open("rb") as file:
        dynamic = ELFFile(file).get_section_by_name(".dynamic")
        tags = dynamic.iter_tags() if isinstance(dynamic, DynamicSection) else []
        return [str(getattr(tag, "needed")) for tag in tags if tag.entry.d_tag == "DT_NEEDED"]  # noqa: B009


def why_forbidden(symbol: str, version: str | None) -> str | None:
    """Return why a library of the wheel may not need a symbol; None if it may."""
    if symbol in OPTIONAL or (version is not None and SYSTEM.fullmatch(version)) or TORCH.fullmatch(symbol):
        return None
    if re.match(r"_ZN?K?\d*(2at|3c10|5torch)|.*(N2at|N3c10|N5torch)\d", symbol):
        return "is a C++ function of torch, which changes from version to version"
    if re.match(r"_?Py[A-Z_]", symbol):
        return "is a function of Python; the libraries use torch's only"
    if symbol.startswith(("_ZS", "_ZNS", "_ZNKS", "_ZNKRS", "_ZNOS")):
        return "is a C++ standard function without a version: the linker took it from torch's libraries"
    return "belongs neither to torch's stable ABI nor to the C and C++ libraries or the CUDA runtime"


def check_library(library: Path) -> list[str]:
    """Return what is wrong with the symbols of a library, one sentence each."""
    try:
        symbols, libraries = undefined(library), needed_libraries(library)
    except Exception as error:  # elftools raises many kinds for a damaged file
        raise InputError(f"{library} is not a shared library for Linux: {error}") from error
    reasons = ((symbol, why_forbidden(symbol, version)) for symbol, version in sorted(symbols.items()))
    return [
        *(f"{library.name}: {symbol} {reason}" for symbol, reason in reasons if reason is not None),
        *(f"{library.name}: needs {name}" for name in libraries if not NEEDED.fullmatch(name)),
    ]


def check_name(wheel: Path, has_cuda: bool) -> list[str]:
    """Return what is wrong with the tags in the name of a wheel."""
    parts = wheel.stem.split("-")
    if len(parts) not in (5, 6):
        return ["the name is not NAME-VERSION-PYTHON-ABI-PLATFORM.whl, or -BUILD after the version"]
    python, abi, platform = parts[-3:]
    problems = []
    if (python, abi) != ("cp311", "abi3"):
        problems.append(f"the tag is {python}-{abi}, not cp311-abi3: it would be for one version of Python")
    if not platform.startswith("manylinux_"):
        problems.append(f"the platform is {platform}, not manylinux_...: package indexes refuse it")
    if has_cuda != (len(parts) == 6 and re.fullmatch(r"\d+cu\d+", parts[2]) is not None):
        problems.append("the build number does not say which CUDA the library _C_cuda is for, as 1cu13 does")
    return problems


def audits(wheel: Path) -> list[str]:
    """Return what abi3audit and auditwheel have against a wheel."""
    problems = []
    done = subprocess.run(
        [sys.executable, "-m", "abi3audit", "--strict", str(wheel)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        problems.append(f"abi3audit: {(done.stdout + done.stderr).strip()}")
    done = subprocess.run(
        [sys.executable, "-m", "auditwheel", "show", str(wheel)], capture_output=True, text=True, check=False
    )
    text = " ".join(done.stdout.split())
    allowed = re.search(r'constrains the platform tag to "manylinux_(\d+)_(\d+)_', text)
    claimed = re.search(r"manylinux_(\d+)_(\d+)_", wheel.name)
    if done.returncode or claimed is None:
        problems.append(f"auditwheel: {(done.stdout + done.stderr).strip()}")
    elif allowed and tuple(map(int, allowed.groups())) > tuple(map(int, claimed.groups())):
        problems.append(
            f"auditwheel: the symbols need manylinux_{allowed[1]}_{allowed[2]}, the name says less"
        )
    return problems


@contextmanager
def _opened(wheel: Path) -> Iterator[zipfile.ZipFile]:
    """Open a wheel; InputError if it, or a file in it, is damaged."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise InputError(f"{wheel} is not a wheel, or it is damaged: {error}") from None


def check_wheel(wheel: Path, symbols_only: bool) -> list[str]:
    """Return everything that is wrong with a wheel."""
    with _opened(wheel) as archive, tempfile.TemporaryDirectory() as temporary:
        names = archive.namelist()
        libraries = [name for name in names if name.endswith(".so")]
        problems = [f"{name} is missing" for name in FILES if name not in names]
        if "detector/_C.abi3.so" not in libraries:
            problems.append("the CPU library detector/_C.abi3.so is missing")
        problems += check_name(wheel, "detector/_C_cuda.abi3.so" in libraries)
        for name in libraries:
            problems += check_library(Path(archive.extract(name, temporary)))
    return problems if symbols_only else problems + audits(wheel)


def main() -> int:
    """Return 0 if the wheel is as it should be, 1 if something is wrong; InputError if it cannot be read."""
    parser = cli.make_parser(__doc__ or "", "python tools/check_wheel.py dist/region_detector-*.whl")
    parser.add_argument("files", nargs="+", type=Path, metavar="WHEEL", help="wheels, or libraries (.so)")
    parser.add_argument("--symbols", action="store_true", help="do not run abi3audit and auditwheel")
    arguments = parser.parse_args()
    wrong = False
    for path in arguments.files:
        if not path.is_file():
            raise InputError(f"{path} does not exist; build a wheel with `python -m build`")
        problems = check_wheel(path, arguments.symbols) if path.suffix == ".whl" else check_library(path)
        print("\n".join(f"{path.name}: {problem}" for problem in problems) or f"{path.name}: in order")
        wrong = wrong or bool(problems)
    return 1 if wrong else 0


if __name__ == "__main__":
    cli.run(main)
