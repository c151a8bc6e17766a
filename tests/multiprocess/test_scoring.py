"""A network's metrics do not depend on the number of processes that evaluate it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.multiprocess.conftest import Start
from tests.multiprocess.test_run import files_of

COSTS = ("seconds_per_image", "peak_rss_mib", "seconds", "data_wait_share")


def without_costs(metrics: dict[str, Any]) -> dict[str, Any]:
    """Return only what is not a cost; what could not be measured, NaN, is None, which equals itself."""
    kept = {name: value for name, value in metrics.items() if name not in COSTS}
    found: dict[str, Any] = json.loads(json.dumps(kept), parse_constant=lambda _: None)
    return found


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
    if name != "classes":  # all scores of all regions, in the order of the images
        one, several = (folder.with_suffix(".npz").read_bytes() for folder in folders)
        assert one == several


@pytest.mark.parametrize("count", [2, 3])
def test_evaluate_writes_once(start: Start, count: int) -> None:
    folder = start(count) / "evaluate_tool"
    alone = json.loads((start(1) / "evaluate" / "coco_0.json").read_text())
    found = json.loads((folder / "m.json").read_text())
    assert without_costs(found) == {**without_costs(alone), "step": 50}
    lines = (start(count) / "output.txt").read_text().splitlines()
    assert sum(line.startswith("wrote result files") and "/evaluate_tool/m/" in line for line in lines) == 1
