"""VOC to COCO and back: nothing is lost, and both readers see the same."""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from detector.core.errors import InputError
from detector.data.coco.source import CocoSource
from detector.data.convert import coco_to_voc, voc_to_coco
from detector.data.targets import ObjectRules
from detector.data.voc.annotation import read_annotation
from detector.data.voc.source import VocSource
from tests.typed import present

CLIP = ObjectRules(invalid_boxes="clip")
PROJECT = Path(__file__).parents[2]
BCCD = PROJECT / "data" / "bccd"

FULL = """<annotation verified="yes">
  <folder>set</folder><filename>other name.jpg</filename>
  <source><database>Our &lt;own&gt;</database><annotation/></source>
  <size><width>100</width><height>80</height><depth>3</depth></size>
  <segmented>0</segmented>
  <object>
    <name>cow</name><pose>Left</pose><truncated>1</truncated><difficult>1</difficult>
    <bndbox><xmin>10.3</xmin><ymin>2</ymin><xmax>50.7</xmax><ymax>60</ymax></bndbox>
    <part><name>head</name><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>3</xmax><ymax>4</ymax></bndbox></part>
  </object>
  <note lang="en">between objects</note>
  <object>
    <bndbox><xmin>9</xmin><ymin>9</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>
    <name>Kuh ü</name>
  </object>
</annotation>"""
BARE = "<annotation><size><width>30</width><height>20</height></size></annotation>"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A layout of two annotations, one of them in a subfolder."""
    root = tmp_path / "set"
    for image_id, text in {"sub/full": FULL, "bare": BARE}.items():
        path = root / "Annotations" / f"{image_id}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (root / "ImageSets" / "Main").mkdir(parents=True)
    (root / "ImageSets" / "Main" / "test.txt").write_text("sub/full\nbare\n")
    return root


def same(first: ElementTree.Element, second: ElementTree.Element) -> bool:
    """Say whether two elements and all their descendants are equal, except for white space."""
    texts = [(element.text or "").strip() for element in (first, second)]
    return (
        (first.tag, first.attrib, len(first)) == (second.tag, second.attrib, len(second))
        and texts[0] == texts[1]
        and all(map(same, first, second))
    )


def assert_same_annotations(first: Path, second: Path) -> None:
    names = sorted(path.relative_to(first) for path in first.rglob("*.xml"))
    assert names == sorted(path.relative_to(second) for path in second.rglob("*.xml"))
    for name in names:
        trees = [ElementTree.parse(folder / name).getroot() for folder in (first, second)]
        assert same(*trees), name


def test_everything_comes_back(root: Path, tmp_path: Path) -> None:
    voc_to_coco(root, "test", tmp_path / "test.json")
    assert coco_to_voc(tmp_path / "test.json", tmp_path / "back", "test") == ["sub/full", "bare"]
    assert_same_annotations(root / "Annotations", tmp_path / "back" / "Annotations")
    assert (tmp_path / "back" / "ImageSets" / "Main" / "test.txt").read_text() == "sub/full\nbare\n"


def test_what_is_written_is_coco(root: Path, tmp_path: Path) -> None:
    data = voc_to_coco(root, "test", tmp_path / "test.json")
    assert json.loads((tmp_path / "test.json").read_text()) == data
    assert data["categories"] == [{"id": 1, "name": "Kuh ü"}, {"id": 2, "name": "cow"}]
    assert [entry["file_name"] for entry in data["images"]] == ["sub/full.jpg", "bare.jpg"]
    cow, other = data["annotations"]
    assert (cow["bbox"], cow["difficult"], cow["iscrowd"]) == ([9.3, 1, 41.4, 59], 1, 1)
    assert (other["bbox"], other["area"], other["iscrowd"]) == ([8, 8, 1, 1], 1, 0)
    index = COCO(tmp_path / "test.json")
    assert sorted(index.getAnnIds(iscrowd=False)) == [2]


def test_both_readers_see_the_same(root: Path, tmp_path: Path) -> None:
    voc_to_coco(root, "test", tmp_path / "test.json")
    check_same_records(root, "test", tmp_path / "test.json")


def check_same_records(root: Path, split: str, coco: Path) -> None:
    from_voc = VocSource(root, rules=CLIP).load(
        split, VocSource(root).class_names(split), require_images=False
    )
    from_coco = CocoSource(root / "JPEGImages", annotations=str(coco), images=".", rules=CLIP).load(
        split, require_images=False
    )
    assert (from_voc.classes, from_voc.dropped) == (from_coco.classes, from_coco.dropped)
    for one, other in zip(from_voc.records, from_coco.records, strict=True):
        assert (one.image_id, one.path, one.height) == (other.image_id, other.path, other.height)
        for field in ("boxes", "labels", "difficult", "crowd", "area"):
            assert torch.equal(getattr(one.targets, field), getattr(other.targets, field)), field


def test_an_edit_of_the_coco_file_is_kept(root: Path, tmp_path: Path) -> None:
    data = voc_to_coco(root, "test", tmp_path / "test.json")
    data["annotations"][0].update(bbox=[0, 0, 5, 5.5], difficult=0, iscrowd=0)
    data["annotations"].append({"image_id": 2, "category_id": 1, "bbox": [1, 1, 2, 2], "difficult": 1})
    (tmp_path / "test.json").write_text(json.dumps(data))
    coco_to_voc(tmp_path / "test.json", tmp_path / "back", "test")
    records = VocSource(tmp_path / "back").load("test", training=False, require_images=False).records
    assert records[0].targets.boxes[0].tolist() == [0, 0, 5, 5.5]
    assert records[0].targets.difficult.tolist() == [False, False]
    assert records[1].targets.difficult.tolist() == [True]


def test_a_file_that_never_was_voc(tmp_path: Path) -> None:
    data = {
        "images": [{"id": 8, "file_name": "val/x.jpeg", "height": 10, "width": 20}],
        "categories": [{"id": 3, "name": "a & b"}],
        "annotations": [{"image_id": 8, "category_id": 3, "bbox": [0.5, 0, 3, 4], "iscrowd": 1}],
    }
    (tmp_path / "x.json").write_text(json.dumps(data))
    (tmp_path / "pictures" / "val").mkdir(parents=True)
    (tmp_path / "pictures" / "val" / "x.jpeg").touch()
    coco_to_voc(tmp_path / "x.json", tmp_path / "set", "val", tmp_path / "pictures")
    loaded = VocSource(tmp_path / "set").load("val")
    (record,) = loaded.records
    assert (record.image_id, record.height, record.width) == ("val/x", 10, 20)
    assert record.path == tmp_path / "pictures" / "val" / "x.jpeg"
    assert loaded.classes == ("a & b",)
    assert record.targets.boxes.tolist() == [[0.5, 0, 3.5, 4]]
    assert record.targets.difficult.tolist() == [True]


decimals = st.decimals(-50, 2000, places=3).map(float)


@settings(max_examples=50, deadline=None)
@given(st.tuples(decimals, decimals, decimals, decimals))
def test_coordinates_with_decimals_come_back(
    tmp_path_factory: pytest.TempPathFactory, corners: tuple[float, ...]
) -> None:
    folder = tmp_path_factory.mktemp("decimals")
    path = folder / "set" / "Annotations" / "a.xml"
    path.parent.mkdir(parents=True)
    (folder / "set" / "test.txt").write_text("a")
    box = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True))
    size = "<size><width>9</width><height>9</height></size>"
    path.write_text(f"<annotation>{size}<object><name>c</name><bndbox>{box}</bndbox></object></annotation>")
    voc_to_coco(folder / "set", "test", folder / "a.json", splits=".")
    coco_to_voc(folder / "a.json", folder / "back", "test")
    back = ElementTree.parse(folder / "back" / "Annotations" / "a.xml").getroot()
    assert tuple(float(present(corner.text)) for corner in present(back.find("object/bndbox"))) == corners


def test_what_is_there_already_is_not_overwritten(root: Path, tmp_path: Path) -> None:
    voc_to_coco(root, "test", tmp_path / "test.json")
    with pytest.raises(InputError, match=r"test\.txt exists already"):
        coco_to_voc(tmp_path / "test.json", root, "test")
    coco_to_voc(tmp_path / "test.json", tmp_path / "back", "one")
    coco_to_voc(tmp_path / "test.json", tmp_path / "back", "two")
    (tmp_path / "back" / "Annotations" / "bare.xml").write_text("mine")
    with pytest.raises(InputError, match=r"bare\.xml exists already with other content"):
        coco_to_voc(tmp_path / "test.json", tmp_path / "back", "three")


def test_an_annotation_that_may_not_be_read_is_one_error(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_path: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    voc_to_coco(root, "test", tmp_path / "test.json")
    coco_to_voc(tmp_path / "test.json", tmp_path / "back", "one")
    path = tmp_path / "test.json"
    monkeypatch.setattr("detector.data.convert.read_coco", lambda _: json.loads(path.read_text()))
    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(InputError, match=r"\.xml: cannot read the file: Permission denied"):
        coco_to_voc(path, tmp_path / "back", "two")


@pytest.mark.parametrize(
    "text", [f'<?xml version="1.0" encoding="gbk"?>{BARE}<!-- 牛 -->'.encode("gbk"), b"\xff\xfe", b""]
)
def test_other_bytes_are_something_else(root: Path, tmp_path: Path, text: bytes) -> None:
    """An XML file in GBK was an error of decoding."""
    voc_to_coco(root, "test", tmp_path / "test.json")
    (tmp_path / "back" / "Annotations").mkdir(parents=True)
    (tmp_path / "back" / "Annotations" / "bare.xml").write_bytes(text)
    with pytest.raises(InputError, match=r"bare\.xml exists already with other content"):
        coco_to_voc(tmp_path / "test.json", tmp_path / "back", "one")


def test_a_pipe_in_the_place_of_an_annotation_is_refused(root: Path, tmp_path: Path) -> None:
    """The converter waited for it forever."""
    voc_to_coco(root, "test", tmp_path / "test.json")
    (tmp_path / "back" / "Annotations").mkdir(parents=True)
    os.mkfifo(tmp_path / "back" / "Annotations" / "bare.xml")
    with pytest.raises(InputError, match=r"bare\.xml: is a named pipe"):
        coco_to_voc(tmp_path / "test.json", tmp_path / "back", "one")


@pytest.mark.parametrize("voc", [7, ["object"], ["object", 5], ["object", [["name"]]], ["a", "", 3]])
def test_a_meddled_tree_is_refused(root: Path, tmp_path: Path, voc: object) -> None:
    data = voc_to_coco(root, "test", tmp_path / "test.json")
    data["annotations"][1]["voc"] = voc
    (tmp_path / "test.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"annotations\[1\]: 'voc' is not as the converter writes it"):
        coco_to_voc(tmp_path / "test.json", tmp_path / "back", "test")
    assert not (tmp_path / "back").exists()


def test_names_that_xml_cannot_hold_and_twins_are_refused(root: Path, tmp_path: Path) -> None:
    data = voc_to_coco(root, "test", tmp_path / "test.json")
    data["categories"][1]["name"] = "a\x01"
    (tmp_path / "test.json").write_text(json.dumps(data))
    with pytest.raises(InputError, match=r"images\[0\]: a name or text in it cannot be written as XML"):
        coco_to_voc(tmp_path / "test.json", tmp_path / "back", "test")
    for entry in data["images"]:
        entry.pop("voc_id")
        entry["file_name"] = f"same.{entry['id']}"
    (tmp_path / "test.json").write_text(json.dumps({**data, "annotations": []}))
    with pytest.raises(InputError, match="another image has the id 'same' too"):
        coco_to_voc(tmp_path / "test.json", tmp_path / "back", "test")


def test_the_tool(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def convert(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["convert_data.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            runpy.run_path(str(PROJECT / "tools" / "convert_data.py"), run_name="__main__")
        return int(exit_.value.code or 0)

    assert convert("voc-to-coco", root, "--split", "test", "--output", tmp_path / "a.json") == 0
    assert convert("coco-to-voc", tmp_path / "a.json", "--split", "test", "--output", tmp_path / "back") == 0
    assert_same_annotations(root / "Annotations", tmp_path / "back" / "Annotations")
    (root / "ImageSets").rename(root / "lists")
    assert convert("voc-to-coco", root, "--output", tmp_path / "all.json") == 0
    assert convert("coco-to-voc", tmp_path / "all.json", "--split", "all", "--output", tmp_path / "new") == 0
    assert_same_annotations(root / "Annotations", tmp_path / "new" / "Annotations")
    assert (tmp_path / "new" / "ImageSets" / "Main" / "all.txt").read_text() == "bare\nsub/full\n"
    (root / "lists").rename(root / "ImageSets")
    assert convert("voc-to-coco", root, "--split", "tset", "--output", tmp_path / "b.json") == 2
    assert "did you mean 'test'" in capsys.readouterr().err


@pytest.mark.skipif(not BCCD.is_dir(), reason="data/bccd is not there")
def test_bccd_there_and_back(tmp_path: Path) -> None:
    for split in ("trainval", "test"):
        voc_to_coco(BCCD, split, tmp_path / f"{split}.json")
        check_same_records(BCCD, split, tmp_path / f"{split}.json")
        coco_to_voc(tmp_path / f"{split}.json", tmp_path / "back", split, BCCD / "JPEGImages")
    assert_same_annotations(BCCD / "Annotations", tmp_path / "back" / "Annotations")
    boxes = VocSource(tmp_path / "back").load("test").records[0].targets.boxes.numpy()
    assert np.array_equal(boxes, VocSource(BCCD).load("test").records[0].targets.boxes.numpy())


SEVERAL = """<?xml version="1.0" encoding="gb2312"?>
<Annotation><filename>a.jpg</filename><size><width>100</width><height>80</height></size>
  <objects><object><name>\u72d7</name><pose>Left</pose>
    <bndbox><xmin>0</xmin><ymin>2</ymin><xmax>50</xmax><ymax>60</ymax></bndbox>
    <bndbox><xmin>3</xmin><ymin>2.5</ymin><xmax>7</xmax><ymax>9</ymax></bndbox>
  </object><object><name>cow</name>
    <bndbox><xmin>4</xmin><ymin>4</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>
  </object></objects>
