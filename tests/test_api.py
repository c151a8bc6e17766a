"""The Python API: the results of evaluation from any kind of image, and one clear error for anything else."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import detector as package
from detector import Detector, Result
from detector.config import Config
from detector.core.errors import InputError
from detector.core.masks import Masks
from detector.core.structures import Detections, Proposals
from detector.data.generated.clip import moving_shapes
from detector.data.images import read_image
from detector.data.video import Video
from detector.engine.checkpoint import load_checkpoint, save_checkpoint
from detector.engine.inference import Regions, number_type
from detector.factory.data import class_names
from detector.factory.model import build_model
from detector.proposals.store import Entry, ProposalStore
from detector.tasks.start import build_scorer
from detector.visualize.video import VideoWriter
from tests.conftest import PROJECT
from tests.devices import each_device
from tests.typed import present

Load = Callable[..., Config]
BOXES = np.array([[5, 5, 60, 60], [20, 10, 90, 80], [0, 0, 40, 90]], dtype=np.float32)
CLASSIFIER = ("task=classification", "model.pool={kind: spp, levels: [1, 2, 4]}", "proposals.method=null")
SVM_AND_RIDGE = (
    "model.pool={kind: spp, levels: [3, 1]}",
    "model.head.scores=svm",
    "model.box.regression=ridge",
    "test.score_threshold=-9",
)
RCNN = ("model.pool={kind: warp, crop_size: 32, context: 2, output_size: 2}", "model.roi_chunk=64")


def save_random(config: Config, path: Path, **more: Any) -> Path:
    """Write a checkpoint of the config's network with its seeded random weights."""
    classes = class_names(config)
    state = {"step": 1, "config": config.model_dump(mode="json"), "classes": list(classes)}
    save_checkpoint(path, {**state, "model": build_model(config, len(classes)).state_dict(), **more})
    return path


@pytest.fixture
def make(tiny: Load, tmp_path: Path) -> Callable[..., Detector]:
    """Load a detector of the tiny config with overrides from a checkpoint."""

    def load(*overrides: str, device: str = "cpu", **more: Any) -> Detector:
        config = tiny("test.score_threshold=0.1", *overrides)
        return Detector.load(save_random(config, tmp_path / "random.pt", **more), device)

    return load


Make = Callable[..., Detector]


def image_paths(root: Path) -> list[Path]:
    return sorted((root / "JPEGImages").iterdir())


def same(found: Result | Detections, expected: Result | Detections) -> bool:
    return all(
        torch.equal(getattr(found, name), getattr(expected, name)) for name in ("boxes", "scores", "labels")
    )


@each_device
@pytest.mark.parametrize(
    "overrides",
    [
        ("proposals.method=dense",),
        ("proposals.method=selective_search", "proposals.top_k_test=50", "proposals.min_size=8"),
        ("proposals.method=boxes_for_api:whole",),
        ("test.scales=[64,96]", "test.flip=true", "test.refinements=1"),
        ("test.scales=[64,96]", "test.scale_rule=all", "test.precision=bfloat16"),
        SVM_AND_RIDGE,
        RCNN,
    ],
    ids=lambda overrides: overrides[0],
)
def test_results_are_those_of_evaluation_bit_for_bit(
    tiny: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...], device: str
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "boxes_for_api.py").write_text(  # changes the image, its own copy
        "def whole(image):\n    image[:] = 0\n    return [[0, 0, 60, 50], [9, 9, 400, 90], [0, 0, 60, 50]]\n"
    )
    config = tiny("test.score_threshold=0.1", *overrides)
    scorer = build_scorer(config, device, split="test")
    test_set = scorer.test_set
    path = save_random(config, tmp_path / "random.pt")
    model = build_model(config, len(test_set.classes)).eval().to(device)
    expected = scorer.evaluate(model).results
    detector = Detector.load(path, device, allow_code=["boxes_for_api:whole"])
    assert detector.classes == test_set.classes
    paths = [record.path for record in test_set.records]
    arrays = [read_image(path) for path in paths]
    before = [array.copy() for array in arrays]
    of_paths, of_arrays = detector(paths), detector(tuple(arrays))
    for record, array, *results in zip(test_set.records, arrays, of_paths, of_arrays, strict=True):
        picture = Image.fromarray(array)
        for result in (*results, detector(str(record.path)), detector(array[::-1][::-1]), detector(picture)):
            assert same(result, expected[record.image_id])
            assert result.size == (record.height, record.width)
    assert sum(map(len, of_paths)) > 0
    assert all(np.array_equal(one, other) for one, other in zip(arrays, before, strict=True))
    given = detector(paths, boxes=[test_set.proposals(record).boxes for record in test_set.records])
    assert all(same(one, other) for one, other in zip(given, of_paths, strict=True))


