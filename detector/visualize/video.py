"""Writes pictures as a video file with OpenCV."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from detector.core.errors import InputError, nearest
from detector.core.files import make_folder


class Codec(NamedTuple):
    """The suffix of the file, and the four letters by which OpenCV knows the codec."""

    suffix: str
    tag: str


CODECS = {
    "mp4v": Codec(".mp4", "mp4v"),
    "h264": Codec(".mp4", "avc1"),
    "vp9": Codec(".mp4", "vp09"),
    "mjpg": Codec(".avi", "MJPG"),
}
"""MPEG-4 part 2, H.264 (opencv-python's wheels have no encoder for it), VP9, and Motion JPEG."""


class VideoWriter:
    """Writes pictures of one size to ``path`` at ``rate`` frames per second.

    Until `finish` the file is ``partial``, NAME.partial.SUFFIX, beside ``path``. OpenCV only writes even
    sides, so a picture of an odd side gets its last row or column twice.

    Raises:
        InputError: a codec that is unknown or that this OpenCV has no encoder for, another suffix than the
            codec's, or a place that cannot be written.
    """

    def __init__(self, path: Path, size: tuple[int, int], rate: float, codec: str = "mp4v") -> None:
        """``size`` is (height, width)."""
        chosen = codec_named(codec)
        if path.suffix.lower() != chosen.suffix:
            raise InputError(f"{path}: the codec {codec} is written to {chosen.suffix} files")
        self.path, self.partial = path, path.with_suffix(f".partial{path.suffix}")
        self.frames = 0
        self.size = (size[0] + size[0] % 2, size[1] + size[1] % 2)
        self._shape = size
        make_folder(path.parent)
        _make_empty(self.partial)
        fourcc, width_height = cv2.VideoWriter.fourcc(*chosen.tag), self.size[::-1]
        self._writer = cv2.VideoWriter(
            str(self.partial.resolve()), cv2.CAP_FFMPEG, fourcc, _rate(rate), width_height
        )
        if not self._writer.isOpened():
            self.partial.unlink(missing_ok=True)
            raise InputError(
                f"{path}: OpenCV {cv2.__version__} cannot write {size[1]}x{size[0]} pixels with the codec "
                f"{codec} here; choose another: {', '.join(name for name in CODECS if name != codec)}"
            )

    def write(self, picture: np.ndarray, times: int = 1) -> None:
        """Append a picture (h, w, 3) uint8 RGB ``times`` times; one of another size is resized."""
        height, width = self._shape
        if picture.shape[:2] != self._shape:
            picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
        if self._shape != self.size:
            picture = np.pad(picture, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = cv2.cvtColor(picture, cv2.COLOR_RGB2BGR)
        for _ in range(times):
            self._writer.write(frame)
            self.frames += 1

    def finish(self) -> None:
        """Complete the file and give it its name.

        Raises:
            InputError: what was written cannot be read again, because the disk is full.
        """
        self.close()
        readable = cv2.VideoCapture(str(self.partial.resolve()), cv2.CAP_FFMPEG)
        announced = round(readable.get(cv2.CAP_PROP_FRAME_COUNT)) if readable.isOpened() else 0
        readable.release()
        if announced < 0.99 * self.frames - 1:  # some containers only announce an estimate
            raise InputError(
                f"{self.partial}: only {max(announced, 0)} of {self.frames} frames were written; free space "
                "on the disk or choose another folder"
            )
        self.partial.replace(self.path)

    def close(self) -> None:
        """Complete the file and leave it at ``partial``."""
        self._writer.release()


def codec_named(name: str) -> Codec:
    """Return a codec of `CODECS`; InputError for another name."""
    if name not in CODECS:
        raise InputError(f"codec {name!r} is unknown{nearest(name, CODECS)}; use {', '.join(CODECS)}")
    return CODECS[name]


def _make_empty(path: Path) -> None:
    """Make an empty file, which gives the system's reason where that is impossible; OpenCV gives none."""
    try:
        path.unlink(missing_ok=True)  # a link would lead to another file
        path.touch()
    except OSError as error:
        raise InputError(f"{path}: cannot write the file: {error.strerror or error}") from None


def _rate(rate: float) -> float:
    """Return ``rate`` with at most 65535 units: MPEG-4 stores it as a fraction with 16-bit numbers.

    OpenCV refuses lower rates than one frame in 500 s, which each 100,000th frame has; that one is written.
    """
    return max(0.002, round(min(rate, 65535), 3 if rate < 65 else 2 if rate < 655 else 0))
