"""The devices that tests of whole runs go through: the CPU, and CUDA, skipped where it cannot be used."""

from __future__ import annotations

import pytest

CUDA = pytest.param("cuda", marks=pytest.mark.gpu)

each_device = pytest.mark.parametrize("device", ["cpu", CUDA])
on_cuda = pytest.mark.parametrize("device", [CUDA])
