"""A digest of everything in a split that affects training; a resumed run compares it with its data."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

from detector.core.errors import InputError
from detector.core.structures import ImageRecord


def fingerprint(records: Sequence[ImageRecord]) -> str:
    """Return a digest of the images of a split, in their order, with their objects.

    It covers each image's id, its file's name and size in bytes, its size in pixels, and its objects' boxes,
    labels, flags and areas. Folders are left out, so a data set may be moved. Files are not opened: an image
    with other content and the same number of bytes is not noticed.

    Raises:
        InputError: an image file is missing.
    """
    digest = hashlib.blake2b(digest_size=16)
    for record in records:
        name = f"{record.image_id}\0{record.path.name}\0".encode(errors="surrogatepass")
        digest.update(struct.pack("<Q", len(name)) + name)
        targets = record.targets
        try:
            size = record.path.stat().st_size
        except OSError as error:
            raise InputError(f"{record.path}: cannot read the image: {error.strerror}") from None
        digest.update(struct.pack("<4Q", size, record.height, record.width, len(targets)))
        for values in (targets.boxes, targets.labels, targets.difficult, targets.crowd, targets.area):
            digest.update(values.numpy().tobytes())
    return digest.hexdigest()
