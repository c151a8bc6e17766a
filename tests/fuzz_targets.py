"""The kinds of file that `tests.fuzz_readers` changes and reads. A new kind is one more entry of `TARGETS`.

A target writes a valid file into an empty folder of its own and says how to read it. Reading may end in an
`InputError` that names the file, or its folder where ``names_folder`` is set; everything else is a failure.
A file of which damaged parts are left out is ``repaired`` and never refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import cv2
import numpy as np
import torch

from detector.config import load_config
from detector.core.archives import unpack
from detector.core.errors import InputError
from detector.core.structures import ImageMeta, ImageRecord, Proposals, Targets
from detector.data.annotation_cache import AnnotationCache
from detector.data.coco.columns import CocoColumns, columns_of, decode, read_columns
from detector.data.coco.file import CocoData, read_coco
from detector.data.convert import voc_to_coco
from detector.data.generated.dataset import generate_voc
from detector.data.images import check_image, low_bit_depth, open_image, read_image
from detector.data.labelme.source import LabelMeSource
from detector.data.labelstudio.source import LabelStudioSource
from detector.data.problems import Problem
from detector.data.voc.annotation import read_annotation
from detector.data.yolo.source import YoloSource
from detector.evaluation.coco_results import read_coco_results
from detector.factory.proposals import StoredProposals, target_sums
from detector.models.weights import read_state_dict
from detector.proposals.checked import NAME as MARKS
from detector.proposals.checked import Checked, store_mark
from detector.proposals.inspection import describe, inspect
from detector.proposals.journal import NAME as JOURNAL
from detector.proposals.journal import encode_entry, entries
from detector.proposals.readers import read_images
from detector.proposals.recall import recall
from detector.proposals.store import Entry, ProposalStore
from detector.staged.feature_cache import CachedImage, CachePlan, FeatureCache, fill_cache
from detector.staged.region_features import EmbeddedImage, EmbeddedRegions, FeaturePlan, RegionFeatures
from detector.staged.runner import read_record
from tests import fuzz_changes as changes
from tests import fuzz_regions, run_records
from tests.core.test_archives import write_tar, write_zip
from tests.data import layouts
from tests.fuzz_changes import Change, any_of, damage
from tests.fuzz_checkpoints import (
    change_checkpoint,
    change_checkpoint_pickle,
    read_checkpoint,
    write_checkpoint,
)
from tests.proposals import formats

PROJECT = Path(__file__).parents[1]


class Target(NamedTuple):
    """One kind of file: ``make`` writes a valid one into an empty folder, ``read`` reads it."""

    kind: str
    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    change: Change = damage
    names_folder: bool = False
    repaired: bool = False


def make_voc(folder: Path) -> Path:
    generate_voc(folder / "voc", train_images=2, test_images=1, image_size=(64, 80), seed=0)
    return folder / "voc"


def make_xml(folder: Path) -> Path:
    return next((make_voc(folder) / "Annotations").iterdir())


def make_jpeg(folder: Path) -> Path:
    return next((make_voc(folder) / "JPEGImages").iterdir())


def read_picture(path: Path) -> object:
    """What the cheap check refuses, reading refuses too."""
    try:
        check_image(path)
    except InputError:
        try:
            read_image(path)
        except InputError:
            raise
        raise AssertionError("check_image refuses what read_image reads") from None
    whole = read_image(path)
    size = whole.shape[:2]
    loaded = open_image(path, size, (size[0] // 5, size[1] // 5))
    factors = {-(-side // 4) for side in size}, set(size)  # the sides of the image, divided by 4 or whole
    if loaded.size != size or set(loaded.pixels((size[0] // 5, size[1] // 5)).shape[:2]) not in factors:
        raise AssertionError(f"{size} became {loaded.size} and {loaded.pixels().shape}")
    if not np.array_equal(loaded.pixels(), whole):
        raise AssertionError("the whole image differs when a smaller one was asked for first")
    return whole


def make_deep_image(folder: Path, suffix: str) -> Path:
    """Write an image of 16 bits per sample, of which 12 are used."""
    ramp = np.linspace(0, 4095, 48 * 64).round().astype(np.uint16).reshape(48, 64)
    path = folder / f"deep{suffix}"
    path.write_bytes(cv2.imencode(suffix, ramp)[1].tobytes())
    return path


def read_deep_image(path: Path) -> object:
    """A depth is judged only where the image can be read."""
    low_bit_depth(path)
    return read_image(path)


def make_annotations(folder: Path) -> Path:
    """Write a file in which one annotation has two categories and another has attributes."""
    path = folder / "instances.json"
    data = voc_to_coco(make_voc(folder), "trainval", path)
    first, second = data["annotations"][:2]
    first["category_ids"] = [first.pop("category_id"), data["categories"][-1]["id"]]
    second["attributes"] = {"colour": "red", "occluded": True, "size": 3, "parts": ["a", 0.5]}
    path.write_text(json.dumps(data))
    return path


def make_layout(folder: Path, kind: str, name: str) -> Path:
    """Write a data set in another layout and return the first of its files that fit ``name``."""
    layouts.WRITERS[kind](make_voc(folder), folder / kind)
    return min((folder / kind).glob(name))


def read_layout(path: Path, kind: str, above: int) -> object:
    """Load the data set whose root is ``above`` folders above; the check must say the same of it."""
    sources = {"yolo": YoloSource, "labelme": LabelMeSource, "labelstudio": LabelStudioSource}
    source = sources[kind](path.parents[above], **layouts.SETTINGS[kind])
    found: list[Problem] = []
    try:
        listed = list(source.images_to_check({"train": tuple}, "train", tuple, found.append))
    except InputError as error:
        raise AssertionError(f"the check stops: {error}") from None
    assert all(one.path.is_relative_to(source.root) for one in listed)
    stops = any(one.stops for one in found) or not all(one.path.is_file() for one in listed)
    try:
        classes = source.class_names("train")
        dataset = source.load("train", classes, require_images=True)
    except InputError:
        assert stops, "the check does not find what loading refuses"
        raise
    assert not stops, f"loading accepts what the check finds: {found}"
    return dataset


def read_annotations(path: Path) -> object:
    """Read the file in bulk too: what that accepts, reading entry by entry accepts, with the same result."""
    content = path.read_bytes()
    in_bulk = decode(content)
    data = read_coco_or_fail(path, accepted=in_bulk is not None)
    if in_bulk is not None:
        found, expected = in_bulk.arrays(), columns_of(data).arrays()
        for name in found:
            assert np.array_equal(found[name], expected[name], equal_nan=name == "area"), name
    return data


def read_coco_or_fail(path: Path, *, accepted: bool) -> CocoData:
    try:
        return read_coco(path)
    except InputError as error:
        if accepted and "is missing or not a list of objects" not in str(error):
            raise AssertionError("decode accepts what read_coco refuses") from None
        raise


def make_annotation_cache(folder: Path) -> Path:
    path = make_annotations(folder)
    cache = AnnotationCache(folder / "cache")
    read_columns(path, cache)
    return cache.place(path)


def read_annotation_cache(path: Path) -> object:
    """Whatever the entry holds, the columns are those of the file, and the entry is made again."""
    source, cache = path.parents[1] / "instances.json", AnnotationCache(path.parent)
    found, expected = read_columns(source, cache).arrays(), read_columns(source, None).arrays()
    for name in expected:
        assert np.array_equal(found[name], expected[name], equal_nan=name == "area"), name
    assert cache.read(source, CocoColumns) is not None
    return found


def make_detections(folder: Path) -> Path:
    results = [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 30.5, 4], "score": 0.5} for _ in range(4)]
    (folder / "detections.json").write_text(json.dumps(results))
    return folder / "detections.json"


def make_config(folder: Path) -> Path:
    (folder / "config.yaml").write_bytes((PROJECT / "configs" / "quickstart.yaml").read_bytes())
    return folder / "config.yaml"


def made_with(writer: formats.Writer) -> Callable[[Path], Path]:
    """Return a maker of a small proposal file."""
    records = formats.make_records(["000004", "000012"])
    return lambda folder: writer(folder, formats.make_boxes(records, 6))


def make_npy(folder: Path) -> Path:
    return next(made_with(formats.write_npy)(folder).iterdir())


def make_text(folder: Path) -> Path:
    return next(made_with(formats.write_text)(folder).iterdir())


def make_plain_pickle(folder: Path) -> Path:
    import pickle

    rows = [[1.0, 2.0, 30.0, 40.0], [0.0, 0.0, 5.0, 6.0]]
    content = {
        "ids": ["a", "b"],
        "boxes": [rows, rows],
        "objectness_logits": [[0.5, 0.1]] * 2,
        "bbox_mode": 0,
    }
    (folder / "plain.pkl").write_bytes(pickle.dumps(content))
    return folder / "plain.pkl"


def read_proposals(path: Path, file_format: str) -> object:
    return list(read_images(path, file_format))


def read_folder_of(path: Path, file_format: str) -> object:
    return read_proposals(path.parent, file_format)


def make_store(folder: Path, name: str) -> Path:
    """Write a store of two segments, the second without scores, and a journal; return the file ``name``."""
    store = ProposalStore.create(folder / "store", generator="test", parameters={"k": 1})
    boxes = torch.arange(20.0).reshape(5, 4)
    scored = Proposals(boxes=boxes, scores=boxes[:, 0])
    store.append({f"i{i}": Entry(scored, "cafe", (10, 20)) for i in range(3)})
    store.append({"plain": Entry(Proposals(boxes=boxes)), "none": Entry(Proposals(boxes=boxes[:0]))})
    rows = [encode_entry(f"j{i}", Entry(scored, "cafe", (10, 20))) for i in range(3)]
    (store.path / JOURNAL).write_bytes(b"".join(rows))
    return store.path / name


def read_store(path: Path) -> object:
    """Read everything of the store that ``path`` is a file of, and describe it."""
    store = ProposalStore.open(path.parent)
    damaged = {image_id for damage in store.damaged() for image_id in damage.image_ids}
    for image_id in store.ids():
        store.image_size(image_id), store.content_hash(image_id), store.fingerprint(image_id)
        if image_id not in damaged:
            store[image_id]
    return describe(inspect(path.parent))


def store_and_record(folder: Path) -> tuple[ProposalStore, ImageRecord]:
    """Return the store of `make_store`, and an image with two objects for which it has proposals."""
    boxes = torch.arange(20.0).reshape(5, 4)[1:3]
    targets = Targets.make(boxes, torch.tensor([1, 2]))
    record = ImageRecord(image_id="i0", path=Path("none"), height=40, width=40, targets=targets)
    return ProposalStore.open(folder), record


def make_kept(folder: Path, kind: str) -> Path:
    store, record = store_and_record(make_store(folder, ".").resolve())
    recall([record], store)
    target_sums([record], StoredProposals(store, 9, 1.0), 2, 0.5, use_difficult=True)
    return next(store.path.glob(f"kept_{kind}_*.json"))


def read_kept(path: Path) -> object:
    """Whatever the file holds, the results have their keys, and numbers that can be used."""
    store, record = store_and_record(path.parent)
    metrics = recall([record], store)
    assert metrics.keys() >= {"recall_0.5", "recall_0.7", "objects", "images", "proposals_per_image"}
    assert all(0 <= value < float("inf") for value in metrics.values()), metrics
    sums = target_sums([record], StoredProposals(store, 9, 1.0), 2, 0.5, use_difficult=True)
    for one in (sums.count, sums.total, sums.squares):
        assert torch.isfinite(one).all()
    assert sums.count.shape == (3,)
    assert sums.total.shape == sums.squares.shape == (3, 4)
    return metrics, sums


def read_marks(path: Path) -> object:
    """A file of marks that is not as it was written counts as none."""
    return Checked.load(path.parent)


def make_marks(folder: Path) -> Path:
    store = ProposalStore.open(make_store(folder, ".").resolve())
    Checked(store_mark(store.path), frozenset({bytes(range(16))})).save(store.path)
    return store.path / MARKS


def read_journal(path: Path) -> object:
    """Read a journal and put what it holds into a store, as the next job does."""
    found = dict(entries(path))
    store = ProposalStore.create(path.parent / "other", generator="test", parameters={})
    store.append(found)
    store.discard(found)
    return found


def cache_plan() -> CachePlan:
    views = (ImageMeta(image_id="a", original_size=(20, 30), input_size=(32, 40)),)
    images = [CachedImage(key="a", views=views, content="x")]
    return CachePlan(images, {"weights": "w"}, map_size=lambda size: (size[0] // 8, size[1] // 8), channels=3)


def make_cache(folder: Path, name: str) -> Path:
    pixels = torch.ones(1, 3, 4, 5)
    fill_cache(folder / "cache", cache_plan(), lambda _: pixels, lambda numbers: ([pixels] for _ in numbers))
    return folder / "cache" / name


def read_cache(path: Path) -> object:
    return FeatureCache(path.parent, cache_plan()).levels("a")


def make_region_features(folder: Path, name: str) -> Path:
    plan = region_plan()

    def rows(numbers: Sequence[int]) -> Generator[EmbeddedRegions, None, None]:
        for count in [plan.images[number].count for number in numbers]:
            boxes, scores = np.ones((count, 4), np.float32), np.ones(count, np.float32)
            yield EmbeddedRegions(boxes, scores, np.ones((count, plan.width), np.float16))

    plan.folder(folder / "features").fill(rows, plan.write)
    return folder / "features" / name


def region_plan() -> FeaturePlan:
    images = [
        EmbeddedImage(key=key, hash="0" * 32, height=20, width=30, count=count, scored=True, regions="1" * 32)
        for key, count in (("a", 2), ("b", 3))
    ]
    return FeaturePlan(images, {"weights": "w"}, width=3)


def read_region_features(path: Path) -> object:
    return RegionFeatures.open(path.parent).all_features


def store_target(kind: str, name: str, change: Change) -> Target:
    return Target(kind, partial(make_store, name=name), read_store, any_of(damage, change), names_folder=True)


def proposal_target(kind: str, writer: formats.Writer, file_format: str, change: Change = damage) -> Target:
    read = partial(read_proposals, file_format=file_format)
    return Target(f"proposals, {kind}", made_with(writer), read, change)


PICKLE = any_of(damage, changes.change_instructions)


def make_safetensors(folder: Path) -> Path:
    header = json.dumps({"a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}}).encode()
    path = folder / "weights.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + np.arange(6, dtype="<f4").tobytes())
    return path


def make_archive(folder: Path, *, suffix: str) -> Path:
    files = {f"set/{name}": bytes(range(256)) * 8 for name in ("a/1.jpg", "a/2.jpg", "list.txt")}
    return (write_zip if suffix == ".zip" else write_tar)(folder / f"archive{suffix}", files)


def read_archive(path: Path) -> object:
    """Unpack an archive beside a file that must stay as it is, whatever the archive says."""
    with TemporaryDirectory() as name:
        outside, target = Path(name) / "outside", Path(name) / "target"
        outside.write_bytes(b"precious")
        target.mkdir()
        try:
            unpack(path, target, [("set/", "")], 10_000, lambda *_: None)
        finally:
            assert sorted(place.name for place in Path(name).iterdir()) == ["outside", "target"]
            assert outside.read_bytes() == b"precious"
            assert not any(place.is_symlink() for place in target.rglob("*"))
    return None


TARGETS = [
    Target("zip archive", partial(make_archive, suffix=".zip"), read_archive),
    Target("tar archive", partial(make_archive, suffix=".tar"), read_archive),
    Target("xml", make_xml, read_annotation),
    Target("safetensors", make_safetensors, read_state_dict),
    Target("config", make_config, load_config, any_of(damage, changes.change_yaml)),
    Target("jpeg", make_jpeg, read_picture),
    *(
        Target(f"{kind} of 16 bits", partial(make_deep_image, suffix=f".{kind}"), read_deep_image)
        for kind in ("png", "tif", "pgm")
    ),
    Target("coco annotations", make_annotations, read_annotations, any_of(damage, changes.change_json)),
    *(
        Target(
            f"{kind}, {name}",
            partial(make_layout, kind=kind, name=place),
            partial(read_layout, kind=kind, above=above),
            any_of(damage, change),
            names_folder=True,
        )
        for kind, name, place, above, change in (
            ("yolo", "data.yaml", "data.yaml", 0, changes.change_yaml),
            ("yolo", "labels", "labels/train/*.txt", 2, damage),
            ("labelme", "file", "train/*.json", 1, changes.change_json),
            ("labelstudio", "export", "train.json", 0, changes.change_json),
        )
    ),
    Target(
        "cache of annotations",
        make_annotation_cache,
        read_annotation_cache,
        repaired=True,
    ),
    Target(
        "coco results",
        make_detections,
        partial(read_coco_results, sizes={1: (0, 0)}, category_ids=[1]),
        any_of(damage, changes.change_json),
    ),
    proposal_target("npz", formats.write_npz, "npz", any_of(damage, changes.change_npz)),
    Target(
        "proposals, npy",
        make_npy,
        partial(read_folder_of, file_format="npy"),
        any_of(damage, changes.change_npy),
    ),
    Target("proposals, text", make_text, partial(read_folder_of, file_format="text")),
    proposal_target("mat", formats.write_mat, "mat"),
    proposal_target("coco", formats.write_coco, "coco", any_of(damage, changes.change_json)),
    proposal_target("detectron", formats.write_detectron, "detectron", PICKLE),
    proposal_target("detectron2", formats.write_detectron2, "detectron2", PICKLE),
    proposal_target(
        "mmdetection", lambda path, boxes: formats.write_mmdetection(path, boxes, 0), "mmdetection", PICKLE
    ),
    Target(
        "proposals, pickled lists",
        make_plain_pickle,
        partial(read_proposals, file_format="detectron2"),
        changes.change_pickle,
    ),
    *(
        Target(
            f"regions, {kind}",
            make,
            partial(fuzz_regions.read_regions, file_format=file_format),
            any_of(damage, changes.change_json),
        )
        for kind, file_format, make in fuzz_regions.JSON_FILES
    ),
    *(
        Target(f"regions, {kind}", make, partial(fuzz_regions.read_regions, file_format=file_format))
        for kind, file_format, make in fuzz_regions.OTHER_FILES
    ),
    Target(
        "regions, cellpose",
        fuzz_regions.make_cellpose,
        partial(fuzz_regions.read_regions, file_format="cellpose"),
        any_of(damage, changes.change_npy),
    ),
    *(
        Target(
            f"masked store, {kind}",
            partial(fuzz_regions.make_store, name=name),
            fuzz_regions.read_store,
            any_of(damage, changes.change_npy),
            names_folder=True,
        )
        for kind, name in (
            ("masks", "segment_000001.masks.npy"),
            ("offsets", "segment_000001.mask_offsets.npy"),
        )
    ),
    Target(
        "masked store, index",
        partial(fuzz_regions.make_store, name="index.npy"),
        fuzz_regions.read_store,
        any_of(damage, changes.change_index),
        names_folder=True,
    ),
    Target(
        "masked store, journal",
        partial(fuzz_regions.make_store, name=JOURNAL),
        read_journal,
        any_of(damage, changes.change_journal),
        names_folder=True,
        repaired=True,
    ),
    store_target("store, manifest", "manifest.json", changes.change_manifest),
    store_target("store, index", "index.npy", changes.change_index),
    store_target("store, boxes", "segment_000001.boxes.npy", changes.change_npy),
    store_target("store, scores", "segment_000001.scores.npy", changes.change_npy),
    Target(
        "store, journal",
        partial(make_store, name=JOURNAL),
        read_journal,
        any_of(damage, changes.change_journal),
        names_folder=True,
        repaired=True,
    ),
    *(
        Target(
            f"store, kept {kind}",
            partial(make_kept, kind=kind),
            read_kept,
            any_of(damage, changes.change_json, changes.change_kept),
            repaired=True,
        )
        for kind in ("recall", "box_targets")
    ),
    Target("store, marks", make_marks, read_marks, repaired=True),
    Target(
        "feature cache, record",
        partial(make_cache, name="cache.json"),
        read_cache,
        any_of(damage, changes.change_json),
        names_folder=True,
    ),
    Target("feature cache, maps", partial(make_cache, name="maps.bin"), read_cache, names_folder=True),
    Target("feature cache, done", partial(make_cache, name="done.bin"), read_cache, names_folder=True),
    Target(
        "region features, record",
        partial(make_region_features, name="features.json"),
        read_region_features,
        any_of(damage, changes.change_json),
        names_folder=True,
    ),
    *(
        Target(
            f"region features, {name}",
            partial(make_region_features, name=name),
            read_region_features,
            names_folder=True,
        )
        for name in ("features.npy", "scores.npy", "offsets.npy", "done.bin")
    ),
    # Damaged parts of the repaired ones are left out; no reader refuses one of them.
    Target("run log", run_records.make_run_log, run_records.read_run_log, repaired=True),
    Target("stage record", run_records.make_stage_record, read_record),
    Target("list of pictures", run_records.make_list_of_pictures, run_records.read_pictures, repaired=True),
    Target("TensorBoard", run_records.make_board, run_records.read_board, repaired=True),
    Target("fault", run_records.make_fault, run_records.read_replayed),
    Target("fault values", run_records.make_fault, run_records.read_replayed, change_checkpoint),
    Target("fault pickle", run_records.make_fault, run_records.read_replayed, change_checkpoint_pickle),
    Target("checkpoint", write_checkpoint, read_checkpoint),
    Target("checkpoint values", write_checkpoint, read_checkpoint, change_checkpoint),
    Target("checkpoint pickle", write_checkpoint, read_checkpoint, change_checkpoint_pickle),
]
