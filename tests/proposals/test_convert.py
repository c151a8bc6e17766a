"""The same boxes through every format; the policies for files that do not fit the data set."""

from __future__ import annotations

import dataclasses
import pickle
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from detector.core.errors import InputError
from detector.core.structures import ImageRecord, Targets
from detector.proposals.convert import conversion_name, convert, source_parameters
from detector.proposals.inspection import inspect
from detector.proposals.readers import read_images
from detector.proposals.readers.raw_images import RawImages, files_of
from detector.proposals.recognition import guess_format
from detector.proposals.store import ProposalStore
from tests.proposals.formats import (
    SCORED,
    FloatArray,
    Writer,
    make_boxes,
    make_records,
    write_coco,
    write_detectron,
    write_detectron2,
    write_mat,
    write_mmdetection,
    write_npz,
)
from tests.typed import float32, save_arrays

IDS = ["000004", "000012", "000017", "000100"]


@pytest.fixture
def records() -> list[ImageRecord]:
    return make_records(IDS)


@pytest.fixture
def boxes(records: list[ImageRecord]) -> dict[str, FloatArray]:
    return make_boxes(records)


def contents(store: ProposalStore) -> dict[str, bytes]:
    """Everything in the store but the manifest, which names the source."""
    return {
        path.name: path.read_bytes() for path in sorted(store.path.iterdir()) if path.name != "manifest.json"
    }


@pytest.mark.parametrize(("file_format", "write"), SCORED)
def test_every_format_gives_the_same_store(
    tmp_path: Path,
    records: list[ImageRecord],
    boxes: dict[str, FloatArray],
    file_format: str,
    write: Writer,
) -> None:
    wanted = convert(write_npz(tmp_path, boxes), "npz", tmp_path / "wanted", records=records)
    source = write(tmp_path, boxes)
    assert guess_format(source) == file_format
    store = convert(source, file_format, tmp_path / "store", records=records)
    assert contents(store) == contents(wanted)
    for key, rows in boxes.items():
        found = store[key]
        assert found.scores is not None
        assert np.array_equal(np.column_stack((found.boxes, found.scores)), rows)
        assert store.image_size(key) is not None


@pytest.mark.parametrize("names", [True, False])
def test_mat_gives_the_same_store(
    tmp_path: Path, records: list[ImageRecord], boxes: dict[str, FloatArray], names: bool
) -> None:
    unscored = {key: rows[:, :4] for key, rows in boxes.items()}
    wanted = convert(write_npz(tmp_path, unscored), "npz", tmp_path / "wanted", records=records)
    store = convert(write_mat(tmp_path, boxes, names), "mat", tmp_path / "store", records=records)
    assert contents(store) == contents(wanted)
    assert "box convention yxyx_inclusive_1, determined from 4 images" in store.notes[0]


@pytest.mark.parametrize(("file_format", "write"), [*SCORED, ("mat", write_mat)])
def test_a_file_is_read_once_although_the_keys_are_paths(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    records: list[ImageRecord],
    boxes: dict[str, FloatArray],
    file_format: str,
    write: Writer,
) -> None:
    read: list[list[str]] = []

    def spy(source: Path, file_format: str) -> RawImages:
        images = read_images(source, file_format)
        read.append(sorted(name.zfill(6) for name in images.names))
        return images

    monkeypatch.setattr("detector.proposals.convert.read_images", spy)
    paths = [dataclasses.replace(record, key=f"images/{record.image_id}.jpg") for record in records]
    store = convert(write(tmp_path, boxes), file_format, tmp_path / "store", records=paths)
    assert store.ids() == [record.key for record in paths]
    assert read == ([[]] if write is write_mmdetection else [IDS])


def test_a_store_that_another_process_makes_meanwhile_is_checked(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    records: list[ImageRecord],
    boxes: dict[str, FloatArray],
) -> None:
    source = write_npz(tmp_path, boxes)
    convert(source, "npz", tmp_path / "other", records=records, faults="skip")

    @contextmanager
    def waiting(*_: object, **__: object) -> Iterator[None]:
        (tmp_path / "other").rename(tmp_path / "store")  # while this process waits for the lock
        yield

    monkeypatch.setattr("detector.proposals.convert.writer_lock", waiting)
    with pytest.raises(InputError, match=r"with other parameters \(faults 'skip' there, 'error' wanted"):
        convert(source, "npz", tmp_path / "store", records=records)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("write", [write_detectron, write_detectron2, write_mmdetection])
def test_every_pickle_protocol(
    tmp_path: Path, records: list[ImageRecord], boxes: dict[str, FloatArray], write: Any, protocol: int
) -> None:
    source = write(tmp_path, boxes, protocol)
    store = convert(source, source.stem, tmp_path / "store", records=records)
    for key, rows in boxes.items():
        assert np.array_equal(store[key].boxes, rows[:, :4])


