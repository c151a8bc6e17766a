"""A network's metrics do not depend on the number of processes that evaluate it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.multiprocess.conftest import Start
from tests.multiprocess.launch import run, tool, torchrun
from tests.multiprocess.test_run import files_of

COSTS = ("seconds_per_image", "peak_memory_mib", "seconds", "data_wait_share")


def without_costs(metrics: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if name not in COSTS}


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", ["coco", "voc", "few", "classes"])
def test_metrics_are_the_same_to_the_last_digit(start: Start, count: int, name: str) -> None:
    """Four images among three processes, one image among several, detection and classification."""
    alone = json.loads((start(1) / "evaluate" / f"{name}_0.json").read_text())
    for rank in range(count):
        found = json.loads((start(count) / "evaluate" / f"{name}_{rank}.json").read_text())
        assert without_costs(found) == without_costs(alone)
    assert alone["images"] == (1 if name == "few" else 4)
    folders = [start(number) / "evaluate" / name for number in (1, count)]
    assert files_of(folders[0]) == files_of(folders[1])
    for path in folders[0].glob("results/*"):
        assert (folders[1] / "results" / path.name).read_bytes() == path.read_bytes()


def test_evaluate_writes_once(start: Start) -> None:
    place = start(1).parent
    checkpoint = start(1) / "in_float32" / "checkpoints" / "step_50.pt"
    given = [
        "--config",
        "tiny.yaml",
        "--checkpoint",
        str(checkpoint),
        "--device",
        "cpu",
        "--output",
        "m.json",
    ]
    done = run(torchrun(2, tool("evaluate"), *given, "test.metric=coco"), place)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("wrote result files") == 1
    alone = json.loads((start(1) / "evaluate" / "coco_0.json").read_text())
    found = json.loads((place / "m.json").read_text())
    assert without_costs(found) == {**without_costs(alone), "step": 50}
