"""YOLO, LabelMe and Label Studio against the VOC reader: the same images and objects from each layout."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detector.data.annotation_cache import AnnotationCache
from detector.data.generated.dataset import generate_voc
from detector.data.image_set import ImageSetSource
from detector.data.labelme.source import LabelMeSource
from detector.data.labelstudio.source import LabelStudioSource
from detector.data.source import Dataset
from detector.data.voc.source import VocSource
from detector.data.yolo.source import YoloSource
from tests.data.layouts import SETTINGS, SPLITS, WRITERS, class_names

SOURCES = {"yolo": YoloSource, "labelme": LabelMeSource, "labelstudio": LabelStudioSource}
FORMATS = pytest.mark.parametrize("kind", sorted(SOURCES))


@pytest.fixture(scope="module")
def voc(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("oracle") / "voc"
    generate_voc(root, train_images=4, test_images=2, image_size=(64, 80), seed=5)
    empty = next((root / "Annotations").glob("*.xml"))
    text = empty.read_text()
    empty.write_text(text[: text.index("<object>")] + "</annotation>")
    return root


def source_of(kind: str, root: Path, **more: object) -> ImageSetSource:
    return SOURCES[kind](root, **SETTINGS[kind], **more)


def assert_same(found: Dataset, expected: Dataset, tolerance: float = 1e-4) -> None:
    ours = {path.name: record for record in found.records for path in (record.path,)}
    theirs = {path.name: record for record in expected.records for path in (record.path,)}
    assert ours.keys() == theirs.keys()
    for name, record in theirs.items():
        assert (ours[name].height, ours[name].width) == (record.height, record.width)
        labels = [found.classes[label - 1] for label in ours[name].targets.labels.tolist()]
        assert labels == [expected.classes[label - 1] for label in record.targets.labels.tolist()]
        np.testing.assert_allclose(ours[name].targets.boxes, record.targets.boxes, atol=tolerance)
        np.testing.assert_allclose(ours[name].targets.area, record.targets.area, rtol=1e-4)
        assert ours[name].path.read_bytes() == record.path.read_bytes()


@FORMATS
@pytest.mark.parametrize("training", [True, False])
def test_the_same_objects_as_in_voc_layout(kind: str, training: bool, voc: Path, tmp_path: Path) -> None:
    root = WRITERS[kind](voc, tmp_path / kind)
    for cache in (None, AnnotationCache(tmp_path / "cache"), AnnotationCache(tmp_path / "cache")):
        source = source_of(kind, root, cache=cache)
        classes = source.class_names("train", "test")
        assert classes == class_names(voc)
        for split, original in SPLITS.items():
            expected = VocSource(voc).load(original, classes, training=training)
            found = source.load(split, classes, training=training)
            assert_same(found, expected)
            assert found.annotated
            assert [name.key for name in source.image_names(split)] == list(found.records.keys)
