"""Regions with masks, and regions in parts of the image: the same ones through every format into a store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from detector.core.errors import InputError
from detector.core.structures import ImageRecord, Proposals, Targets
from detector.factory.proposals import file_override
from detector.proposals.convert import convert
from detector.proposals.inspection import describe, inspect
from detector.proposals.readers import read_images
from detector.proposals.readers.raw_images import RawImage
from detector.proposals.recognition import guess_format
from tests.proposals import formats
from tests.proposals.readers.region_files import (
    SCORED,
    SIZES,
    WITH_BOXES,
    WITH_MASKS,
    Regions,
    Writer,
    brush_encoded,
    cellpose_content,
    coco_content,
    dumped,
    label_writer,
    labelme_content,
    make_regions,
    png_text,
    runs_of,
    sam_entries,
    sam_object,
    task,
    write_coco_annotations,
    write_label_pngs,
    write_sa1b,
    write_voc,
    write_yolo,
)


@pytest.fixture
def regions() -> dict[str, Regions]:
    return make_regions()


@pytest.fixture
def records() -> list[ImageRecord]:
    found = make_regions()
    return [
        ImageRecord(
            image_id=name,
            key=f"images/{name}.jpg",
            path=Path(f"{name}.jpg"),
            height=size[0],
            width=size[1],
            targets=Targets.make(
                torch.from_numpy(found[name].boxes.astype(np.float32)), torch.ones(3, dtype=torch.int64)
            ),
        )
        for name, size in SIZES.items()
    ]


def dense(found: Proposals) -> np.ndarray[Any, Any]:
    assert found.masks is not None
    rles = [{"size": list(found.masks.size), "counts": counts} for counts in found.masks.counts]
    return coco_mask.decode(rles).transpose(2, 0, 1).astype(bool)


def only(source: Path, file_format: str) -> RawImage:
    [image] = read_images(source, file_format)
    return image


def drawn(polygon: list[float], size: tuple[int, int]) -> bytes:
    """The oracle: COCO's own."""
    counts: bytes = coco_mask.merge(coco_mask.frPyObjects([polygon], *size))["counts"]
    return counts


@pytest.mark.parametrize(("file_format", "write"), [*WITH_MASKS, *WITH_BOXES])
def test_every_format_gives_the_same_regions(
    tmp_path: Path, regions: dict[str, Regions], records: list[ImageRecord], file_format: str, write: Writer
) -> None:
    source = write(tmp_path, regions)
    assert guess_format(source) == file_format
    assert f'"format": "{file_format}"' in file_override(source)
    summary = inspect(source)
    with_masks = (file_format, write) in WITH_MASKS
    assert (summary["format"], summary["boxes"], summary["masks"]) == (file_format, 6, 6 * with_masks)
    assert any("masks: 6" in line for line in describe(summary)) == with_masks
    store = convert(source, file_format, tmp_path / "store", records=records)
    for record in records:
        found, wanted = store[record.key], regions[record.image_id]
        assert np.allclose(found.boxes, wanted.boxes, rtol=0, atol=0 if with_masks else 1e-4)
        if with_masks:
            assert np.array_equal(dense(found), wanted.masks)
        else:
            assert found.masks is None
        if file_format in SCORED:
            assert found.scores is not None
            assert np.allclose(found.scores, wanted.scores)
        else:
            assert found.scores is None
    assert inspect(store.path)["masks"] == 6 * with_masks


@pytest.mark.parametrize(("file_format", "write"), [*formats.SCORED, ("mat", formats.write_mat)])
def test_the_older_formats_are_not_mistaken(tmp_path: Path, file_format: str, write: formats.Writer) -> None:
    boxes = formats.make_boxes(formats.make_records(["000004", "000012"]), 6)
    assert guess_format(write(tmp_path, boxes)) == file_format


def test_the_order_of_a_file_of_coco_does_not_matter(tmp_path: Path, regions: dict[str, Regions]) -> None:
    """With the annotations before the images, in several blocks, and with other sections between them."""
    content = coco_content(regions)
    turned = {"filler": ['}]\\"' * 100_000] * 3, **dict(reversed(content.items()))}
    source = dumped(tmp_path / "turned.json", turned)
    assert guess_format(source) == "coco_annotations"
    for found, wanted in zip(read_images(source, "coco_annotations"), regions.values(), strict=True):
        assert np.array_equal(dense(Proposals(boxes=torch.zeros(3, 4), masks=found.masks)), wanted.masks)  # type: ignore[arg-type]


