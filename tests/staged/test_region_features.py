"""Region features on the disk: those of `Detector.classify`, made again only where something changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from detector.api import Detector
from detector.config import Config
from detector.core.errors import InputError
from detector.core.masks import Masks
from detector.core.structures import Batch, ImageRecord, Proposals, ProposalSource, Targets
from detector.engine.inference import RegionPredictor
from detector.factory.data import class_names, split_records
from detector.factory.model import initial_model
from detector.factory.proposals import open_proposals, stored_proposals
from detector.models.detector import RegionDetector
from detector.staged.region_features import (
    FeaturePlan,
    RegionFeatures,
    _regions_digest,
    embed_named_split,
    embed_split,
    plan_features,
)

Load = Callable[..., Config]


class Parts(NamedTuple):
    """What `embed_split` needs, in the order of its first four arguments."""

    config: Config
    model: RegionDetector
    records: Sequence[ImageRecord]
    source: ProposalSource


def scored_source(record: ImageRecord) -> Proposals:
    """Return a few boxes, another number of them for each image, with scores except in one image of three."""
    number = int.from_bytes(record.key.encode()) % 97
    rng = np.random.default_rng(number)
    corners = rng.uniform(0, 60, (5 + number % 4, 2)).astype(np.float32)
    boxes = np.concatenate((corners, corners + rng.uniform(8, 30, corners.shape).astype(np.float32)), axis=1)
    scores = None if number % 3 == 0 else torch.from_numpy(rng.random(len(boxes), np.float32))
    return Proposals(boxes=torch.from_numpy(boxes), scores=scores)


def none_for_first(record: ImageRecord) -> Proposals:
    """As `scored_source`, and nothing for one image."""
    found = scored_source(record)
    return found.select(torch.arange(0)) if record.image_id.endswith("1") else found


@pytest.fixture
def parts(tiny: Load) -> Parts:
    config = tiny("model.pool.output_size=2")
    return parts_of(config, scored_source)


def parts_of(config: Config, source: ProposalSource | None = None) -> Parts:
    records = split_records(config, ["test"])["test"]
    if source is None:
        source = stored_proposals(config, open_proposals(config, records, "test"), training=False)
    return Parts(config, initial_model(config, class_names(config)).eval(), records, source)


def embed(parts: Parts, folder: Path, **options: Any) -> RegionFeatures:
    return embed_split(*parts, folder, "cpu", **options)


def key_of(parts: Parts, **options: Any) -> str:
    return plan_features(parts.config, parts.model, parts.records, parts.source, **options).key


class Watch:
    """Counts the images that go through the convolutions, and stops at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None) -> None:
        self.images: list[str] = []
        self.stop_after = stop_after
        compute = RegionPredictor.features

        def watched(predictor: RegionPredictor, views: Sequence[Batch], pool: Any) -> torch.Tensor:
            if len(self.images) == self.stop_after:
                raise KeyboardInterrupt
            self.images.append(views[0].metas[0].image_id)
            return compute(predictor, views, pool)

        monkeypatch.setattr(RegionPredictor, "features", watched)


@pytest.mark.parametrize(
    ("overrides", "hidden"),
    [
        ((), True),
        (("test.scales=[64,96]", "test.flip=true"), False),
        (("test.scales=[96,64]", "test.scale_rule=all", "model.roi_chunk=64"), False),
        (("model.pool={kind: spp, levels: [1, 2]}", "test.precision=bfloat16"), False),
    ],
)
def test_stored_features_are_those_of_classify(
    tiny: Load, tmp_path: Path, overrides: tuple[str, ...], hidden: bool
) -> None:
    parts = parts_of(tiny(*overrides))
    found = embed(parts, tmp_path / "features", hidden=hidden)
    classes = class_names(parts.config)
    state = {"classes": classes, "file": "x.pt", "model": parts.model.state_dict()}
    detector = Detector(parts.config, state)
    assert found.images == tuple(record.key for record in parts.records)
    for record in parts.records[:2]:
        proposals = parts.source(record)
        regions = detector.classify(record.path, proposals.boxes, features=True)
        expected = regions.hidden if hidden else regions.pooled
        assert expected is not None
        features = found.features(record.key)
        np.testing.assert_array_equal(features, expected.numpy().astype(np.float16))
        np.testing.assert_array_equal(found.boxes(record.key), proposals.boxes.numpy())
        assert found.scores(record.key) is None


