"""The COCO reader: ids with gaps, crowds, images without objects, malformed files."""

from __future__ import annotations

import copy
import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from detector.core.errors import InputError
from detector.data.coco.file import read_coco
from detector.data.coco.source import CocoSource
from detector.data.source import Dataset
from detector.data.targets import ObjectRules
from detector.evaluation.coco import score_coco_results
from detector.models.roi_sampler import trained_objects

COCO_EVAL = Path(__file__).parents[3] / "data" / "coco_eval" / "instances_val2014_100.json"

DATA: dict[str, Any] = {
    "info": {"year": 2014},
    "images": [
        {"id": 907, "file_name": "val/b.jpg", "height": 80, "width": 100},
        {"id": 12, "file_name": "a.png", "height": 60, "width": 90},
        {"id": 40, "file_name": "none.jpg", "height": 60, "width": 90},
    ],
    "categories": [{"id": 90, "name": "zebra"}, {"id": 7, "name": "ant"}],
    "annotations": [
        {"id": 5, "image_id": 12, "category_id": 90, "bbox": [1.5, 2, 10, 20.25], "area": 50.5, "iscrowd": 0},
        {"id": 3, "image_id": 907, "category_id": 7, "bbox": [0, 0, 100, 80], "iscrowd": 1, "area": 8000},
        {"id": 9, "image_id": 12, "category_id": 7, "bbox": [5, 5, 4, 4]},
    ],
}


def one_file(path: Path, images: Path, **settings: Any) -> CocoSource:
    """Return the source of one annotation file and one folder of images."""
    return CocoSource(images, annotations=str(path.absolute()), images=".", **settings)


def load(tmp_path: Path, data: Any, **settings: Any) -> Dataset:
    path = tmp_path / "instances.json"
    path.write_text(data if isinstance(data, str) else json.dumps(data))
    rules = {name: settings.pop(name) for name in ("invalid_boxes", "other_classes") if name in settings}
    source = one_file(path, tmp_path / "images", rules=ObjectRules(**rules))
    return source.load("any", **{"require_images": False, **settings})


def test_ids_with_gaps_become_labels_and_text(tmp_path: Path) -> None:
    data = load(tmp_path, DATA)
    assert data.classes == ("ant", "zebra")
    assert data.coco_ids == {"907": 907, "12": 12, "40": 40}
    crowd, two, none = data.records
    assert [record.image_id for record in data.records] == ["907", "12", "40"]
    assert (crowd.path, crowd.height, crowd.width) == (tmp_path / "images" / "val" / "b.jpg", 80, 100)
    assert crowd.targets.crowd.tolist() == [True]
    assert two.targets.boxes.tolist() == [[1.5, 2, 11.5, 22.25], [5, 5, 9, 9]]
    assert two.targets.labels.tolist() == [2, 1]
    assert two.targets.area.tolist() == [50.5, 16]
    assert two.targets.crowd.tolist() == two.targets.difficult.tolist() == [False, False]
    assert len(none.targets) == 0


def test_given_classes_decide_the_labels(tmp_path: Path) -> None:
    data = load(tmp_path, DATA, classes=["zebra", "cat", "ant"])
    assert data.records[1].targets.labels.tolist() == [1, 3]
    with pytest.raises(InputError, match=r"annotations\[1\], image 907: 'ant' is not among the classes"):
        load(tmp_path, DATA, classes=["zebra"])


def test_invalid_boxes_follow_the_policy(tmp_path: Path) -> None:
    data = copy.deepcopy(DATA)
    boxes = [[50, 5, -10, 9], [5, 5, 1, 9], [90, 70, 40, 40], [-1, 0, 50, 80]]
    data["annotations"] = [{"image_id": 907, "category_id": 7, "bbox": box} for box in boxes]
    dropped = load(tmp_path, data)
    assert dropped.records[0].targets.boxes.tolist() == [[0, 0, 49, 80]]
    assert dropped.dropped == {"swapped": 1, "under 2 px": 1, "outside": 1, "clipped": 1}
    kept = load(tmp_path, data, training=False)
    assert len(kept.records[0].targets) == 4
    with pytest.raises(InputError, match=r"annotations\[0\], image 907: box 50, 5, -10, 9 is swapped"):
        load(tmp_path, data, invalid_boxes="error")


def test_images_are_looked_for_and_give_a_missing_size(tmp_path: Path) -> None:
    data = {**DATA, "annotations": [], "images": [{"id": 1, "file_name": "a.png"}]}
    with pytest.raises(InputError, match="images does not exist"):
        load(tmp_path, data, require_images=True)
    (tmp_path / "images").mkdir()
    with pytest.raises(InputError, match=r"image 1 is missing: expected .*a\.png"):
        load(tmp_path, data, require_images=True)
    with pytest.raises(InputError, match="image 1 has no height and width"):
        load(tmp_path, data)
    unknown = load(tmp_path, data, training=False).records[0]
    assert (unknown.height, unknown.width) == (0, 0)
    cv2.imwrite(str(tmp_path / "images" / "a.png"), np.zeros((7, 9, 3), np.uint8))
    found = load(tmp_path, data, require_images=True).records[0]
    assert (found.height, found.width) == (7, 9)


