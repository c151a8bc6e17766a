"""Several labels per object: names in VOC XML, categories in COCO files, attributes of any format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from detector.core.errors import InputError
from detector.data.annotation_cache import AnnotationCache, CachedColumns, Entry
from detector.data.attributes import AttributeColumns, attribute_labels
from detector.data.coco.columns import CocoColumns, decode, read_columns
from detector.data.coco.source import CocoSource
from detector.data.convert import coco_to_voc, voc_to_coco
from detector.data.file_columns import WITH_ATTRIBUTES, FileColumns
from detector.data.labelme.source import LabelMeSource
from detector.data.source import Dataset, DataSource
from detector.data.voc.source import VocSource
from tests.data.labelme.test_source import annotate
from tests.data.layouts import labelme_shape

WANTED = ("colour", "occluded")
LABELS = {
    "cat": [[0.0, 0.0, 10.0, 20.0]],
    "pet": [[0.0, 0.0, 10.0, 20.0]],
    "dog": [[5.0, 5.0, 30.0, 30.0]],
    "colour=red": [[0.0, 0.0, 10.0, 20.0]],
    "colour=blue": [[5.0, 5.0, 30.0, 30.0]],
    "occluded": [[5.0, 5.0, 30.0, 30.0]],
}
"""The boxes of every label in each of the data sets below."""


def xml_attributes(**values: str) -> str:
    each = [
        f"<attribute><name>{name}</name><value>{value}</value></attribute>" for name, value in values.items()
    ]
    return f"<attributes>{''.join(each)}</attributes>"


def xml_object(box: tuple[int, ...], names: tuple[str, ...], **values: str) -> str:
    corners = zip(("xmin", "ymin", "xmax", "ymax"), (box[0] + 1, box[1] + 1, *box[2:]), strict=True)
    inside = "".join(f"<{corner}>{value}</{corner}>" for corner, value in corners)
    every = "".join(f"<name>{name}</name>" for name in names)
    return f"<object>{every}<bndbox>{inside}</bndbox>{xml_attributes(**values)}</object>"


def voc(root: Path) -> Path:
    size = "<size><width>60</width><height>40</height><depth>3</depth></size>"
    objects = (
        xml_object((0, 0, 10, 20), ("cat", "pet"), colour="red", occluded="False", rotation="0.0"),
        xml_object((5, 5, 30, 30), ("dog",), colour="blue", occluded="true"),
    )
    for folder in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    (root / "Annotations/a.xml").write_text(f"<annotation>{size}{''.join(objects)}</annotation>")
    (root / "ImageSets/Main/train.txt").write_text("a\n")
    return root


def coco(root: Path) -> Path:
    root.mkdir()
    first = {"id": 1, "image_id": 1, "category_ids": [1, 3], "category_id": 3, "bbox": [0, 0, 10, 20]}
    second = {"id": 2, "image_id": 1, "category_id": 2, "bbox": [5, 5, 25, 25]}
    data = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 40, "width": 60}],
        "categories": [{"id": number, "name": name} for number, name in ((1, "cat"), (2, "dog"), (3, "pet"))],
        "annotations": [
            {**first, "attributes": {"colour": "red", "occluded": False, "rotation": 0.0}},
            {**second, "attributes": {"colour": "blue", "occluded": True}},
        ],
    }
    (root / "train.json").write_text(json.dumps(data))
    return root


def labelme(root: Path) -> Path:
    """LabelMe's shapes have one label, so the cat is drawn twice, as people do."""
    cat, pet = (
        labelme_shape(name, [(0, 0), (10, 20)], "rectangle", attributes=attributes)
        for name, attributes in (("cat", {}), ("pet", {"colour": "red"}))
    )
    flags = {"occluded": True, "other": False}
    dog = labelme_shape("dog", [(5, 5), (30, 30)], "rectangle", attributes={"colour": "blue"}, flags=flags)
    annotate(root / "a.json", shapes=[cat, pet, dog])
    return root


def source_of(kind: str, root: Path, **more: Any) -> DataSource:
    match kind:
        case "voc":
            return VocSource(root, **more)
        case "coco":
            return CocoSource(root, annotations="{split}.json", images=".", **more)
        case _:
            return LabelMeSource(root, **more)


MAKERS = {"voc": voc, "coco": coco, "labelme": labelme}


def boxes_by_label(dataset: Dataset) -> dict[str, list[list[float]]]:
    (record,) = dataset.records
    targets = record.targets
    return {
        name: targets.boxes[targets.labels == label].tolist()
        for label, name in enumerate(dataset.classes, start=1)
    }


