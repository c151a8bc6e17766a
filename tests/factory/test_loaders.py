"""Loaders of a config: its augmentation, and augmented batches that do not depend on threads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from itertools import islice

import pytest
import torch

from detector.config import Config, load_config, stage_config
from detector.core import distributed
from detector.core.errors import InputError
from detector.core.structures import Batch
from detector.data.augmentation import Augmentation, ColorJitter, Crop, Cutout, Expand
from detector.factory.data import class_names, load_training
from detector.factory.loaders import (
    build_augmentation,
    inference_transforms,
    mean_colour,
    no_proposals,
    training_batches,
)
from detector.factory.model import build_normalization
from detector.models.weights import normalization
from detector.ops.normalize import normalization_table
from detector.tasks.start import build_task
from tests.conftest import PROJECT
from tests.typed import present

Load = Callable[..., Config]
AUGMENTED = (
    "train.augment.color_jitter={brightness: 0.3, contrast: 0.3, saturation: 0.3, hue: 0.05}",
    "train.augment.expand={probability: 0.5, max_ratio: 2.0}",
    "train.augment.crop.probability=0.5",
    "train.augment.cutout={probability: 0.5, count: 3, size: [0.1, 0.2]}",
)
CLASSIFIER = ("task=classification", "model.pool={kind: spp, levels: [2, 1]}", "proposals={}")


def test_augmentation_is_off_by_default(tiny: Load) -> None:
    assert build_augmentation(tiny()) is None
    assert build_augmentation(tiny("train.augment.crop.min_scale=0.5")) is None  # its probability is 0
    for path in (PROJECT / "configs").glob("*.yaml"):
        assert build_augmentation(load_config(path)) is None


def test_each_section_becomes_one_kind_of_augmentation(tiny: Load) -> None:
    assert build_augmentation(tiny(*AUGMENTED)) == Augmentation(
        color_jitter=ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.05),
        expand=Expand(probability=0.5, max_ratio=2.0),
        crop=Crop(probability=0.5, min_scale=0.3, aspect_ratio=(0.5, 2.0), min_coverage=0.5),
        cutout=Cutout(probability=0.5, count=3, size=(0.1, 0.2)),
        fill=(124, 116, 104),
    )
    for number, expected in enumerate(("color_jitter", "expand", "crop", "cutout")):
        found = present(build_augmentation(tiny(AUGMENTED[number])))
        kinds = {name for name in ("color_jitter", "expand", "crop", "cutout") if getattr(found, name)}
        assert kinds == {expected}
    hue = present(build_augmentation(tiny("train.augment.color_jitter.hue=0.1")))
    assert hue.color_jitter == ColorJitter(hue=0.1)


@pytest.mark.parametrize("convention", ["torchvision", "caffe"])
def test_what_is_filled_becomes_nearly_zero_in_the_input(convention: str) -> None:
    table = normalization_table(normalization(convention))
    colour = mean_colour(normalization(convention))
    order = colour[::-1] if convention == "caffe" else colour
    for values, value in zip(table, order, strict=True):
        assert values[value].abs() == values.abs().min()


def test_a_mean_of_ones_own_may_leave_the_range_of_pixels(tiny: Load) -> None:
    config = tiny("model.backbone.convention=caffe", "model.backbone.pixel_mean=[-5.0, 128.0, 300.0]")
    assert mean_colour(build_normalization(config)) == (255, 128, 0)


def test_views_of_test_images_are_not_augmented(tiny: Load) -> None:
    for transform in inference_transforms(tiny(*AUGMENTED)):
        assert transform.plan((40, 60), "a").window is None


def batches(config: Config, count: int, start: int = 0) -> list[Batch]:
    with closing(build_task(config, "cpu").batches(start)) as made:
        return list(islice(made, count))


@pytest.mark.parametrize("task", [(), CLASSIFIER], ids=["detection", "classification"])
def test_augmented_batches_do_not_depend_on_threads_or_the_first_step(
    tiny: Load, task: tuple[str, ...]
) -> None:
    whole = batches(tiny(*task, *AUGMENTED, "data.workers=0"), 6)
    others = (
        (batches(tiny(*task, *AUGMENTED, "data.workers=3"), 6), whole),
        (batches(tiny(*task, *AUGMENTED, "data.workers=2"), 3, start=3), whole[3:]),
    )
    for found, expected in others:
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one.images, other.images)
            assert one.metas == other.metas
            for mine, theirs in zip(one.targets, other.targets, strict=True):
                assert torch.equal(mine.boxes, theirs.boxes)
            if not task:
                assert torch.equal(present(one.sampled).rois, present(other.sampled).rois)
    assert any(meta.window for batch in whole for meta in batch.metas)


@pytest.mark.parametrize("task", [(), CLASSIFIER], ids=["detection", "classification"])
def test_losses_of_augmented_batches_are_finite(tiny: Load, task: tuple[str, ...]) -> None:
    config = tiny(*task, *AUGMENTED, "data.workers=0", "train.augment.crop.probability=1")
    training = build_task(config, "cpu")
    for batch in islice(training.batches(0), 6):
        for loss in training.step(batch).values():
            loss.backward(retain_graph=True)
            assert loss.isfinite()


def test_a_stage_on_images_may_be_augmented_and_one_on_features_not() -> None:
    path = PROJECT / "configs" / "spp_net_staged_quickstart.yaml"
    with pytest.raises(InputError, match=r"stages: fine_tune: a stage of kind fine_tune works on cached"):
        load_config(path, [AUGMENTED[2]])
    stages = [stage.model_dump(mode="json") for stage in load_config(path).stages]
    stages[0]["settings"]["train"]["augment"] = {"crop": {"probability": 0.5}}
    changed = load_config(path).model_dump(mode="json") | {"stages": stages}
    from detector.config import parse_config

    config = parse_config(changed, "test")
    active = [stage_config(config, stage).train.augment.active for stage in config.stages]
    assert active == [True, False, False, False]


def test_augmented_parts_of_two_processes_are_the_batch_of_one(
    tiny: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also their padding, for which each process plans the images of the other without reading them."""
    config = tiny(*AUGMENTED, "data.workers=0", "train.images_per_batch=4")
    whole = batches(config, 4)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        own = slice(2 * rank, 2 * rank + 2)
        for part, batch in zip(parts_of(config, 4), whole, strict=True):
            assert torch.equal(part.images, batch.images[own])
            assert part.metas == batch.metas[own]
    assert len({batch.images.shape for batch in whole}) > 2


def parts_of(config: Config, count: int) -> list[Batch]:
    """The first batches of a process, without a task, which would compute with all processes."""
    classes = class_names(config)
    records = load_training(config, classes, training=True).records
    with closing(training_batches(config, records, no_proposals, 0)) as made:
        return list(islice(made, count))
