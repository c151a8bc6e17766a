"""The tool that draws training samples: one picture, of any task, before anything is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from detector.commands.samples import WIDTH
from detector.core.structures import ImageMeta, Proposals, Sample, Targets
from detector.visualize import class_colour
from detector.visualize.samples import sample_grid
from tests.commands.conftest import Tool
from tests.factory.test_loaders import AUGMENTED, CLASSIFIER
from tests.typed import read_picture


@pytest.mark.parametrize("task", [(), CLASSIFIER], ids=["detection", "classification"])
def test_it_draws_what_a_config_would_train_on(
    tool: Tool, tiny_config: Path, tmp_path: Path, task: tuple[str, ...]
) -> None:
    done = tool("draw_samples", "--config", tiny_config, "--images", 2, "--samples", 3, *task, *AUGMENTED)
    assert done.returncode == 0, done.stderr
    assert "wrote samples.png" in done.stderr
    assert "is off" not in done.stderr
    picture = read_picture(tmp_path / "samples.png")
    assert picture.shape[1] == WIDTH
    again = tool("draw_samples", "--config", tiny_config, "--images", 2, "--samples", 3, *task, *AUGMENTED)
    assert again.returncode == 0
    assert np.array_equal(read_picture(tmp_path / "samples.png"), picture)


def test_without_augmentation_it_says_so(tool: Tool, tiny_config: Path) -> None:
    done = tool("draw_samples", "--config", tiny_config, "--images", 1, "--samples", 1)
    assert "train.augment is off: the samples differ in scale and flips only" in done.stderr


@pytest.mark.parametrize("arguments", [("--images", 0), ("--samples", 65)])
def test_impossible_numbers_are_refused(tool: Tool, tiny_config: Path, arguments: tuple[str, int]) -> None:
    done = tool("draw_samples", "--config", tiny_config, *arguments)
    assert done.returncode == 2
    assert f"error: {arguments[0]} {arguments[1]}: expected a whole number from 1 to 64" in done.stderr


def test_objects_and_their_best_proposals_have_the_colour_of_the_class() -> None:
    boxes = torch.tensor([[20.0, 20, 60, 60], [100, 30, 140, 90]])
    sample = Sample(
        image=torch.full((120, 160, 3), 255, dtype=torch.uint8),
        proposals=Proposals(boxes=torch.tensor([[0.0, 0, 5, 5], [30, 30, 70, 66]])),
        rois=torch.tensor([[0.0, 0, 5, 5], [30, 30, 70, 66]]),
        targets=Targets.make(boxes, torch.tensor([1, 2])),
        meta=ImageMeta(image_id="a", original_size=(120, 160), input_size=(120, 160)),
    )
    picture = sample_grid([[sample, sample]], ["cat", "dog"], 800)
    assert picture.shape[1] == 800
    second = picture[:, 400:]
    counts = [int((second == class_colour(label)).all(axis=2).sum()) for label in (1, 2)]
    perimeters = [2 * (40 + 40), 2 * (40 + 60)]
    # The first class has a dashed proposal too; the second object has no proposal near it.
    assert counts[0] / perimeters[0] > 1.2 * counts[1] / perimeters[1] > 0
