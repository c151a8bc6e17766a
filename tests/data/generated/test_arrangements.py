"""Images whose classes differ by layout: annotations compared with boxes and painted pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detector.core.errors import InputError
from detector.data.generated.arrangements import (
    ARRANGEMENTS,
    _arranged_shapes,
    arranged_objects,
    draw_arrangement,
)
from detector.data.generated.dataset import ensure_generated, generate_voc
from detector.data.generated.scenes import Scene, draw_scene
from detector.data.voc.source import VocSource


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    rngs = [np.random.default_rng(seed) for seed in range(120)]
    return [draw_scene(rng, (120 + seed % 40, 170), _arranged_shapes) for seed, rng in enumerate(rngs)]


def positions(scene: Scene, name: str) -> list[np.ndarray]:
    """Return the (x, y) of the pixels of each shape of a class, including hidden ones."""
    return [np.argwhere(shape.mask)[:, ::-1] for shape in scene.shapes if shape.name == name]


def test_classes_say_where_the_pixels_of_the_pair_are(scenes: list[Scene]) -> None:
    counts = dict.fromkeys(ARRANGEMENTS, 0)
    for scene in scenes:
        names = {found.name for found in arranged_objects(scene)}
        discs, squares = positions(scene, "disc"), positions(scene, "square")
        assert len(discs) + len(squares) == (2 if names else 1)
        if not names:
            continue
        for axis, relation in ((0, "left_of"), (1, "above")):
            disc, square = discs[0][:, axis], squares[0][:, axis]
            assert (f"disc_{relation}_square" in names) == (disc.max() < square.min() - 10)
            assert (f"square_{relation}_disc" in names) == (square.max() < disc.min() - 10)
        for name in names:
            counts[name] += 1
    assert min(counts.values()) > 12


def test_an_objects_box_covers_the_pair_and_no_more(scenes: list[Scene]) -> None:
    for scene in scenes:
        for found in arranged_objects(scene):
            pixels = np.concatenate(positions(scene, "disc") + positions(scene, "square"))
            assert found.box == (*pixels.min(axis=0), *(pixels.max(axis=0) + 1))


def test_a_relation_is_difficult_where_one_of_its_shapes_is(scenes: list[Scene]) -> None:
    flags = []
    for scene in scenes:
        pair = [
            hard
            for shape, hard in zip(scene.shapes, scene.difficult(), strict=True)
            if shape.name in ("disc", "square")
        ]
        for found in arranged_objects(scene):
            assert found.difficult == any(pair)
            flags.append(found.difficult)
    assert 0.02 < np.mean(flags) < 0.3


def test_shapes_tell_nothing_about_the_class(scenes: list[Scene]) -> None:
    """Every class shows the same pair, and every other shape equally often, within random variation."""
    for other in ("cross", "ring", "triangle"):
        shown: dict[str, list[bool]] = {name: [] for name in ARRANGEMENTS}
        for scene in scenes:
            for found in arranged_objects(scene):
                shown[found.name].append(any(shape.name == other for shape in scene.shapes))
        rates = [np.mean(values) for values in shown.values()]
        assert max(rates) - min(rates) < 0.35


def test_the_data_set_reads_as_voc(tmp_path: Path) -> None:
    root = tmp_path / "set"
    generate_voc(root, train_images=12, test_images=6, kind="arrangements")
    assert VocSource(root).load("trainval").classes == ARRANGEMENTS
    for index, record in enumerate(VocSource(root).load("test", classes=ARRANGEMENTS).records):
        rng = np.random.default_rng([0, 1, index])
        height, width = rng.integers(120, 201, 2).tolist()
        image, objects = draw_arrangement(rng, (height, width))
        assert image.shape == (record.height, record.width, 3)
        assert record.targets.boxes.tolist() == [list(found.box) for found in objects]
        assert [ARRANGEMENTS[label - 1] for label in record.targets.labels] == [
            found.name for found in objects
        ]
        assert record.targets.difficult.tolist() == [found.difficult for found in objects]


def test_an_image_without_room_for_a_pair_shows_one_shape(tmp_path: Path) -> None:
    rngs = [np.random.default_rng(seed) for seed in range(5)]
    assert all(draw_arrangement(rng, (64, 64))[1] == [] for rng in rngs)


def test_kinds_are_never_mixed(tmp_path: Path) -> None:
    few: dict[str, Any] = {"train_images": 2, "test_images": 1}
    (tmp_path / "set").mkdir()
    ensure_generated(tmp_path / "set", **few, kind="arrangements")
    ensure_generated(tmp_path / "set", **few, kind="arrangements")
    with pytest.raises(
        InputError, match=r"other parameters \(classes .*disc_above_square.* instead of .*cross"
    ):
        ensure_generated(tmp_path / "set", **few)
    with pytest.raises(InputError, match="kind: expected one of scenes, arrangements, not 'words'"):
        ensure_generated(tmp_path / "other", **few, kind="words")