def test_stored_features_are_pooled_by_masks(tiny: Load, tmp_path: Path) -> None:
    config = tiny("model.pool.output_size=2", "model.pool.mask=cells")

    def shapes(record: ImageRecord) -> np.ndarray:
        masks = np.zeros((2, record.height, record.width), bool)
        masks[0, 10:70, 10:30], masks[0, 50:70, 10:90], masks[1, 20:60, 30:90] = True, True, True
        return masks

    def masked(record: ImageRecord) -> Proposals:
        masks = Masks.encode(shapes(record))
        return Proposals(boxes=torch.as_tensor(masks.boxes()), masks=masks)

    parts = parts_of(config, masked)
    found = embed(parts, tmp_path)
    state = {"classes": class_names(config), "file": "x.pt", "model": parts.model.state_dict()}
    record = parts.records[0]
    regions = Detector(config, state).classify(record.path, masks=shapes(record), features=True)
    assert regions.pooled is not None
    features = found.features(record.key)
    np.testing.assert_array_equal(features, regions.pooled.numpy().astype(np.float16))
    boxes = parts._replace(source=lambda record: Proposals(boxes=masked(record).boxes))
    assert not np.array_equal(features, embed(boxes, tmp_path).features(record.key))


def test_three_lines_of_numpy_read_the_arrays(parts: Parts, tmp_path: Path) -> None:
    found = embed(parts, tmp_path)
    offsets, features = np.load(found.folder / "offsets.npy"), np.load(found.folder / "features.npy", "r")
    boxes, scores = np.load(found.folder / "boxes.npy", "r"), np.load(found.folder / "scores.npy", "r")
    images = json.loads((found.folder / "features.json").read_text())["images"]
    for number, record in enumerate(parts.records):
        rows = slice(offsets[number], offsets[number + 1])
        expected = parts.source(record)
        assert images[number]["key"] == record.key
        assert features[rows].dtype == np.float16
        assert features[rows].tobytes() == found.features(record.key).tobytes()
        np.testing.assert_array_equal(boxes[rows], expected.boxes.numpy())
        own = found.scores(record.key)
        if expected.scores is None:
            assert own is None
            assert np.isnan(scores[rows]).all()
        else:
            assert own is not None
            np.testing.assert_array_equal(own, expected.scores.numpy())
            np.testing.assert_array_equal(own, scores[rows])
    assert found.all_features.shape == (len(found), found.width) == features.shape
    assert not found.all_features.flags.writeable


def test_images_without_regions_have_no_rows(parts: Parts, tmp_path: Path) -> None:
    one = embed(parts._replace(source=none_for_first), tmp_path)
    empty = [record.key for record in parts.records if not len(none_for_first(record))]
    assert empty
    assert all(one.features(key).shape == (0, one.width) for key in empty)
    nothing = parts._replace(source=lambda _: Proposals(boxes=torch.zeros(0, 4)))
    none = embed(nothing, tmp_path)
    assert none.all_features.shape == (0, none.width)
    assert RegionFeatures.open(none.folder).all_boxes.shape == (0, 4)


@pytest.mark.parametrize(
    "override",
    [
        "test.scales=[80]",
        "test.max_size=100",
        "test.precision=bfloat16",
        "model.pool.output_size=3",
        "model.pool.center=network",
        "model.backbone.feature_scale=0.5",
        "model.backbone.pixel_mean=[0.5,0.5,0.5]",
        "seed=4",  # the random weights of the convolutions
    ],
)
def test_settings_that_change_the_features_change_the_key(tiny: Load, parts: Parts, override: str) -> None:
    config = tiny("model.pool.output_size=2", override)
    assert key_of(parts_of(config, scored_source)) != key_of(parts)


def test_other_settings_do_not_change_the_key(tiny: Load, parts: Parts) -> None:
    config = tiny(
        *("model.pool.output_size=2", "model.head.hidden=[16]", "model.head.dropout=0", "model.roi_chunk=99"),
        *("model.backbone.freeze=1", "train.steps=99", "train.learning_rate=1", "train.scales=[64]"),
        *("test.flip=true", "test.score_threshold=0.3", "test.scale_rule=side", "test.refinements=1"),
    )
    other = parts_of(config, scored_source)
    other.model.backbone.load_state_dict(parts.model.backbone.state_dict())
    assert key_of(other) == key_of(parts)


