"""The generated data set, compared with slow, independent measurements of the drawn images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
import torch
from matplotlib.path import Path as Polygon

from detector.core import boxes as box_ops
from detector.core.errors import InputError
from detector.data.generated import dataset
from detector.data.generated.dataset import MANIFEST, ensure_generated, generate_voc
from detector.data.generated.scenes import Scene, draw_scene
from detector.data.generated.shapes import CLASSES, Shape
from detector.data.voc.source import VocSource
from tests.conftest import PROJECT
from tests.typed import read_picture

SMALL: dict[str, Any] = {"train_images": 12, "test_images": 5, "image_size": (80, 120), "seed": 3}


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(np.random.default_rng(seed), (120 + seed % 40, 170)) for seed in range(80)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated") / "set"
    generate_voc(folder, train_images=60, test_images=10)
    return folder


def contents(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def oracle_mask(shape: Shape) -> np.ndarray:
    """A pixel belongs to the shape when its centre is inside an odd number of outlines."""
    height, width = shape.coverage.shape
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    centres = np.stack((x.ravel(), y.ravel()), axis=1)
    inside = [Polygon(outline).contains_points(centres) for outline in shape.outlines]
    return (np.sum(inside, axis=0) % 2 == 1).reshape(height, width)


def oracle_box(mask: np.ndarray) -> np.ndarray:
    y, x = np.nonzero(mask)
    return np.array((x.min(), y.min(), x.max() + 1, y.max() + 1))


def test_boxes_are_tight_and_inside(scenes: list[Scene]) -> None:
    shapes = [shape for scene in scenes for shape in scene.shapes]
    for shape in shapes:
        mask = oracle_mask(shape)
        assert (mask != shape.mask).sum() <= 0.05 * mask.sum() + 4
        # A sharp tip may cover the centre of a pixel and less than half of its area, or the reverse.
        np.testing.assert_allclose(shape.box, oracle_box(mask), atol=1)
        x1, y1, x2, y2 = shape.box
        assert 0 <= x1 < x2 <= mask.shape[1]
        assert 0 <= y1 < y2 <= mask.shape[0]
    off = np.concatenate([np.subtract(shape.box, oracle_box(oracle_mask(shape))) for shape in shapes])
    assert abs(off.mean()) < 0.05


def test_difficult_follows_visible_area(scenes: list[Scene]) -> None:
    for scene in scenes:
        hidden = np.zeros(scene.image.shape[:2], dtype=bool)
        for shape, difficult in zip(reversed(scene.shapes), reversed(scene.difficult()), strict=True):
            mask = oracle_mask(shape)
            part = (mask & ~hidden).sum() / shape.area
            if abs(part - 0.5) > 0.03:
                assert difficult == (shape.faint or part < 0.5)
            assert part > 0.2
            hidden |= mask


def test_area_counts_what_lies_outside(scenes: list[Scene]) -> None:
    whole = [shape for scene in scenes for shape in scene.shapes if not shape.truncated]
    cut = [shape for scene in scenes for shape in scene.shapes if shape.truncated]
    for shape in whole:
        assert shape.area == pytest.approx(oracle_mask(shape).sum(), rel=0.05)
    assert all(shape.area > 0.98 * oracle_mask(shape).sum() for shape in cut)
    assert any(shape.area > 1.4 * oracle_mask(shape).sum() for shape in cut)
    assert len(whole) > 3 * len(cut) > 0


def test_clear_shapes_stand_out_and_faint_ones_hardly(scenes: list[Scene]) -> None:
    contrast: dict[bool, list[float]] = {True: [], False: []}
    for scene in scenes:
        image = scene.image.astype(np.float32)
        for shape in scene.shapes[-1:]:
            around = (cv2.dilate(shape.coverage, np.ones((9, 9))) > 0) & (shape.coverage == 0)
            difference = image[shape.mask].mean(axis=0) - image[around].mean(axis=0)
            contrast[shape.faint].append(float(np.linalg.norm(difference)))
    assert np.quantile(contrast[False], 0.05) > 40
    assert np.median(contrast[True]) < 40


def test_every_kind_of_image_occurs(root: Path) -> None:
    dataset = VocSource(root).load("trainval")
    targets = [record.targets for record in dataset.records]
    assert dataset.classes == tuple(sorted(CLASSES))
    assert len(CLASSES) >= 4
    counts = torch.bincount(torch.cat([one.labels for one in targets]), minlength=len(CLASSES) + 1)[1:]
    assert counts.min() >= 15
    difficult = torch.cat([one.difficult for one in targets]).float().mean()
    assert 0.02 < difficult < 0.25
    assert any(len(one) == 0 for one in targets)
    overlaps = [box_ops.iou(one.boxes, one.boxes).fill_diagonal_(0).max() for one in targets if len(one)]
    assert 0.1 < max(overlaps) <= 0.3 + 1e-6
    assert {record.height > record.width for record in dataset.records} == {True, False}
    sides = torch.cat([one.boxes[:, 2:] - one.boxes[:, :2] for one in targets])
    assert sides.min() >= 12
    assert sides.max() > 75


def test_files_agree_with_scenes(root: Path) -> None:
    """The reader's half-open boxes are the masks' extents, and the images have the requested sizes."""
    for index, record in enumerate(VocSource(root).load("test").records):
        rng = np.random.default_rng([0, 1, index])
        height, width = rng.integers(120, 201, 2).tolist()
        scene = draw_scene(rng, (height, width))
        image = read_picture(record.path)[..., ::-1]
        assert image.shape == (record.height, record.width, 3) == scene.image.shape
        blurred = [cv2.blur(one, (7, 7)).astype(float) for one in (image, scene.image)]
        assert np.abs(blurred[0] - blurred[1]).mean() < 4  # JPEG loses the fine noise
        assert record.targets.boxes.tolist() == [list(shape.box) for shape in scene.shapes]
        assert record.targets.difficult.tolist() == scene.difficult()
        xml = ElementTree.parse(root / f"Annotations/{record.image_id}.xml")
        assert [node.text == "1" for node in xml.iter("truncated")] == [s.truncated for s in scene.shapes]


def test_splits_share_no_image(root: Path) -> None:
    split = {
        name: (root / f"ImageSets/Main/{name}.txt").read_text().split()
        for name in ("train", "val", "trainval", "test")
    }
    assert {name: len(ids) for name, ids in split.items()} == {
        "train": 50, "val": 10, "trainval": 60, "test": 10,
    }  # fmt: skip
    assert sorted(split["train"] + split["val"]) == split["trainval"]
    assert not set(split["trainval"]) & set(split["test"])
    files = {path.stem for path in (root / "JPEGImages").iterdir()}
    assert files == {path.stem for path in (root / "Annotations").iterdir()}
    assert files == set(split["trainval"] + split["test"])


def test_same_seed_same_bytes(tmp_path: Path) -> None:
    for name in "ab":
        generate_voc(tmp_path / name, **SMALL)
    generate_voc(tmp_path / "c", **{**SMALL, "seed": 4})
    first, second, other = (contents(tmp_path / name) for name in "abc")
    assert first == second
    same = [name for name in first if name.endswith(".jpg") and first[name] == other[name]]
    assert not same


def test_test_images_do_not_depend_on_the_number_of_training_images(tmp_path: Path) -> None:
    generate_voc(tmp_path / "a", **SMALL)
    generate_voc(tmp_path / "b", **{**SMALL, "train_images": 2})
    for index in range(SMALL["test_images"]):
        first = tmp_path / f"a/JPEGImages/{12 + index + 1:06d}.jpg"
        second = tmp_path / f"b/JPEGImages/{2 + index + 1:06d}.jpg"
        assert first.read_bytes() == second.read_bytes()


def test_a_finished_set_stays_unchanged(tmp_path: Path) -> None:
    root = tmp_path / "nested/set"
    root.mkdir(parents=True)
    ensure_generated(root, **SMALL)
    (root / "proposals").mkdir()  # what others put beside it stays
    stamps = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    ensure_generated(root, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == stamps
    with pytest.raises(InputError, match="exists already"):
        generate_voc(root, **SMALL)


def test_other_parameters_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "set"
    root.mkdir()
    ensure_generated(root, **SMALL)
    before = contents(root)
    with pytest.raises(InputError, match=r"set: .*seed 3 instead of 5.*name another"):
        ensure_generated(root, **{**SMALL, "seed": 5})
    assert contents(root) == before
    foreign = tmp_path / "photos"
    foreign.mkdir()
    (foreign / "holiday.jpg").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"photos: .*data\.generate=null"):
        ensure_generated(foreign, **SMALL)
    assert contents(foreign) == {"holiday.jpg": b"mine"}
    for text in ("[]", "{", '{"version": 0}'):
        (foreign / MANIFEST).write_text(text)
        with pytest.raises(InputError, match=r"photos[:/]"):
            ensure_generated(foreign, **SMALL)


def test_a_folder_that_is_not_there_is_no_place_for_a_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a shipped config's folder or an existing empty one: nothing is drawn for a mistyped root."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"data/raccoon: no such folder.*data\.generate=null"):
        ensure_generated(Path("data/raccoon"), **SMALL)
    assert not list(tmp_path.iterdir())
    ensure_generated(Path("data/quickstart"), **SMALL)
    assert (tmp_path / "data/quickstart" / MANIFEST).is_file()
    (tmp_path / "mine").mkdir()
    ensure_generated(Path("mine"), **SMALL)
    assert (tmp_path / "mine" / MANIFEST).is_file()


def test_no_refusal_asks_to_delete_anything(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/holiday.jpg").write_bytes(b"mine")
    generate_voc(tmp_path / "set", **SMALL)
    for call in (
        lambda: ensure_generated(tmp_path / "photos", **SMALL),
        lambda: ensure_generated(tmp_path / "set", **{**SMALL, "seed": 5}),
        lambda: generate_voc(tmp_path / "set", **SMALL),
    ):
        with pytest.raises(InputError) as refusal:
            call()
        assert not {"delete", "remove"} & set(str(refusal.value).split())


def test_the_shipped_configs_name_these_folders() -> None:
    from detector.config import load_config

    configs = (load_config(path) for path in sorted((PROJECT / "configs").glob("*.yaml")))
    roots = {config.data.root for config in configs if config.data.generate is not None}
    assert roots == set(dataset.SHIPPED_ROOTS)


@pytest.mark.parametrize(
    "wrong",
    [{"image_size": (32, 100)}, {"image_size": (120, 100)}, {"train_images": -1}, {"seed": -1}],
    ids=lambda wrong: next(iter(wrong)),
)
def test_impossible_parameters_are_named(tmp_path: Path, wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        ensure_generated(tmp_path / "set", **{**SMALL, **wrong})
    assert not list(tmp_path.iterdir())


def stop_after(count: int, error: BaseException) -> Callable[..., Scene]:
    drawn = iter(range(count))

    def draw(*arguments: Any) -> Scene:
        if next(drawn, None) is None:
            raise error
        return draw_scene(*arguments)

    return draw


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=str)
def test_an_interruption_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    monkeypatch.setattr(dataset, "draw_scene", stop_after(4, error))
    with pytest.raises((KeyboardInterrupt, InputError), match=r"No space|^$"):
        generate_voc(tmp_path / "set", **SMALL)
    assert not list(tmp_path.iterdir())


def test_a_killed_run_leaves_nothing_that_looks_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(dataset, "draw_scene", stop_after(4, KeyboardInterrupt()))
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)  # SIGKILL leaves no time to clean up
        with pytest.raises(KeyboardInterrupt):
            generate_voc(tmp_path / "set", **SMALL)
    assert not (tmp_path / "set").exists()
    assert not list(tmp_path.rglob(MANIFEST))
    generate_voc(tmp_path / "set", **SMALL)
    assert json.loads((tmp_path / "set" / MANIFEST).read_text())["seed"] == 3


def test_two_processes_at_once_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process finishes while this one still draws."""
    root = tmp_path / "set"

    def draw(rng: np.random.Generator, size: tuple[int, int]) -> Scene:
        monkeypatch.setattr(dataset, "draw_scene", draw_scene)
        generate_voc(root, **SMALL)
        return draw_scene(rng, size)

    root.mkdir()
    monkeypatch.setattr(dataset, "draw_scene", draw)
    ensure_generated(root, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["set"]