@pytest.mark.parametrize(
    "overrides",
    [
        ("test.scales=[96]",),
        ("test.scales=[40,96,200]", "test.flip=true"),
        (*CLASSIFIER, "test.scales=[40,96]"),
        ("test.resize=square", "test.scales=[64]"),
    ],
    ids=str,
)
def test_large_photographs_are_decoded_as_in_evaluation(
    tiny: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: tuple[str, ...]
) -> None:
    """Views need fractions of the sides; some photographs are turned, and one is a PNG."""
    root = tmp_path / "photos"
    sizes = {"a": (400, 611), "b": (611, 400), "c": (400, 403), "d": (399, 800), "e": (400, 600)}
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for number, (name, (height, width)) in enumerate(sizes.items()):
        noise = np.random.default_rng(number).integers(0, 256, (height // 9, width // 9, 3), dtype=np.uint8)
        picture = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
        exif = Image.Exif()
        exif[0x0112] = {"b": 3, "d": 6}.get(name, 1)
        picture.save(root / "JPEGImages" / f"{name}.jpg", "PNG" if name == "e" else "JPEG", exif=exif)
        if name == "d":
            height, width = width, height
        (root / "Annotations" / f"{name}.xml").write_text(
            f"<annotation><filename>{name}.jpg</filename>"
            f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
            "<object><name>cat</name><bndbox><xmin>9</xmin><ymin>9</ymin><xmax>200</xmax><ymax>190</ymax>"
            "</bndbox></object></annotation>"
        )
    for split in ("trainval", "test"):
        (root / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(sizes))
    config = tiny(f"data.root={root}", "data.workers=2", "test.score_threshold=0.1", *overrides)
    scorer = build_scorer(config, split="test")
    path = save_random(config, tmp_path / "random.pt")
    factors: list[int] = []
    original = cv2.imdecode

    def imdecode(data: np.ndarray, flags: int) -> np.ndarray:
        factors.append({16: 2, 32: 4, 64: 8}.get(flags & 112, 1))
        return present(original(data, flags))

    monkeypatch.setattr(cv2, "imdecode", imdecode)
    expected = scorer.evaluate(build_model(config, 1).eval()).results
    assert max(factors) > 1
    detector = Detector.load(path, "cpu")
    for record in scorer.test_set.records:
        result, known = detector(record.path), expected[record.image_id]
        assert result.size == (record.height, record.width)
        if isinstance(known, torch.Tensor):
            assert torch.equal(present(result.class_scores), known)
        else:
            assert len(result)
            assert same(result, known)


@each_device
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("test.precision=bfloat16", "test.scales=[64,96]", "test.flip=true"),
        ("proposals.method=selective_search",),
        RCNN,
        CLASSIFIER,
    ],
    ids=str,
)
def test_four_threads_give_the_results_of_one(
    make: Make, tiny_root: Path, overrides: tuple[str, ...], device: str
) -> None:
    detector = make(*overrides, device=device)
    images = [read_image(path) for path in image_paths(tiny_root)[::2]]
    expected = [detector(image) for image in images]
    assert sum(map(len, expected)) > 0
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(detector, images * 4))
    for number, result in enumerate(found):
        assert same(result, expected[number % len(images)])


def test_four_threads_share_a_proposal_store(make: Make, tiny_root: Path, tmp_path: Path) -> None:
    detector = make()
    paths = image_paths(tiny_root)
    store = ProposalStore.create(tmp_path / "store", generator="test", parameters={})
    rng = np.random.default_rng(0)
    for path in paths:  # a segment per image
        corners = np.sort(rng.uniform(0, 90, (300, 2, 2)).astype(np.float32), axis=1).reshape(-1, 4)
        store.append({path.stem: Entry(Proposals(boxes=torch.from_numpy(corners)))})
    expected = [detector(path, proposals=store) for path in paths]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda path: detector(path, proposals=store), paths * 4))
    assert all(same(result, expected[number % len(paths)]) for number, result in enumerate(found))


