"""The quick start's data set: drawn instead of downloaded, written in VOC layout.

`detector.data.generated.scenes` describes what the images show and how boxes and ``difficult`` are defined,
`detector.data.generated.arrangements` the same for classes that differ only by layout. Image i of a pool is
drawn by a generator seeded with (seed, pool, i), so no image depends on another and the test images stay the
same whatever the number of training images. The same OpenCV version writes the same bytes for the same
parameters.
"""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import cv2
import numpy as np

from detector.core.errors import InputError
from detector.core.files import read_json
from detector.data.generated.arrangements import ARRANGEMENTS, draw_arrangement
from detector.data.generated.scenes import SceneObject, draw_scene
from detector.data.generated.shapes import CLASSES

MANIFEST = "generated.json"
SHIPPED_ROOTS = ("data/quickstart", "data/arrangements")
"""The folders that the shipped configs name, relative to the working directory."""
VERSION = 2  # increase it whenever the same parameters give different images

_CLASSES = {"scenes": CLASSES, "arrangements": ARRANGEMENTS}
_POOLS = ("trainval", "test")
_VAL_EVERY = 6  # one image in six of the training pool is kept for validation
_SMALLEST_SIDE = 64  # pixels; below, the smallest shapes do not fit
_JPEG_QUALITY = 92


def ensure_generated(
    root: Path,
    *,
    train_images: int = 240,
    test_images: int = 80,
    image_size: tuple[int, int] = (120, 200),
    seed: int = 0,
    kind: str = "scenes",
) -> None:
    """Make the data set where that is allowed, and leave a finished one unchanged; see `generate_voc`.

    It is made in the folders that the shipped configs name, and in an empty folder that exists already: a
    folder whose name is mistyped, or that holds other files, never becomes a data set.

    Raises InputError where ``root`` does not exist and is not a folder of the shipped configs, where it holds
    a data set with other parameters, or any other files.
    """
    root, manifest = Path(root), _manifest(train_images, test_images, image_size, seed, kind)
    if _holds(root, manifest):
        return
    if not root.exists() and root.resolve() not in [Path(place).resolve() for place in SHIPPED_ROOTS]:
        raise InputError(
            f"{root}: no such folder. Is data.root spelled right? The config generates images, in "
            f"{' and '.join(SHIPPED_ROOTS)}, or in an empty folder: make that folder to have them there; for "
            "images of your own set data.generate=null"
        )
    _generate(root, manifest)


def generate_voc(
    root: Path,
    *,
    train_images: int = 240,
    test_images: int = 80,
    image_size: tuple[int, int] = (120, 200),
    seed: int = 0,
    kind: str = "scenes",
) -> None:
    """Write a new data set to ``root``, which must be missing or empty.

    ``root`` gets JPEGImages/*.jpg, Annotations/*.xml, ImageSets/Main/*.txt and, as the sign that it is
    complete, generated.json with the parameters. The folder appears under its name only when it is complete.

    ``train_images`` is the size of the training pool: trainval.txt lists all of it, val.txt every sixth
    image, train.txt the others. ``image_size`` is the range in pixels, both ends included, from which each
    image's height and width are drawn. ``kind`` is "scenes", whose classes are shapes, or "arrangements",
    whose classes are the relative positions of two shapes.

    Raises InputError for impossible parameters, a folder in use, or one that cannot be written.
    """
    root, manifest = Path(root), _manifest(train_images, test_images, image_size, seed, kind)
    if _holds(root, manifest):
        raise InputError(f"{root}: the generated data set exists already; name another folder")
    _generate(root, manifest)


def _manifest(
    train_images: int, test_images: int, image_size: tuple[int, int], seed: int, kind: str
) -> dict[str, Any]:
    """Check the parameters and return everything that determines the images."""
    low, high = image_size
    if kind not in _CLASSES:
        raise InputError(f"kind: expected one of {', '.join(_CLASSES)}, not {kind!r}")
    if not _SMALLEST_SIDE <= low <= high:
        raise InputError(f"image_size: expected {_SMALLEST_SIDE} <= low <= high pixels, not {image_size}")
    for name, value in (("train_images", train_images), ("test_images", test_images), ("seed", seed)):
        if value < 0:
            raise InputError(f"{name}: expected 0 or more, not {value}")
    return {
        "version": VERSION,
        "classes": list(_CLASSES[kind]),
        "train_images": train_images,
        "test_images": test_images,
        "image_size": [low, high],
        "seed": seed,
    }