def test_polygons_of_coco(tmp_path: Path) -> None:
    outline = [2.2, 3.1, 30.4, 5.9, 20.0, 33.3]
    content: dict[str, Any] = {
        "images": [{"id": "x", "file_name": "a.jpg", "height": 40, "width": 60}],
        "annotations": [
            {"image_id": "x", "bbox": [2.2, 3.1, 28.2, 30.2], "segmentation": [outline], "score": 0.25},
            {"image_id": "x", "bbox": [5.5, 5.5, 0.2, 0.2], "segmentation": [[5.5, 5.5, 5.7, 5.5, 5.7, 5.7]]},
            {"image_id": "x", "bbox": [1, 2, 3, 4]},
        ],
    }
    image = only(dumped(tmp_path / "a.json", content), "coco_annotations")
    assert image.masks is not None
    assert image.masks.present.tolist() == [True, False, False]  # one covers no pixel, one is a box only
    assert image.masks.counts[0] == drawn(outline, (40, 60))  # type: ignore[union-attr]
    assert image.scores is not None
    assert np.array_equal(image.scores, [0.25, np.nan, np.nan], equal_nan=True)
    del content["annotations"][0]["score"]
    store = convert(dumped(tmp_path / "a.json", content), "coco_annotations", tmp_path / "store")
    assert store["a.jpg"].boxes[2].tolist() == [1, 2, 4, 6]
    assert store["a.jpg"].boxes[0].tolist() == image.masks.boxes()[0].tolist()  # type: ignore[union-attr]
    assert store.notes[0].startswith("1 regions have masks")


@pytest.mark.parametrize("confidence", ["", " 0.75"])
def test_polygons_of_yolo(tmp_path: Path, records: list[ImageRecord], confidence: str) -> None:
    (tmp_path / "labels").mkdir()
    lines = f"3 0.1 0.2 0.7 0.3 0.5 0.9{confidence}\n0 0.5 0.5 0.2 0.1{confidence}\n"
    (tmp_path / "labels/a.txt").write_text(lines)
    assert guess_format(tmp_path) == "yolo"
    assert inspect(tmp_path)["masks"] == 1
    store = convert(tmp_path / "labels", "yolo", tmp_path / "store", records=records[:1])
    found = store["images/a.jpg"]
    assert found.masks is not None
    assert found.masks.counts == (drawn([6, 8, 42, 12, 30, 36], (40, 60)), b"")
    assert found.boxes[1].tolist() == pytest.approx([24, 18, 36, 22])
    assert (found.scores is None) == (confidence == "")


@pytest.mark.parametrize("folder", ["labels", "labels/train", "train/labels/deep"])
def test_keypoints_of_yolo_are_no_polygons(tmp_path: Path, folder: str) -> None:
    labels = tmp_path / folder
    labels.mkdir(parents=True)
    (labels / "a.txt").write_text(
        "0 0.5 0.5 0.2 0.1 0.4 0.5 1 0.6 0.5 0\n0 0.5 0.5 0.2 0.1 0.4 0.5 1 0 0 0 0.25\n"
    )
    assert len(only(labels, "yolo").masks) == 2  # type: ignore[arg-type]
    (tmp_path / "data.yaml").write_text("kpt_shape: [2, 3]\nnames: [person]\n")
    assert guess_format(labels) == "yolo"
    for source in (labels, labels / "a.txt"):
        image = only(source, "yolo")
        assert image.masks is None
        assert image.boxes.tolist() == [[0.5, 0.5, 0.2, 0.1]] * 2
        assert image.scores is not None
        assert np.array_equal(image.scores, [np.nan, 0.25], equal_nan=True)
    (tmp_path / "data.yaml").write_text("kpt_shape: 2\n")
    with pytest.raises(InputError, match=r"data\.yaml: kpt_shape is 2"):
        only(labels, "yolo")


