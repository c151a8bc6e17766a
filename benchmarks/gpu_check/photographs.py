"""A data set like photographs of VOC, for timing the loader: 500 x 375 pixels, JPEGs of about 100 kB.

No data set of that kind can be assumed on the machine. The photographs are textures, because a smooth image
compresses to a small file that is decoded much faster.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.gpu_check.step_data import CONFIG, REHEARSAL
from detector.config import Config, load_config

TEXTURES = 12
"""So many textures are drawn; each photograph is one of them, shifted."""
_OCTAVES = ((6, 60.0), (24, 30.0), (90, 18.0), (500, 14.0))  # cells across, and amplitude
_QUALITY = 91
_CLASSES = ("person", "dog", "car", "chair")


@dataclass(frozen=True)
class Photographs:
    """The numbers of training and test images, their (height, width) in pixels, and proposals per image."""

    training: int = 240
    test: int = 60
    size: tuple[int, int] = (375, 500)
    proposals: int = 2000


REHEARSED = Photographs(training=10, test=4, size=(75, 100), proposals=80)


def photograph_config(folder: Path, overrides: Iterable[str], *, rehearsal: bool) -> Config:
    """Return the config of the timed step on photographs in ``folder``, where they are written if missing."""
    if not (folder / "finished").is_file():
        write_photographs(folder, REHEARSED if rehearsal else Photographs())
    changes = [f"data.root={folder}", "data.classes=voc", f"proposals.file={folder / 'proposals.npz'}"]
    return load_config(CONFIG, [*changes, *(REHEARSAL if rehearsal else []), *overrides])


def write_photographs(folder: Path, what: Photographs) -> None:
    """Write a data set in VOC layout and ``proposals.npz``; an empty file ``finished`` comes last."""
    for name in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    names = [f"{number:06d}" for number in range(1, what.training + what.test + 1)]
    textures = [texture(np.random.default_rng((0, number)), what.size) for number in range(TEXTURES)]

    def write(number: int) -> np.ndarray:
        rng = np.random.default_rng((1, number))
        shift = rng.integers(0, what.size[0], 2).tolist()
        photograph = np.roll(textures[number % TEXTURES], shift, axis=(0, 1))
        _, encoded = cv2.imencode(".jpg", photograph, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
        (folder / f"JPEGImages/{names[number]}.jpg").write_bytes(encoded.tobytes())
        objects = boxes(rng, int(rng.integers(1, 5)), what.size, smallest=0.2)
        (folder / f"Annotations/{names[number]}.xml").write_text(
            annotation(names[number], what.size, objects)
        )
        return proposals(rng, objects, what)

    with ThreadPoolExecutor() as threads:
        every: dict[str, Any] = dict(zip(names, threads.map(write, range(len(names))), strict=True))
    np.savez(folder / "proposals.npz", **every)
    splits = {"trainval": names[: what.training], "test": names[what.training :]}
    for split, members in splits.items():
        (folder / f"ImageSets/Main/{split}.txt").write_text("\n".join(members) + "\n")
    (folder / "finished").touch()


def texture(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Return noise of several wavelengths, (height, width, 3) uint8."""
    height, width = size
    pixels = np.full((height, width, 3), 120.0, np.float32)
    for cells, amplitude in _OCTAVES:
        noise = rng.standard_normal((max(2, cells * height // width), cells, 3), np.float32)
        pixels += amplitude * cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return pixels.clip(0, 255).astype(np.uint8)


def boxes(rng: np.random.Generator, count: int, size: tuple[int, int], *, smallest: float) -> np.ndarray:
    """Return boxes (count, 4) inside an image, whose sides are at least that part of the image's."""
    sides = rng.uniform(smallest, 0.9, (count, 2))
    corners = rng.uniform(0, 1 - sides)
    scale = np.array(size[::-1])
    return np.concatenate((corners * scale, (corners + sides) * scale), axis=1).astype(np.float32)


def proposals(rng: np.random.Generator, objects: np.ndarray, what: Photographs) -> np.ndarray:
    """Return proposals (P, 4): a fifth of them near the objects, as selective search has, the others not."""
    near = objects[rng.integers(len(objects), size=what.proposals // 5)]
    near = near + rng.normal(0, 0.05, near.shape).astype(np.float32) * what.size[0]
    height, width = what.size
    near = near.clip(0, (width, height, width, height))
    sound = near[((near[:, 2:] - near[:, :2]) >= 4).all(axis=1)]
    others = boxes(rng, what.proposals - len(sound), what.size, smallest=0.05)
    return np.concatenate((sound, others)).astype(np.float32)


def annotation(name: str, size: tuple[int, int], objects: np.ndarray) -> str:
    """Return VOC's XML; its corners count from 1 and are inclusive."""
    height, width = size
    nodes = []
    for number, (x1, y1, x2, y2) in enumerate(objects.astype(int).tolist()):
        corners = f"<xmin>{x1 + 1}</xmin><ymin>{y1 + 1}</ymin><xmax>{x2}</xmax><ymax>{y2}</ymax>"
        label = _CLASSES[number % len(_CLASSES)]
        nodes.append(
            f"<object><name>{label}</name><difficult>0</difficult><bndbox>{corners}</bndbox></object>"
        )
    size_node = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"<annotation><filename>{name}.jpg</filename>{size_node}{''.join(nodes)}</annotation>\n"
