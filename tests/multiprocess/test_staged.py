"""Staged training in two processes: shared convolutions and fine-tuning, layers that rank 0 fits."""

from __future__ import annotations

import json

import numpy as np
import pytest

from detector.engine.checkpoint import load_checkpoint
from tests.multiprocess.conftest import Start
from tests.multiprocess.test_run import distance, files_of, identical, weights
from tests.multiprocess.test_scoring import without_costs


def test_fine_tuning_is_that_of_one_process(start: Start) -> None:
    stage = "staged/stages/02_fine_tune"
    assert distance(weights(start(1) / stage), weights(start(2) / stage)) < 1e-4


def test_the_feature_cache_is_that_of_one_process(start: Start) -> None:
    caches = [
        sorted((start(count) / case / "cache").iterdir()) for count, case in ((1, "staged"), (2, "fits"))
    ]
    assert [place.name for place in caches[0]] == [place.name for place in caches[1]]
    for alone, shared in zip(*caches, strict=True):
        for name in ("maps.bin", "done.bin"):
            assert np.array_equal(np.fromfile(alone / name, np.uint8), np.fromfile(shared / name, np.uint8))


@pytest.mark.parametrize("stage", ["03_svm", "04_boxes"])
def test_layers_are_those_of_one_process(start: Start, stage: str) -> None:
    assert identical(
        weights(start(1) / "staged" / "stages" / stage), weights(start(2) / "fits" / "stages" / stage)
    )


def test_the_finished_detector_is_that_of_one_process(start: Start) -> None:
    folders = [start(1) / "staged", start(2) / "fits"]
    assert identical(*(weights(folder) for folder in folders))
    metrics = [without_costs(json.loads((folder / "metrics.json").read_text())) for folder in folders]
    assert metrics[0] == metrics[1]
    assert files_of(folders[0]) == files_of(folders[1])
    assert load_checkpoint(folders[1] / "checkpoints" / "step_14.pt")["step"] == 14