@pytest.mark.parametrize("kind", sorted(MAKERS))
def test_a_row_for_each_label_with_the_same_box(kind: str, tmp_path: Path) -> None:
    root = MAKERS[kind](tmp_path / "set")
    plain = {name: boxes for name, boxes in LABELS.items() if name in ("cat", "dog", "pet")}
    for cache in (None, AnnotationCache(tmp_path / "cache"), AnnotationCache(tmp_path / "cache")):
        source = source_of(kind, root, cache=cache)
        assert boxes_by_label(source.load("train", require_images=False)) == plain
        source = source_of(kind, root, cache=cache, attributes=WANTED)
        dataset = source.load("train", require_images=False)
        assert boxes_by_label(dataset) == LABELS
        assert set(source.class_names("train")) == set(LABELS)
        assert source.class_names("train") == dataset.classes
        assert len(dataset.records.objects) == 6
        assert dataset.records[0].targets.area.tolist().count(200.0) == 3


def test_an_entry_of_an_earlier_version_is_used_only_without_attributes(tmp_path: Path) -> None:
    """Such an entry has no attributes although the files have some."""
    cache = AnnotationCache(tmp_path / "cache")
    none = {name: getattr(AttributeColumns(), name) for name in AttributeColumns.__slots__}
    for kind, place in (("voc", "Annotations"), ("coco", "train.json")):
        root = MAKERS[kind](tmp_path / kind)
        source = source_of(kind, root, cache=cache)
        source.load("train", require_images=False)
        columns: type[CachedColumns] = FileColumns if kind == "voc" else CocoColumns
        entry = cache.read((root / place).resolve(), columns)
        assert entry is not None
        assert entry.content.endswith(WITH_ATTRIBUTES)
        values = {name: getattr(entry.columns, name) for name in entry.columns.arrays() if "." not in name}
        texts = {name.partition(".")[0] for name in entry.columns.arrays() if "." in name}
        values |= {name: getattr(entry.columns, name) for name in texts}
        old = Entry(entry.content.removesuffix(WITH_ATTRIBUTES), columns(**{**values, **none}))
        cache.write((root / place).resolve(), old)
        assert cache.place((root / place).resolve()).read_bytes().find(b"attribute_rows") < 0
        plain = source.load("train", require_images=False)
        assert set(boxes_by_label(plain)) == {"cat", "dog", "pet"}
        asked = source_of(kind, root, cache=cache, attributes=WANTED)
        assert boxes_by_label(asked.load("train", require_images=False)) == LABELS


def test_only_chosen_files_and_classes(tmp_path: Path) -> None:
    root = voc(tmp_path / "set")
    other = (root / "Annotations/a.xml").read_text().replace("red", "green").replace("cat", "cow")
    (root / "Annotations/b.xml").write_text(other)
    (root / "ImageSets/Main/train.txt").write_text("b\na\n")
    cache = AnnotationCache(tmp_path / "cache")
    for one in (None, cache, cache):
        source = VocSource(root, attributes=("colour",), cache=one)
        dataset = source.load("train", require_images=False)
        second, first = dataset.records
        names = [dataset.classes[label - 1] for label in second.targets.labels.tolist()]
        assert names == ["cow", "pet", "colour=green", "dog", "colour=blue"]
        names = [dataset.classes[label - 1] for label in first.targets.labels.tolist()]
        assert names == ["cat", "pet", "colour=red", "dog", "colour=blue"]
        kept = lambda found: [name for name in found if name.image_id == "a"]  # noqa: E731
        assert "colour=green" not in source.class_names("train", choose=kept)
        known = [name for name in dataset.classes if name != "colour=red"]
        with pytest.raises(InputError, match=r"object 1 \(pet\), attribute colour: 'colour=red' is not"):
            source.load("train", known, choose=kept, require_images=False)


def test_values_that_give_labels() -> None:
    values = {
        "a": True,
        "b": False,
        "c": None,
        "d": " x ",
        "e": 3,
        "f": 0.5,
        "g": ["u", "v"],
        "h": "TRUE",
        "i": "",
    }
    labels = [label for _, label in attribute_labels(values)]
    assert labels == ["a", "d=x", "e=3", "f=0.5", "g=u", "g=v", "h"]
    assert attribute_labels([1]) == attribute_labels(None) == ()


def test_a_value_that_gives_no_label_is_an_error_where_it_is_asked_for(tmp_path: Path) -> None:
    root = coco(tmp_path / "set")
    data = json.loads((root / "train.json").read_text())
    data["annotations"][1]["attributes"]["shape"] = {"sides": 3}
    (root / "train.json").write_text(json.dumps(data))
    assert len(source_of("coco", root, attributes=WANTED).load("train", require_images=False).records) == 1
    with pytest.raises(InputError, match=r"annotations\[1\], image 1, attribute shape is an object"):
        source_of("coco", root, attributes=("shape",)).load("train", require_images=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_ids": []}, r"category_ids is \[\]; expected a list of ids, at least one"),
        ({"category_ids": 1}, "category_ids is 1"),
        ({"category_ids": [1, 9]}, "category_ids is 9, which is not an id"),
        ({"category_ids": [1, 2]}, "category_id is 3, which is not among category_ids"),
        ({"category_ids": None, "category_id": None}, "category_id is None"),
    ],
)
def test_categories_that_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    root = coco(tmp_path / "set")
    data = json.loads((root / "train.json").read_text())
    data["annotations"][0] |= change
    (root / "train.json").write_text(json.dumps(data))
    assert decode((root / "train.json").read_bytes()) is None
    with pytest.raises(InputError, match=rf"annotations\[0\]: {message}"):
        read_columns(root / "train.json", None)


