"""What tests of several packages share."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

# The networks here are tiny: on a busy machine two threads that wait for each other take many times as long
# as one. Set before torch is imported; processes that tests start inherit it.
os.environ["OMP_NUM_THREADS"] = "1"
# cuBLAS reads this when a test first uses it on a GPU, which may be before the first deterministic run.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
# Processes that tests start in other folders find this tree first, then what the caller's path has.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH")))
)

import pytest
import torch
from hypothesis import settings
from torch import Tensor

from tests.tiny import tiny, tiny_config, tiny_root  # noqa: F401  # fixtures of whole runs, for every folder

PROJECT = Path(__file__).parents[1]
sys.path.append(str(PROJECT / "tools"))  # tools that a test runs in its own process import their neighbour
MakeBoxes = Callable[..., Tensor]

# The same examples on every run; `pytest --hypothesis-profile=default` draws new ones.
settings.register_profile("seeded", derandomize=True)
settings.load_profile("seeded")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests marked ``gpu`` where they cannot run, and say why."""
    reason: str | None = "no CUDA device"
    if torch.cuda.is_available():
        from detector.ops import cuda_kernels_missing

        reason = cuda_kernels_missing()
    if reason is not None:
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture
def make_boxes() -> MakeBoxes:
    """Return ``make(count, extent=100.0, seed=0)``: random boxes (count, 4) inside a square, sides over 1."""

    def make(count: int, extent: float = 100.0, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        corner = torch.rand(count, 2, generator=generator) * (extent - 2)
        side = 1 + torch.rand(count, 2, generator=generator) * (extent - corner - 1)
        return torch.cat((corner, corner + side), dim=1).clamp(max=extent)

    return make