def test_weights_change_the_key_where_they_change_the_features(parts: Parts) -> None:
    pooled, hidden = key_of(parts), key_of(parts, hidden=True)
    assert pooled != hidden
    with torch.no_grad():
        next(parts.model.predictor.parameters())[0, 0] += 1
    assert (key_of(parts), key_of(parts, hidden=True)) == (pooled, hidden)
    with torch.no_grad():
        next(parts.model.box_head.parameters())[0, 0] += 1
    assert key_of(parts) == pooled
    assert key_of(parts, hidden=True) != hidden
    with torch.no_grad():
        next(parts.model.backbone.parameters())[0, 0, 0, 0] += 1e-3
    assert key_of(parts) != pooled


def test_images_and_regions_change_the_key_and_labels_do_not(parts: Parts, tmp_path: Path) -> None:
    first, *rest = parts.records
    relabelled = replace(first, targets=Targets.empty())
    assert len(first.targets)
    assert key_of(parts._replace(records=[relabelled, *rest])) == key_of(parts)
    copy = tmp_path / first.path.name
    shutil.copy(first.path, copy)
    assert key_of(parts._replace(records=[replace(first, path=copy), *rest])) == key_of(parts)
    copy.write_bytes(copy.read_bytes() + b"\0")
    assert key_of(parts._replace(records=[replace(first, path=copy), *rest])) != key_of(parts)

    def fewer(record: ImageRecord) -> Proposals:
        found = scored_source(record)
        return found.select(torch.arange(len(found) - (record.key == first.key)))

    def moved(record: ImageRecord) -> Proposals:
        found = scored_source(record)
        return Proposals(boxes=found.boxes + (record.key == first.key), scores=found.scores)

    def unscored(record: ImageRecord) -> Proposals:
        return Proposals(boxes=scored_source(record).boxes)

    keys = {key_of(parts._replace(source=source)) for source in (scored_source, fewer, moved, unscored)}
    assert len(keys) == 4


def test_masks_count_where_the_pool_uses_them() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4]])
    shape = np.zeros((1, 6, 6), bool)
    shape[0, :4, :4] = True
    whole = Proposals(boxes=boxes, masks=Masks.encode(shape))
    shape[0, 2, 2] = False
    holed = Proposals(boxes=boxes, masks=Masks.encode(shape))
    assert _regions_digest(whole, masked=True) != _regions_digest(holed, masked=True)
    assert _regions_digest(whole, masked=False) == _regions_digest(holed, masked=False)
    plain = Proposals(boxes=boxes)
    assert _regions_digest(plain, masked=True) == _regions_digest(plain, masked=False)


