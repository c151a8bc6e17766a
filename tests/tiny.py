"""A tiny generated data set and a config for it, made once for all tests of whole runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from detector.config import Config, load_config

TINY: dict[str, Any] = {
    "seed": 3,
    "data": {"train_split": "trainval", "test_split": "test", "workers": 1},
    "proposals": {"method": "dense", "top_k_train": 300, "top_k_test": 300},
    "model": {
        "backbone": {"name": "small"},
        "pool": {"output_size": 4},
        "head": {"hidden": [32, 32], "dropout": 0.3},
    },
    "train": {
        "steps": 12,
        "images_per_batch": 2,
        "scales": [96],
        "max_size": 160,
        "scale_jitter": [0.8, 1.25],
        "sampling": {"rois_per_image": 16, "background_iou": [0.0, 0.5]},
        "learning_rate": 0.01,
        "log_every": 1,
        "checkpoint_every": 4,
        "draw_images": 1,
    },
    "test": {"scales": [96], "max_size": 160},
}


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from detector.data.generated.dataset import generate_voc

    root = tmp_path_factory.mktemp("tiny") / "voc"
    generate_voc(root, train_images=8, test_images=4, image_size=(96, 128), seed=1)
    return root


@pytest.fixture
def tiny_config(tiny_root: Path, tmp_path: Path) -> Path:
    """The path of a config file; its proposals go below the working directory, which tests choose."""
    values = {**TINY, "data": {**TINY["data"], "root": str(tiny_root)}}
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def tiny(tiny_config: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Config]:
    """Load the tiny config with overrides, in a working directory of the test's own."""
    monkeypatch.chdir(tmp_path)

    def load(*overrides: str) -> Config:
        given: Sequence[str] = overrides
        return load_config(tiny_config, given)

    return load
