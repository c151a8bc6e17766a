"""Reading image files: the whole image or a clear error, never half of one."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from detector.errors import InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")

# How a complete file of each kind ends. A decoder fills what is missing of a truncated file with grey and
# only warns, so the end is looked for here.
_ENDS = {b"\xff\xd8": b"\xff\xd9", b"\x89PNG": b"IEND"}
_TAIL_BYTES = 1 << 16


def read_image(path: Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode ``path`` to an array (H, W, 3) uint8, RGB.

    ``size`` is the annotated (height, width). The orientation that a camera wrote into the file is
    applied, unless the annotated size says that the annotator saw the image without it.

    Raises:
        InputError: no such file, not an image, truncated, or of another size than annotated.
    """
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise InputError(f"{path}: cannot read the image: {error.strerror}") from None
    _refuse_truncated(path, data.tobytes())
    image = _decode(path, data, cv2.IMREAD_COLOR)
    if size is not None and image.shape[:2] != size:
        image = _decode(path, data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
        if image.shape[:2] != size:
            raise InputError(
                f"{path}: the image is {image.shape[1]}x{image.shape[0]} pixels, its annotation says "
                f"{size[1]}x{size[0]}; correct the annotation's <size> or put back the right image"
            )
    return np.ascontiguousarray(image[:, :, ::-1])


def _decode(path: Path, data: np.ndarray, flags: int) -> np.ndarray:
    image = cv2.imdecode(data, flags) if data.size else None
    if image is None:
        raise InputError(f"{path}: not a readable image; replace the file or leave its id out of the split")
    return image


def _refuse_truncated(path: Path, data: bytes) -> None:
    for start, end in _ENDS.items():
        if data.startswith(start) and end not in data[-_TAIL_BYTES:]:
            raise InputError(
                f"{path}: the image is truncated; replace the file or leave its id out of the split"
            )
