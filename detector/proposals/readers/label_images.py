"""Label images: every pixel has the number of its region, 0 is the background.

Cellpose (``X_cp_masks.png``, ``X_cp_masks.tif``), StarDist and QuPath write them as PNG or TIFF of 8, 16 or
32 bits. All pixels of one number are one region, whether they are connected or not; regions are in the order
of their numbers.
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco_mask

from detector.core.errors import InputError
from detector.core.files import require_regular
from detector.core.masks import Masks
from detector.proposals.readers.raw_images import MAX_BOXES, RawImage, RawImages, files_or_one

SUFFIXES = (".png", ".tif", ".tiff")
NAME_ENDS = re.compile(r"[-_](cp_masks|masks?|labels?|label+ed)\Z", re.IGNORECASE)
"""What programs append to the name of an image to name its label image."""
_MAX_PIXELS = 2**27  # as of an image that is read
_MAX_RUNS = 1 << 23
_MODES = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L", "I;16N", "F")


def read_label_images(source: Path) -> RawImages:
    """Return the images of the folder ``source``, or of one label image, with their masks.

    Where the names of some files end as `NAME_ENDS` says, only these are read, and the end is not part of the
    image's name: the others are images. One label image is in memory at a time.
    """
    files = files_or_one(source, *SUFFIXES)
    named = [(NAME_ENDS.sub("", key), path) for key, path in files if NAME_ENDS.search(key)]
    files = named or files
    images = (regions_of(key, read_labels(path), str(path)) for key, path in files)
    return RawImages([key for key, _ in files], images)


def read_labels(path: Path) -> NDArray[Any]:
    """Return the numbers (H, W) of a label image; InputError for any other file."""
    require_regular(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's own about large images and odd headers
            with Image.open(path, formats=("PNG", "TIFF")) as image:
                _check_header(image, path)
                labels = np.asarray(image)
    except InputError:
        raise
    except Exception as error:  # Pillow raises many kinds for damaged files
        raise InputError(f"{path}: not a readable PNG or TIFF file ({error})"[:300]) from None
    if labels.dtype.kind == "f":
        whole = np.nan_to_num(labels, nan=-1.0, posinf=-1.0, neginf=-1.0)
        if (whole != np.rint(whole)).any() or whole.min(initial=0) < 0 or whole.max(initial=0) > 2**24:
            raise InputError(f"{path}: its values are no whole numbers, so it is not a label image")
        labels = whole.astype(np.int64)
    return labels


def _check_header(image: Image.Image, path: Path) -> None:
    if image.height * image.width > _MAX_PIXELS:
        raise InputError(f"{path}: {image.width} x {image.height} pixels are refused; cut it into tiles")
    if image.mode not in _MODES:
        raise InputError(
            f"{path}: its pixels are colours ({image.mode}) and not one number each, so it is no label image"
        )
    if getattr(image, "is_animated", False):
        raise InputError(f"{path}: has several pages; save each plane as a file of its own")


def regions_of(key: str, labels: NDArray[Any], where: str) -> RawImage:
    """Return the image ``key`` with one region for each number but 0 in ``labels`` (H, W), by number.

    Raises InputError, which begins with ``where``, for more regions than an image may have, and for an array
    that no segmentation leaves behind, such as a photo of millions of pixels.
    """
    if labels.ndim != 2 or labels.dtype.kind not in "iub" or not labels.size:
        raise InputError(f"{where}: expected whole numbers of shape (height, width), not {labels.shape}")
    size = (labels.shape[0], labels.shape[1])
    flat = labels.ravel(order="F")  # run-length encodings go down the columns
    starts = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1))
    if len(starts) > _MAX_RUNS:
        raise InputError(f"{where}: its pixels change too often for a label image; it is refused")
    values = flat[starts]
    lengths = np.diff(starts, append=len(flat))
    used = np.flatnonzero(values)
    order = used[np.argsort(values[used], kind="stable")]
    firsts = np.flatnonzero(np.concatenate(([True], values[order][1:] != values[order][:-1])))[: len(order)]
    if len(firsts) > MAX_BOXES:
        raise InputError(f"{where}: {len(firsts)} regions are more than {MAX_BOXES} for one image")
    ends = np.append(firsts[1:], len(order))[: len(firsts)]
    counts = tuple(
        _counts(starts[order[first:end]], lengths[order[first:end]], size)
        for first, end in zip(firsts, ends, strict=True)
    )
    masks = Masks(size, counts)
    return RawImage(key, masks.boxes().numpy(), None, "xyxy", size, masks)


def _counts(starts: NDArray[np.int64], lengths: NDArray[np.int64], size: tuple[int, int]) -> bytes:
    """Return the compressed counts of runs that begin at ``starts`` (n,) and are ``lengths`` (n,) long."""
    ends = starts + lengths
    runs = np.empty(2 * len(starts) + 1, np.int64)
    runs[0:-1:2] = starts - np.concatenate(([0], ends[:-1]))
    runs[1::2] = lengths
    runs[-1] = size[0] * size[1] - ends[-1]
    listed = runs.tolist() if runs[-1] else runs[:-1].tolist()
    counts: bytes = coco_mask.frPyObjects({"size": list(size), "counts": listed}, *size)["counts"]
    return counts
