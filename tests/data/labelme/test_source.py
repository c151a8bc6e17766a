"""Data sets of LabelMe's files: where images are found, splits, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from detector.core.errors import InputError
from detector.data.annotation_cache import AnnotationCache
from detector.data.labelme.source import LabelMeSource
from tests.data.layouts import labelme_shape
from tests.data.yolo.test_source import draw

BOX = ((10, 5), (30, 20))


def annotate(path: Path, *labels: str, image: str | None = "", **more: Any) -> Path:
    """Write the file ``path``; ``image`` "" is the image beside it with its name, None gives none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "shapes": [labelme_shape(label, BOX, "rectangle") for label in labels],
        "imagePath": f"{path.stem}.jpg" if image == "" else image,
        "imageHeight": 40,
        "imageWidth": 80,
        **more,
    }
    path.write_text(json.dumps(content))
    return path


def images(source: LabelMeSource, split: str = "x") -> dict[str, str]:
    records = source.load(split, training=False).records
    return dict(zip(records.image_ids, records.keys, strict=True))


def test_images_beside_the_files_or_in_a_folder(tmp_path: Path) -> None:
    root = tmp_path / "set"
    for name in ("json/a.jpg", "photos/b.png", "photos/c.jpg", "photos/d.JPG", "json/deep/e.jpg"):
        draw(root / name)
    annotate(root / "json/a.json", "cat")
    annotate(root / "json/b.json", image="..\\photos\\b.png")
    annotate(root / "json/c.json", image="/home/somebody/pictures/c.jpg")
    annotate(root / "json/d.json", image=None)
    annotate(root / "json/deep/e.json", "dog", imageHeight=0)
    source = LabelMeSource(root, annotations="json", images="photos")
    assert images(source) == {
        "a": "json/a.jpg",
        "b": "photos/b.png",
        "c": "photos/c.jpg",
        "d": "photos/d.JPG",
        "deep/e": "json/deep/e.jpg",
    }
    assert source.class_names("x") == ("cat", "dog")
    assert source.load("x").records.sizes.tolist() == [[40, 80]] * 5


def test_split_files_and_folders_of_splits(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        draw(tmp_path / f"{name}.jpg")
        annotate(tmp_path / f"{name}.json", name)
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists/train.txt").write_text("c\na\n")
    source = LabelMeSource(tmp_path, splits="lists")
    assert images(source, "train") == {"c": "c.jpg", "a": "a.jpg"}
    assert source.class_names("train") == ("a", "b", "c"), "as in VOC layout, of all annotations"
    with pytest.raises(InputError, match="no such split"):
        source.load("test")
    by_folder = LabelMeSource(tmp_path.parent, annotations=f"{tmp_path.name[:-1]}{{split}}", images=".")
    assert len(by_folder.image_names(tmp_path.name[-1])) == 3


def test_a_file_that_cannot_be_read_can_be_left_out(tmp_path: Path) -> None:
    root, cache = tmp_path / "set", AnnotationCache(tmp_path / "cache")
    for name in ("a", "b"):
        draw(root / f"{name}.jpg")
    annotate(root / "a.json", "cat")
    (root / "b.json").write_text('{"shapes": [')
    kept = lambda names: [name for name in names if name.image_id != "b"]  # noqa: E731
    for source in (LabelMeSource(root), LabelMeSource(root, cache=cache), LabelMeSource(root, cache=cache)):
        with pytest.raises(InputError, match=r"b\.json: not valid JSON"):
            source.load("x")
        assert list(source.load("x", choose=kept).records.keys) == ["a.jpg"]
        assert source.class_names("x", choose=kept) == ("cat",)
    annotate(root / "b.json", "dog")
    assert LabelMeSource(root, cache=cache).class_names("x") == ("cat", "dog")


def test_what_is_refused(tmp_path: Path) -> None:
    draw(tmp_path / "set/a.jpg")
    source = LabelMeSource(tmp_path / "set")
    annotate(tmp_path / "set/a.json", "cat", image="../secret.jpg")
    with pytest.raises(InputError, match=r"image 'secret.jpg' is missing"):
        source.load("x")
    annotate(tmp_path / "set/a.json", "cat")
    annotate(tmp_path / "set/b.json", "cat", image="a.jpg")
    with pytest.raises(InputError, match=r"b\.json: 'a.jpg' is also the id of the image of .*a\.json"):
        source.load("x")
    (tmp_path / "set/b.json").unlink()
    (tmp_path / "set/lists").mkdir()
    (tmp_path / "set/lists/x.txt").write_text("a\nc\n")
    draw(tmp_path / "set/c.jpg")
    with pytest.raises(InputError, match="image id 'c' has no annotation"):
        LabelMeSource(tmp_path / "set", splits="lists").load("x")
    with pytest.raises(InputError, match="folder with one JSON file of LabelMe per image"):
        LabelMeSource(tmp_path / "nowhere").load("x")
