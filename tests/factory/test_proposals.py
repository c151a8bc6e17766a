"""From a config to proposals: made, converted, checked against the data set, and the policies."""

from __future__ import annotations

import dataclasses
import pickle
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import scipy.io
import torch
from numpy.typing import NDArray

from detector.config import Config
from detector.core.errors import InputError
from detector.core.structures import ImageRecord, Proposals, Targets
from detector.factory.data import class_names, load_split
from detector.factory.proposals import (
    make_proposals,
    open_proposals,
    report_recall,
    stored_proposals,
    with_proposals,
)
from detector.ops import selective_search
from detector.proposals.checked import NAME as CHECKED
from detector.proposals.convert import convert
from detector.proposals.filtering import filter_proposals
from detector.proposals.recall import recall
from detector.proposals.store import Entry, ProposalStore
from tests.data.splits import COCO, VOC, numbered_coco, voc_folders
from tests.typed import float32, read_picture, save_arrays

Load = Callable[..., Config]
FloatArray = NDArray[np.float32]


def split_of(config: Config, split: str) -> list[ImageRecord]:
    return list(load_split(config, split, class_names(config), training=False).records)


def keys_of(records: Sequence[ImageRecord]) -> list[str]:
    return [record.key for record in records]


def own_boxes(records: list[ImageRecord]) -> dict[str, FloatArray]:
    """The objects of each image, some whole-numbered boxes and the image itself."""
    rng = np.random.default_rng(0)
    found = {}
    for record in records:
        corners = rng.integers(0, 60, (20, 2))
        small = np.concatenate((corners, corners + rng.integers(5, 36, (20, 2))), axis=1)
        whole = [[0, 0, record.width, record.height]]
        found[record.image_id] = np.concatenate((record.targets.boxes, whole, small)).astype(np.float32)
    return found


def write_npz(path: Path, boxes: dict[str, FloatArray]) -> Path:
    save_arrays(path, boxes)
    return path


def test_selective_search_is_made_on_first_use_and_again_for_what_has_changed(
    tiny: Load, tmp_path: Path
) -> None:
    config = tiny("proposals.method=selective_search", "proposals.seed=5", "proposals.options={min_side: 8}")
    records = split_of(config, "test")
    copies = []
    for record in records:
        copy = tmp_path / record.path.name
        copy.write_bytes(record.path.read_bytes())
        copies.append(
            ImageRecord(
                image_id=record.image_id,
                path=copy,
                height=record.height,
                width=record.width,
                targets=record.targets,
            )
        )
    store = open_proposals(config, copies)
    assert store.parameters["seed"] == 5
    assert store.parameters["min_side"] == 8
    made = {path.name: path.stat().st_mtime_ns for path in store.path.iterdir()}
    open_proposals(config, copies)
    assert {path.name: path.stat().st_mtime_ns for path in store.path.iterdir()} == made

    before = {record.image_id: store[record.image_id].boxes for record in copies}
    noise = np.random.default_rng(0).integers(0, 255, (copies[1].height, copies[1].width, 3), np.uint8)
    cv2.imwrite(str(copies[1].path), noise)
    again = open_proposals(config, copies)
    assert again.path == store.path
    for place, record in enumerate(copies):
        assert torch.equal(again[record.image_id].boxes, before[record.image_id]) == (place != 1)
    other = open_proposals(tiny("proposals.method=selective_search", "proposals.seed=6"), copies)
    assert other.path != store.path


def test_the_ops_own_boxes_come_out(tiny: Load) -> None:
    config = tiny(
        "proposals.method=selective_search", "proposals.mode=reference_single", "proposals.width=200"
    )
    record = split_of(config, "test")[0]
    store = open_proposals(config, [record])
    assert store.parameters["width"] == 200
    plain = open_proposals(tiny("proposals.method=selective_search"), [record])
    image = read_picture(record.path)[:, :, ::-1]
    found = selective_search(np.ascontiguousarray(image))
    wanted = filter_proposals(
        Proposals(boxes=found.boxes, scores=found.scores), (record.height, record.width)
    )
    assert torch.equal(plain[record.key].boxes, wanted.boxes)
    assert len(store[record.key]) != len(wanted)


