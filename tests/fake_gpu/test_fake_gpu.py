"""The tools on a device that is not the CPU: no call mixes devices, and the host seldom waits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch.utils import backend_registration

from detector.data.generated.dataset import generate_voc
from tests.emulator.build import build, why_not
from tests.staged.test_runner import STAGED
from tests.tiny import TINY

pytestmark = [
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
    pytest.mark.skipif(
        not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"),
        reason="this torch has no devices in Python",
    ),
]

# Of a training step. Whoever makes them fewer lowers these.
MOST_WAITS = 0  # for the device
MOST_PAGEABLE_COPIES = 4  # to the device, which wait for the host's memory


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("fake_gpu") / "voc"
    generate_voc(root, train_images=8, test_images=4, image_size=(96, 128), seed=1)
    return {**TINY["data"], "root": str(root), "workers": 0}


def train(config: dict[str, Any], folder: Path) -> str:
    """Train in ``folder``, in a separate process, and return what it prints."""
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(config))))
    command = [sys.executable, "-m", "tests.fake_gpu.training", str(path), str(folder / "run"), str(build())]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(  # in the folder, below which proposals are kept
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_run_mixes_no_devices_and_waits_seldom(data: dict[str, Any], tmp_path: Path) -> None:
    settings = {**TINY["train"], "steps": 12, "log_every": 100}
    output = train({**TINY, "data": data, "train": settings}, tmp_path)
    result = json.loads(output.splitlines()[-1])
    for kind, most in (("waits", MOST_WAITS), ("pageable", MOST_PAGEABLE_COPIES)):
        listing = "\n".join(f"{count:6.2f} {place}" for place, count in result[kind].items())
        print(f"{kind} a step:\n{listing}")
        # The last step's record, at the end of a run, waits as well: it is not a whole one a step.
        assert int(sum(result[kind].values())) <= most, f"{kind} a step:\n{listing}"


def test_every_stage_of_spp_net_mixes_no_devices(data: dict[str, Any], tmp_path: Path) -> None:
    settings = {**TINY["train"], "steps": 3, "draw_images": 0}
    train({**TINY, "data": data, "train": settings, **STAGED}, tmp_path)


POOL_LEVELS = """
import sys

import torch

from tests.fake_gpu import device

torch.ops.load_library(sys.argv[1])
device.install()
from detector.models.region_pools import RoIPooling

roi_levels = torch.tensor([0, 1, 1, 0, 1, 0])
with device.FakeGpu():
    levels = [torch.randn(1, 4, side, side).to(device.NAME) for side in (8, 12)]
    rois = torch.tensor([[0.0, 0, 0, 60, 60]]).repeat(6, 1).to(device.NAME)
    for where in (roi_levels, roi_levels.to(device.NAME)):
        device.waits.clear()
        RoIPooling(4, 2, 8)(levels, rois, where)
        print(sum(device.waits.values()))
"""


def test_pooling_from_several_levels_waits_only_for_levels_that_are_on_the_device() -> None:
    command = [sys.executable, "-c", POOL_LEVELS, str(build())]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    on_cpu, on_device = map(int, done.stdout.split())
    assert on_cpu == 0
    assert on_device == 1  # which shows that waits are counted