def test_the_threshold_of_a_call_replaces_that_of_the_config(make: Make, tiny_root: Path) -> None:
    detector = make("test.max_detections=10000", score_threshold=0.3)
    assert detector.best_threshold == 0.3
    image = image_paths(tiny_root)[0]
    low = detector(image, score_threshold=0.0)
    middle = low.scores.median().item()
    high = detector(image, score_threshold=middle)
    assert 0 < len(high) < len(low)
    assert high.scores.min() > middle
    number: Any = high.scores.new_tensor(middle).numpy()[()]
    assert same(high, detector(image, score_threshold=number))
    usual = make(f"test.score_threshold={middle}", "test.max_detections=10000")(image)
    assert same(high, usual)
    usual = detector(image)
    assert same(detector(image, score_threshold=detector.config.test.score_threshold), usual)
    assert make().best_threshold is None
    wrong: Any
    for wrong in ("0.5", True, float("nan"), [0.5]):
        with pytest.raises(InputError, match="score_threshold"):
            detector(image, score_threshold=wrong)


def test_images_come_from_generators_one_at_a_time(make: Make, tiny_root: Path) -> None:
    detector, taken = make(), []

    def frames() -> Any:
        for path in image_paths(tiny_root)[:3]:
            taken.append(path)
            yield read_image(path)

    stream = detector.stream(frames(), score_threshold=0.2)
    first = next(stream)
    assert len(taken) == 1
    assert same(first, detector(taken[0], score_threshold=0.2))
    assert len(list(stream)) == 2
    with pytest.raises(InputError, match="boxes: no regions for image 1"):
        list(detector.stream(frames(), boxes=[BOXES]))
    with pytest.raises(InputError, match="expected several images"):
        next(detector.stream("photo.jpg"))  # a text is a sequence of texts, too


def test_a_video_yields_its_frames_with_the_results_of_calls(make: Make, tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "clip.mp4", (96, 128), 25)
    for scene in moving_shapes(9, (96, 128)):
        writer.write(scene.image)
    writer.finish()
    detector = make("proposals.top_k_test=20")
    for options in ({}, {"every": 4}, {"max_frames": 3}, {"score_threshold": 0.2, "proposal_threads": 3}):
        threshold = options.get("score_threshold")
        pairs = list(detector.video(tmp_path / "clip.mp4", **options))
        with Video(tmp_path / "clip.mp4") as video:
            frames = list(video)[:: int(options.get("every", 1))][: int(options.get("max_frames", 9))]
        for (frame, result), expected in zip(pairs, frames, strict=True):
            assert (frame.number, frame.time_ms) == (expected.number, expected.time_ms)
            assert np.array_equal(frame.pixels, expected.pixels)
            assert same(result, detector(expected.pixels, score_threshold=threshold))
    stream = detector.video(tmp_path / "clip.mp4")
    next(stream)
    stream.close()
    assert not [
        thread for thread in threading.enumerate() if thread.name in ("decode", "proposals", "network")
    ]
    with pytest.raises(InputError, match="no such file"):
        next(detector.video(tmp_path / "missing.mp4"))
    with pytest.raises(InputError, match=r"for a video use detector\.video"):
        next(detector.stream("clip.mp4"))
    assert detector([]) == []


@pytest.mark.parametrize(
    ("boxes", "fault"),
    [
        ([[1, 2, 3]], r"boxes have shape \(1, 3\), expected \(P, 4\)"),
        ([1, 2, 30, 40], r"boxes have shape \(4,\).*single box into a list: \[box\]"),
        ([[1, 2, 3, 4], [5, 6, 7]], r"expected numbers of shape \(P, 4\)"),
        ([["1", "2", "3", "4"]], "expected numbers"),
        ([[True, True, True, True]], "expected numbers"),
        ({"boxes": 1}, "expected numbers"),
        ([[1, 2, 30, float("nan")]], "box 0, .* is not finite"),
        ([[1, 2, 30, 40], [1, 2, 1e39, 40]], "box 1, .* is not finite"),
        ([[30, 2, 1, 40]], "box 0, .* is reversed or empty"),
        ([[1, 2, 1, 40]], "box 0, .* is reversed or empty"),
        ([[-1, 2, 30, 40]], r"box 0, .* leaves the image of \d+x\d+ pixels; clip it"),
        ([[1, 2, 30, 40], [1, 2, 4000, 40]], "box 1, .* leaves the image"),
    ],
)
def test_wrong_boxes_are_one_clear_error(make: Make, tiny_root: Path, boxes: object, fault: str) -> None:
    detector, image = make(), image_paths(tiny_root)[0]
    with pytest.raises(InputError, match=f"{image}: .*{fault}"):
        detector(image, boxes=boxes)
    with pytest.raises(InputError, match=f"image 0: .*{fault}"):
        detector.classify(read_image(image), boxes)