def quarters(image: NDArray[np.uint8], slow: str = "", part: int = 2) -> FloatArray:
    """A function of the user: the image's left upper part; image ``slow`` takes for ever."""
    if slow and image[:, :, 0].sum() == int(slow):
        time.sleep(60)
    height, width = image.shape[:2]
    return float32([[0, 0, width / part, height / part]])


@pytest.mark.slow
def test_a_function_of_the_users_own_and_an_image_that_takes_too_long(tiny: Load) -> None:
    function = "proposals.method=tests.factory.test_proposals:quarters"
    config = tiny(function, "proposals.options={part: 4}")
    records = split_of(config, "test")
    store = open_proposals(config, records)
    assert store[records[0].key].boxes.tolist() == [[0, 0, records[0].width / 4, records[0].height / 4]]

    red = int(read_picture(records[3].path)[:, :, 2].sum())
    slow = (function, f"proposals.options={{slow: '{red}'}}", "proposals.time_limit=1")
    with pytest.raises(InputError, match=rf"1 of 4 images .*{records[3].path.name} took over"):
        open_proposals(tiny(*slow), records)
    skip = tiny(*slow, "proposals.missing=skip")
    store = open_proposals(skip, records)
    kept = with_proposals(skip, records, store)
    assert [record.image_id for record in kept] == [records[i].image_id for i in (0, 1, 2)]


SIZES = "tests.factory.test_proposals:whole_image"


def whole_image(image: NDArray[np.uint8], log: str) -> list[list[int]]:
    """One box, and a letter in the log for each call."""
    with Path(log).open("ab") as file:
        file.write(b".")
    return [[0, 0, image.shape[1], image.shape[0]]]


def test_a_truncated_image_is_met_before_any_proposals_are_made(tiny: Load, tmp_path: Path) -> None:
    log, target = tmp_path / "log", tmp_path / "store"
    settings = (f"proposals.method={SIZES}", f"proposals.options={{log: {log}}}")
    config = tiny(*settings)
    records = split_of(config, "test")
    copy = tmp_path / "last.jpg"
    copy.write_bytes(records[-1].path.read_bytes()[:-100])
    records[-1] = dataclasses.replace(records[-1], path=copy)
    with pytest.raises(InputError, match=r"1 of \d+ images cannot be read.*last\.jpg.*truncated.*--fix-list"):
        make_proposals(config, records, target)
    assert not log.exists()
    skipping = tiny(*settings, "proposals.missing=skip")
    assert len(make_proposals(skipping, records, target)) == len(records) - 1
    assert log.stat().st_size == len(records) - 1


@pytest.mark.parametrize("axes", ["xyxy", "yxyx"])
def test_matlab_boxes_are_told_by_the_annotations(tiny: Load, tmp_path: Path, axes: str) -> None:
    records = split_of(tiny(), "trainval")
    boxes = own_boxes(records)
    order = [0, 1, 2, 3] if axes == "xyxy" else [1, 0, 3, 2]
    cells, names = np.empty((1, len(boxes)), object), np.empty((len(boxes), 1), object)
    for place, (key, rows) in enumerate(boxes.items()):
        cells[0, place], names[place, 0] = (np.rint(rows) + float32([1, 1, 0, 0]))[:, order], key
    scipy.io.savemat(tmp_path / "boxes.mat", {"boxes": cells, "images": names})
    store = open_proposals(tiny(f"proposals.file={tmp_path}/boxes.mat", "proposals.format=mat"), records)
    assert f"box convention {axes}_inclusive_1, determined from 8 images" in store.notes[0]
    for record in records:
        assert np.array_equal(store[record.key].boxes, np.rint(boxes[record.image_id]))


