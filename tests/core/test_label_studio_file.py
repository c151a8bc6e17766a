"""The regions in exports of Label Studio, against boxes that are worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from detector.core.errors import InputError
from detector.core.label_studio_file import (
    read_regions,
    reference_parts,
)
from detector.core.shapes import Shape
from tests.data.layouts import label_studio_region

SIZE = (200, 400)


def studio(*regions: dict[str, Any], **policy: Any) -> list[Shape]:
    return read_regions({"result": list(regions)}, Path("file.txt"), "tasks[0]", **policy)[1]


def test_label_studio_regions() -> None:
    box = (40, 20, 120, 60)
    plain = label_studio_region(1, ["cat", "small"], box, SIZE)
    polygon = {**label_studio_region(2, [], box, SIZE), "type": "polygonlabels"}
    polygon["value"] = {"points": [[10, 10], [30, 20], [20, 50]], "polygonlabels": ["dog"]}
    ellipse = {**label_studio_region(3, [], box, SIZE), "type": "ellipselabels"}
    ellipse["value"] = {"x": 50, "y": 50, "radiusX": 10, "radiusY": 5, "ellipselabels": ["egg"]}
    region = {**label_studio_region(4, [], box, SIZE), "type": "rectangle"}
    label = {**region, "type": "labels", "value": {"labels": ["bird"]}}
    choice = {"id": "r4", "type": "choices", "from_name": "colour", "value": {"choices": ["red", "blue"]}}
    whole = {"id": "w", "type": "choices", "from_name": "weather", "value": {"choices": ["sun"]}}
    found = studio(plain, polygon, ellipse, region, label, choice, whole)
    assert [shape.labels for shape in found] == [("cat", "small"), ("dog",), ("egg",), ("bird",)]
    assert found[0].box == pytest.approx(box)
    assert found[1].box == pytest.approx((40, 20, 120, 100))
    assert len(found[1].polygons[0]) == 3
    assert found[2].box == pytest.approx((160, 90, 240, 110))
    assert found[3].attributes == {"colour": ["red", "blue"]}


@pytest.mark.parametrize("degrees", [15, 90, 200, -30])
def test_turned_rectangles_and_ellipses_of_label_studio(degrees: float) -> None:
    """Against OpenCV: the corners turned by a matrix, and the points of a turned ellipse."""
    x, y, width, height = 200.0, 100.0, 60.0, 30.0
    turned = label_studio_region(1, ["a"], (x, y, x + width, y + height), SIZE, rotation=degrees)
    matrix = cv2.getRotationMatrix2D((x, y), -degrees, 1)  # its angles are counter-clockwise
    corners = np.array([(x, y), (x + width, y), (x + width, y + height), (x, y + height)])
    expected = cv2.transform(corners[None], matrix)[0]
    ellipse = {**label_studio_region(2, [], (0, 0, 1, 1), SIZE), "type": "ellipselabels"}
    radii = {"radiusX": 10, "radiusY": 10}  # 40 and 20 pixels
    ellipse["value"] = {"x": 50, "y": 50, **radii, "rotation": degrees, "ellipselabels": ["egg"]}
    rectangle, egg = studio(turned, ellipse)
    assert rectangle.box == pytest.approx((*expected.min(0), *expected.max(0)))
    angles = np.linspace(0, 2 * math.pi, 20_000)
    points = np.stack((200 + 40 * np.cos(angles), 100 + 20 * np.sin(angles)), 1)
    points = cv2.transform(points[None], cv2.getRotationMatrix2D((200, 100), -degrees, 1))[0]
    assert egg.box == pytest.approx((*points.min(0), *points.max(0)), abs=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": {"x": 1, "y": 1, "width": 2, "height": 2}}, "has no label"),
        ({"value": {"x": 1, "y": 1, "width": 2, "rectanglelabels": ["a"]}}, "height is None"),
        ({"value": {"x": 1, "y": 1, "width": "2", "height": 2, "rectanglelabels": ["a"]}}, "width is '2'"),
        ({"value": {"rectanglelabels": "a"}}, "rectanglelabels is 'a'"),
        ({"original_width": None}, "no original_width"),
        ({"original_width": 1.5}, "whole number"),
        ({"image_rotation": 90}, "turned in Label Studio"),
        ({"type": "brushlabels"}, "a brushlabels has no box"),
        ({"type": "polygonlabels"}, "points is None"),
        ({"original_width": 30}, "the image is"),
    ],
)
def test_label_studio_regions_that_are_refused(change: dict[str, Any], message: str) -> None:
    regions = [label_studio_region(number, ["a"], (1, 2, 3, 4), SIZE) for number in (1, 2)]
    regions[1] |= change
    with pytest.raises(InputError, match=message) as caught:
        studio(*regions)
    assert "file.txt: tasks[0], region 2" in str(caught.value)


@pytest.mark.parametrize(
    ("reference", "parts"),
    [
        ("/data/upload/1/ab-x.jpg", ("data", "upload", "1", "ab-x.jpg")),
        ("/data/local-files/?d=set%2Fimages/x%20y.jpg", ("set", "images", "x y.jpg")),
        ("/data/local-files/?d=set/x%2520y.jpg", ("set", "x%20y.jpg")),
        ("https://host/a/b.jpg?token=1#x", ("a", "b.jpg")),
        ("s3://bucket/a/b.jpg", ("a", "b.jpg")),
        ("C:\\a\\b.jpg", ("a", "b.jpg")),
        ("../../etc/../b.jpg", ("etc", "b.jpg")),
        ("%2e%2e/%2e%2e/b.jpg", ("b.jpg",)),
        ("http://[", ()),
    ],
)
def test_paths_in_references(reference: str, parts: tuple[str, ...]) -> None:
    assert reference_parts(reference) == parts