def test_a_pickle_of_python_2(tmp_path: Path) -> None:
    """What cPickle of Python 2.7 wrote for {'boxes': [array], 'indexes': [7]}: its texts are bytes."""
    rows = float32([[1, 2, 3, 4], [5, 6, 70, 80]])
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01bt\x52(K\x01K\x02K\x04\x86"
        b"cnumpy\ndtype\n(U\x02f4K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + np.int32(rows.nbytes).tobytes()
        + rows.tobytes()
        + b"tb"
    )
    content = b"\x80\x02}(U\x05boxes](" + array + b"eU\x07indexes](K\x07eu."
    (tmp_path / "boxes.pkl").write_bytes(content)
    store = convert(tmp_path / "boxes.pkl", "detectron", tmp_path / "store")
    assert np.array_equal(store["7"].boxes, rows + float32([0, 0, 1, 1]))


def test_the_instances_of_mmdetection_3(
    tmp_path: Path, records: list[ImageRecord], boxes: dict[str, FloatArray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """DumpProposals writes mmengine's class; the module exists here only while the file is written."""
    module = types.ModuleType("mmengine.structures.instance_data")
    instance_data = type("InstanceData", (), {"__module__": module.__name__})
    module.InstanceData = instance_data  # type: ignore[attr-defined]
    content = {}
    for key, rows in boxes.items():
        fields = instance_data()
        fields.__dict__.update(_data_fields=["bboxes", "scores"], bboxes=rows[:, :4], scores=rows[:, 4])
        content[f"/data/{key}.jpg"] = fields
    with monkeypatch.context() as patch:
        for name in ("mmengine", "mmengine.structures"):
            patch.setitem(sys.modules, name, types.ModuleType(name))
        patch.setitem(sys.modules, module.__name__, module)
        (tmp_path / "dump.pkl").write_bytes(pickle.dumps(content, 2))
    store = convert(tmp_path / "dump.pkl", "mmdetection", tmp_path / "store", records=records)
    for key, rows in boxes.items():
        assert np.array_equal(store[key].boxes, rows[:, :4])


def test_detectron2_boxes_may_be_xywh(tmp_path: Path, boxes: dict[str, FloatArray]) -> None:
    content: dict[str, Any] = {"ids": list(boxes), "boxes": [], "objectness_logits": [], "bbox_mode": 1}
    for rows in boxes.values():
        content["boxes"].append(np.column_stack((rows[:, :2], rows[:, 2:4] - rows[:, :2])))
        content["objectness_logits"].append(rows[:, 4].tolist())
    (tmp_path / "boxes.pkl").write_bytes(pickle.dumps(content))
    store = convert(tmp_path / "boxes.pkl", "detectron2", tmp_path / "store")
    for key, rows in boxes.items():
        assert np.array_equal(store[key].boxes, rows[:, :4])


def test_a_finished_store_is_opened_and_another_source_refused(
    tmp_path: Path, boxes: dict[str, FloatArray]
) -> None:
    source = write_npz(tmp_path, boxes)
    first = convert(source, "npz", tmp_path / "store")
    before = (first.path / "index.npy").stat().st_mtime_ns
    assert (convert(source, "npz", first.path).path / "index.npy").stat().st_mtime_ns == before
    with pytest.raises(InputError, match="top_k None there, 5 wanted"):
        convert(source, "npz", first.path, top_k=5)
    save_arrays(source, {"000004": boxes["000004"]})
    with pytest.raises(InputError, match="source_blake2b"):
        convert(source, "npz", first.path)


def test_the_name_differs_with_content_and_arguments(tmp_path: Path, boxes: dict[str, FloatArray]) -> None:
    first = source_parameters(write_npz(tmp_path, boxes), "npz")
    again = source_parameters(tmp_path / "boxes.npz", "npz")
    save_arrays(tmp_path / "boxes.npz", {"000004": boxes["000004"]})
    changed = source_parameters(tmp_path / "boxes.npz", "npz")
    assert conversion_name(first) == conversion_name(again)
    assert len({conversion_name(each) for each in (first, first | {"top_k": 5}, changed)}) == 3
    assert conversion_name(first).startswith("boxes_")


def test_a_killed_conversion_starts_again(tmp_path: Path, boxes: dict[str, FloatArray]) -> None:
    left = ProposalStore.create(tmp_path / "store.unfinished", generator="converted", parameters={"a": 1})
    assert left.path.exists()
    assert len(convert(write_npz(tmp_path, boxes), "npz", tmp_path / "store")) == 4
    assert not left.path.exists()


def test_filters_are_applied_where_sizes_are_known(
    tmp_path: Path, records: list[ImageRecord], boxes: dict[str, FloatArray]
) -> None:
    boxes["000012"] = np.concatenate((boxes["000012"], boxes["000012"]))
    source = write_npz(tmp_path, boxes)
    arguments: dict[str, Any] = {"top_k": 7, "min_size": 16.0, "deduplicate": True}
    store = convert(source, "npz", tmp_path / "store", records=records, **arguments)
    for key in IDS:
        found = store[key]
        assert found.scores is not None
        assert len(found) == 7
        assert (found.boxes[:, 2:] - found.boxes[:, :2]).min() >= 16
        assert (found.scores.diff() <= 0).all()
        assert len({tuple(row) for row in found.boxes.tolist()}) == 7


class TestFaults:
    def damaged(self, boxes: dict[str, FloatArray]) -> dict[str, FloatArray]:
        del boxes["000004"]
        boxes["000012"][3, 1] = np.nan
        boxes["000017"] = boxes["000017"][:0]
        return boxes

    def test_each_is_an_error_that_names_it(
        self, tmp_path: Path, records: list[ImageRecord], boxes: dict[str, FloatArray]
    ) -> None:
        cases = [
            ({"000012": self.damaged(boxes)["000012"]}, r"boxes\.npz, image '000012': row 3 is not finite"),
            ({"000017": boxes["000017"]}, "'000017': it has no boxes"),
            (
                {"000100": boxes["000100"]},
                "3 of 4 images are not in the file.*first is 000004, .*has '000100'",
            ),
            ({"x": boxes["000100"]}, "4 of 4 images are not in the file; is it of another split.*has 'x'"),
            ({"000100": boxes["000100"] + 100}, "leave the image of 500 x 300 pixels"),
            ({"000100": boxes["000100"][:, [2, 3, 0, 1]]}, "'000100': 100% .* end before they begin"),
            ({"000004": boxes["000100"], "a/000004.jpg": boxes["000100"]}, "has image '000004' twice, as"),
        ]
        for i, (content, message) in enumerate(cases):
            source = write_npz(tmp_path, content)
            with pytest.raises(InputError, match=message):
                convert(source, "npz", tmp_path / f"store{i}", records=records)
            assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == []

    def test_skip_leaves_them_out_and_says_so(
        self, tmp_path: Path, records: list[ImageRecord], boxes: dict[str, FloatArray]
    ) -> None:
        source = write_npz(tmp_path, self.damaged(boxes))
        store = convert(source, "npz", tmp_path / "store", records=records, faults="skip")
        assert store.ids() == ["000100"]
        assert store.notes[0].startswith("3 images left out: 000012: row 3 is not finite")

    def test_full_image_gives_one_box(
        self, tmp_path: Path, records: list[ImageRecord], boxes: dict[str, FloatArray]
    ) -> None:
        source = write_npz(tmp_path, self.damaged(boxes))
        store = convert(source, "npz", tmp_path / "store", records=records, faults="full_image")
        assert store["000004"].boxes.tolist() == [[0, 0, 500, 300]]
        assert store["000017"].boxes.tolist() == [[0, 0, 500, 333]]
        assert "3 images given one box" in store.notes[0]

    def test_a_file_of_another_data_set_is_never_skipped_over(
        self, tmp_path: Path, records: list[ImageRecord], boxes: dict[str, FloatArray]
    ) -> None:
        source = write_npz(tmp_path, {f"other{key}": rows for key, rows in boxes.items()})
        for faults in ("skip", "full_image"):
            with pytest.raises(InputError, match="is it of another split"):
                convert(source, "npz", tmp_path / "store", records=records, faults=faults)

    def test_more_images_than_the_data_set_are_kept(
        self, tmp_path: Path, records: list[ImageRecord], boxes: dict[str, FloatArray]
    ) -> None:
        store = convert(write_npz(tmp_path, boxes), "npz", tmp_path / "store", records=records[:2])
        assert store.ids() == IDS
        assert store.notes == [
            "boxes.npz holds 4 images: 2 of the 2 that need boxes, and 2 others, whose boxes are kept "
            "without a check"
        ]

    def test_absolute_paths_are_names_also_where_an_image_is_of_another_split(
        self, tmp_path: Path, records: list[ImageRecord], boxes: dict[str, FloatArray]
    ) -> None:
        named = {f"/home/me/set/{key}.jpg": rows for key, rows in boxes.items()}
        path = tmp_path / "boxes.pkl"
        path.write_bytes(pickle.dumps({"boxes": list(named.values()), "ids": list(named)}))
        store = convert(path, "detectron2", tmp_path / "store", records=records[:3], keep_others=False)
        assert store.ids() == [record.key for record in records[:3]]
        with pytest.raises(InputError, match=r"'/home/me/set/000100\.jpg' is not a valid image id"):
            convert(path, "detectron2", tmp_path / "all", records=records[:3])

    def test_a_file_without_names_must_have_the_length_of_the_data_set(
        self, tmp_path: Path, records: list[ImageRecord], boxes: dict[str, FloatArray]
    ) -> None:
        source = write_mmdetection(tmp_path, boxes)
        with pytest.raises(InputError, match=r"names no images and has 4;.* has 3"):
            convert(source, "mmdetection", tmp_path / "store", records=records[:3])
        with pytest.raises(InputError, match="names no images, and several splits could be meant"):
            convert(source, "mmdetection", tmp_path / "store", records=records, one_split=False)

    def test_names(self, tmp_path: Path, boxes: dict[str, FloatArray]) -> None:
        source = write_npz(tmp_path, boxes)
        with pytest.raises(InputError, match=r"'mta' is unknown \(did you mean 'mat'\?\); use one of mat,"):
            convert(source, "mta", tmp_path / "store")
        with pytest.raises(InputError, match="convention 'xyx' is unknown"):
            convert(source, "npz", tmp_path / "store", convention="xyx")
        with pytest.raises(InputError, match="faults is 'ignore'; use one of error, skip, full_image"):
            convert(source, "npz", tmp_path / "store", faults="ignore")
        with pytest.raises(InputError, match=r"absent.*: no such file"):
            convert(tmp_path / "absent", "npz", tmp_path / "store")


def test_square_images_without_objects_do_not_tell_the_axes(tmp_path: Path) -> None:
    rows = float32([[0, 0, 99, 99], [10, 20, 50, 90]])
    np.savez(tmp_path / "boxes.npz", a=rows)
    record = make_records(["a"])[0]
    square = ImageRecord(
        image_id="a", path=record.path, height=100, width=100, targets=type(record.targets).empty()
    )
    with pytest.raises(InputError, match=r"1 images .* fit .* equally well \(there are no objects"):
        convert(tmp_path / "boxes.npz", "npz", tmp_path / "store", records=[square], convention="auto")


def test_without_objects_there_is_no_overlap_to_speak_of(tmp_path: Path) -> None:
    np.savez(tmp_path / "boxes.npz", a=float32([[0, 0, 499, 299], [10, 20, 450, 90]]))
    record = dataclasses.replace(make_records(["a"])[0], targets=Targets.empty())
    store = convert(tmp_path / "boxes.npz", "npz", tmp_path / "store", records=[record], convention="auto")
    assert "box convention xyxy_inclusive" in store.notes[0]
    assert "there are no objects to compare with" in store.notes[0]
    assert "IoU" not in store.notes[0]


def test_inspect_describes_a_file(tmp_path: Path, boxes: dict[str, FloatArray]) -> None:
    found = inspect(write_coco(tmp_path, boxes))
    assert (found["format"], found["images"], found["ids"]) == ("coco", 4, ["4", "12", "17"])
    assert found["boxes"] == sum(map(len, boxes.values()))
    everything = np.concatenate(list(boxes.values()))
    assert found["columns"][0] == (everything[:, 0].min(), everything[:, 0].max())
    assert found["scores"] == (everything[:, 4].min(), everything[:, 4].max())
    assert found["whole_numbers"]
    assert found["remarks"] == []
    assert "names no images" in inspect(write_mmdetection(tmp_path, boxes))["remarks"][0]
    assert "axis order" in inspect(write_mat(tmp_path, boxes))["remarks"][0]
    store = convert(write_npz(tmp_path, boxes), "npz", tmp_path / "store")
    assert inspect(store.path)["parameters"]["source"] == "boxes.npz"
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="give the format"):
        inspect(tmp_path / "empty")


def test_hidden_files_and_the_case_of_a_suffix_do_not_matter(tmp_path: Path) -> None:
    for name in ("._a.npy", ".cache/a.npy", ".DS_Store", "Thumbs.db"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"no array")
    np.save(tmp_path / "a.npy", np.ones((2, 4), np.float32))
    (tmp_path / "a.npy").rename(tmp_path / "a.NPY")
    assert [key for key, _ in files_of(tmp_path, ".npy")] == ["a"]
    assert guess_format(tmp_path) == "npy"
    assert guess_format(tmp_path / "boxes.JSON") == "coco"
    before = source_parameters(tmp_path, "npy")
    (tmp_path / ".DS_Store").write_bytes(b"another view of the folder")
    assert source_parameters(tmp_path, "npy") == before