def test_a_list_of_images_needs_boxes_for_each(make: Make, tiny_root: Path) -> None:
    detector, paths = make(), image_paths(tiny_root)[:2]
    for wrong in ([BOXES], BOXES):
        with pytest.raises(InputError, match="for a list of 2 images give a list of as many arrays"):
            detector(paths, boxes=wrong)
    with pytest.raises(InputError, match="only one of boxes, masks and proposals"):
        detector(paths, boxes=[BOXES, BOXES], proposals="boxes.npz")
    found = detector(paths, boxes=[BOXES, torch.from_numpy(BOXES).bfloat16()])
    assert same(found[0], detector(paths[0], boxes=BOXES.tolist()))
    assert len(detector(paths[0], boxes=[])) == len(detector(paths[0], boxes=np.zeros((0, 4)))) == 0


def blobs(size: tuple[int, int]) -> np.ndarray:
    """Two masks (2, H, W) of other shapes than their boxes."""
    masks = np.zeros((2, *size), bool)
    masks[0, 5:40, 8:30] = True
    masks[0, 20:40, 20:30] = False
    masks[1, 12, 3] = masks[1, 50, 60] = True
    return masks


def test_masks_are_regions_like_their_boxes(make: Make, tiny_root: Path) -> None:
    detector, image = make(), image_paths(tiny_root)[0]
    masks = blobs(read_image(image).shape[:2])
    boxes = [[8, 5, 30, 40], [3, 12, 61, 51]]
    expected, regions = detector(image, boxes=boxes), detector.classify(image, boxes)
    rles = Masks.encode(masks).rles()
    for form in (masks, masks.astype(np.uint8) * 7, torch.from_numpy(masks), rles, Masks.encode(masks)):
        assert same(detector(image, masks=form), expected)
        assert torch.equal(detector.classify(image, masks=form).scores, regions.scores)
    assert same(detector([image], masks=[masks])[0], expected)
    assert [same(found, expected) for found in detector.stream([image] * 2, masks=[rles, masks])] == [
        True
    ] * 2
    assert len(detector(image, masks=masks[:0])) == len(detector(image, masks=[])) == 0


@pytest.mark.parametrize(
    ("masks", "fault"),
    [
        (np.zeros((2, 3, 4), bool), r"expected a boolean array of shape \(P, \d+, \d+\).*\(2, 3, 4\)"),
        (np.zeros((3, 4), bool), r"not bool of shape \(3, 4\)"),
        ("masks", "expected a boolean array"),
        ([np.zeros((2, 3)), np.zeros((3, 2))], "expected a boolean array"),
        ([{"size": [3, 4], "counts": [12]}], r"masks, mask 0: its size \[3, 4\] is not the image's"),
        ([{"counts": [12]}], "masks, mask 0: expected a run-length encoding"),
        (Masks.absent(1, (3, 4)), r"masks are of an image of \(3, 4\)"),
    ],
    ids=str,
)
def test_wrong_masks_are_one_clear_error(make: Make, tiny_root: Path, masks: object, fault: str) -> None:
    detector, image = make(), image_paths(tiny_root)[0]
    with pytest.raises(InputError, match=f"{image}: .*{fault}"):
        detector(image, masks=masks)
    empty = blobs(read_image(image).shape[:2])
    empty[1] = False
    with pytest.raises(InputError, match="mask 1 has no pixel"):
        detector.classify(image, masks=empty)
    with pytest.raises(InputError, match="as boxes or as masks, not both"):
        detector.classify(image, BOXES, masks=empty)
    with pytest.raises(InputError, match=r"as boxes or as masks$"):
        detector.classify(image)
    with pytest.raises(InputError, match="masks: for a list of 1 images give a list"):
        detector([image], masks=empty)


def test_a_stream_needs_boxes_for_each_image(make: Make, tiny_root: Path) -> None:
    detector, paths = make(), image_paths(tiny_root)[:2]
    stream = detector.stream(paths, boxes=[BOXES])
    assert len(next(stream).boxes)
    with pytest.raises(InputError, match="no regions for image 1; give one array"):
        next(stream)
    stream = detector.stream(paths, boxes=[BOXES] * 3)
    assert [next(stream).image for _ in paths] == [str(path) for path in paths]
    with pytest.raises(InputError, match="more arrays than images"):
        next(stream)


