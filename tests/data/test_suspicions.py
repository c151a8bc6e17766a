"""Probable mistakes: each is reported where it exists, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.data.suspicions import (
    at_wrong_edge,
    other_image,
    same_image,
    sampled_unused_bits,
    several_boxes,
    similar_names,
    summary,
    unused_bits,
    wrong_first_pixel,
)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "a b.jpg"
    path.touch()
    return path


@pytest.mark.parametrize(
    "named",
    [
        None,
        "",
        "a b.jpg",
        "A B.JPG",
        "wrong/folder/a b.jpg",
        r"C:\images\a b.jpg",
        "a%20b.jpg",
        "a b.png",
        "a b",
    ],
)
def test_a_name_of_the_same_image(image: Path, named: str | None) -> None:
    assert not list(other_image(named, image, image.with_suffix(".xml")))


@pytest.mark.parametrize("named", ["c.jpg", "x/c.jpg", "a.jpg", "n" * 400, "a\0.jpg"])
def test_a_name_of_another_image(image: Path, named: str) -> None:
    (found,) = other_image(named, image, image.with_suffix(".xml"))
    assert found.kind == "another image"
    assert found.file == str(image.with_suffix(".xml"))
    assert "the image that is read is 'a b.jpg'; no file of that name is beside" in found.message


def test_two_images_that_differ_only_in_their_suffix(image: Path) -> None:
    image.with_suffix(".png").touch()
    (found,) = other_image("a b.png", image, image.with_suffix(".xml"))
    assert "names 'a b.png', the image that is read is 'a b.jpg'; both files exist" in found.message


def test_several_boxes_are_named_once() -> None:
    places = ["object 1 (a)", "object 2 (b), box 1", "object 2 (b), box 2", "object 2 (b), box 3"]
    assert [one.object for one in several_boxes(places, Path("x.xml"))] == ["object 2 (b)"]


def test_one_file_under_two_ids() -> None:
    images = [(1, Path("i/a.jpg")), (2, Path("i/b.jpg")), (7, Path("i/./a.jpg"))]
    (found,) = same_image(images, Path("gt.json"))
    assert (found.file, found.message.split(";")[0]) == ("gt.json", "images 1 and 7 are one file, 'a.jpg'")


def test_names_that_are_nearly_the_same() -> None:
    names = [
        "cat",
        "Cat",
        "dog",
        "traffic light",
        "traffic\u00a0light",
        "straße",
        "cat ",
        "e\u0301",
        "\u00e9",
    ]
    found = [one.message.split(" are ")[0] for one in similar_names(names, "data")]
    pairs = [("cat", "Cat"), ("traffic light", "traffic\u00a0light"), ("cat", "cat "), ("e\u0301", "\u00e9")]
    assert found == [f"classes {first!r} and {second!r}" for first, second in pairs]
    assert not list(similar_names(["cat", "cats", "cat", "c a t"], "data"))


@pytest.mark.parametrize(
    ("written", "from_1", "from_0"),
    [
        ((0, 5, 20, 20), True, False),
        ((5, 0, 20, 20), True, False),
        ((1, 1, 99, 79), False, False),
        ((1, 1, 100, 79), False, True),
        ((0, 0, 99, 80), True, True),
    ],
)
def test_corners_that_the_other_way_of_counting_has(
    written: tuple[float, ...], from_1: bool, from_0: bool
) -> None:
    boxes, size = np.array([written, (5, 5, 9, 9)], float), np.array([80, 100], np.int32)
    for first_pixel, expected in ((1, from_1), (0, from_0)):
        for sizes in (size, np.stack([size, size])):
            assert at_wrong_edge(boxes, sizes, first_pixel).tolist() == [expected, False]


def test_the_line_about_the_first_pixel() -> None:
    assert not list(wrong_first_pixel(0, 9, 1, "train.txt"))
    (found,) = wrong_first_pixel(3, 9, 1, "train.txt")
    assert found.message.startswith("3 of 9 objects have a corner at 0")
    assert found.message.endswith("set data.first_pixel=0")


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("largest", [4095, 900, 65535])
def test_bits_that_an_image_does_not_use(tmp_path: Path, suffix: str, largest: int) -> None:
    values = np.zeros((9, 9, 3), np.uint16)
    values[4, 4] = largest
    path = tmp_path / f"a{suffix}"
    assert cv2.imwrite(str(path), values)
    found = [one.message for one in unused_bits(path)]
    assert len(found) == (largest < 2**12)
    assert all(str(largest) in message for message in found)


def test_images_of_8_bits_use_all(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "b.tif"):
        assert cv2.imwrite(str(tmp_path / name), np.full((9, 9, 3), 7, np.uint8))
    assert not list(sampled_unused_bits(tmp_path, [path.name for path in tmp_path.iterdir()]))


def test_one_line_for_each_kind(image: Path) -> None:
    found = [one for name in ("c", "d") for one in other_image(name, image, Path("x.xml"))]
    lines = summary([*found, *same_image([(1, image), (2, image)], Path("gt.json"))])
    assert len(lines) == 2
    assert lines[0].startswith("warning: another image: x.xml: <filename> names 'c'")
    assert lines[0].endswith("(1 more of this kind; tools/check_data.py lists all)")