def test_shapes_of_labelme(tmp_path: Path) -> None:
    crop = np.array([[0, 1, 1], [1, 1, 0]], bool)
    shapes: list[dict[str, Any]] = [
        {"shape_type": "polygon", "points": [[2, 3], [30, 5], [20, 33]]},
        {"shape_type": "rectangle", "points": [[5, 9], [1, 2]]},
        {"shape_type": "circle", "points": [[20, 20], [20, 30]]},
        {"shape_type": "point", "points": [[20, 20]]},
        {"shape_type": "mask", "points": [[4, 6], [6, 7]], "mask": png_text(crop)},
        {"shape_type": None, "points": [[40, 3], [50, 5], [45, 20]], "group_id": 1},
        {"shape_type": "polygon", "points": [[40, 30], [50, 35], [45, 39]], "group_id": 1},
        {"shape_type": "rotation", "points": [[30, 5], [40, 10], [35, 20], [25, 15]], "direction": 0.4},
    ]
    image = only(dumped(tmp_path / "a.json", labelme_content("a", (40, 60), shapes)), "labelme")
    whole = dense(Proposals(boxes=torch.zeros(5, 4), masks=image.masks.select(np.array([0, 2, 3, 4, 5]))))  # type: ignore
    assert len(image.boxes) == 6
    assert image.boxes[5].tolist() == [25, 5, 40, 20]
    assert image.masks.counts[5] == drawn([30, 5, 40, 10, 35, 20, 25, 15], (40, 60))  # type: ignore[union-attr]
    assert image.boxes[1].tolist() == [1, 2, 5, 9]
    assert image.masks.present.tolist() == [True, False, True, True, True, True]  # type: ignore[union-attr]
    y, x = np.mgrid[:40, :60] + 0.5
    disc = (x - 20) ** 2 + (y - 20) ** 2 < 100
    assert (whole[1] != disc).sum() <= 0.1 * disc.sum()
    assert np.array_equal(whole[2][6:8, 4:7], crop)
    assert whole[2].sum() == crop.sum()
    joined = [drawn([40, 3, 50, 5, 45, 20], (40, 60)), drawn([40, 30, 50, 35, 45, 39], (40, 60))]
    either = coco_mask.decode([{"size": [40, 60], "counts": one} for one in joined]).any(axis=2)
    assert np.array_equal(whole[3], either)


def test_results_of_label_studio(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    painted = rng.random((40, 60)) < 0.5
    rgba = np.repeat(painted.astype(np.uint8)[:, :, None] * 255, 4, axis=2)
    rgba[..., :3] = rng.integers(0, 256, (40, 60, 3))
    results: list[tuple[str, dict[str, Any]]] = [
        ("brushlabels", {"format": "rle", "rle": brush_encoded(rgba.ravel()), "brushlabels": ["a"]}),
        ("polygonlabels", {"points": [[10, 20], [70, 30], [50, 90]], "closed": True}),
        ("rectanglelabels", {"x": 50.0, "y": 25.0, "width": 10.0, "height": 30.0, "rotation": 90}),
        ("ellipselabels", {"x": 50.0, "y": 50.0, "radiusX": 20.0, "radiusY": 25.0, "rotation": 0}),
        ("keypointlabels", {"x": 50.0, "y": 50.0, "width": 0.5}),
    ]
    image = only(dumped(tmp_path / "p.json", [task("a", (40, 60), results)]), "labelstudio")
    assert image.key == "a.jpg"
    whole = dense(Proposals(boxes=torch.zeros(4, 4), masks=image.masks))  # type: ignore[arg-type]
    assert np.array_equal(whole[0], painted)
    assert image.masks.counts[1] == drawn([6, 8, 42, 12, 30, 36], (40, 60))  # type: ignore[union-attr]
    # Turned clockwise around (30, 10), 6 x 12 pixels become 12 to the left and 6 down.
    assert image.masks.boxes()[2].tolist() == [18, 10, 30, 16]  # type: ignore[union-attr]
    y, x = np.mgrid[:40, :60] + 0.5
    ellipse = ((x - 30) / 12) ** 2 + ((y - 20) / 10) ** 2 < 1
    assert (whole[3] != ellipse).sum() <= 0.1 * ellipse.sum()


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ({"image": "/data/local-files/?d=set/cam%201/x.jpg"}, "set/cam 1/x.jpg"),
        ({"image": "/data/local-files/?d=set/half%2520size.jpg"}, "set/half%20size.jpg"),
        ({"image": "https://example.org/i/half%2520size.jpg?d=3"}, "/i/half%20size.jpg"),
        ({"image": "C:\\set\\x.jpg"}, "/set/x.jpg"),
        ({"photo": "s3://bucket/set/x.png", "text": "a.b"}, "/set/x.png"),
        ({"image": "https://example.org/i/x.jpg?token=3"}, "/i/x.jpg"),
        ({"image": "/data/upload/3/0a1b2c3d-my-x.jpg"}, "my-x.jpg"),
    ],
)
def test_names_of_images_in_label_studio(tmp_path: Path, data: dict[str, str], name: str) -> None:
    source = dumped(tmp_path / "p.json", [{"data": data, "annotations": []}])
    assert guess_format(source) == "labelstudio"
    assert only(source, "labelstudio").key == name