def test_a_stopped_run_goes_on_and_ends_with_the_same_files(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detector.staged.cache_folder.FLUSH_EVERY", 1)
    whole = embed(parts, tmp_path / "whole")
    with monkeypatch.context() as patch:
        Watch(patch, stop_after=2)
        with pytest.raises(KeyboardInterrupt):
            embed(parts, tmp_path / "stopped")
    place = tmp_path / "stopped" / whole.folder.name
    with pytest.raises(InputError, match="holds 2 of 4 images; let the run that makes it finish"):
        RegionFeatures.open(place)
    with (place / "features.npy").open("r+b") as file:  # half-written rows of the image that was under way
        file.seek(-3, 2)
        file.write(b"abc")
    with monkeypatch.context() as patch:
        watch = Watch(patch)
        embed(parts, tmp_path / "stopped")
        assert watch.images == [record.image_id for record in parts.records[2:]]
        embed(parts, tmp_path / "stopped")
        assert len(watch.images) == 2
    for path in whole.folder.iterdir():
        assert path.read_bytes() == (place / path.name).read_bytes(), path.name


@pytest.mark.parametrize("name", ["features.npy", "done.bin"])
def test_files_of_another_size_are_named(parts: Parts, tmp_path: Path, name: str) -> None:
    folder = embed(parts, tmp_path).folder
    with (folder / name).open("ab") as file:
        file.write(b"+++")
    for use in (lambda: RegionFeatures.open(folder), lambda: embed(parts, tmp_path)):
        with pytest.raises(
            InputError, match=rf"set of region features: {name} has \d+ bytes and must have \d+;"
        ):
            use()
    (folder / "features.json").unlink()  # the repair that the message names
    embed(parts, tmp_path).check()


def test_a_record_that_names_an_image_twice_is_refused(parts: Parts, tmp_path: Path) -> None:
    sound = embed(parts, tmp_path)
    first, _, *others = sound.plan.images
    twice = FeaturePlan([first, first, *others], sound.plan.source, sound.width)
    (sound.folder / "features.json").write_text(json.dumps(twice.manifest()))
    with pytest.raises(InputError, match=r"features\.json: not the record of a set"):
        RegionFeatures.open(sound.folder)


def test_flipped_bits_are_found_when_their_image_is_first_read(parts: Parts, tmp_path: Path) -> None:
    sound = embed(parts, tmp_path)
    for name in ("features.npy", "boxes.npy", "scores.npy", "offsets.npy", "done.bin", "features.json"):
        path = sound.folder / name
        content = path.read_bytes()
        for place in (3, len(content) // 2, len(content) - 3):
            changed = bytearray(content)
            changed[place] ^= 4
            path.write_bytes(changed)
            with pytest.raises(InputError, match=r"damaged|as they were written|JSON|not the record"):
                RegionFeatures.open(sound.folder).check()
        path.write_bytes(content)
    changed = bytearray((sound.folder / "features.npy").read_bytes())
    changed[-1] ^= 1
    (sound.folder / "features.npy").write_bytes(changed)
    opened, last = RegionFeatures.open(sound.folder), sound.images[-1]
    assert len(opened.features(sound.images[0]))
    for read in (lambda: opened.features(last), lambda: opened.boxes(last), lambda: opened.all_features):
        with pytest.raises(InputError, match=f"damaged: the region features of image '{last}' are not as"):
            read()


def test_what_is_not_there_is_named(parts: Parts, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no set of region features; make one with tools/embed\.py"):
        RegionFeatures.open(tmp_path)
    with pytest.raises(InputError, match="no region features of image 'other'"):
        embed(parts, tmp_path).features("other")


@pytest.mark.parametrize("factor", [1e7, float("nan")])
def test_features_that_float16_cannot_hold_are_named(parts: Parts, tmp_path: Path, factor: float) -> None:
    with torch.no_grad():
        for weight in parts.model.backbone.parameters():
            weight.mul_(factor)
    with pytest.raises(InputError, match=r"the region features reach .*float16 cannot hold.*feature_scale"):
        embed(parts, tmp_path)


def test_a_grown_split_computes_only_the_new_images(
    parts: Parts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = embed(parts._replace(records=parts.records[1:]), tmp_path / "shared")
    watch = Watch(monkeypatch)
    grown = embed(parts, tmp_path / "shared")
    assert watch.images == [parts.records[0].image_id]
    assert first.folder != grown.folder
    alone = embed(parts, tmp_path / "alone")
    assert np.array_equal(alone.all_features, grown.all_features)
    changed = bytearray((first.folder / "features.npy").read_bytes())
    changed[-1] ^= 1
    (first.folder / "features.npy").write_bytes(changed)  # a damaged set gives nothing
    part = embed(parts._replace(records=parts.records[:2]), tmp_path / "shared")
    assert np.array_equal(part.all_features, alone.all_features[: len(part)])
    shutil.rmtree(grown.folder)
    watch.images.clear()
    embed(parts._replace(records=parts.records[2:]), tmp_path / "shared")
    assert len(watch.images) == 2


def test_training_images_have_the_proposals_of_training(tiny: Load, tmp_path: Path) -> None:
    config = tiny("proposals.top_k_train=9", "proposals.top_k_test=5", "model.pool.output_size=1")
    model = initial_model(config, class_names(config))
    for split, most in (("trainval", 9), ("test", 5)):
        found = embed_named_split(config, model, split, tmp_path, "cpu")
        assert {len(found.boxes(key)) for key in found.images} == {most}


def test_a_classifier_of_whole_images_is_refused(tiny: Load, tmp_path: Path) -> None:
    config = tiny("task=classification", "model.pool={kind: spp, levels: [1]}")
    parts = parts_of(config, scored_source)
    for use in (
        lambda: embed(parts, tmp_path),
        lambda: embed_named_split(config, parts.model, "trainval", tmp_path, "cpu"),
    ):
        with pytest.raises(InputError, match="task: classification has no regions"):
            use()


def test_proposals_that_change_meanwhile_are_noticed(parts: Parts, tmp_path: Path) -> None:
    calls: list[str] = []

    def changing(record: ImageRecord) -> Proposals:
        calls.append(record.key)
        moved = len(calls) > len(parts.records)
        return Proposals(boxes=scored_source(record).boxes + moved)

    with pytest.raises(InputError, match="its proposals have changed while"):
        embed(parts._replace(source=changing), tmp_path)