def _holds(root: Path, manifest: dict[str, Any]) -> bool:
    """Say whether ``root`` is this data set, complete; False where it is missing or empty."""
    path = root / MANIFEST
    try:
        if not root.exists() or (root.is_dir() and not any(root.iterdir())):
            return False
        if not path.exists():
            raise InputError(
                f"{root}: the config generates images (data.generate), and this folder holds other files; "
                "for images of your own set data.generate=null, otherwise name another data.root"
            )
        stored = read_json(path)
    except OSError as error:
        raise InputError(f"{root}: cannot read the folder: {error.strerror}") from None
    if not isinstance(stored, dict):
        raise InputError(f"{path}: not the record of a generated data set; name another data.root")
    if stored == manifest:
        return True
    differing = [
        f"{key} {stored.get(key)} instead of {value}"
        for key, value in manifest.items()
        if stored.get(key) != value
    ]
    raise InputError(
        f"{root}: was generated with other parameters ({', '.join(differing)}); name another "
        "data.root, or set data.generate as it was"
    )


def _generate(root: Path, manifest: dict[str, Any]) -> None:
    root = root.resolve()  # a link stays a link to the finished folder
    unfinished = root.with_name(f".{root.name}.unfinished-{uuid.uuid4().hex[:8]}")
    try:
        unfinished.mkdir(parents=True)
        _write(unfinished, manifest)
        try:
            unfinished.rename(root)
        except OSError:  # another process may have finished the same data set in the meantime
            if not _holds(root, manifest):
                raise
    except OSError as error:
        raise InputError(f"{root}: the generated data set cannot be written there ({error})") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _write(root: Path, manifest: dict[str, Any]) -> None:
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    counts = (manifest["train_images"], manifest["test_images"])
    ids = [f"{number:06d}" for number in range(1, sum(counts) + 1)]
    pools = {"trainval": ids[: counts[0]], "test": ids[counts[0] :]}
    for pool, name in enumerate(_POOLS):
        for index, image_id in enumerate(pools[name]):
            rng = np.random.default_rng([manifest["seed"], pool, index])
            low, high = manifest["image_size"]
            height, width = rng.integers(low, high + 1, 2).tolist()
            _write_image(root, image_id, *_draw(rng, (height, width), manifest["classes"]))
    trainval = pools["trainval"]
    pools["val"] = trainval[_VAL_EVERY - 1 :: _VAL_EVERY]
    pools["train"] = sorted(set(trainval) - set(pools["val"]))
    for name, members in pools.items():
        _write_text(root / f"ImageSets/Main/{name}.txt", "".join(f"{image_id}\n" for image_id in members))
    _write_text(root / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def _draw(
    rng: np.random.Generator, size: tuple[int, int], classes: list[str]
) -> tuple[np.ndarray, list[SceneObject]]:
    """Return an image (H, W, 3) uint8 RGB and its objects, all of the ``classes``."""
    if classes == list(ARRANGEMENTS):
        return draw_arrangement(rng, size)
    scene = draw_scene(rng, size)
    return scene.image, scene.objects()


def _write_image(root: Path, image_id: str, image: np.ndarray, objects: list[SceneObject]) -> None:
    quality = [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY]
    _, encoded = cv2.imencode(".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), quality)
    (root / f"JPEGImages/{image_id}.jpg").write_bytes(encoded.tobytes())
    _write_text(root / f"Annotations/{image_id}.xml", _annotation(image_id, image.shape, objects))


def _annotation(image_id: str, shape: tuple[int, ...], objects: list[SceneObject]) -> str:
    """Return VOC's XML for an image of ``shape``; its corners are 1-based and inclusive."""
    height, width, depth = shape
    root = ElementTree.Element("annotation")
    _add(root, {"folder": "generated", "filename": f"{image_id}.jpg"})
    _add(ElementTree.SubElement(root, "size"), {"width": width, "height": height, "depth": depth})
    _add(root, {"segmented": 0})
    for name, (x1, y1, x2, y2), truncated, difficult in objects:
        node = ElementTree.SubElement(root, "object")
        flags = {"truncated": int(truncated), "difficult": int(difficult)}
        _add(node, {"name": name, "pose": "Unspecified", **flags})
        _add(ElementTree.SubElement(node, "bndbox"), {"xmin": x1 + 1, "ymin": y1 + 1, "xmax": x2, "ymax": y2})
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _add(parent: ElementTree.Element, values: dict[str, object]) -> None:
    for tag, value in values.items():
        ElementTree.SubElement(parent, tag).text = str(value)


def _write_text(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8", newline="\n")