def test_annotations_of_label_studio_that_are_read(tmp_path: Path) -> None:
    """All that nobody skipped, in exports of old versions, too; an ambiguous image is refused."""
    content = task(
        "a", (40, 60), [("ellipse", {"x": 50, "y": 50, "radiusX": 10, "radiusY": 10, "rotation": 30})]
    )
    skipped, whole = content.pop("annotations")
    content["completions"] = [{**skipped, "was_cancelled": False, "skipped": True}, whole, whole]
    image = only(dumped(tmp_path / "p.json", [content]), "labelstudio")
    turn = np.radians(30)
    half = np.array(
        [np.hypot(6 * np.cos(turn), 4 * np.sin(turn)), np.hypot(6 * np.sin(turn), 4 * np.cos(turn))]
    )
    corner = (np.array([30, 20]) - half) / [0.6, 0.4]
    assert image.boxes == pytest.approx(np.array([[*corner, *(2 * half / [0.6, 0.4])]] * 2))
    content["data"] = {"left": "a.jpg", "right": "b.jpg"}
    with pytest.raises(InputError, match=r"tasks\[0\]: 2 texts in 'data' name an image file"):
        only(dumped(tmp_path / "p.json", [content]), "labelstudio")
    content["data"] = {"image": "a.jpg"}
    other = task("a", (41, 60), [("rectangle", {"x": 1, "y": 1, "width": 1, "height": 1})])
    content["completions"].append(other["annotations"][1])
    with pytest.raises(InputError, match=r"image 'a.jpg': a region is of an image of 60 x 41 pixels"):
        only(dumped(tmp_path / "p.json", [content]), "labelstudio")


def test_predictions_of_label_studio_have_scores(tmp_path: Path) -> None:
    results = [("rectanglelabels", {"x": 50.0, "y": 25.0, "width": 10.0, "height": 30.0})]
    content = task("a", (40, 60), results)
    content["predictions"] = [{**content["annotations"][1], "score": 0.5}]
    content["annotations"] = []
    image = only(dumped(tmp_path / "p.json", [content]), "labelstudio")
    assert image.scores is not None
    assert image.scores.tolist() == [0.5]


def test_a_file_of_sam_may_have_one_image(tmp_path: Path, regions: dict[str, Regions]) -> None:
    found = regions["a"]
    for content, key in ((sam_object("a", found), "a.jpg"), (sam_entries(found), "one")):
        image = only(dumped(tmp_path / "one.json", content), "sam")
        assert image.key == key
        assert image.masks is not None
    assert len(only(dumped(tmp_path / "one.json", []), "sam").boxes) == 0


def test_a_label_image_of_one_number_and_of_none(tmp_path: Path) -> None:
    for pixels, count in ((np.zeros((5, 6), np.uint8), 0), (np.full((5, 6), 9, np.uint8), 1)):
        Image.fromarray(pixels).save(tmp_path / "a.png")
        image = only(tmp_path / "a.png", "labels")
        assert image.boxes.tolist() == [[0, 0, 6, 5]] * count


def test_numbers_of_32_bits_are_kept_apart(tmp_path: Path) -> None:
    labels = np.array([[65536, 0, 1], [65537, 65537, 2]], np.int32)
    Image.fromarray(labels).save(tmp_path / "a.tif")
    image = only(tmp_path / "a.tif", "labels")
    assert image.boxes.tolist() == [[2, 0, 3, 1], [2, 1, 3, 2], [0, 0, 1, 1], [0, 1, 2, 2]]  # by number


