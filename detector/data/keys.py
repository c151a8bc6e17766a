"""The name by which an image is known in a whole data set: its path below the data root."""

from __future__ import annotations

import os
from pathlib import Path

OUTSIDE = "@parent"
"""Stands for ``..`` in the key of an image outside the data root: stores refuse names that lead upwards."""


def image_key(path: Path, root: Path) -> str:
    """Return the path of an image below ``root``, with suffix, with ``/`` between its parts.

    Links are not followed, so the key is what the config and the annotations say and not where a link leads.
    An image outside the root has a key as well: each step upwards is written `OUTSIDE`.
    """
    text, start = str(path), f"{root}{os.sep}"
    if text.startswith(start) and os.pardir not in text:
        return text.removeprefix(start).replace(os.sep, "/")
    parts = Path(os.path.relpath(path, root)).parts
    return "/".join(OUTSIDE if part == os.pardir else part for part in parts)
