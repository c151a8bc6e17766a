"""The check of wheels, on small compiled libraries that keep its rules or break one; the release check."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from detector.core.errors import InputError
from tests.conftest import PROJECT

pytest.importorskip("elftools", reason="tools/check_wheel.py needs auditwheel, which brings elftools")
COMPILER = shutil.which("g++")
needs_linux = pytest.mark.skipif(
    COMPILER is None or sys.platform != "linux", reason="needs g++ on Linux to compile small libraries"
)

GOOD = """
#include <vector>
extern "C" { void aoti_torch_get_dim(); void torch_call_dispatcher(); }
void use(int n) { std::vector<int> v(n); v.resize(3 * n); aoti_torch_get_dim(); torch_call_dispatcher(); }
"""
BAD = """
namespace at { struct Tensor { void cpu(); }; }
namespace c10 { void warn(int); }
extern "C" { void PyList_New(); void cblas_sgemm(); }
void use() { at::Tensor().cpu(); c10::warn(1); PyList_New(); cblas_sgemm(); }
"""


@pytest.fixture(scope="module")
def check() -> dict[str, Any]:
    return runpy.run_path(str(PROJECT / "tools" / "check_wheel.py"))


def compiled(folder: Path, name: str, source: str) -> Path:
    library = folder / name
    code = folder / "code.cpp"
    code.write_text(source)
    subprocess.run([str(COMPILER), "-shared", "-fPIC", "-O1", str(code), "-o", str(library)], check=True)
    return library


FILES = [
    "detector/py.typed",
    "detector/configs/quickstart.yaml",
    "detector/configs/schema.json",
    "detector/server/page.html",
    "detector/server/reference.html",
]


def wheel(folder: Path, name: str, library: Path, without: str = "") -> Path:
    path = folder / name
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(library, "detector/_C.abi3.so")
        for file in FILES:
            if file != without:
                archive.writestr(file, "")
    return path


@needs_linux
def test_a_library_of_the_stable_abi_is_in_order(check: dict[str, Any], tmp_path: Path) -> None:
    library = compiled(tmp_path, "good.so", GOOD)
    assert check["check_library"](library) == []
    name = "region_detector-1.0-cp311-abi3-manylinux_2_35_x86_64.whl"
    assert check["check_wheel"](wheel(tmp_path, name, library), symbols_only=True) == []


@needs_linux
def test_every_function_outside_it_is_named(check: dict[str, Any], tmp_path: Path) -> None:
    problems = check["check_library"](compiled(tmp_path, "bad.so", BAD))
    assert len(problems) == 4
    for part in (
        "_ZN2at6Tensor3cpuEv is a C++ function of torch",
        "_ZN3c104warnEi is a C++ function of torch",
    ):
        assert any(part in problem for problem in problems)
    assert any("PyList_New is a function of Python" in problem for problem in problems)
    assert any("cblas_sgemm belongs neither" in problem for problem in problems)


@needs_linux
def test_the_command_ends_with_1_where_something_is_wrong(tmp_path: Path) -> None:
    library = compiled(tmp_path, "bad.so", BAD)
    command = [sys.executable, str(PROJECT / "tools" / "check_wheel.py"), str(library)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, env=None, check=False)
    assert done.returncode == 1
    assert "_ZN2at6Tensor3cpuEv" in done.stdout


@pytest.mark.parametrize(
    ("symbol", "version", "part"),
    [
        ("_ZNSt15__exception_ptr13exception_ptr9_M_addrefEv", None, "without a version"),
        ("_ZSt28__throw_bad_array_new_lengthv", None, "without a version"),
        ("_ZNK3c1010TensorImpl4sizeEv", None, "C++ function of torch"),
        ("_ZN5torch7LibraryC1Ev", None, "C++ function of torch"),
        ("_ZSt28__throw_bad_array_new_lengthv", "GLIBCXX_3.4.29", None),
        ("cudaGetLastError", "libcudart.so.13", None),
        ("cuLaunchKernel", None, "belongs neither"),
        ("_PyObject_GC_New", None, "function of Python"),
        ("aoti_torch_get_dim", None, None),
        ("torch_call_dispatcher", None, None),
        ("torch_", None, "belongs neither"),
    ],
)
def test_which_symbols_are_allowed(
    check: dict[str, Any], symbol: str, version: str | None, part: str | None
) -> None:
    reason = check["why_forbidden"](symbol, version)
    assert reason is None if part is None else part in reason


@needs_linux
@pytest.mark.parametrize(
    ("name", "without", "part"),
    [
        ("region_detector-1.0-cp311-cp311-manylinux_2_35_x86_64.whl", "", "not cp311-abi3"),
        ("region_detector-1.0-cp311-abi3-linux_x86_64.whl", "", "not manylinux_"),
        ("region_detector-1.0-1cu13-cp311-abi3-manylinux_2_35_x86_64.whl", "", "build number"),
        (
            "region_detector-1.0-cp311-abi3-manylinux_2_35_x86_64.whl",
            "detector/py.typed",
            "py.typed is missing",
        ),
        (
            "region_detector-1.0-cp311-abi3-manylinux_2_35_x86_64.whl",
            "detector/server/page.html",
            "page.html is missing",
        ),
        ("region.whl", "", "the name is not NAME-VERSION-PYTHON-ABI-PLATFORM.whl"),
        ("a-b-c-d-cp311-abi3-manylinux_2_35_x86_64.whl", "", "the name is not NAME-VERSION"),
    ],
)
def test_names_and_content_of_a_wheel(
    check: dict[str, Any], tmp_path: Path, name: str, without: str, part: str
) -> None:
    (problem,) = check["check_wheel"](
        wheel(tmp_path, name, compiled(tmp_path, "good.so", GOOD), without), symbols_only=True
    )
    assert part in problem


@needs_linux
@pytest.mark.parametrize("kind", ["text", "damaged library"])
def test_what_is_not_a_whole_wheel_is_named(check: dict[str, Any], tmp_path: Path, kind: str) -> None:
    path = wheel(
        tmp_path,
        "region_detector-1.0-cp311-abi3-manylinux_2_35_x86_64.whl",
        compiled(tmp_path, "good.so", GOOD),
    )
    content = bytearray(path.read_bytes())
    content[500:600] = bytes(100)  # in the library, which comes first
    path.write_bytes(b"a text" if kind == "text" else content)
    with pytest.raises(InputError, match="is not a wheel, or it is damaged"):
        check["check_wheel"](path, symbols_only=True)


def test_every_file_that_the_package_reads_is_checked(check: dict[str, Any]) -> None:
    """Files of detector/ that are not Python, beside the libraries, as git knows them."""
    found = {
        str(path.relative_to(PROJECT))
        for path in (PROJECT / "detector").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc", ".so")
    }
    assert found <= set(check["FILES"]) == set(FILES)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"\0GLIBC_2.14\0GLIBCXX_3.4.21\0", (2, 28)),
        (b"\0GLIBC_2.34\0GLIBC_2.2.5\0", (2, 34)),
        (b"\0GLIBC_2.34\0GLIBCXX_3.4.30\0", (2, 35)),
        (b"\0GLIBC_2.38\0GLIBCXX_3.4.9\0", (2, 38)),
    ],
)
def test_the_platform_of_a_wheel_follows_from_its_symbols(
    tmp_path: Path, content: bytes, expected: tuple[int, int]
) -> None:
    (tmp_path / "_C.so").write_bytes(content)
    build = runpy.run_path(str(PROJECT / "setup.py"))
    assert build["manylinux"]([tmp_path / "_C.so"]) == expected


@pytest.mark.parametrize(
    ("heading", "tags", "problems"),
    [
        ("## 0.2.0 (2026-11-27)", [], 0),
        ("## 0.2.0 (2026-11-27)", ["v0.2.0"], 0),
        ("## 0.2.0 (unreleased)", ["v0.2.0"], 1),
        ("## 0.1.0 (2026-11-27)", ["v0.2.1"], 2),
    ],
)
def test_version_changelog_and_tag_must_agree(
    tmp_path: Path, heading: str, tags: list[str], problems: int
) -> None:
    (tmp_path / "detector").mkdir()
    (tmp_path / "detector" / "__init__.py").write_text('__version__ = "0.2.0"\n')
    (tmp_path / "CHANGELOG.md").write_text(f"# Changelog\n\n{heading}\n\n## 0.0.1 (2020-01-01)\n")
    check = runpy.run_path(str(PROJECT / "tools" / "check_release.py"))
    assert len(check["problems_of"](tmp_path, tags)) == problems
