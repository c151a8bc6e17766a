"""Which CUDA compiler setup.py takes, with compilers that are small scripts."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.conftest import PROJECT

Toolkit = Callable[..., Path]


@pytest.fixture
def toolkit(tmp_path: Path) -> Toolkit:
    """Return ``make(name, release, architectures="")``: a CUDA toolkit of that release; its folder."""

    def make(name: str, release: str, architectures: str = "") -> Path:
        home = tmp_path / name
        (home / "bin").mkdir(parents=True)
        (home / "include").mkdir()
        (home / "include" / "cuda_runtime.h").touch()
        nvcc = home / "bin" / "nvcc"
        nvcc.write_text(
            "#!/bin/sh\n"
            f'case "$1" in --version) echo "Cuda compilation tools, release {release}, V{release}.1";;\n'
            f'--list-gpu-arch) printf "%s\\n" {architectures};; esac\n'
        )
        nvcc.chmod(0o755)
        return home

    return make


@pytest.fixture
def build(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The names that setup.py defines, on a machine whose torch has CUDA 13.0; its imports leave no trace."""
    for name in ("CUDA_HOME", "TORCH_CUDA_ARCH_LIST", "MAX_JOBS"):
        monkeypatch.setenv(name, "")  # so that what setup.py sets is taken back
        monkeypatch.delenv(name)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    return runpy.run_path(str(PROJECT / "setup.py"))


def use(build: dict[str, Any], monkeypatch: pytest.MonkeyPatch, *homes: Path) -> Path | None:
    """Return what find_cuda_home chooses among ``homes``."""
    found = build["find_cuda_home"]
    monkeypatch.setitem(found.__globals__, "cuda_homes", lambda: list(homes))
    chosen: Path | None = found()
    return chosen


def test_takes_the_first_compiler_of_torchs_major_version(
    build: dict[str, Any], toolkit: Toolkit, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, same, newer = toolkit("old", "12.8"), toolkit("same", "13.0"), toolkit("newer", "13.4")
    assert use(build, monkeypatch, old, newer, same) == newer
    assert use(build, monkeypatch, old) is None
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    assert use(build, monkeypatch, newer, same, old) == old


def test_what_is_not_a_whole_toolkit_is_passed_over(
    build: dict[str, Any], toolkit: Toolkit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper, broken, whole = toolkit("wrapper", "13.0"), toolkit("broken", "13.0"), toolkit("whole", "13.0")
    (wrapper / "include" / "cuda_runtime.h").unlink()
    (broken / "bin" / "nvcc").write_text("#!/bin/sh\nexit 1\n")
    assert use(build, monkeypatch, tmp_path / "nothing", wrapper, broken, whole) == whole


def test_cuda_home_is_the_only_place_where_it_is_set(
    build: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_HOME", "/some/where")
    assert build["cuda_homes"]() == [Path("/some/where")]


def test_pips_compiler_comes_after_the_toolkits(
    build: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "nvidia").mkdir()
    monkeypatch.delenv("CUDA_HOME", raising=False)
    homes = build["cuda_homes"]()
    assert homes[0] == Path("/usr/local/cuda")
    assert tmp_path / "nvidia" / "cu13" in homes


def test_architectures_that_the_compiler_does_not_know_are_left_out(
    build: dict[str, Any], toolkit: Toolkit
) -> None:
    new = toolkit("new", "13.0", "compute_75 compute_80 compute_86 compute_90 compute_100 compute_120")
    old = toolkit("old", "12.4", "compute_50 compute_75 compute_80 compute_86 compute_90")
    assert build["architectures"](new / "bin" / "nvcc") == "7.5;8.0;8.6;9.0;10.0;12.0+PTX"
    assert build["architectures"](old / "bin" / "nvcc") == "7.5;8.0;8.6;9.0+PTX"


def test_pip_has_a_compiler_since_cuda_13(build: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert build["compiler_packages"]().endswith("==13.0.*")
    for version in ("12.8", None):
        monkeypatch.setattr(torch.version, "cuda", version)
        assert build["compiler_packages"]() is None


def test_the_runtime_is_linked_by_its_files_name_where_its_link_is_missing(
    build: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name_of = build["cuda_runtime"]
    monkeypatch.setitem(name_of.__globals__, "CUDA_FOUND", tmp_path)
    (tmp_path / "lib").mkdir()
    assert name_of("cudart") == "cudart"
    (tmp_path / "lib" / "libcudart.so.13").touch()
    assert (name_of("cudart"), name_of("c10")) == (":libcudart.so.13", "c10")
    (tmp_path / "lib" / "libcudart.so").touch()
    assert name_of("cudart") == "cudart"


@pytest.mark.parametrize(
    ("gpu", "found", "cuda", "expected"),
    [
        (True, None, "13.0", "cuda-toolkit[nvcc,crt,nvvm,cudart,cccl]==13.0.*"),
        (True, Path("/usr/local/cuda"), "13.0", None),
        (False, None, "13.0", None),
        (True, None, None, None),
        (True, None, "12.8", None),
    ],
)
def test_a_gpu_without_a_compiler_gets_pips(
    build: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    gpu: bool,
    found: Path | None,
    cuda: str | None,
    expected: str | None,
) -> None:
    monkeypatch.delenv("DETECTOR_CUDA", raising=False)
    missing_compiler = runpy.run_path(str(PROJECT / "tools" / "check_machine.py"))["missing_compiler"]
    monkeypatch.setitem(missing_compiler.__globals__, "has_nvidia_gpu", lambda: gpu)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    assert missing_compiler({**build, "CUDA_FOUND": found}) == expected
    monkeypatch.setenv("DETECTOR_CUDA", "0")
    assert missing_compiler({**build, "CUDA_FOUND": found}) is None
