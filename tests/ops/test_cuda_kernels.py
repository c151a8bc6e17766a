"""What happens on a machine with a GPU for which the CUDA library was not built."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from detector.core.errors import InputError
from detector.factory.resources import choose_device
from detector.ops import _library, cuda_kernels_missing, normalize_images, roi_pool, spp_pool

MISSING = "the CUDA kernels of this project were not built"


@pytest.fixture
def without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU that torch can use, and no CUDA library."""
    monkeypatch.setattr(_library, "_CUDA_KERNELS_MISSING", MISSING)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def test_the_reason_follows_from_what_was_built() -> None:
    built = _library._find("_C_cuda") is not None and torch.version.cuda is not None
    assert (cuda_kernels_missing() is None) == built


def test_the_reason_says_what_is_missing_and_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda name, key: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(_library, "built_for_cuda", lambda: None)
    assert MISSING in (reason := _library._why_no_cuda_kernels() or "")
    assert "make -B install" in reason
    monkeypatch.setattr(torch.version, "cuda", None)
    assert "built without CUDA" in (_library._why_no_cuda_kernels() or "")


@pytest.mark.parametrize(
    ("name", "major"), [(b"libcudart.so.13", "13"), (b"cudart64_12.dll", "12"), (b"libc.so.6", None)]
)
def test_the_cuda_version_is_read_from_the_library(tmp_path: Path, name: bytes, major: str | None) -> None:
    (tmp_path / "library.so").write_bytes(b"\x7fELF\0" + name + b"\0")
    assert _library._cuda_major(tmp_path / "library.so") == major


@pytest.mark.parametrize(
    ("torch_cuda", "loads"), [("13.0", True), ("13.2", True), ("12.8", False), (None, False)]
)
def test_only_a_torch_of_the_same_cuda_loads_the_library(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, torch_cuda: str | None, loads: bool
) -> None:
    (tmp_path / "_C.abi3.so").write_bytes(b"libc.so.6")
    (tmp_path / "_C_cuda.abi3.so").write_bytes(b"libcudart.so.13")
    opened: list[str] = []
    monkeypatch.setattr(_library, "_PACKAGE", tmp_path)
    monkeypatch.setattr(_library, "_load", lambda path: opened.append(path.name))
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    _library.load()
    assert opened == ["_C.abi3.so", "_C_cuda.abi3.so"][: 1 + loads]
    assert _library.built_for_cuda() == "13"


def test_another_cuda_version_is_named_with_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda name, key: False)
    monkeypatch.setattr(_library, "built_for_cuda", lambda: "13")
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    reason = _library._why_no_cuda_kernels() or ""
    assert "were built for CUDA 13" in reason
    assert "uses CUDA 12.8" in reason
    assert "--device cpu" in reason


@pytest.mark.usefixtures("without_kernels")
def test_auto_is_the_cpu_and_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert choose_device("auto") == "cpu"
    assert MISSING in capsys.readouterr().err


def test_auto_is_the_gpu_where_it_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "_CUDA_KERNELS_MISSING", None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", lambda *size, device: None)  # as if the device were there
    assert choose_device("auto") == "cuda"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device("auto") == "cpu"


@pytest.mark.usefixtures("without_kernels")
def test_asking_for_cuda_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "zeros", lambda *size, device: None)  # as if the device were there
    with pytest.raises(InputError, match=MISSING):
        choose_device("cuda:0")
    assert choose_device("cpu") == "cpu"


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.parametrize("pool", [lambda features, rois: roi_pool(features, rois, 7, 1 / 16), spp_pool])
def test_pooling_cuda_tensors_is_one_clear_error(pool: object, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        torch.cuda, "is_available", lambda: False
    )  # a fake tensor starts a device that is there
    assert callable(pool)
    with FakeTensorMode():
        features, rois = torch.empty(1, 2, 8, 8, device="cuda"), torch.empty(3, 5, device="cuda")
        with pytest.raises(NotImplementedError, match=f"_pool: {MISSING}"):
            pool(features, rois)


@pytest.mark.usefixtures("without_kernels")
def test_normalizing_cuda_images_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with FakeTensorMode():
        images = torch.empty(1, 2, 2, 3, dtype=torch.uint8, device="cuda")
        with pytest.raises(NotImplementedError, match=f"normalize_images: {MISSING}"):
            normalize_images(images, torch.empty(3, 256, device="cuda"), [(2, 2)], bgr=True)