def test_random_label_images_equal_numpy(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for _ in range(20):
        labels = rng.integers(0, rng.integers(1, 9), tuple(rng.integers(1, 12, 2))).astype(np.uint8)
        Image.fromarray(labels).save(tmp_path / "a.png")
        image = only(tmp_path / "a.png", "labels")
        numbers = [number for number in np.unique(labels) if number]
        assert len(image.boxes) == len(numbers)
        if numbers:
            found = dense(Proposals(boxes=torch.zeros(len(numbers), 4), masks=image.masks))  # type: ignore[arg-type]
            assert np.array_equal(found, [labels == number for number in numbers])


class TestConversion:
    @pytest.mark.parametrize("write", [write_sa1b, write_coco_annotations, write_label_pngs, write_voc])
    def test_another_size_than_the_image_has(
        self, tmp_path: Path, regions: dict[str, Regions], records: list[ImageRecord], write: Writer
    ) -> None:
        source = write(tmp_path, regions)
        turned = [
            ImageRecord(
                image_id=one.image_id,
                key=one.key,
                path=one.path,
                height=one.width,
                width=one.height,
                targets=one.targets,
            )
            for one in records
        ]
        file_format = guess_format(source)
        with pytest.raises(
            InputError, match=r"image of 60 x 40 pixels, and the image of the data set has 40 x 60"
        ):
            convert(source, file_format, tmp_path / "store", records=turned)

    def test_a_box_that_is_not_its_masks(
        self, tmp_path: Path, regions: dict[str, Regions], records: list[ImageRecord]
    ) -> None:
        content = coco_content(regions)
        content["annotations"][1]["bbox"] = [30, 2, 20, 8]
        source = dumped(tmp_path / "a.json", content)
        with pytest.raises(
            InputError, match=r"33% of its boxes, read as xywh, are not those of their masks, such as row 1"
        ):
            convert(source, "coco_annotations", tmp_path / "store", records=records)
        with pytest.raises(InputError, match=r"read as xyxy, "):
            convert(
                write_coco_annotations(tmp_path, regions),
                "coco_annotations",
                tmp_path / "s",
                convention="xyxy",
            )

    def test_the_box_of_the_mask_is_used_and_noted(self, tmp_path: Path, regions: dict[str, Regions]) -> None:
        store = convert(write_sa1b(tmp_path, regions), "sam", tmp_path / "store")
        assert store.notes == [
            "6 regions have masks; their boxes are those of the masks",
            "6 boxes are written in sa1b with other coordinates than those of their masks; "
            "the largest difference is 1 px",
        ]
        assert store.image_size("a.jpg") == SIZES["a"]

    def test_fractions_need_the_size(self, tmp_path: Path, regions: dict[str, Regions]) -> None:
        source = write_yolo(tmp_path, regions)
        with pytest.raises(InputError, match=r"parts of the image, whose size is unknown, .*\(--config\)"):
            convert(source, "yolo", tmp_path / "store")

    def test_fractions_of_other_images_are_left_out(
        self, tmp_path: Path, regions: dict[str, Regions], records: list[ImageRecord]
    ) -> None:
        store = convert(write_yolo(tmp_path, regions), "yolo", tmp_path / "store", records=records[:1])
        assert store.ids() == ["images/a.jpg"]
        assert "1 images left out: b: it is not in the data set, and its size is unknown" in store.notes[1]

    def test_parts_that_leave_the_image(
        self, tmp_path: Path, regions: dict[str, Regions], records: list[ImageRecord]
    ) -> None:
        source = write_yolo(tmp_path, regions)
        (source / "a.txt").write_text("0 1.5 0.5 0.1 0.2\n")
        with pytest.raises(InputError, match="100% of its boxes, read as cxcywh_normalized, leave the image"):
            convert(source, "yolo", tmp_path / "store", records=records)
        (source / "a.txt").write_text("0 20 30 99 20\n")
        with pytest.raises(InputError, match=r"a\.txt: line 1: '20' is no fraction of the image"):
            convert(source, "yolo", tmp_path / "store", records=records, convention="xywh_percent")
        value = {"x": 20, "y": 30, "width": 99, "height": 20}
        source = dumped(tmp_path / "p.json", [task("a", SIZES["a"], [("rectanglelabels", value)])])
        with pytest.raises(InputError, match="read as xywh_percent, leave"):
            convert(source, "labelstudio", tmp_path / "store", records=records)

    def test_auto_finds_the_centre(
        self, tmp_path: Path, regions: dict[str, Regions], records: list[ImageRecord]
    ) -> None:
        store = convert(
            write_yolo(tmp_path, regions), "yolo", tmp_path / "s", records=records, convention="auto"
        )
        assert "box convention cxcywh_normalized, determined from 2 images" in store.notes[0]

    def test_filters_keep_masks_and_boxes_together(
        self, tmp_path: Path, regions: dict[str, Regions], records: list[ImageRecord]
    ) -> None:
        source = write_sa1b(tmp_path, regions)
        store = convert(source, "sam", tmp_path / "store", records=records, top_k=2)
        for record in records:
            wanted = regions[record.image_id]
            best = np.argsort(-wanted.scores)[:2]
            assert np.array_equal(dense(store[record.key]), wanted.masks[best])

    def test_names_that_lead_out(self, tmp_path: Path, regions: dict[str, Regions]) -> None:
        content = coco_content(regions)
        content["images"][0]["file_name"] = "../../x.jpg"
        with pytest.raises(InputError, match=r"'\.\./\.\./x\.jpg' is not a valid image id"):
            convert(dumped(tmp_path / "a.json", content), "coco_annotations", tmp_path / "store")


def test_a_folder_with_one_file_for_all_images(tmp_path: Path, regions: dict[str, Regions]) -> None:
    write_coco_annotations(tmp_path, regions)
    with pytest.raises(
        InputError, match=r"instances\.json is a file of the format coco_annotations; give its own"
    ):
        guess_format(tmp_path)


@pytest.mark.parametrize("content", [{}, {"a": 1}, [{"a": 1}], {"images": [{"id": 1}]}])
def test_json_of_no_format(tmp_path: Path, content: Any) -> None:
    with pytest.raises(InputError, match=r"x\.json is not a proposal file"):
        guess_format(dumped(tmp_path / "x.json", content))


def test_a_folder_of_photos_is_no_folder_of_label_images(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 5, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="is not a proposal file"):
        guess_format(tmp_path)
    with pytest.raises(InputError, match="its pixels are colours"):
        list(read_images(tmp_path, "labels"))


def test_a_cellpose_file_of_a_path_and_of_a_stack(tmp_path: Path, regions: dict[str, Regions]) -> None:
    content: Any = cellpose_content("a", np.zeros((4, 5), np.uint16)) | {"filename": Path("a.tif")}
    np.save(tmp_path / "a_seg.npy", content)
    assert len(only(tmp_path, "cellpose").boxes) == 0
    content["masks"] = np.zeros((2, 4, 5), np.uint16)
    np.save(tmp_path / "a_seg.npy", content)
    with pytest.raises(
        InputError, match=r"a_seg\.npy: its 'masks' are not .*but uint16 of shape \(2, 4, 5\)"
    ):
        only(tmp_path, "cellpose")


def coco_with(**entry: Any) -> dict[str, Any]:
    image = {"id": 1, "file_name": "a.jpg", "height": 40, "width": 60}
    return {"images": [image], "annotations": [{"image_id": 1, "bbox": [1, 2, 3, 4], **entry}]}


HOSTILE: list[tuple[str, Any, str]] = [
    ("coco_annotations", coco_with(segmentation={"size": [40, 60], "counts": "~" * 9}), "counts are damaged"),
    (
        "coco_annotations",
        coco_with(segmentation={"size": [40, 60], "counts": [2**40]}),
        "do not fill an image",
    ),
    ("coco_annotations", coco_with(segmentation={"size": [40, 60], "counts": [-1, 2401]}), "do not fill an"),
    ("coco_annotations", coco_with(segmentation={"size": [60, 40], "counts": [2400]}), "is not the image's"),
    (
        "coco_annotations",
        coco_with(segmentation=[[1, 2, float("nan"), 4, 5, 6]]),
        "point .* is not in an image",
    ),
    ("coco_annotations", coco_with(segmentation=[[0, 0, 1e9, 0, 0, 1e9]]), "is not in an image of 60 x 40"),
    ("coco_annotations", coco_with(segmentation=[[0, 0, 59, 39] * 40_000]), "an outline of over"),
    ("coco_annotations", coco_with(segmentation=[[1, 2, 3, 4]]), "must have polygons"),
    ("coco_annotations", coco_with(bbox=[1, 2, 3, "x"]), "bbox must be 4 numbers"),
    ("coco_annotations", coco_with(image_id=[1]), "is not the id of one"),
    ("coco_annotations", coco_with(image_id=7), "is not the id of one"),
    (
        "coco_annotations",
        {"images": [{"id": 1, "height": 2**16, "width": 2**15}]},
        "an image of 32768 x 65536",
    ),
    ("coco_annotations", {"images": [{"id": 1, "height": -1, "width": 2}]}, "is not the size of an image"),
    (
        "coco_annotations",
        {"images": [{"id": 1, "height": float("nan"), "width": 2}]},
        "is not the size of an",
    ),
    (
        "coco_annotations",
        {"images": [{"id": 1, "height": 10**30, "width": 2}]},
        "is not the size of an image",
    ),
    ("sam", {"image": {"height": 2**16, "width": 2**16}, "annotations": []}, "is refused"),
    ("sam", [{"segmentation": {"size": [2**16, 2**16], "counts": "a"}, "bbox": [0, 0, 1, 1]}], "is refused"),
    ("sam", [{"segmentation": [[1, 2, 3, 4, 5, 6]], "bbox": [0, 0, 1, 1]}], "run-length encoding"),
    ("sam", [1], "'{' expected"),
    (
        "megadetector",
        {"images": [{"file": "a.jpg", "detections": [{"bbox": [0, 0, 1], "conf": 1}]}]},
        "4 numbers",
    ),
    ("megadetector", {"images": [{"file": "a.mp4", "frame_rate": 3, "detections": []}]}, "is a video"),
    ("megadetector", {"images": [{"file": 3}]}, "expected an object"),
    ("labelme", {"shapes": [], "imageHeight": None, "imageWidth": 3}, "expected the size of the image"),
    ("labelme", {"shapes": [], "imageHeight": 2**16, "imageWidth": 2**16}, "is refused"),
    (
        "labelme",
        labelme_content("a", (4, 5), [{"shape_type": "x", "points": [[1, 1], [2, 2]]}]),
        "is unknown",
    ),
    (
        "labelme",
        labelme_content("a", (4, 5), [{"shape_type": "circle", "points": [[1, 1], [1e6, 2]]}]),
        "not in an",
    ),
    (
        "labelme",
        labelme_content("a", (4, 5), [{"shape_type": "circle", "points": [[1, 1], [1e9, 2]]}]),
        "x is 1000000000.0; expected a number up to 16777216",
    ),
    (
        "labelme",
        labelme_content("a", (4, 5), [{"shape_type": "polygon", "points": [["1", 1], [3, 2], [2, 4]]}]),
        "x is '1'; expected a number",
    ),
    (
        "labelme",
        labelme_content("a", (4, 5), [{"shape_type": "mask", "points": [[1, 1], [5, 2]]}]),
        "are not pixels of the image",
    ),
    (
        "labelme",
        labelme_content(
            "a",
            (4, 5),
            [{"shape_type": "mask", "points": [[1, 1], [2, 3]], "mask": png_text(np.ones((2, 2)))}],
        ),
        "does not fit its corners",
    ),
    (
        "labelme",
        labelme_content("a", (4, 5), [{"shape_type": "mask", "points": [[1, 1], [2, 2]]}]),
        "not a PNG",
    ),
    (
        "labelstudio",
        [task("a", (4, 5), [("brush", {"format": "rle", "rle": [255] * 9})])],
        "its rle is damaged",
    ),
    ("labelstudio", [task("a", (2**15, 2**15), [("brush", {"format": "rle", "rle": []})])], "is refused"),
    ("labelstudio", [task("a", (4, 5), [("polygon", {"points": 3})])], "points is 3; expected a list"),
    ("labelstudio", [3], "expected an object with 'data'"),
    ("labelstudio", [{"data": {"image": "a.jpg"}, "annotations": 3}], "annotations is 3; expected a list"),
    ("labelstudio", [{"data": {"image": "a.jpg"}, "annotations": [{"result": None}]}], "result is None"),
    (
        "labelstudio",
        [
            {
                "data": {"image": "a.jpg"},
                "predictions": [
                    {
                        **task("a", (4, 5), [("rectangle", {"x": 1, "y": 1, "width": 1, "height": 1})])[
                            "annotations"
                        ][1],
                        "score": "x",
                    }
                ],
            }
        ],
        "score is 'x'",
    ),
    (
        "labelstudio",
        [task("a", (2**16, 2**16), [("rectangle", {"x": 1, "y": 1, "width": 1, "height": 1})])],
        "is refused",
    ),
    ("labelstudio", [{"data": {}, "annotations": []}], "0 texts in 'data' name an image file"),
]


@pytest.mark.parametrize(("file_format", "content", "message"), HOSTILE, ids=range(len(HOSTILE)))
def test_hostile_json(tmp_path: Path, file_format: str, content: Any, message: str) -> None:
    source = dumped(tmp_path / "x.json", content)
    with pytest.raises(InputError, match=message) as caught:
        list(read_images(source, file_format))
    assert str(source) in str(caught.value)


@pytest.mark.parametrize("file_format", ["coco_annotations", "sam", "megadetector", "labelme", "labelstudio"])
@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"images": ' + "[" * 100_000, "", "{", '[{"data": {}', '{"a": "' + "x" * (1 << 21)],
)
def test_json_that_ends_too_early_or_is_too_deep(tmp_path: Path, file_format: str, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(InputError, match=r"x\.json"):
        list(read_images(tmp_path / "x.json", file_format))
    with pytest.raises(InputError, match=r"x\.json"):
        guess_format(tmp_path / "x.json")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.5 0.5 0.1", "line 1: 4 numbers; expected 5"),
        ("0.5 0.5 0.5 0.1 0.1", "line 1: '0.5' is no class"),
        ("0 0.5 x 0.1 0.1", "line 1: 'x' is no fraction"),
        ("0 0.5 1_0 0.1 0.1", "line 1: '1_0' is no fraction"),
        ("0 60 40 20 30", "line 1: '60' is no fraction"),
        ("0 0.1 0.1 2 0.2 0.2 2", "line 1: a corner at 2"),
        ("0 " * 1_000_000, "line 1: a line of over"),
    ],
    ids=range(7),
)
def test_hostile_lines_of_yolo(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.txt").write_text(line)
    with pytest.raises(InputError, match=message):
        list(read_images(tmp_path, "yolo"))


@pytest.mark.parametrize("points", ["nan 0.1 0.2 0.3 0.4 0.5", "0.1 0.1 1e300 0.3 0.4 0.5", "inf 0 0 0 0 1"])
def test_hostile_polygons_of_yolo(tmp_path: Path, records: list[ImageRecord], points: str) -> None:
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.txt").write_text(f"0 {points}\n")
    with pytest.raises(InputError, match="is no fraction of the image"):
        convert(tmp_path / "labels", "yolo", tmp_path / "store", records=records[:1])


def test_a_label_image_that_unpacks_to_gigabytes(tmp_path: Path) -> None:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    for side in (1 << 14, (1 << 31) - 1):
        header = struct.pack(">IIBBBBB", side, side, 16, 0, 0, 0, 0)
        content = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
        (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
        with pytest.raises(InputError, match=r"a\.png"):
            list(read_images(tmp_path / "a.png", "labels"))


def test_a_photo_is_no_label_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("detector.proposals.readers.label_images._MAX_RUNS", 1000)
    noise = np.random.default_rng(0).integers(0, 256, (50, 60)).astype(np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="change too often for a label image"):
        list(read_images(tmp_path, "labels"))


def test_a_stack_of_label_images(tmp_path: Path) -> None:
    page = Image.fromarray(np.zeros((4, 5), np.uint16))
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page])
    with pytest.raises(InputError, match="has several pages"):
        list(read_images(tmp_path, "labels"))


def test_a_cellpose_file_runs_nothing(tmp_path: Path) -> None:
    import pickle

    class Runs:
        def __reduce__(self) -> Any:
            return (eval, ("1/0",))

    content = pickle.dumps(Runs())
    header = np.lib.format.magic(1, 0)
    np.save(tmp_path / "a_seg.npy", np.array({}, dtype=object), allow_pickle=True)
    whole = (tmp_path / "a_seg.npy").read_bytes()
    assert whole.startswith(header)
    (tmp_path / "a_seg.npy").write_bytes(whole[:128] + content)
    with pytest.raises(InputError, match=r"a_seg\.npy: it wants to run builtins\.eval"):
        list(read_images(tmp_path, "cellpose"))


def test_uncompressed_runs_equal_the_compressed_ones(regions: dict[str, Regions]) -> None:
    """The writers of these tests agree with pycocotools."""
    mask = regions["a"].masks[0]
    runs = runs_of(mask)
    packed = coco_mask.frPyObjects(runs, *mask.shape)
    assert np.array_equal(coco_mask.decode(packed), mask)
    assert json.loads(json.dumps(runs)) == runs


def test_labels_written_as_every_type(tmp_path: Path, regions: dict[str, Regions]) -> None:
    write = label_writer(".tif", np.uint8, "")
    for image, wanted in zip(read_images(write(tmp_path, regions), "labels"), regions.values(), strict=True):
        assert np.array_equal(image.boxes, wanted.boxes)


def test_inspect_does_not_doubt_the_convention_of_a_format(tmp_path: Path) -> None:
    yolo = tmp_path / "yolo"
    yolo.mkdir()
    (yolo / "a.txt").write_text("0 0.5 0.5 0.25 0.25\n")  # width and height below the centre
    remarks = inspect(yolo)["remarks"]
    assert len(remarks) == 1
    assert "parts of the image" in remarks[0]
    (tmp_path / "a.xml").write_text(
        "<annotation><object><name>cell</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax>"
        "<ymax>9</ymax></bndbox></object></annotation>"
    )
    assert inspect(tmp_path / "a.xml")["remarks"] == []
    np.savez(tmp_path / "corners.npz", a=np.array([[1.0, 1, 9, 9]]))
    assert "may count pixels from 1" in inspect(tmp_path / "corners.npz")["remarks"][0]