def test_images_that_are_none_are_named(make: Make, tiny_root: Path, tmp_path: Path) -> None:
    detector, path = make(), image_paths(tiny_root)[0]
    with pytest.raises(InputError, match="image 1: a grey array"):
        detector([path, np.zeros((4, 5), np.uint8)])
    with pytest.raises(InputError, match=r"missing\.jpg"):
        detector(tmp_path / "missing.jpg")
    tensor: Any = torch.zeros(3, 4, 5)
    with pytest.raises(InputError, match="image 0: a Tensor is not an image"):
        detector(tensor)


def features(regions: Regions) -> tuple[Tensor, Tensor]:
    assert regions.pooled is not None
    assert regions.hidden is not None
    return regions.pooled, regions.hidden


@each_device
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("model.head.class_agnostic=true", "model.roi_chunk=2"),
        ("test.precision=bfloat16", "model.roi_chunk=2"),
        ("test.box_regression=false",),
        ("test.scales=[64,96]",),
        (*SVM_AND_RIDGE, "test.scales=[48,64,80]", "test.scale_rule=side"),
        RCNN,
        (*RCNN, "test.scales=[64,96]", "test.flip=true"),
    ],
    ids=str,
)
def test_regions_keep_their_order_and_nothing_is_dropped(
    make: Make, tiny_root: Path, overrides: tuple[str, ...], device: str
) -> None:
    detector, image = make(*overrides, device=device), image_paths(tiny_root)[0]
    count = len(detector.classes)
    boxes = np.concatenate((BOXES, BOXES[:1]))
    found = detector.classify(image, boxes, features=True)
    assert found.scores.shape == (4, count + 1)
    assert found.boxes.shape == (4, count + 1, 4)
    assert torch.equal(found.boxes[:, 0], torch.from_numpy(boxes))
    assert torch.equal(found.scores[0], found.scores[3])
    pooled, hidden = features(found)
    plain = detector.classify(image, boxes)
    assert plain.pooled is plain.hidden is None
    assert torch.equal(plain.scores, found.scores)
    assert torch.equal(plain.boxes, found.boxes)
    head = detector._model.box_head.cpu().float()
    if "bfloat16" not in str(overrides):
        with torch.no_grad():
            logits = detector._model.predictor.cpu().cls_score(hidden)
            torch.testing.assert_close(head(pooled), hidden, rtol=1e-4, atol=1e-5)
        if "flip" not in str(overrides):  # the scores of several orientations are a mean
            scores = logits if "svm" in str(overrides) else logits.softmax(dim=1)
            torch.testing.assert_close(scores, found.scores, rtol=1e-4, atol=1e-5)


def test_detections_are_the_suppressed_regions(make: Make, tiny_root: Path) -> None:
    detector, image = make("test.nms_threshold=1.0", "test.score_threshold=0.0"), image_paths(tiny_root)[0]
    regions, detections = detector.classify(image, BOXES), detector(image, boxes=BOXES)
    expected = {
        (label, score.item(), *box.tolist())
        for scores, boxes in zip(regions.scores, regions.boxes, strict=True)
        for label, (score, box) in enumerate(zip(scores, boxes, strict=True))
        if label
    }
    found = zip(
        detections.labels.tolist(), detections.scores.tolist(), detections.boxes.tolist(), strict=True
    )
    assert {(label, score, *box) for label, score, box in found} == expected


def test_views_are_merged_by_their_mean(make: Make, tiny_root: Path) -> None:
    image = image_paths(tiny_root)[0]
    straight = make().classify(image, BOXES, features=True)
    pixels = read_image(image)
    turned = BOXES.copy()
    turned[:, [0, 2]] = pixels.shape[1] - BOXES[:, [2, 0]]
    mirrored = make().classify(pixels[:, ::-1], turned)
    both = make("test.flip=true").classify(image, BOXES, features=True)
    torch.testing.assert_close(both.scores, (straight.scores + mirrored.scores) / 2)
    assert all(torch.equal(mean, own) for mean, own in zip(features(both), features(straight), strict=True))
    scales = [make(f"test.scales=[{scale}]").classify(image, BOXES).scores for scale in (64, 96)]
    all_scales = make("test.scales=[64,96]", "test.scale_rule=all").classify(image, BOXES)
    torch.testing.assert_close(all_scales.scores, (scales[0] + scales[1]) / 2)