def changed(section: str, number: int, **values: Any) -> dict[str, Any]:
    data = copy.deepcopy(DATA)
    data[section][number].update(values)
    return data


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("[]", "expected a COCO annotation file"),
        ("{", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"images": [NaN]}', "NaN is not a JSON number"),
        ('{"images": [' + "1" * 5000 + "]}", "not valid JSON"),
        ({"images": []}, "'categories' is missing"),
        ({**DATA, "images": []}, "image_id is 12, which is not an id in 'images'"),
        ({**DATA, "images": [], "annotations": []}, "no image in 'images'"),
        (changed("images", 1, id="12"), r"images\[1\]: id is '12'; expected a whole number"),
        (changed("images", 1, id=2**63), r"images\[1\]: id is 9223372036854775808; expected a whole number"),
        (changed("categories", 1, id=-(10**30)), r"categories\[1\]: id is -1000"),
        (changed("images", 1, id=907), r"images\[1\]: id 907 is also that of images\[0\]"),
        (changed("images", 1, file_name="../a.png"), r"images\[1\]: file_name '\.\./a\.png' leads out"),
        (changed("images", 1, file_name="/etc/passwd"), "leads out of the data root"),
        (changed("images", 1, file_name="\ud800"), "leads out of the data root or is not a file name"),
        (changed("images", 1, file_name=None), "file_name is None"),
        (changed("images", 1, voc_id="../x"), "voc_id '../x' leads out"),
        (changed("images", 1, voc_id="40"), "two images have the same 'voc_id'"),
        (changed("images", 1, height=-5), r"images\[1\]: height is -5"),
        (changed("images", 1, width=1.5), r"images\[1\]: width is 1.5"),
        (changed("categories", 1, name=""), r"categories\[1\]: name is ''"),
        (changed("categories", 1, name="zebra"), "categories 90 and 7 are both named 'zebra'"),
        (changed("annotations", 1, bbox=[1, 2, 3]), r"annotations\[1\]: bbox is \[1, 2, 3\]"),
        (changed("annotations", 1, bbox=[1, 2, 3, 1e30]), r"annotations\[1\]: bbox is"),
        (changed("annotations", 1, bbox=[1, 2, 3, "4"]), r"annotations\[1\]: bbox is"),
        (changed("annotations", 1, image_id=13), r"annotations\[1\]: image_id is 13, which is not an id"),
        (changed("annotations", 1, category_id=8), r"annotations\[1\]: category_id is 8"),
        (changed("annotations", 1, iscrowd=2), r"annotations\[1\]: iscrowd is 2"),
        (changed("annotations", 1, area=-1), r"annotations\[1\]: area is -1"),
        (changed("annotations", 1, area="big"), r"annotations\[1\]: area is 'big'"),
    ],
    ids=range(30),
)
def test_a_malformed_file_is_named(tmp_path: Path, data: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        load(tmp_path, data)
    assert str(error.value).startswith(str(tmp_path / "instances.json"))


@pytest.mark.parametrize("far", [10**9, 10**18])
@pytest.mark.parametrize(
    "segmentation",
    [
        {"size": [10**9, 10**9], "counts": [10**9] * 8},
        {"size": [10**9, 10**9], "counts": "o" * 1000},
        [[10**9, 0, 10**9, 10**9, 0, 10**9]],
    ],
)
def test_huge_ids_and_masks_take_no_memory(tmp_path: Path, far: int, segmentation: Any) -> None:
    """Nothing is indexed by an id, and no mask is ever drawn."""
    data = copy.deepcopy(DATA)
    for entry in data["images"]:
        entry["id"] += far
    for entry in data["categories"]:
        entry["id"] += far
    for number, entry in enumerate(data["annotations"]):
        entry["id"] = far + number
        entry["image_id"] += far
        entry["category_id"] += far
        entry["segmentation"] = segmentation
    file = tmp_path / "instances.json"
    file.write_text(json.dumps(data))
    results = [
        {key: entry[key] for key in ("image_id", "category_id", "bbox")}
        | {"score": 0.5, "segmentation": segmentation}
        for entry in data["annotations"]
    ]
    (tmp_path / "results.json").write_text(json.dumps(results))
    tracemalloc.start()
    loaded = one_file(file, tmp_path).load("any", require_images=False, training=False)
    score_coco_results(tmp_path / "results.json", read_coco(file)).compute()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * 2**20
    assert [record.image_id for record in loaded.records] == [str(entry["id"]) for entry in data["images"]]


def test_empty_objects_without_end_are_refused_unparsed(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'{"images": [' + b"{}," * 2**25 + b"{}]}")
    start = time.monotonic()
    with pytest.raises(InputError, match=r"a\.json: JSON with over 33554432 objects and lists is refused"):
        read_coco(tmp_path / "a.json")
    assert time.monotonic() - start < 5


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.json: no such file"):
        one_file(tmp_path / "nowhere.json", tmp_path).load("any")


@pytest.mark.skipif(not COCO_EVAL.is_file(), reason="data/coco_eval is not there")
def test_the_demo_of_the_coco_api() -> None:
    data = one_file(COCO_EVAL, Path("images")).load("any", require_images=False, training=False)
    assert len(data.records) == 100
    assert len(data.classes) == 80
    assert sum(len(record.targets) for record in data.records) == 839
    entries = json.loads(COCO_EVAL.read_text())["annotations"]
    crowds = sum(int(record.targets.crowd.sum()) for record in data.records)
    assert crowds == sum(entry["iscrowd"] for entry in entries)
    assert crowds > 0


def one_image(**more: Any) -> dict[str, Any]:
    thing = {"image_id": 1, "category_id": 1, "bbox": [5, 5, 20, 20]}
    return {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 60, "width": 90}],
        "categories": [{"id": 1, "name": "cat"}],
        "annotations": [thing, {**thing, **more}],
    }


