"""The cache of annotations: the same data set from it as from the files, and nothing from a damaged entry."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import random
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from numpy.typing import NDArray

from detector.core.errors import InputError
from detector.core.files import file_hash
from detector.core.records import Texts
from detector.data.annotation_cache import AnnotationCache, CachedColumns, Columns, Entry, Layout, texts
from detector.data.coco import columns as coco_columns
from detector.data.coco.columns import CocoColumns, read_columns
from detector.data.coco.source import CocoSource
from detector.data.convert import voc_to_coco
from detector.data.file_columns import FileAnnotation, FileColumns
from detector.data.generated.dataset import generate_voc
from detector.data.source import Dataset
from detector.data.targets import ObjectRules
from detector.data.voc import source as voc_source
from detector.data.voc.source import VocSource


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Example(CachedColumns):
    names: Texts
    numbers: NDArray[np.int64]
    boxes: NDArray[np.float64]

    LAYOUT: ClassVar[Layout] = {**texts("names"), "numbers": ("<i8", None), "boxes": ("<f8", 4)}


def example(count: int = 5) -> Example:
    return Example(
        names=Texts.of(["a", "ü", "", "\udcff"]),
        numbers=np.arange(count),
        boxes=np.random.default_rng(0).random((count, 4)),
    )


@pytest.fixture
def cache(tmp_path: Path) -> AnnotationCache:
    return AnnotationCache(tmp_path / "cache")


def assert_example(entry: Entry[Example] | None, expected: Example) -> None:
    assert entry is not None
    assert list(entry.columns.names) == list(expected.names)
    assert np.array_equal(entry.columns.numbers, expected.numbers)
    assert np.array_equal(entry.columns.boxes, expected.boxes)


@pytest.mark.parametrize("count", [0, 1, 5, 1000])
def test_what_is_written_is_read(cache: AnnotationCache, tmp_path: Path, count: int) -> None:
    source = tmp_path / "a.json"
    assert cache.read(source, Example) is None
    cache.write(source, Entry("x", example(count)))
    entry = cache.read(source, Example)
    assert entry is not None
    assert entry.content == "x"
    assert_example(entry, example(count))
    assert not (count and entry.columns.numbers.flags.writeable)
    assert cache.read(tmp_path / "b.json", Example) is None


def test_one_file_per_source_whatever_its_content_was(cache: AnnotationCache, tmp_path: Path) -> None:
    held = None
    for number in range(5):
        cache.write(tmp_path / "a.json", Entry(f"content {number}", example(number)))
        if number == 1:
            held = cache.read(tmp_path / "a.json", Example)
    assert len(list(cache.folder.iterdir())) == 1
    assert_example(held, example(1))  # an entry that is in use outlives its replacement
    cache.write(tmp_path / "other" / "a.json", Entry("x", example()))
    assert len(list(cache.folder.iterdir())) == 2


def test_any_damage_is_noticed_and_said(
    cache: AnnotationCache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "a.json"
    cache.write(source, Entry("x", example()))
    place = cache.place(source)
    content = place.read_bytes()
    rng = random.Random(0)
    damaged = [content[:-1], content + b"\0", b"", content[:40], b"\x80\x04." + content]
    for _ in range(300):
        at = rng.randrange(len(content))
        damaged.append(content[:at] + bytes([content[at] ^ (1 << rng.randrange(8))]) + content[at + 1 :])
    for one in damaged:
        place.write_bytes(one)
        assert cache.read(source, Example) is None
        assert f"{place.name}: not a usable cache of" in "".join(capsys.readouterr().err.split("\n"))


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Other(CachedColumns):
    numbers: NDArray[np.int64]

    LAYOUT: ClassVar[Layout] = {"numbers": ("<i8", None)}


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Narrow(CachedColumns):
    names: Texts
    numbers: NDArray[np.int32]
    boxes: NDArray[np.float64]

    LAYOUT: ClassVar[Layout] = {**texts("names"), "numbers": ("<i4", None), "boxes": ("<f8", 4)}


@pytest.mark.parametrize("kind", [Other, Narrow])
def test_an_entry_of_another_kind_is_not_taken(
    cache: AnnotationCache,
    tmp_path: Path,
    kind: type[CachedColumns],
    capsys: pytest.CaptureFixture[str],
) -> None:
    cache.write(tmp_path / "a.json", Entry("x", example()))
    assert cache.read(tmp_path / "a.json", kind) is None
    assert "other columns than expected" in capsys.readouterr().err.replace("\n", " ")


def test_texts_whose_lengths_do_not_fit_are_not_taken(cache: AnnotationCache, tmp_path: Path) -> None:
    names = Texts(np.zeros(3, np.uint8), np.array([2], np.int64))
    wrong = Example(names=names, numbers=np.arange(1), boxes=np.zeros((1, 4)))
    cache.write(tmp_path / "a.json", Entry("x", wrong))
    assert cache.read(tmp_path / "a.json", Example) is None


def test_a_folder_that_cannot_be_written_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    cache = AnnotationCache(tmp_path / "file" / "cache")
    for _ in range(2):
        cache.write(tmp_path / "a.json", Entry("x", example()))
        assert cache.read(tmp_path / "a.json", Example) is None
    assert capsys.readouterr().err.count("cannot be written, so each start reads them again") == 1


def write_often(folder: Path, source: Path, count: int) -> None:
    cache = AnnotationCache(folder)
    for _ in range(40):
        cache.write(source, Entry(str(count), example(count)))


def test_two_processes_may_write_one_entry(cache: AnnotationCache, tmp_path: Path) -> None:
    source = tmp_path / "a.json"
    cache.write(source, Entry("7", example(7)))
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write_often, args=(cache.folder, source, count)) for count in (7, 3000)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        entry = cache.read(source, Example)
        assert entry is not None
        assert_example(entry, example(int(entry.content)))
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert [path.name for path in cache.folder.iterdir()] == [cache.place(source).name]


def assert_same(one: Dataset, other: Dataset) -> None:
    for field in fields(Dataset):
        if field.name != "records":
            assert getattr(one, field.name) == getattr(other, field.name), field.name
    assert one.records.paths() == other.records.paths()
    for name in ("image_ids", "keys"):
        assert list(getattr(one.records, name)) == list(getattr(other.records, name))
    assert one.records.sizes.tobytes() == other.records.sizes.tobytes()
    for name in ("offsets", "boxes", "labels", "difficult", "crowd", "area"):
        ours, theirs = getattr(one.records.objects, name), getattr(other.records.objects, name)
        assert (ours.dtype, ours.tobytes()) == (theirs.dtype, theirs.tobytes())


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    generate_voc(tmp_path / "voc", train_images=6, test_images=3, image_size=(64, 80), seed=2)
    first, second, third = sorted((tmp_path / "voc" / "Annotations").iterdir())[:3]
    first.write_text(first.read_text().replace("<difficult>0", "<difficult>1", 1))
    second.write_text(second.read_text().replace("<filename>", "<filename>other_"))
    text = third.read_text()
    name = text.split("<name>")[1].split("<")[0]
    third.write_text(
        text.replace(f"<name>{name}<", f"<name>{name.upper()}<", 1).replace("<xmin>", "<xmin>-9")
    )
    return tmp_path / "voc"


RULES = [ObjectRules(), ObjectRules(invalid_boxes="clip", min_box_size=8, other_classes="ignore")]


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("training", [True, False])
def test_a_coco_data_set_is_the_same_from_the_cache(
    voc: Path,
    tmp_path: Path,
    cache: AnnotationCache,
    monkeypatch: pytest.MonkeyPatch,
    rules: ObjectRules,
    training: bool,
) -> None:
    voc_to_coco(voc, "trainval", tmp_path / "trainval.json")
    places = {"annotations": str(tmp_path / "{split}.json"), "images": "JPEGImages", "rules": rules}
    plain, cached = CocoSource(voc, **places), CocoSource(voc, **places, cache=cache)  # type: ignore[arg-type]
    names = plain.class_names("trainval")
    classes = names[1:] if rules.other_classes == "ignore" else None

    def chosen(source: CocoSource) -> Dataset:
        return source.load("trainval", classes, training=training, choose=lambda names: [*names[::-2]])

    expected = plain.load("trainval", classes, training=training), chosen(plain)
    assert cached.class_names("trainval") == names
    monkeypatch.setattr(coco_columns, "read_json_bytes", None)  # decoding again would fail
    assert_same(cached.load("trainval", classes, training=training), expected[0])
    assert_same(chosen(cached), expected[1])
    assert cached.class_names("trainval") == names


def first_of(column: NDArray[Any], value: float) -> NDArray[Any]:
    changed = np.array(column)
    changed.flat[0] = value
    return changed


HOSTILE: dict[str, Callable[[CocoColumns], dict[str, Any]]] = {
    "a file outside": lambda one: {"files": Texts.of(["../../etc/passwd", *list(one.files)[1:]])},
    "an absolute file": lambda one: {"files": Texts.of(["/etc/passwd", *list(one.files)[1:]])},
    "an id outside": lambda one: {"record_ids": Texts.of(["../a", *list(one.record_ids)[1:]])},
    "a category": lambda one: {"categories": first_of(one.categories, 99)},
    "a negative category": lambda one: {"categories": first_of(one.categories, -1)},
    "a box": lambda one: {"boxes": first_of(one.boxes, np.nan)},
    "a size": lambda one: {"sizes": first_of(one.sizes, 2**31 - 1)},
    "an offset": lambda one: {"offsets": first_of(one.offsets, -1)},
    "texts backwards": lambda one: {"files": Texts(one.files.content, first_of(one.files.ends, 2**40))},
    "negative texts": lambda one: {"files": Texts(one.files.content, first_of(one.files.ends, -5))},
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_entry_with_a_right_hash_is_not_used(
    voc: Path,
    tmp_path: Path,
    cache: AnnotationCache,
    change: Callable[[CocoColumns], dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "trainval.json"
    voc_to_coco(voc, "trainval", path)
    wanted = read_columns(path, None)

    class Changed(CachedColumns):
        def arrays(self) -> Columns:
            parts = {field.name: getattr(wanted, field.name) for field in fields(wanted)} | change(wanted)
            found: dict[str, Any] = {}
            for name, value in parts.items():
                whole = {name: value}
                if isinstance(value, Texts):
                    whole = {f"{name}.content": value.content, f"{name}.ends": value.ends}
                found |= whole
            return found

    cache.write(path, Entry(file_hash(path), Changed()))
    found = read_columns(path, cache)
    assert "not a usable cache" in capsys.readouterr().err.replace("\n", " ")
    for name, column in wanted.arrays().items():
        assert np.array_equal(found.arrays()[name], column, equal_nan=name == "area")


@pytest.mark.parametrize(
    "header",
    [
        b"1",
        b"{}",
        b"[" * 9999,
        b'{"columns": 3}',
        b'{"columns": [1]}',
        b'{"columns": [["names", "<i8", 4, 0]]}',
        b'{"columns": [["numbers", "<i8", [-1], 0]]}',
        b'{"columns": [["numbers", "<i8", [9], "x"]]}',
        b'{"columns": [["numbers", "<i8", [4611686018427387904], 0]]}',
        b'{"columns": [[["a"], 1, [], 0]]}',
    ],
)
def test_a_hostile_header_is_not_used(
    cache: AnnotationCache, tmp_path: Path, header: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "a.json"
    cache.write(source, Entry("x", example()))
    magic = cache.place(source).read_bytes().split(b"\n")[0] + b"\n"
    body = (magic + len(header).to_bytes(8, "little") + header).ljust(1000 + 2 * len(header), b"\0")
    cache.place(source).write_bytes(body + hashlib.blake2b(body, digest_size=16).digest())
    assert cache.read(source, Example) is None
    assert "not a usable cache" in capsys.readouterr().err.replace("\n", " ")


def test_a_changed_coco_file_is_decoded_again(voc: Path, tmp_path: Path, cache: AnnotationCache) -> None:
    path = tmp_path / "trainval.json"
    voc_to_coco(voc, "trainval", path)
    source = CocoSource(voc, annotations=str(path), images="JPEGImages", cache=cache)
    before = len(source.load("trainval").records.objects)
    data = json.loads(path.read_text())
    data["annotations"].pop()
    path.write_text(json.dumps(data))
    assert len(source.load("trainval").records.objects) == before - 1
    data["annotations"][0]["bbox"] = "gone"
    path.write_text(json.dumps(data))
    for _ in range(2):
        with pytest.raises(InputError, match=r"annotations\[0\]: bbox is 'gone'"):
            source.load("trainval")
    assert len(list(cache.folder.iterdir())) == 1


def test_a_coco_file_without_annotations_stays_one(tmp_path: Path, cache: AnnotationCache) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"images": [{"id": 1, "file_name": "a.jpg", "height": 9, "width": 9}]}))
    source = CocoSource(tmp_path, annotations="a.json", images=".", cache=cache)
    for _ in range(2):
        loaded = source.load("x", ["cat"], unannotated=True, require_images=False, training=False)
        assert not loaded.annotated
        with pytest.raises(InputError, match="'categories' is missing"):
            source.load("x", ["cat"], require_images=False)
    assert len(list(cache.folder.iterdir())) == 1


def test_an_odd_coco_file_is_kept_too(
    tmp_path: Path, cache: AnnotationCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    thing = {"image_id": True, "category_id": 1, "bbox": [1, 2, 3, 4]}
    image = {"id": 1, "file_name": "a.jpg", "height": 9, "width": 9}
    data = {"images": [image], "categories": [{"id": 1, "name": "cat"}], "annotations": [thing]}
    (tmp_path / "a.json").write_bytes(json.dumps(data).encode("utf-8-sig"))
    plain = CocoSource(tmp_path, annotations="a.json", images=".")
    source = CocoSource(tmp_path, annotations="a.json", images=".", cache=cache)
    expected = plain.load("x", require_images=False)
    assert_same(source.load("x", require_images=False), expected)
    monkeypatch.setattr(coco_columns, "read_coco", None)
    assert_same(source.load("x", require_images=False), expected)


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("first_pixel", [0, 1])
def test_a_voc_data_set_is_the_same_from_the_cache(
    voc: Path,
    cache: AnnotationCache,
    monkeypatch: pytest.MonkeyPatch,
    rules: ObjectRules,
    first_pixel: int,
) -> None:
    plain = VocSource(voc, rules=rules, first_pixel=first_pixel)
    cached = VocSource(voc, rules=rules, first_pixel=first_pixel, cache=cache)
    names = plain.class_names("trainval")
    classes = names[1:] if rules.other_classes == "ignore" else None
    expected = [plain.load(split, classes) for split in ("test", "trainval")]
    assert any(one.suspicions for one in expected)
    assert cached.load("test", classes).records.paths() == expected[0].records.paths()  # a part first
    assert cached.class_names("trainval") == names

    def parse_again(path: Path) -> FileAnnotation:
        raise AssertionError(f"{path} is parsed again")

    monkeypatch.setattr(voc_source, "VOC_FILES", replace(voc_source.VOC_FILES, parse=parse_again))
    for split, one in zip(("test", "trainval"), expected, strict=True):
        assert_same(cached.load(split, classes), one)
    assert cached.class_names("trainval") == names
    assert len(list(cache.folder.iterdir())) == 1


def test_only_a_changed_annotation_is_parsed_again(
    voc: Path, cache: AnnotationCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = VocSource(voc, cache=cache)
    source.class_names("trainval")
    parsed: list[str] = []
    read = voc_source.VOC_FILES.parse

    def spy(path: Path) -> FileAnnotation:
        parsed.append(path.name)
        return read(path)

    monkeypatch.setattr(voc_source, "VOC_FILES", replace(voc_source.VOC_FILES, parse=spy))
    changed = sorted((voc / "Annotations").iterdir())[1]
    changed.write_text(changed.read_text().replace("<xmax>", "<xmax>1", 1))
    assert_same(source.load("trainval"), VocSource(voc).load("trainval"))
    assert parsed.count(changed.name) == 2  # once without the cache
    del parsed[:]
    source.load("trainval")
    assert parsed == []
    changed.write_text("<annotation>")
    for _ in range(2):
        with pytest.raises(InputError, match=f"{changed.name}: not well-formed"):
            source.load("trainval")
    changed.unlink()
    with pytest.raises(InputError, match="has no annotation"):
        source.load("trainval")


def test_annotations_that_are_gone_leave_the_cache(voc: Path, cache: AnnotationCache) -> None:
    source = VocSource(voc, cache=cache, splits=None)
    source.load("x")
    first, second = sorted((voc / "Annotations").iterdir())[:2]
    first.unlink()
    second.write_text(second.read_text() + "\n")
    source.load("x")
    entry = cache.read(voc / "Annotations", FileColumns)
    assert entry is not None
    kept = {path.name for path in (voc / "Annotations").iterdir()}
    assert sorted(entry.columns.files) == sorted(kept)
