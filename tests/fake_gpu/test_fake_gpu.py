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
MOST_PAGEABLE_COPIES = 0  # to the device, which wait for the host's memory


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


NETWORKS: dict[str, dict[str, Any]] = {
    "detection": {},
    "crops": {"model": {"pool": {"kind": "warp", "output_size": 3, "crop_size": 44, "context": 4}}},
    "classification": {"task": "classification", "model": {"pool": {"kind": "spp", "levels": [1, 2]}}},
    "weak_detection": {"task": "weak_detection"},
    "sliding": {
        "task": "classification",
        "model": {"pool": {"kind": "spp", "levels": [1, 2], "rule": "sliding"}},
        "train": {"resize": "square", "scale_jitter": None},
        "test": {"resize": "square"},
    },
    "float16": {"train": {"precision": "float16"}},
    "settings": {
        "train": {
            **{"precision": "float16", "optimizer": "adamw", "learning_rate": 1e-3, "ema": 0.9},
            **{"sampling": {"kind": "ohem", "rois_per_image": 16}},
        },
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_a_run_mixes_no_devices_and_waits_seldom(data: dict[str, Any], tmp_path: Path, name: str) -> None:
    changes = NETWORKS[name]
    sections = ("model", "train", "test")
    config = {part: {**TINY[part], **changes.get(part, {})} for part in sections}
    config["train"] |= {"steps": 4, "log_every": 100, "checkpoint_every": 100, "draw_images": 0}
    config["train"] |= {"clip_gradient_norm": 5.0}
    config["test"] |= {"max_images": 2}
    output = train({**TINY, **changes, **config, "data": data}, tmp_path)
    result = json.loads(output.splitlines()[-1])
    for kind, most in (("waits", MOST_WAITS), ("pageable", MOST_PAGEABLE_COPIES)):
        listing = "\n".join(f"{count:6.2f} {place}" for place, count in result[kind].items())
        assert sum(result[kind].values()) <= most, f"{kind} a step:\n{listing}"


@pytest.mark.slow
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


POOL_MASKS = """
import sys

import numpy as np
import torch

from tests.fake_gpu import device

torch.ops.load_library(sys.argv[1])
device.install()
from detector.core.cell_masks import CellMasks, cell_masks
from detector.core.masks import Masks
from detector.core.structures import ImageMeta
from detector.models.region_pools import PyramidPooling, RoIAlignPooling, RoIPooling

dense = np.zeros((5, 64, 96), bool)
for number in range(5):
    dense[number, 5 + number : 40 + 4 * number, 10 * number : 20 + 12 * number] = True
masks, meta = Masks.encode(dense), ImageMeta(image_id="", original_size=(64, 96), input_size=(64, 96))
rois = torch.cat((torch.zeros(5, 1), masks.boxes()), 1)[[0, 1, 2, 3, 4, 0]]
level, roi_levels = torch.randn(1, 4, 8, 12), torch.tensor([0, 1, 0, 1, 0, 1])
torch.use_deterministic_algorithms(True)
with device.FakeGpu():
    for mode in ("none", "cells", "weighted"):
        for pool in (
            RoIPooling(4, 3, 8, mask=mode),
            RoIAlignPooling(4, 3, 8, mask=mode),
            PyramidPooling(4, (3, 1), 8, mask=mode),
        ):
            covered = CellMasks.join([cell_masks(masks, meta, pool.cell_grid(0)), CellMasks.absent(1)])
            expected = pool([level, level], rois, roi_levels, covered)
            there = level.to(device.NAME).requires_grad_()
            arguments = rois.to(device.NAME), roi_levels, covered.pin_memory().to(device.NAME)
            device.waits.clear(), device.pageable.clear()
            pooled = pool([there, there], *arguments)
            pooled.sum().backward()
            print(sum(device.waits.values()) + sum(device.pageable.values()))
            torch.testing.assert_close(pooled.detach().cpu(), expected)
"""


def test_pooling_over_masks_waits_never() -> None:
    command = [sys.executable, "-c", POOL_MASKS, str(build())]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["0"] * 9


STREAMS = """
import torch

from tests.fake_gpu import device

device.install()
from detector.data.loader import on_device


class Numbers:
    def __init__(self, numbers):
        self.numbers = numbers

    def to(self, place):
        return Numbers(self.numbers.to(place, non_blocking=True))

    def device_tensors(self):
        return [self.numbers]


def total(numbers):
    try:
        return float(numbers[:2].sum().cpu())
    except RuntimeError as error:
        return str(error).split("by a stream that ")[1]


with device.FakeGpu():
    host = [Numbers(torch.full((3,), float(number)).pin_memory()) for number in range(2)]
    print([total(batch.numbers) for batch in on_device(host, device.NAME)])
    own = torch.fakegpu.Stream()
    with torch.fakegpu.stream(own):
        numbers = host[1].numbers.to(device.NAME, non_blocking=True)
    print(total(numbers))
    torch.fakegpu.current_stream().wait_stream(own)
    print(total(numbers))
    numbers.record_stream(torch.fakegpu.current_stream())
    print(total(numbers))
"""


def test_batches_are_used_only_when_and_while_they_are_on_the_device() -> None:
    """The fake GPU refuses a stream that reads too early, or whose reading the allocator does not know of."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", STREAMS]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    moved, early, unknown, used = done.stdout.splitlines()
    assert moved == "[0.0, 2.0]"
    assert early == "does not wait for the one that writes it"
    assert unknown == "it is not recorded for (record_stream)"
    assert used == "2.0"