@pytest.mark.parametrize(
    ("flags", "difficult", "crowd"),
    [
        ({"ignore": 1}, True, True),
        ({"ignore": True, "iscrowd": 1}, True, True),
        ({"difficult": 1}, True, False),
        ({"difficult": 1, "iscrowd": 1}, True, False),
        ({"iscrowd": 1}, False, True),
        ({"ignore": 0, "difficult": 0}, False, False),
    ],
)
def test_flags(tmp_path: Path, flags: dict[str, int], difficult: bool, crowd: bool) -> None:
    targets = load(tmp_path, one_image(**flags)).records[0].targets
    assert targets.difficult.tolist() == [False, difficult]
    assert targets.crowd.tolist() == [False, crowd]
    assert len(trained_objects(targets, use_difficult=True)) == 2 - crowd


@pytest.mark.parametrize("name", ["half \ud800", " ", "", None])
def test_a_category_needs_a_name_that_can_be_written(tmp_path: Path, name: str | None) -> None:
    data = one_image()
    data["categories"][0]["name"] = name
    with pytest.raises(InputError, match=r"categories\[0\]: name is") as error:
        load(tmp_path, data)
    str(error.value).encode()


def draw(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), np.zeros((60, 90, 3), np.uint8))


@pytest.mark.parametrize(
    ("written", "there"),
    [
        (r"sub\a b.jpg", "sub/a b.jpg"),
        ("sub/a%20b.jpg", "sub/a b.jpg"),
        (r"sub\a%20b.jpg", "sub/a b.jpg"),
        ("a%20b.jpg", "a%20b.jpg"),  # the name as it is written comes first
        ("100%.jpg", "100%.jpg"),
    ],
)
def test_names_as_other_tools_write_them(tmp_path: Path, written: str, there: str) -> None:
    draw(tmp_path / "images" / there)
    data = one_image()
    data["images"][0]["file_name"] = written
    (record,) = load(tmp_path, data, require_images=True).records
    assert (record.path, record.key) == (tmp_path / "images" / there, there)


@pytest.mark.parametrize("written", ["%2e%2e/a.jpg", "%2Fa.jpg", "..%5Ca.jpg", "sub%5C..%5C..%5Ca.jpg"])
def test_no_decoded_name_leaves_the_folder(tmp_path: Path, written: str) -> None:
    draw(tmp_path / "a.jpg")
    (tmp_path / "images").mkdir()
    data = one_image()
    data["images"][0]["file_name"] = written
    with pytest.raises(InputError, match=r"image 1 is missing: expected|leads out of the data root"):
        load(tmp_path, data, require_images=True)


def test_a_missing_image_that_is_near_is_pointed_to(tmp_path: Path) -> None:
    draw(tmp_path / "train" / "a.jpg")
    (tmp_path / "images").mkdir()
    data = one_image()
    data["images"][0]["file_name"] = "train/a.jpg"
    with pytest.raises(
        InputError, match=r"images/train/a\.jpg; it is in .*: set data\.images to that folder"
    ):
        load(tmp_path, data, require_images=True)


def test_one_file_under_two_ids_and_similar_names(tmp_path: Path) -> None:
    data = one_image()
    data["images"].append({**data["images"][0], "id": 2})
    data["categories"].append({"id": 2, "name": "Cat"})
    found = load(tmp_path, data).suspicions
    assert [one.kind for one in found] == ["one file twice", "similar classes"]
    assert "images 1 and 2 are one file, 'a.jpg'" in found[0].message


def test_a_file_without_annotations(tmp_path: Path) -> None:
    data = one_image()
    del data["annotations"]
    with pytest.raises(InputError, match="'annotations' is missing"):
        load(tmp_path, data)
    found = load(tmp_path, data, unannotated=True)
    assert not found.annotated
    assert (found.classes, [len(one.targets) for one in found.records]) == (("cat",), [0])
    assert load(tmp_path, one_image(), unannotated=True).annotated


def test_categories_that_are_not_asked_for(tmp_path: Path) -> None:
    data = load(tmp_path, DATA, classes=["zebra"], other_classes="ignore")
    assert [one.targets.labels.tolist() for one in data.records] == [[], [1], []]
    assert data.dropped == {"of other classes": 2}
