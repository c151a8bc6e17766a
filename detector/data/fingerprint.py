"""A digest of everything in a split that affects training; a resumed run compares it with its data."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence

import numpy as np

from detector.core.listing import file_sizes
from detector.core.records import Records, Texts
from detector.core.structures import ImageRecord

VERSION = "2-"
"""The beginning of every fingerprint; those of version 1 have none and are computed from other bytes."""


def fingerprint(records: Sequence[ImageRecord]) -> str:
    """Return a digest of the images of a split, in their order, with their objects.

    It covers each image's id, its file's name and size in bytes, its size in pixels, and its objects' boxes,
    labels, flags and areas. Folders are left out, so a data set may be moved. Files are not opened: an image
    with other content and the same number of bytes is not noticed.

    Raises:
        InputError: an image file is missing.
    """
    columns = Records.of(records)
    paths, objects = columns.paths(), columns.objects
    names = Texts.of(os.path.basename(path) for path in paths)  # noqa: PTH119 - much faster than Path
    arrays = (
        *(columns.image_ids.ends, columns.image_ids.content, names.ends, names.content),
        *(file_sizes(paths), columns.sizes),
        *(objects.offsets, objects.boxes, objects.labels, objects.difficult, objects.crowd, objects.area),
    )
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:  # the offsets say how long the next array is, so no two splits give the same bytes
        digest.update(len(array).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return VERSION + digest.hexdigest()