@pytest.mark.parametrize("overrides", [(), (*SVM_AND_RIDGE, "test.scales=[48,64]"), RCNN], ids=str)
def test_no_regions_have_rows_of_the_right_width(
    make: Make, tiny_root: Path, overrides: tuple[str, ...]
) -> None:
    detector, image = make(*overrides), image_paths(tiny_root)[0]
    none, some = (detector.classify(image, boxes, features=True) for boxes in (BOXES[:0], BOXES))
    for name in ("scores", "boxes", "pooled", "hidden"):
        found, expected = getattr(none, name), getattr(some, name)
        assert found.shape == (0, *expected.shape[1:])


def test_features_can_be_trained_on(make: Make, tiny_root: Path) -> None:
    _, hidden = features(make().classify(image_paths(tiny_root)[0], BOXES, features=True))
    layer = torch.nn.Linear(hidden.shape[1], 2)
    layer(hidden).sum().backward()
    assert layer.weight.grad is not None


def test_proposals_come_from_files_and_stores(make: Make, tiny_root: Path, tmp_path: Path) -> None:
    detector, paths = make(), image_paths(tiny_root)[:2]
    file = tmp_path / "bo'x: [1] #é.npz"
    boxes: dict[str, Any] = {path.stem: BOXES for path in paths}
    np.savez(file, **boxes)
    store = ProposalStore.create(tmp_path / "store", generator="test", parameters={})
    store.append({path.stem: Entry(Proposals(boxes=torch.from_numpy(BOXES))) for path in paths})
    expected = detector(paths, boxes=[BOXES, BOXES])
    assert sum(map(len, expected)) > 0
    for proposals in (file, str(file), tmp_path / "store", store):
        found = detector(paths, proposals=proposals)
        assert all(same(one, other) for one, other in zip(found, expected, strict=True))
    other = image_paths(tiny_root)[2]
    for proposals in (file, store):
        with pytest.raises(InputError, match=str(other)):
            detector(other, proposals=proposals)
    with pytest.raises(InputError, match=r"looked up by file name, and image 0 has none; .*boxes=\.\.\."):
        detector(read_image(other), proposals=file)
    wrong: Any = BOXES
    with pytest.raises(InputError, match=r"expected a path or a ProposalStore, not ndarray; .*boxes=\.\.\."):
        detector(other, proposals=wrong)


def test_a_checkpoint_of_a_proposal_file_asks_for_boxes(make: Make, tiny_root: Path, tmp_path: Path) -> None:
    detector, image = make("proposals={file: gone.npz, format: npz}"), image_paths(tiny_root)[0]
    with pytest.raises(
        InputError, match=r"random\.pt was trained on a proposal file.*give boxes=.*proposals="
    ):
        detector(image)
    assert len(detector(image, boxes=BOXES)) > 0
    boxes: dict[str, Any] = {image.stem: BOXES}
    np.savez(tmp_path / "own.npz", **boxes)
    assert same(detector(image, proposals=tmp_path / "own.npz"), detector(image, boxes=BOXES))
    other = Detector.load(tmp_path / "random.pt", "cpu", overrides=["proposals.method=dense"])
    assert len(other(image)) > 0


