"""The VOC reader: conversions, tolerated oddities, refused files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from detector.core.errors import InputError
from detector.core.xml_files import MAX_BYTES, parse_xml
from detector.data.images import read_image
from detector.data.source import Dataset
from detector.data.targets import ObjectRules
from detector.data.voc.annotation import read_annotation
from detector.data.voc.source import VOC_CLASSES, VocSource
from detector.models.roi_sampler import trained_objects

BCCD = Path(__file__).parents[3] / "data" / "bccd"
SIZE = "<size><width>100</width><height>80</height><depth>3</depth></size>"


def box(xmin: object, ymin: object, xmax: object, ymax: object) -> str:
    return f"<bndbox><xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox>"


def thing(name: str, *corners: object, difficult: int | str = 0) -> str:
    return f"<object><name>{name}</name><difficult>{difficult}</difficult>{box(*corners)}</object>"


RULES = ("invalid_boxes", "min_box_size", "other_classes")


class Layout:
    """A data set in VOC layout that a test fills."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
            (root / folder).mkdir(parents=True)

    def annotate(self, image_id: str, *objects: str, size: str = SIZE) -> Path:
        path = self.root / "Annotations" / f"{image_id}.xml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"<annotation>{size}{''.join(objects)}</annotation>")
        return path

    def draw(self, name: str, height: int = 80, width: int = 100) -> Path:
        path = self.root / "JPEGImages" / name
        assert cv2.imwrite(str(path), np.zeros((height, width, 3), np.uint8))
        return path

    def list(self, split: str, text: str | bytes) -> Path:
        path = self.root / "ImageSets" / "Main" / f"{split}.txt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def load(self, *objects: str, **settings: Any) -> Dataset:
        """Annotate one image with ``objects`` and load only this image, without an image file."""
        self.annotate("one", *objects)
        self.list("one", "one\n")
        rules = {name: settings.pop(name) for name in RULES if name in settings}
        source = VocSource(self.root, first_pixel=settings.pop("first_pixel", 1), rules=ObjectRules(**rules))
        return source.load("one", require_images=False, **settings)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "set")


def test_boxes_become_half_open_and_zero_based(layout: Layout) -> None:
    data = layout.load(thing("dog", 48, 24, 60, 31, difficult=1), thing("cat", 1, 1, 100, 80))
    (record,) = data.records
    assert data.classes == ("cat", "dog")
    assert (record.image_id, record.height, record.width) == ("one", 80, 100)
    assert record.path == layout.root / "JPEGImages" / "one.jpg"
    assert record.targets.boxes.tolist() == [[47, 23, 60, 31], [0, 0, 100, 80]]
    assert record.targets.labels.tolist() == [2, 1]
    assert record.targets.difficult.tolist() == [True, False]
    assert record.targets.area.tolist() == [13 * 8, 8000]
    assert data.dropped == {}


def test_records_follow_the_split_and_given_classes_keep_their_order(layout: Layout) -> None:
    for image_id in ("b", "a", "c"):
        layout.annotate(image_id, thing("sheep", 1, 1, 9, 9))
    layout.list("train", "c\na\n")
    data = VocSource(layout.root).load("train", classes=VOC_CLASSES, require_images=False)
    assert [record.image_id for record in data.records] == ["c", "a"]
    assert data.records[0].targets.labels.tolist() == [VOC_CLASSES.index("sheep") + 1]
    assert len(VOC_CLASSES) == 20
    assert list(VOC_CLASSES) == sorted(VOC_CLASSES)


def test_class_names_are_read_from_the_whole_folder(layout: Layout) -> None:
    layout.annotate("a", thing("sheep", 1, 1, 9, 9), thing("cow", 1, 1, 9, 9))
    layout.annotate("sub/b", thing("ant", 1, 1, 9, 9))
    (layout.root / "Annotations" / "._a.xml").write_bytes(b"\x00\x05\x16\x07")  # left by macOS
    assert VocSource(layout.root).class_names("train") == ("ant", "cow", "sheep")


