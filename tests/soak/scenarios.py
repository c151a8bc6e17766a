"""The runs that are killed: a detector with proposals of its own and evaluations, and a staged SPP-net."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detector.data.generated.dataset import generate_voc
from tests.staged.test_runner import STAGED
from tests.tiny import TINY


@dataclass(frozen=True)
class Scenario:
    """A run: its name, its config, and the phases in which it is killed, in their order."""

    name: str
    config: dict[str, Any]
    phases: tuple[str, ...]

    def arguments(self, place: Path) -> list[str]:
        """Write the config into ``place``; return the arguments of the training command."""
        path = place / f"{self.name}.yaml"
        path.write_text(json.dumps(self.config))  # YAML, without aliases
        return ["--config", str(path), "--output", "run", "--resume", "--device", "cpu"]


def scenarios(place: Path) -> list[Scenario]:
    """Return all scenarios; the images that they share are drawn in ``place``."""
    root = place / "voc"
    generate_voc(root, train_images=10, test_images=4, image_size=(96, 128), seed=1)
    shared = {**TINY, "data": {**TINY["data"], "root": str(root)}}
    detector = {
        **shared,
        "proposals": {"method": "selective_search", "top_k_train": 300, "top_k_test": 300},
        "train": {
            **TINY["train"],
            "checkpoint_every": 2,
            "keep_checkpoints": 2,
            "evaluate_every": 3,
            "validation_fraction": 0.3,
        },
    }
    staged = {**shared, **STAGED, "train": {**TINY["train"], "steps": 6, "checkpoint_every": 2}}
    return [
        Scenario(
            "detector", detector, ("proposals", "start", "training", "checkpoint", "evaluation", "results")
        ),
        Scenario(
            "staged",
            staged,
            ("classify", "features", "fine_tune", "checkpoint", "svm", "boxes", "scoring", "results"),
        ),
    ]
