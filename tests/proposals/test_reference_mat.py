"""The reference selective search boxes of fast-rcnn's demo image, in every axis order and numbering."""

from __future__ import annotations

import tarfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import scipy.io
import torch
from numpy.typing import NDArray

from detector.core.errors import InputError
from detector.core.structures import ImageRecord, Targets
from detector.proposals.convert import convert
from detector.proposals.recall import best_overlaps
from tests.typed import save_arrays

DATA = Path(__file__).parents[2] / "data"
MAT = DATA / "voc_demo/proposals/000004_boxes.mat"
ANNOTATIONS = DATA / "voc_eval/voc2007_test_annotations.tar.xz"
pytestmark = pytest.mark.skipif(
    not (MAT.exists() and ANNOTATIONS.exists()), reason="data/voc_demo and data/voc_eval are not there"
)
# Best IoU with each object, from the data's own notes.
BEST = [0.82, 0.71, 0.61, 0.70, 0.57, 0.69, 0.52]


@pytest.fixture(scope="module")
def record() -> ImageRecord:
    with tarfile.open(ANNOTATIONS) as archive:
        file = next(archive.extractfile(member) for member in archive if member.name.endswith("/000004.xml"))
        assert file is not None
        root = ElementTree.parse(file).getroot()
    corners = [
        [float(node.findtext(f"bndbox/{name}", "")) for name in ("xmin", "ymin", "xmax", "ymax")]
        for node in root.iter("object")
    ]
    boxes = torch.tensor(corners) - torch.tensor([1.0, 1.0, 0.0, 0.0])
    height, width = (int(root.findtext(f"size/{name}", "")) for name in ("height", "width"))
    return ImageRecord(
        image_id="000004",
        path=DATA / "voc_demo/000004.jpg",
        height=height,
        width=width,
        targets=Targets.make(boxes, torch.ones(len(boxes), dtype=torch.int64)),
    )


@pytest.fixture(scope="module")
def reference() -> NDArray[np.uint16]:
    return np.asarray(scipy.io.loadmat(MAT)["boxes"])


def test_the_best_overlaps_are_the_published_ones(tmp_path: Path, record: ImageRecord) -> None:
    store = convert(MAT, "mat", tmp_path / "store", records=[record])
    assert len(store["000004"]) == 2888
    found = best_overlaps(record.targets.boxes, store["000004"]).tolist()
    assert [round(value, 2) for value in found] == BEST
    assert "xyxy_inclusive," in store.notes[0]


@pytest.mark.parametrize("axes", ["xyxy", "yxyx"])
@pytest.mark.parametrize("first_pixel", [0, 1])
def test_every_order_and_numbering_is_told_and_gives_the_same_boxes(
    tmp_path: Path, record: ImageRecord, reference: NDArray[np.uint16], axes: str, first_pixel: int
) -> None:
    boxes = reference + np.uint16(first_pixel)
    if axes == "yxyx":
        boxes = boxes[:, [1, 0, 3, 2]]
    scipy.io.savemat(tmp_path / "000004.mat", {"boxes": boxes}, do_compression=True)
    store = convert(tmp_path / "000004.mat", "mat", tmp_path / "store", records=[record])
    name = f"{axes}_inclusive" + ("_1" if first_pixel else "")
    assert f"box convention {name}," in store.notes[0]
    wanted = reference.astype(np.float32) + np.array([0, 0, 1, 1], np.float32)
    assert np.array_equal(store["000004"].boxes.numpy(), wanted)


def test_half_open_boxes_are_told_too(
    tmp_path: Path, record: ImageRecord, reference: NDArray[np.uint16]
) -> None:
    wanted = reference.astype(np.float32) + np.array([0, 0, 1, 1], np.float32)
    save_arrays(tmp_path / "boxes.npz", {"000004": wanted[:, [1, 0, 3, 2]]})
    store = convert(tmp_path / "boxes.npz", "npz", tmp_path / "store", records=[record], convention="auto")
    assert "box convention yxyx," in store.notes[0]
    assert np.array_equal(store["000004"].boxes.numpy(), wanted)


def test_the_wrong_order_given_by_hand_is_noticed(tmp_path: Path, record: ImageRecord) -> None:
    with pytest.raises(InputError, match=r"'000004': .* read as yxyx_inclusive, leave the image of 500 x"):
        convert(MAT, "mat", tmp_path / "store", records=[record], convention="yxyx_inclusive")
    assert not (tmp_path / "store").exists()


def test_without_annotated_images_the_convention_must_be_given(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be determined without annotated images.*xyxy_inclusive"):
        convert(MAT, "mat", tmp_path / "store")
    store = convert(MAT, "mat", tmp_path / "store", convention="xyxy_inclusive")
    assert len(store["000004"]) == 2888