def test_class_names_need_annotations(layout: Layout) -> None:
    with pytest.raises(InputError, match="no annotation file"):
        VocSource(layout.root).class_names("train")


def test_what_other_tools_write_is_read(layout: Layout) -> None:
    part = f"<part><name>head</name>{box(1, 1, 2, 2)}</part>"
    data = layout.load(
        f"<object>{part}{box(10.5, '2e1', ' 30.25 ', 40)}<name> cow </name></object>",
        thing("cow", 1, 1, 9, 9, difficult="Unspecified"),
        f"<object><name>cow</name>{box(1, 1, 9, 9)}{part}<difficult>true</difficult></object>",
    )
    targets = data.records[0].targets
    assert data.classes == ("cow",)
    assert targets.boxes.tolist() == [[9.5, 19, 30.25, 40], [0, 0, 9, 9], [0, 0, 9, 9]]
    assert targets.difficult.tolist() == [False, False, True]


def test_an_image_without_objects_is_a_record(layout: Layout) -> None:
    data = layout.load()
    assert len(data.records[0].targets) == 0
    assert data.classes == ()


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_encodings(layout: Layout, encoding: str) -> None:
    path = layout.root / "Annotations" / "x.xml"
    declared = encoding.removesuffix("-sig")
    text = (
        f'<?xml version="1.0" encoding="{declared}"?>\r\n<annotation>{thing("Kühe", 1, 1, 9, 9)}</annotation>'
    )
    path.write_bytes(text.encode(encoding))
    assert [found.name for found in read_annotation(path).objects] == ["Kühe"]


def test_split_files_of_all_kinds(layout: Layout) -> None:
    for image_id in ("000001", "000002", "photo 1", "sub/x", "üb"):
        layout.annotate(image_id)
    text = "000001  1\r\n\r\n  000002\t-1 \r\nphoto 1\r\nsub/x\r\nüb"
    layout.list("test", b"\xef\xbb\xbf" + text.encode())
    data = VocSource(layout.root).load("test", require_images=False)
    assert [record.image_id for record in data.records] == ["000001", "000002", "photo 1", "sub/x", "üb"]


def test_a_split_that_would_fill_the_memory_is_refused_unread(layout: Layout) -> None:
    layout.annotate("000001")
    layout.list("test", b"000001")
    with (layout.root / "ImageSets" / "Main" / "test.txt").open("ab") as file:
        file.truncate(2**40)
    with pytest.raises(InputError, match=r"test\.txt: cannot read the split: over 67108864 bytes"):
        VocSource(layout.root).load("test", require_images=False)


def test_other_folder_names(tmp_path: Path) -> None:
    for folder in ("annots", "images", "splits"):
        (tmp_path / folder).mkdir()
    (tmp_path / "annots" / "a.xml").write_text(f"<annotation>{SIZE}</annotation>")
    (tmp_path / "splits" / "all.txt").write_text("a\n")
    (tmp_path / "images" / "a.png").write_bytes(b"not looked into where <size> is there")
    data = VocSource(tmp_path, annotations="annots", images="images", splits="splits").load("all")
    assert data.records[0].path.name == "a.png"


NAMES = (
    "one.jpg",
    "one.jpeg",
    "one.PNG",
    "one.Jpg",
    "one.jPEG",
    "one.bmp",
    "one.tif",
    "one.TIFF",
    "one.webp",
)


@pytest.mark.parametrize("name", NAMES)
def test_images_are_found_by_id_and_give_a_missing_size(layout: Layout, name: str) -> None:
    path = layout.draw(name, 60, 90)
    layout.annotate("one", thing("cow", 1, 1, 90, 60), size="<size><width>0</width></size>")
    layout.list("train", "one")
    (record,) = VocSource(layout.root).load("train").records
    assert (record.path.name, record.height, record.width) == (path.name, 60, 90)