def test_each_split_may_have_a_file_of_its_own(tiny: Load, tmp_path: Path) -> None:
    """Lists without names, as mmdetection writes them, go by the order of one split."""
    splits = {split: split_of(tiny(), split) for split in ("trainval", "test")}
    for split, records in splits.items():
        (tmp_path / f"{split}.pkl").write_bytes(pickle.dumps(list(own_boxes(records).values())))
    files = ", ".join(f"{split}: {tmp_path}/{split}.pkl" for split in splits)
    config = tiny(f"proposals.file={{{files}}}", "proposals.format=mmdetection")
    for split, records in splits.items():
        store = open_proposals(config, records, split)
        assert store.ids() == sorted(record.key for record in records)
    with pytest.raises(InputError, match=r"no file for the split 'val'; it has trainval, test"):
        open_proposals(config, records, "val")
    (tmp_path / "test.pkl").rename(tmp_path / "either.pkl")
    either = tiny(f"proposals.file={tmp_path}/either.pkl", "proposals.format=mmdetection")
    with pytest.raises(InputError, match="names no images, and several splits could be meant"):
        open_proposals(either, records, "test")


def test_one_file_for_all_splits_gives_each_its_own_images(tiny: Load, tmp_path: Path) -> None:
    splits = {split: split_of(tiny(), split) for split in ("trainval", "test")}
    everything = {key: rows for records in splits.values() for key, rows in own_boxes(records).items()}
    path = write_npz(tmp_path / "all.npz", {str(int(key)): rows for key, rows in everything.items()})
    config = tiny(f"proposals.file={path}", "proposals.format=npz")
    for split, records in splits.items():
        store = open_proposals(config, records, split)
        assert store.ids() == sorted(record.key for record in records)


