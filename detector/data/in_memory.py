"""An image that a caller passes as a path, the content of a file, an array or a Pillow image."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from PIL import Image

from detector.core.errors import InputError
from detector.data.images import LoadedImage, decode_image, exif_orientation, open_image

ImageLike = str | os.PathLike[str] | bytes | np.ndarray | Image.Image | LoadedImage

_EXPECTED = (
    "expected a path, an array (H, W, 3) uint8 in RGB order, a Pillow image, or the bytes of an image file"
)
_SIXTEEN_BITS = ("I;16", "I;16L", "I;16B", "I;16N")
_CONVERTED = ("RGB", "RGBA", "RGBX", "L", "LA", "P", "PA", "1", "CMYK", "YCbCr")
# EXIF 2.3, table 4: the operation that turns an image of each orientation upright.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def load_image(image: object, name: str) -> LoadedImage:
    """Return an image from a caller; ``name`` is its name in errors.

    A path is read by `open_image`, and bytes, which are the content of such a file, are decoded in the same
    way. So large photographs are decoded in a smaller size for the network, as in evaluation. A `LoadedImage`
    is taken as it is; every other image is resized from all of its pixels. A Pillow image is treated like a
    file: its EXIF orientation is applied, grey becomes RGB, transparency is dropped, and of 16 bits the
    highest 8 are kept. An array must be in RGB order: BGR, as OpenCV reads images, cannot be distinguished
    from RGB.

    Raises:
        InputError: a file that cannot be read, another type, or an array of another shape or type.
    """
    match image:
        case str() | os.PathLike():
            return open_image(Path(image))
        case bytes():
            return decode_image(image, name)
        case LoadedImage():
            return image
        case Image.Image():
            return LoadedImage.of(_pixels_of_pillow(image, name))
        case np.ndarray():
            fault = _fault_of(image)
            if fault is not None:
                raise InputError(f"{name}: {fault}")
            return LoadedImage.of(np.require(image, requirements=("C", "W")))  # torch needs a writable one
        case _:
            raise InputError(f"{name}: a {type(image).__name__} is not an image; {_EXPECTED}")


def _fault_of(image: np.ndarray) -> str | None:
    """Return what is wrong with an array and how to correct it, or None."""
    shape = "x".join(map(str, image.shape))
    if not image.size:
        return f"the array is empty ({shape}); {_EXPECTED}"
    if image.ndim == 2 or (image.ndim == 3 and image.shape[2] == 1):
        return f"a grey array ({shape}); repeat its channel: np.repeat(image.reshape(H, W, 1), 3, axis=2)"
    if image.ndim == 4:
        return f"an array of four dimensions ({shape}); give several images as a list"
    if image.ndim != 3:
        return f"an array of {image.ndim} dimensions ({shape}); {_EXPECTED}"
    if image.shape[2] == 4:
        return f"an array of four channels ({shape}); drop the last one: image[:, :, :3]"
    if image.shape[2] != 3:
        turned = image.shape[0] in (1, 3, 4)
        how = "the channels come first; write image.transpose(1, 2, 0)" if turned else _EXPECTED
        return f"an array of {image.shape[2]} channels ({shape}); {how}"
    if image.dtype != np.uint8:
        floating = image.dtype.kind == "f"
        how = "for values in [0, 1] write (255 * image).round().astype(np.uint8)" if floating else _EXPECTED
        return f"an array of {image.dtype}, not uint8; {how}"
    return None


def _pixels_of_pillow(image: Image.Image, name: str) -> np.ndarray:
    try:
        image.load()  # only now does Pillow read what follows the pixels of a PNG, such as the orientation
        orientation = 1 if image.format == "TIFF" else exif_orientation(image)  # Pillow has turned a TIFF
    except Exception as error:  # Pillow raises many kinds for a damaged file
        raise InputError(f"{name}: Pillow cannot decode this image: {error}") from None
    if 0 in image.size:
        raise InputError(f"{name}: the Pillow image is empty ({image.width}x{image.height} pixels)")
    turn = _TURNS.get(orientation)
    upright = image if turn is None else image.transpose(turn)
    if image.mode in _SIXTEEN_BITS:
        return np.repeat((np.asarray(upright) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    if image.mode not in _CONVERTED:
        raise InputError(f"{name}: a Pillow image of mode {image.mode!r}; give image.convert('RGB')")
    return np.array(upright.convert("RGB"))
