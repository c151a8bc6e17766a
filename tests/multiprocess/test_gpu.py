"""Trainings of several processes on a GPU: nccl with one process, and two processes that share a GPU."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
import yaml

from detector.config import Config
from tests.conftest import PROJECT
from tests.multiprocess.launch import TIMEOUT, started, torchrun
from tests.tasks.test_start import assert_identical, final_state, train

pytestmark = pytest.mark.gpu

STEPS = 4
SETTINGS = [
    *(f"train.steps={STEPS}", "train.images_per_batch=4", "train.clip_gradient_norm=5"),
    *("model.head.dropout=0", "test.max_images=2"),
]


def launched(
    config: Config, folder: Path, processes: int, **variables: str
) -> AbstractContextManager[subprocess.Popen[str]]:
    """Let ``torchrun`` start the training of ``config`` in so many processes."""
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = torchrun(processes, str(PROJECT / "tools/train.py"), "--device", "cuda")
    command += ["--config", str(folder / "config.yaml"), "--output", str(folder / "run")]
    return started(command, folder, **variables)


def printed(job: subprocess.Popen[str]) -> str:
    """Return what a training printed, and check that it ended well."""
    text, _ = job.communicate(timeout=TIMEOUT)
    assert job.returncode == 0, text
    return text


def state(folder: Path) -> dict[str, torch.Tensor]:
    return final_state(folder / "run", STEPS)


def trained(config: Config, folder: Path) -> dict[str, torch.Tensor]:
    """Return the state after training in this process."""
    folder.mkdir()
    train(config, folder / "run", "cuda")
    return state(folder)


def test_one_process_over_nccl_trains_as_without_torchrun(
    tiny: Callable[..., Config], tmp_path: Path
) -> None:
    config = tiny(*SETTINGS)
    with launched(config, tmp_path / "launched", 1) as job:
        plain = trained(config, tmp_path / "plain")
        assert "by gloo" not in printed(job)
    assert_identical(plain, state(tmp_path / "launched"))


def test_two_processes_can_share_a_gpu(
    tiny: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs are equal bit for bit, and near to that of one process, whose sums have another order.

    TF32, which rounds more, is switched off.
    """
    config, exact = tiny(*SETTINGS), {"NVIDIA_TF32_OVERRIDE": "0"}
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    with (
        launched(config, tmp_path / "first", 2, **exact) as job,
        launched(config, tmp_path / "second", 2, **exact) as other,
    ):
        plain = trained(config, tmp_path / "plain")
        texts = [printed(job), printed(other)]
    if torch.cuda.device_count() == 1:
        assert all("2 processes share 1 GPU, so they communicate by gloo" in text for text in texts)
    first = state(tmp_path / "first")
    assert_identical(first, state(tmp_path / "second"))
    weights = [name for name in plain if plain[name].is_floating_point() and "momentum" not in name]
    apart = sum(float((plain[name] - first[name]).double().square().sum()) for name in weights)
    whole = sum(float(plain[name].double().square().sum()) for name in weights)
    assert apart**0.5 < 1e-3 * whole**0.5