def test_ground_truth_for_cocos_metrics(tmp_path: Path) -> None:
    """pycocotools gets an annotation for each label, and the area that the file gives."""
    source = source_of("coco", coco(tmp_path / "set"), attributes=WANTED)
    dataset = source.load("train", require_images=False)
    truth = source.coco_annotations("train", dataset.classes, "train")
    assert truth is not None
    oracle = COCO()
    oracle.dataset = truth
    oracle.createIndex()
    found = {
        oracle.cats[key]["name"]: [one["bbox"] for one in oracle.loadAnns(oracle.getAnnIds(catIds=[key]))]
        for key in oracle.getCatIds()
    }
    for name, boxes in LABELS.items():
        expected = [[x1, y1, x2 - x1, y2 - y1] for x1, y1, x2, y2 in boxes]
        assert found[name] == expected
    assert len({one["id"] for one in truth["annotations"]}) == 6
    plain = source_of("coco", tmp_path / "set")
    truth = plain.coco_annotations("train", ["cat", "dog", "pet"], "train")
    assert truth is not None
    assert len(truth["annotations"]) == 3
    with pytest.raises(InputError, match="no category is named 'colour=blue'"):
        plain.coco_annotations("train", dataset.classes, "train")


def test_both_ways_of_conversion(tmp_path: Path) -> None:
    root = voc(tmp_path / "voc")
    data = voc_to_coco(root, "train", tmp_path / "coco.json")
    assert data["annotations"][0]["category_ids"] == [1, 3]
    assert data["annotations"][0]["attributes"] == {"colour": "red", "occluded": "False", "rotation": "0.0"}
    assert "category_ids" not in data["annotations"][1]
    coco_to_voc(tmp_path / "coco.json", tmp_path / "again", "train")
    loaded = [
        VocSource(one, attributes=WANTED).load("train", require_images=False)
        for one in (root, tmp_path / "again")
    ]
    assert boxes_by_label(loaded[0]) == boxes_by_label(loaded[1]) == LABELS
    plain = "".join((root / "Annotations/a.xml").read_text().split())
    assert "".join((tmp_path / "again/Annotations/a.xml").read_text().split()) == plain
    del data["annotations"][0]["voc"]
    data["annotations"][0]["attributes"] |= {"occluded": True, "many": ["u", "v"], "none": None}
    (tmp_path / "edited.json").write_text(json.dumps(data))
    coco_to_voc(tmp_path / "edited.json", tmp_path / "edited", "train")
    source = VocSource(tmp_path / "edited", attributes=("occluded", "many", "none"))
    names = set(source.class_names("train"))
    assert names == {"cat", "dog", "pet", "occluded", "many=u", "many=v"}


def test_many_objects_against_an_obvious_reference(tmp_path: Path) -> None:
    """Random categories and attributes of 300 annotations, through the columns and one by one."""
    rng = np.random.default_rng(0)
    root = tmp_path / "set"
    root.mkdir()
    values = [True, False, "x", "y", 3, None, ["x", "z"]]
    data: dict[str, list[Any]] = {
        "images": [{"id": n, "file_name": f"{n}.jpg", "height": 40, "width": 60} for n in range(20)],
        "categories": [{"id": n, "name": f"c{n}"} for n in range(4)],
        "annotations": [],
    }
    expected: dict[int, list[tuple[str, list[float]]]] = {n: [] for n in range(20)}
    for number in range(300):
        image, x = int(rng.integers(20)), float(rng.integers(30))
        kinds = rng.permutation(4)[: rng.integers(1, 4)].tolist()
        attributes = {name: values[rng.integers(len(values))] for name in ("a", "b") if rng.random() < 0.5}
        entry = {"id": number, "image_id": image, "category_ids": kinds, "bbox": [x, 1, 10, 10]}
        data["annotations"].append({**entry, **({"attributes": attributes} if attributes else {})})
        labels = [f"c{kind}" for kind in kinds]
        labels += [label for name, label in attribute_labels(attributes) if name == "a"]
        expected[image] += [(label, [x, 1, x + 10, 11]) for label in labels]
    (root / "train.json").write_text(json.dumps(data))
    assert decode((root / "train.json").read_bytes()) is not None
    dataset = source_of("coco", root, attributes=("a",)).load("train", require_images=False)
    assert dataset.classes == ("c0", "c1", "c2", "c3", "a", "a=3", "a=x", "a=y", "a=z")
    for record in dataset.records:
        names = [dataset.classes[label - 1] for label in record.targets.labels.tolist()]
        want = expected[int(record.image_id)]
        assert names == [label for label, _ in want]
        assert torch.equal(record.targets.boxes, torch.tensor([box for _, box in want]).reshape(-1, 4))
