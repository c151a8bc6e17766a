"""Random images whose classes differ only by layout: the positions of a disc and a square.

Nearly every image shows one disc and one square among other shapes, so the shapes themselves say nothing
about the class; the class is which of the two is further left or higher up. The distance between them is
larger than most of what one cell of a small network sees. An image belongs to one class, to two where the
disc and the square are diagonal to each other, and to none where one of the two is missing. The box of an
object covers both shapes.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from detector.data.generated.scenes import MOSTLY_VISIBLE, Scene, SceneObject, draw_scene, fits
from detector.data.generated.shapes import Shape, random_shape

ARRANGEMENTS = ("disc_above_square", "disc_left_of_square", "square_above_disc", "square_left_of_disc")

_PAIR = ("disc", "square")
_OTHERS = ("cross", "ring", "triangle")
_LONE = 0.12  # chance that one of the pair is missing
_GAP = 16  # pixels between the boxes along an axis; from this distance they are separate along it
_SHARED = 0.3  # fraction of the smaller side that they share along an axis where they are not separate
_TRIES = 200  # pairs drawn until one has a clear relation; small images may have no room for any


def draw_arrangement(rng: Generator, size: tuple[int, int]) -> tuple[np.ndarray, list[SceneObject]]:
    """Return an image (H, W, 3) uint8 RGB of ``size`` (height, width), and one object per relation."""
    scene = draw_scene(rng, size, _arranged_shapes)
    return scene.image, arranged_objects(scene)


def arranged_objects(scene: Scene) -> list[SceneObject]:
    """Return one object per relation of a scene's disc and square; it is difficult where one of them is."""
    flags = zip(scene.shapes, scene.difficult(), strict=True)
    pair = {shape.name: (shape, difficult) for shape, difficult in flags if shape.name in _PAIR}
    if len(pair) < len(_PAIR):
        return []
    (disc, disc_difficult), (square, square_difficult) = (pair[name] for name in _PAIR)
    box = (
        min(disc.box[0], square.box[0]),
        min(disc.box[1], square.box[1]),
        max(disc.box[2], square.box[2]),
        max(disc.box[3], square.box[3]),
    )
    truncated, difficult = disc.truncated or square.truncated, disc_difficult or square_difficult
    return [SceneObject(name, box, truncated, difficult) for name in _relations(disc, square) or ()]


def _relations(disc: Shape, square: Shape) -> list[str] | None:
    """Return the one or two classes of a pair, None where no relation is clear."""
    relations = []
    for axis, relation in ((0, "left_of"), (1, "above")):
        first, second = disc.box[axis::2], square.box[axis::2]
        if second[0] - first[1] >= _GAP:
            relations.append(f"disc_{relation}_square")
        elif first[0] - second[1] >= _GAP:
            relations.append(f"square_{relation}_disc")
        else:
            shared = min(first[1], second[1]) - max(first[0], second[0])
            if shared < _SHARED * min(first[1] - first[0], second[1] - second[0]):
                return None
    return relations or None


def _arranged_shapes(rng: Generator, size: tuple[int, int]) -> list[Shape]:
    placed = _pair(rng, size)
    for _ in range(rng.integers(0, 3)):
        shape = random_shape(rng, size, _OTHERS)
        if fits(shape, placed, MOSTLY_VISIBLE):
            placed.append(shape)
    return placed


def _pair(rng: Generator, size: tuple[int, int]) -> list[Shape]:
    """Return a disc and a square with a clear relation, or only one of them."""
    if rng.random() >= _LONE:
        for _ in range(_TRIES):
            disc, square = (random_shape(rng, size, (name,)) for name in _PAIR)
            visible = fits(disc, [], MOSTLY_VISIBLE) and fits(square, [disc], MOSTLY_VISIBLE)
            if visible and _relations(disc, square):
                return [disc, square]
    return [random_shape(rng, size, _PAIR)]
