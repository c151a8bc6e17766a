"""Augmentation: random changes of training images that leave the objects in them recognisable.

Expanding and cropping choose what a sample shows of its image, a `detector.core.structures.Window`, without
reading the image. Colour jitter and cut-out change the pixels of a finished sample. What is drawn depends
only on the generators that are passed in, and several threads may use the same objects.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch import Tensor

from detector.core import boxes as box_ops
from detector.core.structures import ImageMeta, Proposals, Sample, Targets, Window, window_size
from detector.data.transforms import BLACK, Colour, place_of_image

TRIALS = 50
"""How many crops are tried before the image stays whole (SSD's release, as ``max_trials``)."""
HIDDEN = 0.6
"""Objects and proposals of which one hole hides more than this are left out (as in YOLOv5's cut-out)."""


@dataclass(frozen=True, kw_only=True)
class ColorJitter:
    """Random brightness, contrast and saturation, by factors from [1 - s, 1 + s], and hue, from [-s, s].

    The meaning of the strengths and the random order of the changes are those of torchvision's class. Each
    change gives the values of the function of the same name in ``torchvision.transforms.v2.functional`` up to
    rounding, by at most 2 of 255. Those functions would take 4 to 25 times as long. They would also start
    torch's own threads within every thread that loads images, and the last digits of their mean grey depend
    on the number of these threads.
    """

    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    hue: float = 0.0

    def __call__(self, image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Return ``image`` (h, w, 3) uint8 RGB with other colours; the argument is not changed."""
        changes = (
            (adjust_brightness, self.brightness, 1.0),
            (adjust_contrast, self.contrast, 1.0),
            (adjust_saturation, self.saturation, 1.0),
            (adjust_hue, self.hue, 0.0),
        )
        amounts = [unchanged + rng.uniform(-strength, strength) for _, strength, unchanged in changes]
        for number in rng.permutation(len(changes)):
            change, strength, _ = changes[number]
            if strength:
                image = change(image, amounts[number])
        return image


def adjust_brightness(image: np.ndarray, factor: float) -> np.ndarray:
    """Return ``image`` (h, w, 3) uint8 RGB times ``factor``."""
    return cv2.LUT(image, _limited(np.arange(256) * factor))


def adjust_contrast(image: np.ndarray, factor: float) -> np.ndarray:
    """Return ``image`` (h, w, 3) uint8 RGB with its differences from its mean grey times ``factor``."""
    mean = float(np.dot(cv2.mean(image)[:3], _GREY))
    return cv2.LUT(image, _limited(np.arange(256) * factor + mean * (1 - factor)))


def adjust_saturation(image: np.ndarray, factor: float) -> np.ndarray:
    """Return ``image`` (h, w, 3) uint8 RGB with each pixel's differences from its grey times ``factor``."""
    return cv2.transform(image, factor * np.eye(3) + (1 - factor) * np.array(_GREY))


def adjust_hue(image: np.ndarray, shift: float) -> np.ndarray:
    """Return ``image`` (h, w, 3) uint8 RGB with hues moved by ``shift`` of the colour circle."""
    colours = cv2.cvtColor(np.multiply(image, np.float32(1 / 255)), cv2.COLOR_RGB2HSV)
    colours[..., 0] += np.float32(360 * (shift % 1))  # OpenCV takes angles over 360 degrees, but none below 0
    return cv2.convertScaleAbs(cv2.cvtColor(colours, cv2.COLOR_HSV2RGB), alpha=255)


_GREY = (0.2989, 0.587, 0.114)  # ITU-R BT.601, with the digits of torchvision


def _limited(values: np.ndarray) -> np.ndarray:
    return values.clip(0, 255).astype(np.uint8)


@dataclass(frozen=True, kw_only=True)
class Expand:
    """Puts the image at a random place of a larger canvas, which makes its objects smaller (zoom-out).

    Both sides of the canvas are those of the image times one factor from [1, ``max_ratio``] (SSD, Liu et al.
    2016, section 3.6, with factors up to 4; ``torchvision.transforms.v2.RandomZoomOut``).
    """

    probability: float
    max_ratio: float

    def __call__(self, size: tuple[int, int], rng: np.random.Generator) -> Window:
        """Return the canvas for an image of ``size`` (height, width)."""
        height, width = size
        if rng.random() >= self.probability:
            return 0, 0, width, height
        ratio = rng.uniform(1.0, self.max_ratio)
        tall, wide = int(height * ratio), int(width * ratio)
        top, left = int(rng.integers(tall - height + 1)), int(rng.integers(wide - width + 1))
        return -left, -top, wide - left, tall - top


@dataclass(frozen=True, kw_only=True)
class Crop:
    """Cuts a random rectangle out of the image that shows at least one object well.

    As SSD's random patches (Liu et al. 2016, section 2.2), with sides from [``min_scale``, 1] of the image's
    and width / height within ``aspect_ratio``. SSD bounds the IoU of the patch with an object; that depends
    on the size of the object, so that an image of small objects would always be enlarged. Here at least
    ``min_coverage`` of the area of an object that stays is in the crop instead. Crowd regions and, where
    there are others, ``difficult`` objects do not count as this object. In an image without objects any crop
    is allowed whose centre is in the image.
    """

    probability: float
    min_scale: float
    aspect_ratio: tuple[float, float]
    min_coverage: float

    def __call__(
        self, window: Window, size: tuple[int, int], targets: Targets, rng: np.random.Generator
    ) -> Window:
        """Return a crop of ``window`` for an image of ``size``, or ``window`` where none was found."""
        if rng.random() >= self.probability:
            return window
        objects = targets.boxes[_counted(targets)]
        for _ in range(TRIALS):
            crop = self._draw(window, rng)
            if crop is not None and self._is_useful(crop, size, objects):
                return crop
        return window

    def _draw(self, window: Window, rng: np.random.Generator) -> Window | None:
        height, width = (
            max(1, round(side * rng.uniform(self.min_scale, 1.0))) for side in window_size((0, 0), window)
        )
        left = int(rng.integers(window[0], window[2] - width + 1))
        top = int(rng.integers(window[1], window[3] - height + 1))
        low, high = self.aspect_ratio
        return (left, top, left + width, top + height) if low <= width / height <= high else None

    def _is_useful(self, crop: Window, size: tuple[int, int], objects: Tensor) -> bool:
        if not len(objects):
            height, width = size
            return 0 <= crop[0] + crop[2] < 2 * width and 0 <= crop[1] + crop[3] < 2 * height
        clipped, kept = clip_to_window(objects, crop)
        covered = box_ops.area(clipped) >= self.min_coverage * box_ops.area(objects)
        return bool((kept & covered).any())


@dataclass(frozen=True, kw_only=True)
class Cutout:
    """Paints ``count`` squares over the image, each at a random place (DeVries and Taylor, 2017).

    The side is drawn from ``size``, fractions of the shorter side of the image's own pixels. As in the paper,
    the centre may be any point of the image, so that a square may reach beyond its edge. Objects and
    proposals that one square hides by more than `HIDDEN` of their area are left out. A square that would
    hide the last object is not painted.
    """

    probability: float
    count: int
    size: tuple[float, float]

    def __call__(self, sample: Sample, fill: Colour, rng: np.random.Generator) -> Sample:
        """Return the sample with squares of the colour ``fill``; the argument is not changed."""
        if rng.random() >= self.probability:
            return sample
        image, place = sample.image.clone(), _place_in_input(sample.meta)
        targets, proposals, rois = sample.targets, sample.proposals, sample.rois
        for _ in range(self.count):
            hole = x1, y1, x2, y2 = self._draw(place, rng)
            seen, counted = _seen(targets.boxes, hole), _counted(targets)
            if bool(counted.any()) and not bool((counted & seen).any()):
                continue
            image[y1:y2, x1:x2] = torch.tensor(fill, dtype=torch.uint8)
            targets, seen = targets.select(seen), _seen(rois, hole)
            proposals, rois = proposals.select(seen), rois[seen]
        return replace(sample, image=image, targets=targets, proposals=proposals, rois=rois)

    def _draw(self, place: Window, rng: np.random.Generator) -> Window:
        height, width = window_size((0, 0), place)
        side = max(1, round(min(height, width) * rng.uniform(*self.size)))
        x = int(rng.integers(place[0], place[2])) - side // 2
        y = int(rng.integers(place[1], place[3])) - side // 2
        return max(x, place[0]), max(y, place[1]), min(x + side, place[2]), min(y + side, place[3])


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """What is done to training images besides scaling and flipping; None for what is not.

    ``fill`` is the colour outside the image and in the squares of cut-out, RGB; the network's mean colour
    becomes 0 in its input, as the padding of a batch is.
    """

    color_jitter: ColorJitter | None = None
    expand: Expand | None = None
    crop: Crop | None = None
    cutout: Cutout | None = None
    fill: Colour = BLACK

    def window(self, size: tuple[int, int], targets: Targets, rng: np.random.Generator) -> Window | None:
        """Return what a sample shows of an image of ``size`` (height, width); None is the whole image.

        ``targets`` are its objects, in pixels of the image. Where one of them has no area in the image, as
        classification allows, nobody knows what a crop would show, and the image stays whole.
        """
        if not bool((box_ops.area(box_ops.clip(targets.boxes, size)) > 0).all()):
            return None
        expanding, cropping = rng.spawn(2)
        whole = window = (0, 0, size[1], size[0])
        if self.expand is not None:
            window = self.expand(size, expanding)
        if self.crop is not None:
            window = self.crop(window, size, targets, cropping)
        return None if window == whole else window

    def paint(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """Return ``sample`` with jittered colours and holes; the argument is not changed."""
        jittering, cutting = rng.spawn(2)
        if self.color_jitter is not None:
            x1, y1, x2, y2 = _place_in_input(sample.meta)
            image = sample.image.clone()
            part = image.numpy()[y1:y2, x1:x2]
            part[:] = self.color_jitter(part, jittering)
            sample = replace(sample, image=image)
        return sample if self.cutout is None else self.cutout(sample, self.fill, cutting)


def clip_to_window(boxes: Tensor, window: Window) -> tuple[Tensor, Tensor]:
    """Return ``boxes`` (P, 4) clipped to ``window``, and a mask (P,) of those that stay.

    All are in original-image pixels. A box stays if its centre is in the window (SSD's rule for objects,
    section 2.2), and if an area is left of it.
    """
    left, top, right, bottom = window
    corners = boxes.new_tensor((left, top, left, top))
    clipped = box_ops.clip(boxes - corners, (bottom - top, right - left)) + corners
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    low, high = boxes.new_tensor((left, top)), boxes.new_tensor((right, bottom))
    inside = ((centres >= low) & (centres < high)).all(dim=1)
    return clipped, inside & (box_ops.area(clipped) > 0)


def shown_in_window(
    proposals: Proposals, targets: Targets, window: Window | None
) -> tuple[Proposals, Targets]:
    """Return the proposals and objects of an image that ``window`` shows, clipped to it; None shows all.

    All boxes are in original pixels, and `clip_to_window` has the rule. Of a crowd region every part stays,
    since proposals in it are never background.
    """
    if window is None:
        return proposals, targets
    boxes, kept = clip_to_window(proposals.boxes, window)
    proposals = _masks_in_window(replace(proposals, boxes=boxes).select(kept), window)
    boxes, kept = clip_to_window(targets.boxes, window)
    kept |= targets.crowd & (box_ops.area(boxes) > 0)
    return proposals, targets.with_boxes(boxes).select(kept)


def _masks_in_window(proposals: Proposals, window: Window) -> Proposals:
    """Return ``proposals`` with masks and their boxes cut off at ``window``; those left empty are dropped."""
    if proposals.masks is None:
        return proposals
    masks = proposals.masks.within(window)
    present = torch.from_numpy(masks.present)
    boxes = torch.where(present[:, None], masks.boxes(), proposals.boxes)
    return replace(proposals, boxes=boxes, masks=masks).select(box_ops.area(boxes) > 0)


def _counted(targets: Targets) -> Tensor:
    """Return a mask (G,) of the objects of which an image must not lose the last one."""
    plain = ~(targets.crowd | targets.difficult)
    return plain if bool(plain.any()) else torch.ones_like(plain)


def _seen(boxes: Tensor, hole: Window) -> Tensor:
    """Return a mask (P,) of the ``boxes`` (P, 4) that ``hole`` does not hide, all in input pixels."""
    shared = box_ops.intersection(boxes, boxes.new_tensor([hole]))[:, 0]
    return shared <= HIDDEN * box_ops.area(boxes)


def _place_in_input(meta: ImageMeta) -> Window:
    """Return where the image's own pixels lie in the input: `place_of_image`, flipped as the input is."""
    corners = torch.tensor(place_of_image(meta), dtype=torch.float64)
    x1, y1, x2, y2 = (int(corner) for corner in meta.mirror(corners, meta.input_size))
    return x1, y1, x2, y2