class TestWhichImage:
    """Names in proposal files and older stores, in data sets whose splits share names."""

    @pytest.fixture(params=["coco", "voc"])
    def splits(self, request: pytest.FixtureRequest, tiny: Load, tmp_path: Path) -> list[str]:
        """Settings for a data set of the splits train and valid in which all names of images come twice."""
        if request.param == "coco":
            root, data = numbered_coco(tmp_path / "set", {"train": 4, "valid": 4}), COCO
        else:
            root, data = voc_folders(tmp_path / "set"), VOC
        given = [f"data.{name}='{value}'" for name, value in data.items()]
        return [f"data.root={root}", "data.workers=0", *given]

    def test_one_file_by_keys(self, tiny: Load, splits: list[str], tmp_path: Path) -> None:
        records = {split: split_of(tiny(*splits), split) for split in ("train", "valid")}
        boxes: dict[str, FloatArray] = {}
        for found in records.values():
            own = own_boxes(found)
            boxes |= {record.key: own[record.image_id] for record in found}
        path = write_npz(tmp_path / "boxes.npz", boxes)
        config = tiny(*splits, f"proposals.file={path}", "proposals.format=npz")
        for split, found in records.items():
            store = open_proposals(config, found, split)
            assert recall(found, store)["recall_0.7"] == 1
            assert len(store) == len(found)

    def test_ids_in_one_file_of_both_splits_are_an_error_and_in_a_file_a_split_are_not(
        self, tiny: Load, splits: list[str], tmp_path: Path
    ) -> None:
        records = {split: split_of(tiny(*splits), split) for split in ("train", "valid")}
        for split, found in records.items():
            write_npz(tmp_path / f"{split}.npz", own_boxes(found))
        one = tiny(*splits, "proposals.file=valid.npz", "proposals.format=npz")
        for split, found in records.items():
            with pytest.raises(InputError, match=r"'.*' could be 'train/.*' or 'valid/.*'; use these paths"):
                open_proposals(one, found, split)
        files = "proposals.file={train: train.npz, valid: valid.npz}"
        each = tiny(*splits, files, "proposals.format=npz")
        for split, found in records.items():
            assert recall(found, open_proposals(each, found, split))["recall_0.7"] == 1

    def test_a_file_of_the_training_split_alone(self, tiny: Load, tiny_root: Path, tmp_path: Path) -> None:
        """Ids that differ in underscores alone were taken for each other."""
        root = shutil.copytree(tiny_root, tmp_path / "frames")
        lists = root / "ImageSets" / "Main"
        names = {"trainval": ["1_11", "1_12"], "test": ["11_1", "11_2"]}
        ids = {split: (lists / f"{split}.txt").read_text().split() for split in names}
        for split, given in names.items():
            for old, new in zip(ids[split], given, strict=False):
                for path in (*root.glob(f"*/{old}.xml"), *root.glob(f"*/{old}.jpg")):
                    path.rename(path.with_stem(new))
            (lists / f"{split}.txt").write_text("\n".join(given))
        train = split_of(tiny(f"data.root={root}"), "trainval")
        path = write_npz(tmp_path / "boxes.npz", own_boxes(train))
        config = tiny(f"data.root={root}", f"proposals.file={path}", "proposals.format=npz")
        assert recall(train, open_proposals(config, train, "trainval"))["recall_0.7"] == 1
        test = split_of(config, "test")
        with pytest.raises(InputError, match="2 of 2 images are not in the file; is it of another split"):
            open_proposals(config, test, "test")
        stored = tiny(f"data.root={root}", f"proposals.file={tmp_path}/s", "proposals.format=store")
        convert(path, "npz", tmp_path / "s")
        assert recall(train, open_proposals(stored, train, "trainval"))["recall_0.7"] == 1
        with pytest.raises(InputError, match="2 of 2 images are not in the store; is it of another split"):
            with_proposals(stored, test, open_proposals(stored, test, "test"))

    def test_what_an_older_version_made_is_not_made_again(self, tiny: Load, tmp_path: Path) -> None:
        """Its stores have images by their ids."""
        config = tiny("proposals.method=tests.factory.test_proposals:quarters", "proposals.options={part: 4}")
        records = split_of(config, "test")
        made = make_proposals(config, records)
        entries = {
            record.image_id: Entry(made[record.key], made.content_hash(record.key), (96, 128))
            for record in records
        }
        shutil.rmtree(made.path)
        old = ProposalStore.create(made.path, generator=made.generator, parameters=made.parameters)
        old.append(entries)
        before = {path.name: path.stat().st_mtime_ns for path in made.path.iterdir()}
        assert CHECKED not in before
        again = make_proposals(config, records)
        assert keys_of(with_proposals(config, records, again)) == keys_of(records)
        after = {path.name: path.stat().st_mtime_ns for path in made.path.iterdir()}
        assert {name: time for name, time in after.items() if name != CHECKED} == before
        assert again[records[0].key].boxes.tolist() == entries[records[0].image_id].proposals.boxes.tolist()
        records[1].path.touch()
        stored = tiny(f"proposals.file={made.path}", "proposals.format=store")
        opened = open_proposals(stored, records, "test")
        assert keys_of(with_proposals(stored, records, opened)) == keys_of(records)


def test_without_objects_there_is_no_recall(tiny: Load, capfd: pytest.CaptureFixture[str]) -> None:
    config = tiny()
    records = [dataclasses.replace(record, targets=Targets.empty()) for record in split_of(config, "test")]
    report_recall(records, open_proposals(config, records), config, "test")
    said = " ".join(capfd.readouterr().err.split())
    assert "no annotated objects to measure recall with" in said
    assert "0.000" not in said


