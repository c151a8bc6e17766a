"""Data sets in YOLO's layout: what data.yaml may say, where files are found, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml
from PIL import Image

from detector.core.errors import InputError
from detector.data.annotation_cache import AnnotationCache
from detector.data.targets import ObjectRules
from detector.data.yolo.source import YoloSource


def draw(path: Path, height: int = 40, width: int = 80) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.zeros((height, width, 3), np.uint8))


def describe(root: Path, **values: Any) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / "data.yaml").write_text(yaml.safe_dump({"names": ["cat", "dog"], **values}))
    return root


def label(path: Path, *lines: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines))


def small(root: Path, **values: Any) -> Path:
    """Write two training images, the second without labels."""
    for name in ("a", "b"):
        draw(root / f"images/train/{name}.jpg")
    label(root / "labels/train/a.txt", "1 0.5 0.5 0.5 0.5", "0 .1 .1 .3 .1 .2 .6")
    return describe(root, train="images/train", **values)


def keys(source: YoloSource, split: str = "train") -> list[str]:
    return list(source.load(split, training=False).records.keys)


def test_labels_boxes_and_names(tmp_path: Path) -> None:
    dataset = YoloSource(small(tmp_path)).load("train")
    first, second = dataset.records
    assert dataset.classes == ("cat", "dog")
    assert first.targets.labels.tolist() == [2, 1]
    np.testing.assert_allclose(first.targets.boxes, [[20, 10, 60, 30], [8, 4, 24, 24]], atol=1e-5)
    assert len(second.targets) == 0
    assert (first.image_id, first.key) == ("images/train/a", "images/train/a.jpg")
    assert (first.height, first.width) == (40, 80)


@pytest.mark.parametrize(
    "values",
    [
        {"names": {1: "dog", 0: "cat"}},
        {"nc": 2},
        {"path": "."},
        {"path": "/content/datasets/mine"},
        {"path": "../datasets/mine"},
        {"train": ["images/train"]},
        {"train": "../images/train"},
        {"train": "./images/train/"},
        {"train": ["images/train/b.jpg", "images/train"]},
        {"val": "nowhere", "download": "https://example.org/x.zip"},
    ],
)
def test_forms_of_data_yaml(tmp_path: Path, values: dict[str, Any]) -> None:
    source = YoloSource(describe(small(tmp_path), **{"train": "images/train", **values}))
    assert set(keys(source)) == {"images/train/a.jpg", "images/train/b.jpg"}
    assert source.class_names("train") == ("cat", "dog")


def test_a_path_below_the_file_and_an_absolute_one(tmp_path: Path) -> None:
    small(tmp_path / "set" / "inner")
    for path in ("inner", str(tmp_path / "set" / "inner")):
        describe(tmp_path / "set", path=path, train="images/train")
        assert keys(YoloSource(tmp_path / "set"))[0] == "inner/images/train/a.jpg"


@pytest.mark.parametrize("line", ["./train/{}.jpg", "images/train/{}.jpg", "{root}/images/train/{}.jpg"])
def test_lists_of_images(tmp_path: Path, line: str) -> None:
    root = small(tmp_path, test="images/list.txt")
    lines = [line.format(name, root=root) for name in ("b", "a")]
    (root / "images/list.txt").write_text("\r\n".join(lines) + "\r\n\r\n")
    assert keys(YoloSource(root), "test") == ["images/train/b.jpg", "images/train/a.jpg"]


def test_roboflow_and_folders_without_images_in_their_path(tmp_path: Path) -> None:
    draw(tmp_path / "valid/images/a.png")
    label(tmp_path / "valid/labels/a.txt", "0 .5 .5 .5 .5")
    draw(tmp_path / "flat/b.jpg")
    label(tmp_path / "flat/b.txt", "1 .5 .5 .5 .5")
    source = YoloSource(describe(tmp_path, train="flat", val="../valid/images"))
    for split, expected in (("train", [2]), ("val", [1])):
        (record,) = source.load(split).records
        assert record.targets.labels.tolist() == expected
    assert source.image_list("val").exists()
    assert not source.image_list("valid").exists()


def test_a_camera_turned_the_image(tmp_path: Path) -> None:
    """As in Ultralytics, fractions are of the upright image."""
    root = small(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 40)).save(root / "images/train/a.jpg", exif=exif)
    record = YoloSource(root).load("train").records[0]
    assert (record.height, record.width) == (80, 40)
    np.testing.assert_allclose(record.targets.boxes[0], [10, 20, 30, 60], atol=1e-5)


def test_division_by_ratio_takes_the_images_of_all_splits(tmp_path: Path) -> None:
    root = small(tmp_path)
    draw(root / "images/val/a.jpg")
    describe(root, train="images/train", val="images/val")
    assert len(YoloSource(root, whole=True).image_names("anything")) == 3


def test_keypoints_and_their_cache(tmp_path: Path) -> None:
    """The same file has another meaning with kpt_shape, also where the cache has it already."""
    root, cache = small(tmp_path / "set"), AnnotationCache(tmp_path / "cache")
    label(root / "labels/train/a.txt", "1 .5 .5 .5 .5 .9 .9")
    box = YoloSource(root, cache=cache).load("train").records[0].targets.boxes[0]
    np.testing.assert_allclose(box, [40, 20, 72, 36], atol=1e-5)
    describe(root, train="images/train", kpt_shape=[1, 2])
    box = YoloSource(root, cache=cache).load("train").records[0].targets.boxes[0]
    np.testing.assert_allclose(box, [20, 10, 60, 30], atol=1e-5)


def test_rules_for_boxes_and_classes(tmp_path: Path) -> None:
    root = small(tmp_path)
    label(root / "labels/train/a.txt", "0 1.2 .5 .5 .5", "0 .5 .5 .01 .5", "1 .5 .5 .5 .5")
    drop, keep, clip = (
        YoloSource(root, rules=ObjectRules(**rules))
        for rules in ({}, {"min_box_size": 0.0}, {"invalid_boxes": "clip"})
    )
    assert drop.load("train").dropped == {"outside": 1, "under 2 px": 1}
    assert keep.load("train").dropped == {"outside": 1}
    assert clip.load("train").records[0].targets.boxes[0].tolist() == pytest.approx([76, 10, 80, 30])
    with pytest.raises(InputError, match=r"a.txt: line 1: box 0.95, 0.25, 1.45, 0.75 is outside"):
        YoloSource(root, rules=ObjectRules(invalid_boxes="error")).load("train")
    others = YoloSource(root, rules=ObjectRules(other_classes="ignore")).load("train", ["dog"])
    assert others.dropped == {"of other classes": 2}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"names": []}, r"'names' is \[\]"),
        ({"names": ["a", "a"]}, "classes 0 and 1 are both named 'a'"),
        ({"names": {0: "a", 2: "b"}}, "the numbers 0 to 1"),
        ({"names": [True, "b"]}, "the name of class 0 is True; write it in quotes"),
        ({"nc": 3}, "nc is 3, and 'names' has 2"),
        ({"train": 7}, "train is 7"),
        ({"train": "../../elsewhere"}, "leads out of the data root"),
        ({"train": "/etc"}, "leads out of the data root"),
        ({"train": "images/none"}, "images/none does not exist"),
        ({"train": "labels/train"}, "no image for 'train'"),
        ({"train": None}, "names no images"),
        ({"train": None, "val": "images/train"}, "names no split 'train'; it names val"),
    ],
)
def test_what_data_yaml_may_not_say(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    root = describe(small(tmp_path), **{"train": "images/train", **values})
    with pytest.raises(InputError, match=message) as caught:
        YoloSource(root).load("train")
    assert str(root) in str(caught.value)


@pytest.mark.parametrize("text", ["a: [", "- 1", "!!python/object:os.system {}", "[" * 5000, "a: 2024-13-45"])
def test_a_file_that_is_no_description(tmp_path: Path, text: str) -> None:
    root = small(tmp_path)
    (root / "data.yaml").write_text(text)
    with pytest.raises(InputError, match=r"data\.yaml: "):
        YoloSource(root).load("train")


def test_faulty_labels_images_and_lists(tmp_path: Path) -> None:
    root = small(tmp_path)
    label(root / "labels/train/b.txt", "0 .5 .5 .5 .5", "2 .5 .5 .5 .5")
    with pytest.raises(InputError, match=r"b.txt: line 2: class 2 is not among the classes 0 to 1"):
        YoloSource(root).load("train")
    without_b = lambda names: [name for name in names if name.key.endswith("a.jpg")]  # noqa: E731
    assert len(YoloSource(root).load("train", choose=without_b).records) == 1
    (root / "labels/train/b.txt").write_bytes(b"\xff")
    with pytest.raises(InputError, match=r"b.txt: cannot read the labels"):
        YoloSource(root).load("train")
    (root / "list.txt").write_text("../../etc/passwd.jpg\n")
    describe(root, train="list.txt")
    with pytest.raises(InputError, match=r"list.txt: line 1: '../../etc/passwd.jpg' leads out"):
        YoloSource(root).load("train")
    (root / "list.txt").write_text("images/train/c.jpg\n")
    label(root / "labels/train/c.txt", "0 .5 .5 .5 .5")
    with pytest.raises(InputError, match=r"image 'images/train/c.jpg' is missing"):
        YoloSource(root).load("train", require_images=False)


def test_a_split_without_any_labels(tmp_path: Path) -> None:
    draw(tmp_path / "images/test/a.jpg")
    source = YoloSource(describe(tmp_path, test="images/test"))
    dataset = source.load("test", training=False, unannotated=True)
    assert not dataset.annotated
    assert len(dataset.records) == 1
    with pytest.raises(InputError, match=r"no image of 'test' is annotated.*labels/test/a.txt"):
        source.load("test")
