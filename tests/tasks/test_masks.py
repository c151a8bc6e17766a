"""Masks of regions in whole runs: from the files of other programs to training, evaluation and features."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from detector import Detector
from detector.config import Config
from detector.core.masks import Masks
from detector.data.images import read_image
from detector.engine.run import Run
from detector.factory import model as model_parts
from detector.factory.data import class_names, load_split, split_records
from detector.factory.model import initial_model
from detector.factory.proposals import open_proposals, report_recall
from detector.models.compiled import CompiledDetector
from detector.models.detector import RegionDetector
from detector.models.region_pools import RoIPooling
from detector.staged.region_features import embed_named_split
from detector.tasks import base
from detector.tasks.start import start_run
from tests.ops import masked_reference as slow
from tests.tasks.test_start import assert_identical, final_state
from tests.tasks.test_steps_gpu import STEPS, checked_waits, without_waiting

__all__ = ["checked_waits"]  # a fixture

Load = Callable[..., Config]
FPN = ("model.neck=fpn", "model.fpn.channels=8", "model.pool={kind: roi_align, output_size: 2}")
MOVES = (
    "train.flip=0.5",
    "train.vertical_flip=0.5",
    "train.augment.crop.probability=0.7",
    "train.steps=3",
    "train.checkpoint_every=3",
)


def shapes(size: tuple[int, int]) -> NDArray[np.bool_]:
    """Return regions that do not overlap: five triangles, and one pixel that is no cell's centre."""
    height, width = size
    masks = np.zeros((6, height, width), bool)
    for number in range(5):
        left, side = number * (width // 5), width // 5 - 1
        for row in range(height // 2):
            masks[number, row + height // 4, left : left + 1 + row * side // (height // 2)] = True
    masks[5, 1, width - 2] = True
    return masks


def size_of(path: Path) -> tuple[int, int]:
    height, width, _ = read_image(path).shape
    return height, width


def network_of(run: Run) -> RegionDetector:
    model = run.task.model.eval()
    assert isinstance(model, RegionDetector)
    return model


def each_image(root: Path) -> Iterator[tuple[str, NDArray[np.bool_]]]:
    for path in sorted((root / "JPEGImages").iterdir()):
        yield path.stem, shapes(size_of(path))


def write_labels(root: Path, folder: Path) -> None:
    for name, masks in each_image(root):
        numbers = (masks * np.arange(1, len(masks) + 1)[:, None, None]).sum(0).astype(np.uint16)
        cv2.imwrite(str(folder / f"{name}.png"), numbers)


def write_sam(root: Path, folder: Path) -> None:
    for name, masks in each_image(root):
        entries = []
        for number, mask in enumerate(masks):
            rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            y, x = np.nonzero(mask)
            box = [int(x.min()), int(y.min()), int(np.ptp(x)) + 1, int(np.ptp(y)) + 1]
            entries.append(
                {
                    "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                    "bbox": box,
                    "area": int(mask.sum()),
                    "predicted_iou": 1.0 - number / 100,
                }
            )
        (folder / f"{name}.json").write_text(json.dumps(entries))


WRITERS = {"labels": write_labels, "sam": write_sam}


@pytest.fixture
def masked(tiny: Load, tiny_root: Path, tmp_path: Path) -> Callable[..., Config]:
    """Load the tiny config with masks from files of a format."""

    def load(form: str, *overrides: str) -> Config:
        folder = tmp_path / form
        if not folder.exists():
            folder.mkdir()
            WRITERS[form](tiny_root, folder)
        where = f"proposals={{method: null, file: {folder}, format: {form}}}"
        return tiny(where, *overrides)

    return load


RUNS = [
    ("labels", ("model.pool.mask=cells", *MOVES)),
    ("sam", ("model.pool.mask=weighted", "train.accumulate=2", *MOVES)),
    ("labels", (*FPN, "model.pool.mask=weighted", *MOVES)),
    ("sam", (*FPN, "model.pool.mask=cells", "test.scales=[64,96]", *MOVES)),
]


@pytest.mark.parametrize(("form", "overrides"), RUNS)
def test_from_files_to_features(
    masked: Callable[..., Config], tmp_path: Path, form: str, overrides: tuple[str, ...]
) -> None:
    config = masked(form, *overrides)
    run = start_run(config, tmp_path / "run", "cpu")
    metrics = run.run().metrics
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    steps = [line for line in lines if line["kind"] == "train"]
    assert len(steps) == 3
    assert all(np.isfinite(step["loss"]) for step in steps)
    assert all(0 <= step["mask_fallbacks"] <= step["masked_rois"] for step in steps)
    assert sum(step["mask_fallbacks"] for step in steps) > 0
    scales = len(config.test.scales) if config.test.scale_rule == "all" else 1
    assert metrics["masked_regions"] == 6 * 4 * scales
    assert 4 * scales <= metrics["mask_fallbacks"] < 6 * 4 * scales

    model = network_of(run)
    found = embed_named_split(config, model, "test", tmp_path / "features", "cpu")
    state = {"classes": class_names(config), "file": "x.pt", "model": model.state_dict()}
    detector = Detector(config, state)
    for record in list(split_records(config, ["test"])["test"])[:2]:
        masks = shapes((record.height, record.width))
        regions = detector.classify(record.path, masks=masks, features=True)
        assert regions.pooled is not None
        order = by_box(found.boxes(record.key)), by_box(Masks.encode(masks).boxes().numpy())
        stored = found.features(record.key)[order[0]]
        np.testing.assert_array_equal(stored, regions.pooled.numpy()[order[1]].astype(np.float16))
        boxes = detector.classify(record.path, Masks.encode(masks).boxes(), features=True)
        assert boxes.pooled is not None
        assert not torch.equal(boxes.pooled, regions.pooled)


@pytest.mark.gpu
@pytest.mark.usefixtures("checked_waits")
@pytest.mark.parametrize(("form", "overrides"), RUNS)
def test_steps_on_a_gpu(
    masked: Callable[..., Config], tmp_path: Path, form: str, overrides: tuple[str, ...]
) -> None:
    """The host does not wait for the GPU, runs are the same bit for bit, and the CPU scores as the GPU."""
    length = (f"train.steps={STEPS}", "train.accumulate=1", "train.checkpoint_every=1000")
    config = masked(form, *overrides, *length, "train.log_every=1000", "data.workers=2")
    states = []
    for number in range(2):
        folder = tmp_path / f"run_{number}"
        start_run(config, folder, "cuda", make_task=without_waiting).run()
        states.append(final_state(folder, STEPS))
    assert_identical(*states)

    checkpoint = tmp_path / "run_0" / "checkpoints" / "best.pt"
    here, there = (Detector.load(checkpoint, device=device) for device in ("cpu", "cuda"))
    for record in list(split_records(config, ["test"])["test"])[:2]:
        masks = shapes((record.height, record.width))
        expected, found = (one.classify(record.path, masks=masks) for one in (here, there))
        torch.testing.assert_close(found.scores.cpu(), expected.scores, rtol=1e-2, atol=1e-2)


def by_box(boxes: NDArray[np.float32]) -> NDArray[np.intp]:
    return np.lexsort(boxes.T)


@pytest.mark.parametrize("mode", ["cells", "weighted"])
def test_a_step_of_a_mirrored_image_pools_what_the_mirrored_mask_covers(
    masked: Callable[..., Config], tmp_path: Path, mode: str
) -> None:
    config = masked(
        "labels",
        f"model.pool.mask={mode}",
        "train.flip=1",
        "train.vertical_flip=1",
        "train.scale_jitter=null",
    )
    run = start_run(config, tmp_path / "run", "cpu")
    batches = run.task.batches(0)
    batch = next(batches)
    batches.close()
    model, sampled = network_of(run), batch.sampled
    pool = model.region_pool
    assert isinstance(pool, RoIPooling)
    with torch.no_grad():
        features = model.features(model.inputs(batch.images, batch.sizes))[0]
        pooled = pool([features], sampled.rois, sampled.roi_levels, sampled.masks)
    extents, (stride, center) = features.shape[2:], pool.geometry(0)
    assert center == 0
    maps, expected_rows = [], []
    for row, roi in enumerate(sampled.rois.tolist()):
        meta = batch.metas[int(roi[0])]
        assert meta.flipped
        assert meta.flipped_vertically
        mirrored = shapes(meta.original_size)[:, ::-1, ::-1]
        scaled = np.array(
            [meta.input_size[1] / meta.original_size[1], meta.input_size[0] / meta.original_size[0]]
        )
        boxes = Masks.encode(np.ascontiguousarray(mirrored)).boxes().numpy() * np.tile(scaled, 2)
        (same,) = np.nonzero(np.abs(boxes - roi[1:]).max(1) < 1e-3)
        if len(same):
            maps.append(seen(mirrored[same[0]], meta.input_size, tuple(extents), stride))
            expected_rows.append(row)
    kept = [n for n, (_, covered) in enumerate(maps) if covered.any()]
    rows = [expected_rows[n] for n in kept]
    assert len(rows) > 4
    cut = slow.caffe(1 / stride)
    sides = (pool.output_size,)
    expected = slow.bins(features, sampled.rois[rows], [maps[n] for n in kept], sides, cut, mode)
    torch.testing.assert_close(pooled[rows], expected.float(), rtol=1e-4, atol=1e-5)


def seen(
    mask: NDArray[np.bool_], size: tuple[int, int], extents: tuple[int, ...], stride: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the coverage of the cells around the multiples of ``stride``, and which centres are covered.

    ``mask`` is shown at ``size``.
    """
    shares, centers = [], []
    for pixels, shown, cells in zip(mask.shape, size, extents, strict=True):
        edges = np.arange(pixels + 1) * shown / pixels
        middle = np.arange(cells)[:, None] * stride
        low, high = np.maximum(edges[:-1], middle - stride / 2), np.minimum(edges[1:], middle + stride / 2)
        shares.append((high - low).clip(0) / stride)
        centers.append(np.floor(middle[:, 0] * pixels / shown).astype(int))
    coverage = shares[0] @ mask @ shares[1].T
    inside = (centers[0] < mask.shape[0])[:, None] & (centers[1] < mask.shape[1])
    padded = np.pad(mask, ((0, 1), (0, 1)))
    covered = padded[
        np.ix_(*(center.clip(max=side) for center, side in zip(centers, mask.shape, strict=True)))
    ]
    return torch.from_numpy(coverage).float(), torch.from_numpy(covered & inside)


@pytest.mark.parametrize("overrides", [(), ("model.pool={kind: spp, levels: [2, 1]}",)])
def test_masks_that_are_rectangles_give_the_bits_of_boxes(tiny: Load, overrides: tuple[str, ...]) -> None:
    """The sides lie between the centres of cells, so that the cells of box and mask are the same."""
    image = np.random.default_rng(0).integers(0, 256, (96, 128, 3), dtype=np.uint8)
    masks = np.zeros((3, 96, 128), bool)
    masks[0], masks[1, 13:67, 13:67], masks[2, 29:83, 45:99] = True, True, True
    found = []
    for mode in ("none", "cells"):
        config = tiny(*overrides, f"model.pool.mask={mode}")
        state = {"classes": class_names(config), "file": "x.pt"}
        torch.manual_seed(0)
        model = initial_model(config, state["classes"])
        detector = Detector(config, {**state, "model": model.state_dict()})
        found.append(detector.classify(image, masks=masks, features=True))
    assert found[0].pooled is not None
    assert found[1].pooled is not None
    assert torch.equal(found[0].pooled, found[1].pooled)
    assert torch.equal(found[0].scores, found[1].scores)


def test_a_compiled_run_pools_by_masks(
    masked: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "check_compiler", lambda device: None)
    monkeypatch.setattr(model_parts, "compiled", lambda model: CompiledDetector(model, backend="eager"))
    logs = []
    for compiled in ("false", "true"):
        config = masked("labels", "model.pool.mask=cells", "train.steps=2", f"train.compile={compiled}")
        folder = tmp_path / f"compiled_{compiled}"
        start_run(config, folder, "cpu").run()
        lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
        logs.append([(line["loss"], line["masked_rois"]) for line in lines if line["kind"] == "train"])
    assert len(logs[0]) == 2
    np.testing.assert_allclose(logs[0], logs[1], rtol=1e-4)


def test_proposals_without_masks_are_pointed_out(
    tiny: Load, masked: Callable[..., Config], capfd: pytest.CaptureFixture[str]
) -> None:
    for config, warned in (
        (tiny("model.pool.mask=cells"), True),
        (masked("labels", "model.pool.mask=cells"), False),
        (tiny(), False),
    ):
        records = load_split(config, "trainval", class_names(config), training=True).records
        report_recall(records, open_proposals(config, records, "trainval"), config, "trainval")
        printed = " ".join(capfd.readouterr().err.split())
        assert ("has no masks for trainval: every region is pooled as its box" in printed) == warned