def test_a_limit_that_cuts_the_good_boxes_off_is_warned_of(
    tiny: Load, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Files that carry no rank may have their good boxes last, as the one of fast-rcnn's demo has."""
    records = split_of(tiny(), "trainval")
    boxes = {key: rows[::-1] for key, rows in own_boxes(records).items()}
    path = write_npz(tmp_path / "boxes.npz", boxes)
    for top_k, warned in ((10, True), (100, False)):
        config = tiny(f"proposals.file={path}", "proposals.format=npz", f"proposals.top_k_train={top_k}")
        report_recall(records, open_proposals(config, records), config, "trainval")
        said = " ".join(capfd.readouterr().err.split())
        assert ("warning: the first 10 proposals" in said) == warned
        assert ("all of them 100%; raise proposals.top_k_train" in said) == warned


class TestPolicies:
    @pytest.fixture
    def records(self, tiny: Load) -> list[ImageRecord]:
        return split_of(tiny(), "trainval")

    def config(self, tiny: Load, path: Path, *overrides: str) -> Config:
        return tiny(f"proposals.file={path}", "proposals.format=npz", *overrides)

    def test_an_image_that_is_not_in_the_file(
        self, tiny: Load, tmp_path: Path, records: list[ImageRecord]
    ) -> None:
        boxes = own_boxes(records)
        gone = records[3]
        del boxes[gone.image_id]
        path = write_npz(tmp_path / "boxes.npz", boxes)
        with pytest.raises(
            InputError, match=rf"1 of 8 images .*first is .*/{gone.key}, .*proposals\.missing"
        ):
            open_proposals(self.config(tiny, path), records)

        skip = self.config(tiny, path, "proposals.missing=skip")
        store = open_proposals(skip, records)
        assert gone.key not in keys_of(with_proposals(skip, records, store))
        assert len(stored_proposals(skip, store, training=False)(gone)) == 0

        whole = self.config(tiny, path, "proposals.missing=full_image")
        store = open_proposals(whole, records)
        assert keys_of(with_proposals(whole, records, store)) == keys_of(records)
        found = stored_proposals(whole, store, training=True)(gone)
        assert found.boxes.tolist() == [[0, 0, gone.width, gone.height]]

    @pytest.mark.parametrize("fault", ["outside", "nan", "none"])
    def test_an_image_with_faulty_boxes(
        self, tiny: Load, tmp_path: Path, records: list[ImageRecord], fault: str
    ) -> None:
        boxes, bad = own_boxes(records), records[5]
        if fault == "outside":
            boxes[bad.image_id] += 70
        elif fault == "nan":
            boxes[bad.image_id][2, 1] = np.nan
        else:
            boxes[bad.image_id] = boxes[bad.image_id][:0]
        path = write_npz(tmp_path / "boxes.npz", boxes)
        said = {"outside": "leave the image", "nan": "row 2 is not finite", "none": "it has no boxes"}[fault]
        with pytest.raises(InputError, match=rf"image '{bad.key}': .*{said}.*proposals\.faults"):
            open_proposals(self.config(tiny, path), records)

        skip = self.config(tiny, path, "proposals.faults=skip")
        store = open_proposals(skip, records)
        kept = keys_of(with_proposals(skip, records, store))
        assert [record.key for record in records if record.key not in kept] == [bad.key]
        whole = self.config(tiny, path, "proposals.faults=full_image")
        store = open_proposals(whole, records)
        assert store[bad.key].boxes.tolist() == [[0, 0, bad.width, bad.height]]

    def test_an_image_that_a_store_does_not_have(
        self, tiny: Load, tmp_path: Path, records: list[ImageRecord]
    ) -> None:
        made = make_proposals(tiny(), records[:5], tmp_path / "store")
        assert len(made) == 5
        base = (f"proposals.file={made.path}", "proposals.format=store")
        with pytest.raises(InputError, match=r"no proposals for 3 of 8 images.*skip or full_image"):
            with_proposals(tiny(*base), records, open_proposals(tiny(*base), records))
        whole = tiny(*base, "proposals.missing=full_image")
        store = open_proposals(whole, records)
        assert isinstance(store, ProposalStore)
        assert keys_of(with_proposals(whole, records, store)) == keys_of(records)
        found = stored_proposals(whole, store, training=True)(records[7])
        assert found.boxes.tolist() == [[0, 0, records[7].width, records[7].height]]