def test_the_size_is_unknown_only_where_nothing_needs_it(layout: Layout) -> None:
    layout.annotate("one", thing("cow", 1, 1, 90, 60), size="")
    layout.list("train", "one")
    data = VocSource(layout.root).load("train", require_images=False, training=False)
    assert (data.records[0].height, data.records[0].width) == (0, 0)
    with pytest.raises(InputError, match=r"one\.xml: no <size>"):
        VocSource(layout.root).load("train", require_images=False)


SWAPPED, TINY, OUTSIDE, SLIP = (50, 9, 40, 30), (5, 5, 5, 9), (90, 70, 130, 80), (0, 0, 101, 80)


def test_invalid_boxes_are_dropped_and_counted(layout: Layout) -> None:
    objects = [thing("cow", *corners) for corners in (SWAPPED, TINY, TINY, OUTSIDE, SLIP)]
    data = layout.load(*objects)
    assert data.records[0].targets.boxes.tolist() == [[0, 0, 100, 80]]
    assert data.dropped == {"swapped": 1, "under 2 px": 2, "outside": 1, "clipped": 1}


def test_invalid_boxes_are_clipped_where_that_leaves_a_box(layout: Layout) -> None:
    gone, sliver = (150, 10, 160, 20), (100, 10, 160, 20)
    objects = [thing("cow", *corners) for corners in (SWAPPED, OUTSIDE, gone, sliver, SLIP)]
    data = layout.load(*objects, invalid_boxes="clip", min_box_size=3)
    assert data.records[0].targets.boxes.tolist() == [[89, 69, 100, 80], [0, 0, 100, 80]]
    assert data.dropped == {"swapped": 1, "clipped": 2, "outside": 1, "under 3 px": 1}


@pytest.mark.parametrize(
    ("corners", "fault"), [(SWAPPED, "swapped"), (TINY, "under 2 px"), (OUTSIDE, "outside")]
)
def test_invalid_boxes_can_be_errors(layout: Layout, corners: tuple[int, ...], fault: str) -> None:
    written = ", ".join(map(str, corners))
    with pytest.raises(InputError, match=rf"one\.xml: object 2 \(cow\): box {written} is {fault}"):
        layout.load(thing("cow", *SLIP), thing("cow", *corners), invalid_boxes="error")


def test_evaluation_keeps_every_object_as_annotated(layout: Layout) -> None:
    corners = (SWAPPED, TINY, OUTSIDE, SLIP)
    data = layout.load(*[thing("cow", *one) for one in corners], training=False)
    assert data.records[0].targets.boxes.tolist() == [[a - 1, b - 1, c, d] for a, b, c, d in corners]
    assert data.dropped == {}


def test_an_unknown_policy_is_a_fault_of_the_caller(layout: Layout) -> None:
    with pytest.raises(ValueError, match="invalid_boxes must be"):
        layout.load(invalid_boxes="ignore")


