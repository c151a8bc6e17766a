"""Images without boxes, in every protocol."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from detector.proposals.readers import read_images


@pytest.mark.parametrize("protocol", range(6))
def test_an_image_without_boxes(tmp_path: Path, protocol: int) -> None:
    """Up to protocol 2 its empty bytes are written as a call of ``bytes``."""
    boxes = [np.zeros((0, 5), np.float32), np.ones((2, 5), np.float32)]
    (tmp_path / "boxes.pkl").write_bytes(pickle.dumps(boxes, protocol))
    assert [len(image.boxes) for image in read_images(tmp_path / "boxes.pkl", "mmdetection")] == [0, 2]