def test_code_is_only_imported_where_it_is_allowed_by_its_name(tiny: Load, tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text(
        "from pathlib import Path\nPath('ran').touch()\ndef boxes(image): return []\n"
    )
    values = tiny().model_dump(mode="json")
    plain = save_random(tiny(), tmp_path / "plain.pt")
    state = load_checkpoint(plain)
    del state["file"], state["format"]
    stage = {"name": "first", "kind": "train", "settings": {"proposals": {"method": "evil:boxes"}}}
    changes: dict[str, dict[str, Any]] = {
        "method": {"proposals": {"method": "evil:boxes"}},
        "stage": {"stages": [stage]},
    }
    for name, change in changes.items():
        path = tmp_path / f"{name}.pt"
        save_checkpoint(path, {**state, "config": {**values, **change}})
        for allowed in ([], ["evil:box"], ["evil"], "evil:boxes2", ["evil:boxes "]):
            with pytest.raises(InputError, match=rf"{name}\.pt: .*'evil:boxes', the name of a function"):
                Detector.load(path, "cpu", allow_code=allowed)
        assert "evil" not in sys.modules
        assert not (tmp_path / "ran").exists()
        Detector.load(path, "cpu", allow_code=["other:thing", "evil:boxes"])
        assert not (tmp_path / "ran").exists()  # not before it is called
    with pytest.raises(InputError, match=r"allow_code=\['evil:boxes'\]"):
        Detector.load(tmp_path / "method.pt", "cpu")


def test_a_classifier_scores_the_image(tiny: Load, make: Make, tiny_root: Path) -> None:
    detector = make(*CLASSIFIER, "test.scales=[64,96]", "test.flip=true")
    scorer = build_scorer(detector.config, split="test")
    images = scorer.test_set
    model = build_model(detector.config, len(images.classes)).eval()
    expected = scorer.evaluate(model).results
    for record in images.records:
        scores = expected[record.image_id]
        for image in (record.path, read_image(record.path)):
            result = detector(image)
            assert result.class_scores is not None
            assert torch.equal(result.class_scores, scores)
            assert torch.equal(result.scores, scores.sort(descending=True).values)
            assert [scores[images.classes.index(name)] for name in result.names] == result.scores.tolist()
            assert result.boxes.unique(dim=0).tolist() == [[0, 0, record.width, record.height]]
    middle = result.scores[1].item()
    assert len(detector(image, score_threshold=middle)) == 1
    content = json.loads(result.to_json())
    assert [row["class"] for row in content["scores"]] == result.names
    assert set(content["scores"][0]) == {"class", "score"}
    assert result.draw(image).shape[2] == 3
    with pytest.raises(InputError, match="no boxes"):
        result.to_coco()
    options: dict[str, Any]
    for options in ({"boxes": BOXES}, {"proposals": "boxes.npz"}):
        with pytest.raises(InputError, match=r"random\.pt classifies whole images; it takes no boxes"):
            detector(record.path, **options)
    with pytest.raises(InputError, match=r"random\.pt classifies whole images and not regions"):
        detector.classify(record.path, BOXES)


def test_a_result_is_written_as_json_and_coco(make: Make, tiny_root: Path) -> None:
    detector, path = make(), image_paths(tiny_root)[0]
    result = detector(path)
    content = json.loads(result.to_json())
    assert (content["image"], content["height"], content["width"]) == (str(path), *result.size)
    assert [row["score"] for row in content["detections"]] == result.scores.tolist()
    assert [row["box"] for row in content["detections"]] == result.boxes.tolist()
    assert [row["class"] for row in content["detections"]] == result.names
    assert json.loads(detector(read_image(path)).to_json())["image"] is None
    rows = result.to_coco(image_id=7)
    assert {row["image_id"] for row in rows} == {7}
    assert [row["category_id"] for row in rows] == result.labels.tolist()
    x1, y1, x2, y2 = result.boxes[0].tolist()
    assert rows[0]["bbox"] == [x1, y1, x2 - x1, y2 - y1]
    ids = [10 * (number + 1) for number in range(len(detector.classes))]
    assert [row["category_id"] for row in result.to_coco(category_ids=ids)] == (10 * result.labels).tolist()
    with pytest.raises(InputError, match="one per class"):
        result.to_coco(category_ids=[1])


def test_a_result_is_drawn_from_the_threshold_on(make: Make, tiny_root: Path) -> None:
    path = image_paths(tiny_root)[0]
    pixels = read_image(path)
    nothing = make()(path)
    assert np.array_equal(nothing.draw(path), pixels)  # random weights: no score reaches 0.5
    assert not np.array_equal(nothing.draw(pixels, score_threshold=0.1), pixels)
    best = make(score_threshold=0.15)(path)
    assert np.array_equal(best.draw(path), nothing.draw(path, 0.15))
    called = make(score_threshold=0.15)(path, score_threshold=0.12)
    assert np.array_equal(called.draw(Image.fromarray(pixels)), nothing.draw(path, 0.12))
    with pytest.raises(InputError, match=r"the image to draw on is 9x9 pixels, the result's image \d+x\d+"):
        nothing.draw(np.zeros((9, 9, 3), np.uint8))


def test_a_device_that_is_not_there_is_one_clear_error(tiny: Load, tmp_path: Path) -> None:
    path = save_random(tiny(), tmp_path / "random.pt")
    with pytest.raises(InputError, match="device nonsense: not usable here"):
        Detector.load(path, "nonsense")
    with pytest.raises(InputError, match="no such checkpoint"):
        Detector.load(tmp_path / "missing.pt")


IMPORT = """
import sys, time
started = time.perf_counter()
import detector
seconds = time.perf_counter() - started
print(seconds, "torch" in sys.modules, "numpy" in sys.modules)
"""


def test_importing_the_package_loads_nothing_heavy() -> None:
    seconds = []
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, "-c", IMPORT], cwd=PROJECT, capture_output=True, text=True, check=True
        )
        taken, *loaded = done.stdout.split()
        assert loaded == ["False", "False"]
        seconds.append(float(taken))
    assert min(seconds) < 0.3