def test_an_unknown_class_is_named_with_the_nearest(layout: Layout) -> None:
    expected = r"one\.xml: object 2 \(aeroplan\): 'aeroplan' is not among the classes .*'aeroplane'"
    with pytest.raises(InputError, match=expected):
        layout.load(thing("cow", 1, 1, 9, 9), thing("aeroplan", 1, 1, 9, 9), classes=VOC_CLASSES)
    with pytest.raises(InputError, match="'cow' is named twice"):
        layout.load(classes=["cow", "cow"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (thing("cow", 1, "nan", 9, 9), r"object 1 \(cow\): <ymin> is 'nan'"),
        (thing("cow", 1, 1, "inf", 9), r"object 1 \(cow\): <xmax> is 'inf'"),
        (thing("cow", 1, 1, 9, "1e30"), r"object 1 \(cow\): <ymax> is '1e30'"),
        (thing("cow", "left", 1, 9, 9), r"object 1 \(cow\): <xmin> is 'left'"),
        ("<object><name>cow</name></object>", r"object 1 \(cow\) has no <bndbox>"),
        (f"<object>{box(1, 1, 9, 9)}</object>", "object 1 has no <name>"),
        (thing("cow", 1, 1, 9, 9, difficult="maybe"), "<difficult> is 'maybe'"),
        ("<size><width>wide</width></size>", "<width> of <size> is 'wide'"),
        ("<size><height>-3</height></size>", "<height> of <size> is '-3'"),
    ],
)
def test_a_malformed_annotation_is_named(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.xml"
    path.write_text(f"<annotation>{content}</annotation>")
    with pytest.raises(InputError, match=message) as error:
        read_annotation(path)
    assert str(error.value).startswith(str(path))


BOMB = '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;">]><annotation>&y;</annotation>'
EXTERNAL = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BOMB, "document type declaration"),
        (EXTERNAL, "document type declaration"),
        ("<!DOCTYPE annotation><annotation/>", "document type declaration"),
        ("<annotation>&x;</annotation>", "not well-formed"),
        ("<a>" * 100_000, "nested more than 32 deep"),
        ("<annotation><object>", "not well-formed"),
        ("", "not well-formed"),
        ("{}", "not well-formed"),
        ('<?xml version="1.0" encoding="martian"?><annotation/>', "not well-formed"),
        ("<annotation/>" + " " * MAX_BYTES, "larger than 10 MiB"),
        ("<html/>", "not a VOC annotation: the outer element is <html>"),
    ],
    ids=range(11),
)
def test_a_hostile_or_broken_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.xml"
    path.write_text(content)
    with pytest.raises(InputError, match=message) as error:
        read_annotation(path)
    assert str(error.value).startswith(str(path))


def test_parsing_keeps_text_and_structure(tmp_path: Path) -> None:
    path = tmp_path / "a.xml"
    path.write_text("<annotation><owner><name>Zo&#235; &amp; <![CDATA[<Co>]]></name></owner></annotation>")
    assert parse_xml(path).findtext("owner/name") == "Zoë & <Co>"


