"""The devices that tests of whole runs go through: the CPU, and CUDA where there is a GPU."""

from __future__ import annotations

import pytest
import torch


def _missing() -> str:
    """Return what a run on CUDA lacks here, or nothing."""
    if not torch.cuda.is_available():
        return "no CUDA device"
    import detector.ops  # noqa: F401 - registers the operators that are there

    if not torch._C._dispatch_has_kernel_for_dispatch_key("detector::roi_pool", "CUDA"):
        return "the CUDA operators are not built"
    return ""


MISSING = _missing()
CUDA = pytest.param("cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(bool(MISSING), reason=MISSING)])

each_device = pytest.mark.parametrize("device", ["cpu", CUDA])
on_cuda = pytest.mark.parametrize("device", [CUDA])
