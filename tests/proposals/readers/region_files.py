"""Writes regions in the formats that come with masks or fractions, each in the layout of its own program."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

SIZES = {"a": (40, 60), "b": (30, 50)}
"""(height, width) of the images."""


class Regions(NamedTuple):
    """The regions of one image: dense masks (P, H, W), their boxes (P, 4) half-open, scores (P,)."""

    masks: NDArray[np.bool_]
    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]


def make_regions(seed: int = 0) -> dict[str, Regions]:
    """Three regions per image that do not overlap; the last one has two components."""
    rng = np.random.default_rng(seed)
    found = {}
    for name, (height, width) in SIZES.items():
        masks = np.zeros((3, height, width), bool)
        third = width // 3
        for row in range(3):
            block = rng.random((height - 4, third - 4)) < 0.6
            masks[row, 2:-2, row * third + 2 : row * third + third - 2] = block
        masks[2, height // 2 - 2 : height // 2 + 2] = False  # divides it
        found[name] = Regions(masks, box_of(masks), rng.random(3).round(3))
    return found


def box_of(masks: NDArray[Any]) -> NDArray[np.float64]:
    """The exact boxes of dense masks, by looking at every pixel."""
    boxes = []
    for mask in masks:
        y, x = np.nonzero(mask)
        boxes.append((x.min(), y.min(), x.max() + 1, y.max() + 1))
    return np.array(boxes, np.float64).reshape(-1, 4)


def labels_of(masks: NDArray[Any], dtype: Any = np.uint16) -> NDArray[Any]:
    """Number the masks from 1, with a gap in the numbers as programs leave it."""
    labels = np.zeros(masks.shape[1:], dtype)
    for row, mask in enumerate(masks):
        labels[mask] = 2 * row + 1
    return labels


def rle_of(mask: NDArray[Any]) -> dict[str, Any]:
    found = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(map(int, found["size"])), "counts": found["counts"].decode()}


def runs_of(mask: NDArray[Any]) -> dict[str, Any]:
    """The uncompressed form, run by run."""
    counts, value = [0], False
    for pixel in mask.ravel(order="F").tolist():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return {"size": list(mask.shape), "counts": counts}


def xywh(box: Iterable[float]) -> list[float]:
    x1, y1, x2, y2 = map(float, box)
    return [x1, y1, x2 - x1, y2 - y1]


def dumped(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def coco_content(regions: dict[str, Regions], encode: Callable[..., Any] = rle_of) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (name, found) in enumerate(regions.items(), 1):
        height, width = found.masks.shape[1:]
        images.append({"id": number, "file_name": f"{name}.jpg", "height": height, "width": width})
        for mask, box in zip(found.masks, found.boxes, strict=True):
            entry = {"id": len(annotations) + 1, "image_id": number, "category_id": 1, "iscrowd": 0}
            annotations.append(
                {**entry, "bbox": xywh(box), "segmentation": encode(mask), "area": int(mask.sum())}
            )
    categories = [{"id": 1, "name": "thing"}]
    return {"info": {"year": 2024}, "images": images, "annotations": annotations, "categories": categories}


def write_coco_annotations(folder: Path, regions: dict[str, Regions]) -> Path:
    return dumped(folder / "instances.json", coco_content(regions))


def write_coco_runs(folder: Path, regions: dict[str, Regions]) -> Path:
    return dumped(folder / "instances.json", coco_content(regions, runs_of))


def sam_entries(found: Regions) -> list[dict[str, Any]]:
    """What SamAutomaticMaskGenerator gives with output_mode="coco_rle"; its boxes lack one pixel."""
    return [
        {
            "segmentation": rle_of(mask),
            "area": int(mask.sum()),
            "bbox": [box[0], box[1], box[2] - box[0] - 1, box[3] - box[1] - 1],
            "predicted_iou": float(score),
            "point_coords": [[1.0, 2.0]],
            "stability_score": 0.97,
            "crop_box": [0, 0, mask.shape[1], mask.shape[0]],
        }
        for mask, box, score in zip(found.masks, found.boxes.tolist(), found.scores, strict=True)
    ]


def sam_object(name: str, found: Regions) -> dict[str, Any]:
    height, width = found.masks.shape[1:]
    image = {"image_id": 7, "width": width, "height": height, "file_name": f"{name}.jpg"}
    return {"image": image, "annotations": [{**entry, "id": 5} for entry in sam_entries(found)]}


def write_sa1b(folder: Path, regions: dict[str, Regions]) -> Path:
    for name, found in regions.items():
        dumped(folder / "sa1b" / f"{name}.json", sam_object(name, found))
    return folder / "sa1b"


def write_amg(folder: Path, regions: dict[str, Regions]) -> Path:
    for name, found in regions.items():
        dumped(folder / "amg" / f"{name}.json", sam_entries(found))
    return folder / "amg"


def write_sam_list(folder: Path, regions: dict[str, Regions]) -> Path:
    return dumped(folder / "sam.json", [sam_object(name, found) for name, found in regions.items()])


def label_writer(suffix: str, dtype: Any, end: str) -> Callable[[Path, dict[str, Regions]], Path]:
    def write(folder: Path, regions: dict[str, Regions]) -> Path:
        (folder / "labels").mkdir()
        for name, found in regions.items():
            labels = labels_of(found.masks, dtype)
            Image.fromarray(labels).save(folder / "labels" / f"{name}{end}{suffix}")
        return folder / "labels"

    return write


def write_label_pngs(folder: Path, regions: dict[str, Regions]) -> Path:
    """As Cellpose does, by OpenCV and beside the images."""
    (folder / "cp").mkdir()
    for name, found in regions.items():
        cv2.imwrite(str(folder / "cp" / f"{name}_cp_masks.png"), labels_of(found.masks))
        cv2.imwrite(str(folder / "cp" / f"{name}.png"), np.zeros((*found.masks.shape[1:], 3), np.uint8))
    return folder / "cp"


def cellpose_content(name: str, labels: NDArray[Any]) -> dict[str, Any]:
    """The dictionary of cellpose.io.masks_flows_to_seg."""
    return {
        "outlines": labels * 0,
        "colors": np.array([[1, 2, 3]], np.uint8),
        "masks": labels,
        "chan_choose": [0, 0],
        "ismanual": np.zeros(3, bool),
        "filename": f"/home/me/{name}.tif",
        "flows": [np.zeros((*labels.shape, 3), np.uint8), np.zeros((1, *labels.shape), np.float32), []],
        "est_diam": np.float64(17.2),
        "diameter": 17.2,
    }


def write_cellpose(folder: Path, regions: dict[str, Regions]) -> Path:
    (folder / "seg").mkdir()
    for name, found in regions.items():
        content: Any = cellpose_content(name, labels_of(found.masks))
        np.save(folder / "seg" / f"{name}_seg.npy", content)
    return folder / "seg"


def write_megadetector(folder: Path, regions: dict[str, Regions]) -> Path:
    images: list[dict[str, Any]] = []
    for name, found in regions.items():
        scale = np.tile(found.masks.shape[:0:-1], 2)
        detections = [
            {"category": "1", "conf": float(score), "bbox": (np.array(xywh(box)) / scale).tolist()}
            for box, score in zip(found.boxes, found.scores, strict=True)
        ]
        images.append({"file": f"/mnt/set/images/{name}.jpg", "detections": detections})
    images.append({"file": "broken.jpg", "failure": "Failure image access", "detections": None})
    content = {"info": {"format_version": "1.3"}, "detection_categories": {"1": "animal"}, "images": images}
    return dumped(folder / "md.json", content)


def write_yolo(folder: Path, regions: dict[str, Regions]) -> Path:
    """What ``yolo predict save_txt=True save_conf=True`` writes, with the classes beside."""
    (folder / "labels").mkdir()
    (folder / "labels/classes.txt").write_text("thing\n")
    for name, found in regions.items():
        scale = np.tile(found.masks.shape[:0:-1], 2)
        lines = []
        for box, score in zip(found.boxes, found.scores, strict=True):
            x, y, width, height = xywh(box) / scale
            numbers = [x + width / 2, y + height / 2, width, height, score]
            lines.append("0 " + " ".join(f"{value:.17g}" for value in numbers))
        (folder / f"labels/{name}.txt").write_text("\n".join(lines) + "\n")
    return folder / "labels"


def write_voc(folder: Path, regions: dict[str, Regions]) -> Path:
    (folder / "Annotations").mkdir()
    for name, found in regions.items():
        height, width = found.masks.shape[1:]
        objects = "".join(
            f"<object><name>thing</name><bndbox><xmin>{x1 + 1:g}</xmin><ymin>{y1 + 1:g}</ymin>"
            f"<xmax>{x2:g}</xmax><ymax>{y2:g}</ymax></bndbox></object>"
            for x1, y1, x2, y2 in found.boxes
        )
        size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
        text = f"<annotation><filename>{name}.jpg</filename>{size}{objects}</annotation>"
        (folder / f"Annotations/{name}.xml").write_text(text)
    return folder / "Annotations"


def labelme_content(name: str, size: tuple[int, int], shapes: list[dict[str, Any]]) -> dict[str, Any]:
    whole = [{"label": "thing", "group_id": None, "flags": {}, **shape} for shape in shapes]
    content = {"version": "5.4.1", "flags": {}, "shapes": whole, "imagePath": f"{name}.jpg"}
    return {**content, "imageData": "QUJD", "imageHeight": size[0], "imageWidth": size[1]}


def write_labelme(folder: Path, regions: dict[str, Regions]) -> Path:
    for name, found in regions.items():
        shapes = [
            {"shape_type": "rectangle", "points": [[x2, y1], [x1, y2]]}
            for x1, y1, x2, y2 in found.boxes.tolist()
        ]
        dumped(folder / f"labelme/{name}.json", labelme_content(name, found.masks.shape[1:], shapes))
    return folder / "labelme"


def task(name: str, size: tuple[int, int], results: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """A task of Label Studio, of an uploaded image."""
    about = {"original_height": size[0], "original_width": size[1], "image_rotation": 0, "to_name": "image"}
    listed = [
        {"id": "x", "from_name": "label", "type": kind, "value": value, **about} for kind, value in results
    ]
    choice = {"type": "choices", "value": {"choices": ["good"]}, "to_name": "image", "from_name": "c"}
    annotation = {"id": 1, "was_cancelled": False, "result": [choice, *listed]}
    image = f"0a1b2c3d-{name}.jpg"
    return {
        "id": 4,
        "annotations": [{"was_cancelled": True, "result": listed * 2}, annotation],
        "file_upload": image,
        "predictions": [],
        "data": {"image": f"/data/upload/1/{image}", "text": "x"},
    }


def write_label_studio(folder: Path, regions: dict[str, Regions]) -> Path:
    tasks = []
    for name, found in regions.items():
        scale = np.tile(found.masks.shape[:0:-1], 2) / 100
        values = [
            dict(zip(("x", "y", "width", "height"), xywh(box) / scale, strict=True)) for box in found.boxes
        ]
        results = [
            ("rectanglelabels", {**value, "rotation": 0, "rectanglelabels": ["a"]}) for value in values
        ]
        tasks.append(task(name, found.masks.shape[1:], results))
    return dumped(folder / "project-1.json", tasks)


Writer = Callable[[Path, dict[str, Regions]], Path]
WITH_MASKS: list[tuple[str, Writer]] = [
    ("coco_annotations", write_coco_annotations),
    ("coco_annotations", write_coco_runs),
    ("sam", write_sa1b),
    ("sam", write_amg),
    ("sam", write_sam_list),
    ("labels", write_label_pngs),
    ("labels", label_writer(".png", np.uint8, "")),
    ("labels", label_writer(".png", np.uint16, "_masks")),
    ("labels", label_writer(".tif", np.uint16, "_masks")),
    ("labels", label_writer(".tiff", np.int32, "")),
    ("labels", label_writer(".tif", np.float32, "-labels")),
    ("cellpose", write_cellpose),
]
WITH_BOXES: list[tuple[str, Writer]] = [
    ("megadetector", write_megadetector),
    ("yolo", write_yolo),
    ("voc", write_voc),
    ("labelme", write_labelme),
    ("labelstudio", write_label_studio),
]
SCORED = ("sam", "megadetector", "yolo")
