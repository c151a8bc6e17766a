"""Trainings of several processes on a GPU: nccl with one process, and two processes that share a GPU."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from detector.config import Config
from tests.tasks.test_start import PROJECT, assert_identical, final_state, train

pytestmark = pytest.mark.gpu

STEPS = 4
SETTINGS = [
    *(f"train.steps={STEPS}", "train.images_per_batch=4", "train.clip_gradient_norm=5"),
    *("model.head.dropout=0", "test.max_images=2"),
]


def launch(config: Config, folder: Path, processes: int) -> subprocess.Popen[str]:
    """Let ``torchrun`` start the training of ``config`` in so many processes."""
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), str(PROJECT / "tools/train.py"), "--device", "cuda"]
    command += ["--config", str(folder / "config.yaml"), "--output", str(folder / "run")]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def printed(process: subprocess.Popen[str]) -> str:
    """Return what a training printed, and check that it ended well."""
    try:
        text, _ = process.communicate(timeout=120)
    finally:
        process.terminate()
    assert process.returncode == 0, text
    return text


def state(folder: Path) -> dict[str, torch.Tensor]:
    return final_state(folder / "run", STEPS)


@pytest.fixture
def without_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute float32 with all its bits, here and in the processes that are started."""
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "0")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.usefixtures("without_tf32")
def test_one_process_over_nccl_trains_as_without_torchrun(
    tiny: Callable[..., Config], tmp_path: Path
) -> None:
    config = tiny(*SETTINGS)
    process = launch(config, tmp_path / "launched", 1)
    (tmp_path / "plain").mkdir()
    train(config, tmp_path / "plain/run", "cuda")
    assert "by gloo" not in printed(process)
    assert_identical(state(tmp_path / "plain"), state(tmp_path / "launched"))


@pytest.mark.usefixtures("without_tf32")
def test_two_processes_can_share_a_gpu(tiny: Callable[..., Config], tmp_path: Path) -> None:
    """Two runs are equal bit for bit, and near to that of one process; sums have another order there."""
    config = tiny(*SETTINGS)
    processes = [launch(config, tmp_path / name, 2) for name in ("first", "second")]
    (tmp_path / "plain").mkdir()
    train(config, tmp_path / "plain/run", "cuda")
    texts = [printed(process) for process in processes]
    if torch.cuda.device_count() == 1:
        assert all("2 processes share 1 GPU, so they communicate by gloo" in text for text in texts)
    one, first = state(tmp_path / "plain"), state(tmp_path / "first")
    assert_identical(first, state(tmp_path / "second"))
    weights = [name for name in one if one[name].is_floating_point() and not name.startswith("momentum")]
    apart = sum(float((one[name] - first[name]).double().square().sum()) for name in weights)
    whole = sum(float(one[name].double().square().sum()) for name in weights)
    assert apart**0.5 < 1e-3 * whole**0.5