def test_a_missing_root_folder_or_split_says_what_belongs_there(layout: Layout) -> None:
    with pytest.raises(InputError, match=r"data root .* does not exist; expected .* JPEGImages/"):
        VocSource(layout.root / "nowhere").load("train")
    with pytest.raises(InputError, match=f"did you mean the root {layout.root}"):
        VocSource(layout.root.parent).load("train")
    for split in ("train", "val", "cow_train"):
        layout.list(split, "a")
    with pytest.raises(InputError, match=r"trian\.txt: no such split .*'train'.*splits there: train, val$"):
        VocSource(layout.root).load("trian")
    layout.list("val", "\n \n")
    with pytest.raises(InputError, match="names no image"):
        VocSource(layout.root).load("val")
    layout.list("val", b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot read the split"):
        VocSource(layout.root).load("val")


def test_an_id_without_annotation_or_image_is_named(layout: Layout) -> None:
    split = layout.list("train", "one\n")
    with pytest.raises(
        InputError, match=r"image id 'one' has no annotation: .*Annotations/one\.xml"
    ) as error:
        VocSource(layout.root).load("train")
    assert str(split) in str(error.value)
    layout.annotate("one")
    with pytest.raises(InputError, match=r"image id 'one' has no image: .*JPEGImages/one\.jpg") as error:
        VocSource(layout.root).load("train")
    assert str(split) in str(error.value)


def test_an_id_given_twice_is_named(layout: Layout) -> None:
    layout.list("train", "one\ntwo\none\n")
    with pytest.raises(InputError, match=r"line 3: image id 'one' is also on line 1"):
        VocSource(layout.root).load("train")


@pytest.mark.parametrize(
    "image_id", ["../secret", "/etc/passwd", "a/../../b", "..\\b", "C:\\b", ".", "a\0b", "é" * 200]
)
def test_an_id_that_leaves_the_root_is_refused(layout: Layout, image_id: str) -> None:
    layout.list("train", f"{image_id}\n")
    with pytest.raises(InputError, match=r"train\.txt: line 1: image id .* leads out of the data root"):
        VocSource(layout.root).load("train")


def test_links_of_the_users_own_are_followed(layout: Layout) -> None:
    layout.annotate("one")
    layout.list("train", "one")
    elsewhere = layout.root.parent / "elsewhere"
    (layout.root / "JPEGImages").rename(elsewhere)
    (layout.root / "JPEGImages").symlink_to(elsewhere)
    (elsewhere / "one.jpg").write_bytes(b"")
    link = layout.root.parent / "link"
    link.symlink_to(layout.root)
    assert VocSource(link).load("train").records[0].path == elsewhere.resolve() / "one.jpg"


@pytest.mark.skipif(not BCCD.is_dir(), reason="data/bccd is not there")
def test_bccd_has_two_slips_of_one_pixel() -> None:
    data = VocSource(BCCD).load("trainval")
    assert data.classes == ("Platelets", "RBC", "WBC")
    assert data.dropped == {"under 2 px": 2}
    assert len(data.records) == 292
    everything = [VocSource(BCCD).load(split, training=False) for split in ("trainval", "test")]
    labels = [label for one in everything for r in one.records for label in r.targets.labels.tolist()]
    assert [labels.count(label) for label in (1, 2, 3)] == [361, 4155, 372]


def test_files_that_count_pixels_from_0(layout: Layout) -> None:
    corners = (0, 3, 99, 79)
    data = layout.load(thing("cow", *corners), first_pixel=0)
    assert data.records[0].targets.boxes.tolist() == [[0, 3, 100, 80]]
    assert data.suspicions == ()
    data = layout.load(thing("cow", *corners), thing("cow", 1, 1, 9, 9))
    assert [one.kind for one in data.suspicions] == ["first pixel"]
    assert data.suspicions[0].message.startswith("1 of 2 objects have a corner at 0")


def test_objects_of_other_classes_are_left_out_if_asked_for(layout: Layout) -> None:
    objects = [thing("cow", 1, 1, 9, 9), thing("dog", 1, 1, 9, 9), thing("Cow", 1, 1, 9, 9)]
    with pytest.raises(InputError, match=r"object 2 \(dog\): .*data\.other_classes=ignore"):
        layout.load(*objects, classes=["cow"])
    for policy in ("drop", None):  # training, evaluation
        data = layout.load(*objects, classes=["cow"], other_classes="ignore", invalid_boxes=policy)
        assert data.records[0].targets.labels.tolist() == [1]
        assert data.dropped == {"of other classes": 2}
        assert [one.kind for one in data.suspicions] == ["similar classes"]  # one of the two left out


def test_ignored_objects_are_neither_trained_on_nor_missed(layout: Layout) -> None:
    text = thing("cow", 1, 1, 9, 9).replace("</object>", "<ignore>1</ignore></object>")
    targets = layout.load(text, thing("cow", 1, 1, 9, 9)).records[0].targets
    assert targets.difficult.tolist() == targets.crowd.tolist() == [True, False]
    assert len(trained_objects(targets, use_difficult=True)) == 1


def test_what_is_suspicious_is_kept_with_the_data(layout: Layout) -> None:
    layout.annotate("one", "<filename>two.jpg</filename>", thing("cow", 1, 1, 9, 9))
    layout.draw("one.jpg")
    layout.list("train", "one")
    (found,) = VocSource(layout.root).load("train").suspicions
    assert (found.kind, found.file) == ("another image", str(layout.root / "Annotations" / "one.xml"))


def test_a_split_without_any_annotation(layout: Layout) -> None:
    for name in ("one", "two"):
        layout.draw(f"{name}.png", 30, 40)
    layout.list("test", "one\ntwo")
    data = VocSource(layout.root).load("test", classes=["cow"], unannotated=True)
    assert not data.annotated
    found = [(one.image_id, one.key, one.height, one.width, len(one.targets)) for one in data.records]
    assert found == [("one", "JPEGImages/one.png", 30, 40, 0), ("two", "JPEGImages/two.png", 30, 40, 0)]
    with pytest.raises(InputError, match="'one' has no annotation"):
        VocSource(layout.root).load("test", classes=["cow"])
    layout.annotate("two")
    with pytest.raises(InputError, match="'one' has no annotation"):  # some have one, so all should
        VocSource(layout.root).load("test", classes=["cow"], unannotated=True)


def test_hidden_files_and_other_cases_of_the_suffix(layout: Layout) -> None:
    path = layout.annotate("one", thing("cow", 1, 1, 9, 9))
    path.rename(path.with_suffix(".XML"))
    for name in ("._one.xml", ".ipynb_checkpoints/one.xml", "__MACOSX/._one.xml", ".DS_Store", "Thumbs.db"):
        path.parent.joinpath(name).parent.mkdir(exist_ok=True)
        path.parent.joinpath(name).write_bytes(b"\0")
    assert VocSource(layout.root).class_names("train") == ("cow",)
    data = VocSource(layout.root, splits=None).load("all", require_images=False)
    assert [record.image_id for record in data.records] == ["one"]


def test_a_line_of_a_split_is_taken_whole_where_an_image_has_that_name(layout: Layout) -> None:
    """Without annotations, "scan 1" was read as the image "scan" of class column 1."""
    for name in ("scan.jpg", "scan 1.jpg", "scan 0.PNG", "photo.jpg"):
        layout.draw(name)
    layout.list("test", "scan 1\nscan 0\nphoto  -1\n")
    data = VocSource(layout.root).load("test", classes=["cow"], unannotated=True)
    assert [(record.image_id, record.path.name) for record in data.records] == [
        ("scan 1", "scan 1.jpg"),
        ("scan 0", "scan 0.PNG"),
        ("photo", "photo.jpg"),
    ]


@pytest.mark.parametrize("space", ["\u202f", "\u00a0", "\u2003"])
def test_only_plain_spaces_stand_before_a_class_column(layout: Layout, space: str) -> None:
    for name in ("photo", f"photo{space}1", f"end{space}"):
        layout.annotate(name)
    layout.list("test", f"photo{space}1\nend{space} 1\nphoto 0")
    data = VocSource(layout.root).load("test", require_images=False)
    assert [record.image_id for record in data.records] == [f"photo{space}1", f"end{space}", "photo"]
    (layout.root / "Annotations" / f"photo{space}1.xml").unlink()
    with pytest.raises(InputError, match=r"'photo.*1' has no annotation"):
        VocSource(layout.root).load("test", require_images=False)


@pytest.mark.parametrize("annotated", [False, True])
def test_sizes_come_from_the_headers_of_images(
    layout: Layout, annotated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every image without <size> was decoded whole."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for suffix in ("jpg", "png"):
        Image.new("RGB", (40, 30)).save(layout.root / "JPEGImages" / f"a_{suffix}.{suffix}", exif=exif)
        if annotated:
            layout.annotate(f"a_{suffix}", size="")
    layout.list("test", "a_jpg\na_png\n")
    with monkeypatch.context() as patch:
        patch.setattr(cv2, "imdecode", None)
        patch.setattr("PIL.ImageFile.ImageFile.load", None)
        data = VocSource(layout.root).load("test", classes=["cow"], unannotated=True)
    for record in data.records:
        assert read_image(record.path, (record.height, record.width)).shape == (40, 30, 3)


def test_a_reader_lists_each_folder_once(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(20):
        layout.annotate(str(number))
    layout.list("test", "".join(f"{number}\n" for number in range(20)))
    listed: list[str] = []
    scandir = os.scandir

    def listing(folder: Path) -> Iterator[os.DirEntry[str]]:
        listed.append(str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", listing)
    VocSource(layout.root).load("test", require_images=False, choose=lambda names: names)
    assert listed == [str(layout.root / folder) for folder in ("JPEGImages", "Annotations")]