</Annotation>"""


@pytest.mark.parametrize("first_pixel", [0, 1])
def test_several_boxes_of_an_object_become_objects(tmp_path: Path, first_pixel: int) -> None:
    root = tmp_path / "set"
    (root / "Annotations").mkdir(parents=True)
    (root / "Annotations" / "a.xml").write_bytes(SEVERAL.encode("gb2312"))
    data = voc_to_coco(root, None, tmp_path / "a.json", first_pixel=first_pixel)
    left = -first_pixel
    assert [one["bbox"] for one in data["annotations"]] == [
        [left, 2 + left, 51, 59],
        [3 + left, 2.5 + left, 5, 7.5],
        [4 + left, 4 + left, 6, 6],
    ]
    coco_to_voc(tmp_path / "a.json", tmp_path / "back", "all", first_pixel=first_pixel)
    before, after = (read_annotation(one / "Annotations" / "a.xml") for one in (root, tmp_path / "back"))
    assert [(one.name, one.box) for one in after.objects] == [(one.name, one.box) for one in before.objects]
    assert (tmp_path / "back" / "Annotations" / "a.xml").read_text().count("<pose>Left</pose>") == 2


def test_ignored_objects_and_crowds_stay_untrained(tmp_path: Path) -> None:
    thing = {"image_id": 8, "category_id": 3, "bbox": [1, 1, 9, 9]}
    data = {
        "images": [{"id": 8, "file_name": r"sub\x.jpeg", "height": 10, "width": 20}],
        "categories": [{"id": 3, "name": "a"}],
        "annotations": [{**thing, "ignore": 1}, {**thing, "iscrowd": 1}, {**thing, "difficult": 1}, thing],
    }
    (tmp_path / "x.json").write_text(json.dumps(data))
    assert coco_to_voc(tmp_path / "x.json", tmp_path / "set", "val") == ["sub/x"]
    back = voc_to_coco(tmp_path / "set", "val", tmp_path / "back.json")
    assert [one.get("ignore", 0) for one in back["annotations"]] == [1, 1, 0, 0]
    assert [one["difficult"] for one in back["annotations"]] == [1, 1, 1, 0]
    (record,) = CocoSource(tmp_path, annotations="back.json").load("test", require_images=False).records
    assert record.targets.crowd.tolist() == [True, True, False, False]
    assert coco_to_voc(tmp_path / "back.json", tmp_path / "again", "val") == ["sub/x"]
    assert_same_annotations(tmp_path / "set" / "Annotations", tmp_path / "again" / "Annotations")