def test_the_package_names_what_it_exports() -> None:
    from detector import api

    assert package.Detector is api.Detector
    assert package.Result is api.Result
    assert set(package.__all__) == {"Detector", "Result", "__version__"}
    with pytest.raises(AttributeError, match="no attribute 'Detecter'"):
        _ = package.Detecter


def test_the_code_of_the_page_runs(
    tiny: Load, tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a folder with a checkpoint and a photo, as the page has them."""
    path = tmp_path / "runs/mine/checkpoints/best.pt"
    save_random(tiny("test.score_threshold=0.1"), path, score_threshold=0.15)
    (tmp_path / "photo.jpg").write_bytes(image_paths(tiny_root)[0].read_bytes())
    page = (PROJECT / "docs" / "python_api.md").read_text()
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(block, names)
    assert " at [" in capsys.readouterr().out
    assert names["regions"].hidden.shape[0] == 2
    assert names["picture"].dtype == np.uint8
    assert len(names["rows"]) == len(json.loads(names["text"])["detections"]) > 0


def test_results_are_ordinary_tensors(make: Make, tiny_root: Path) -> None:
    result = make()(image_paths(tiny_root)[0])
    assert isinstance(result.boxes, Tensor)
    assert not result.boxes.is_inference()


def test_devices_folders_and_missing_proposals(tiny: Load, tiny_root: Path, tmp_path: Path) -> None:
    path = save_random(tiny(), tmp_path / "random.pt")
    detector = Detector.load(path, torch.device("cpu"))
    assert detector.device == "cpu"
    with pytest.raises(InputError, match="is a folder; name a file"):
        Detector.load(tmp_path)
    with pytest.raises(InputError, match=r"nowhere\.npz: no such proposal file or store"):
        detector(next((tiny_root / "JPEGImages").iterdir()), proposals=tmp_path / "nowhere.npz")


def test_precisions_are_those_of_the_config(tiny: Load, tmp_path: Path) -> None:
    config = tiny("test.score_threshold=0.0")
    path, image = save_random(config, tmp_path / "random.pt"), image_paths(Path(config.data.root))[0]
    loaded = {name: Detector.load(path, "cpu", precision=name) for name in ("float32", "bfloat16", "int8")}
    plain = Detector.load(path, "cpu")
    assert same(plain(image), loaded["float32"](image))
    by_key = Detector.load(path, "cpu", overrides=["test.precision=bfloat16"])
    assert same(by_key(image), loaded["bfloat16"](image))
    exact = plain.classify(image, boxes=BOXES)
    for name, off in (("bfloat16", 0.02), ("int8", 0.02)):
        found = loaded[name].classify(image, boxes=BOXES)
        assert 0 < (found.scores - exact.scores).abs().max() < off, name
    with pytest.raises(InputError, match=r"precision: 'int4' is unknown; known: float32, bfloat16"):
        Detector.load(path, "cpu", precision="int4")
    with pytest.raises(InputError, match=r"test\.precision: float16 is for GPUs"):
        Detector.load(path, "cpu", precision="float16")


def test_threads_share_a_detector_in_8_bits(make: Make, tiny_root: Path) -> None:
    detector = make("test.precision=int8")
    images = image_paths(tiny_root)[:4]
    alone = [detector(image) for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(detector, images * 3))
    assert all(same(*pair) for pair in zip(together, alone * 3, strict=True))


def test_int8_is_refused_where_there_is_nothing_to_gain(make: Make) -> None:
    with pytest.raises(
        InputError, match=r"test\.precision: int8 is for fc6 and fc7, and this network has none"
    ):
        make("test.precision=int8", "model.head.hidden=[]")
    with pytest.raises(InputError, match=r"test\.precision: int8 is for CPUs, and this runs on cuda:0"):
        number_type("int8", "cuda:0", "test.precision")
