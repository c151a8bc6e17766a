"""The frames of a video file or of a camera.

OpenCV's FFmpeg decodes them. Frames of a video file are turned upright as its rotation says, which phones
write instead of turning the pixels.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Self

import cv2
import numpy as np

from detector.core.errors import InputError
from detector.core.files import require_regular
from detector.data.images import MAX_PIXELS

VIDEO_SUFFIXES = (
    ".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".ts", ".mts", ".m2ts", ".wmv", ".flv",
    ".ogv", ".3gp",
)  # fmt: skip
"""The suffixes of video files, in lower case; a file's own suffix may be in any case."""
VideoPlace = str | os.PathLike[str] | int
"""The path of a video file, or the number of a camera."""

_USUAL_RATE = 25.0
_FASTEST = 1000.0  # frames per second; WebM files of browsers announce 1000 and mean "unknown"
_MOST_CAMERAS = 100  # from this number on, OpenCV takes the hundreds as the kind of camera
_HEAD = 400  # bytes that show what a file is
_MPEG_TS = ((0, 188), (4, 192))  # where the first packet begins, and the length of one (with a time stamp)


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """One picture of a video."""

    pixels: np.ndarray
    """(H, W, 3) uint8 RGB, upright."""
    number: int
    """0 for the first frame of the file, or the first that the camera gave; skipped frames count too."""
    time_ms: float
    """Milliseconds since the first frame of the file by its own time stamps; for a camera, by the clock."""


class DamagedVideo(InputError):
    """A video that ends before the end that it announces, or a camera that stopped; frames came before."""


def is_video(path: Path) -> bool:
    """Say whether ``path`` is a video file by its content, or is named like one."""
    return path.suffix.lower() in VIDEO_SUFFIXES or (path.is_file() and _is_known(_head(path)))


class Video:
    """A video file or a camera: an iterator over its frames (`Frame`), to be read once; a context manager.

    Args:
        place: a path, or the number of a camera: 0 is the first one.
        every: only each ``every``-th frame is given, from the first one on.
        max_frames: at most so many frames are given.
        seconds: only frames of the first ``seconds`` are given; for a camera, its first ``seconds``.

    Attributes:
        name: the path, or "camera 0".
        size: (height, width) of the first frame; later ones may differ.
        announced: how many frames the file announces, 0 if it does not; OpenCV computes it for some
            containers from duration and rate.
        rate: frames per second that are given; the mean, where they differ.
        rate_is_known: False where neither the file nor its time stamps say the rate, and 25 is assumed.
        total: how many frames will be given, as the file announces it and ``max_frames`` limits it; None
            where neither is known.
        is_camera: whether it is a camera, which does not wait.
        missing: after a file was read to the end of its time, how many frames it announces and does not have.

    Raises:
        InputError: a file that is no video, is empty or has frames of over `MAX_PIXELS`; a camera that cannot
            be opened; an argument out of range. While frames are read: `DamagedVideo`.
    """

    def __init__(
        self,
        place: VideoPlace,
        *,
        every: int = 1,
        max_frames: int | None = None,
        seconds: float | None = None,
    ) -> None:
        _check(every, max_frames, seconds)
        self.is_camera = isinstance(place, int)
        self.name = f"camera {place}" if isinstance(place, int) else str(Path(place))
        self._every, self._max_frames = every, max_frames
        self._reading = threading.Lock()
        self._limit_ms = math.inf if seconds is None else 1000 * seconds
        self._capture = _open_camera(place) if isinstance(place, int) else _open_file(Path(place))
        try:
            self._check_size(self._header(cv2.CAP_PROP_FRAME_HEIGHT), self._header(cv2.CAP_PROP_FRAME_WIDTH))
            self._first = self._read()
            if self._first is None:
                raise InputError(f"{self.name}: no frame can be read: the video is empty or damaged")
        except BaseException:
            self.close()
            raise
        self._opened = time.monotonic()
        self._first_ms, self._last_ms = self._header(cv2.CAP_PROP_POS_MSEC), 0.0
        self.size: tuple[int, int] = (self._first.shape[0], self._first.shape[1])
        self._given_rate, self.rate_is_known = self._find_rate(place)
        self.rate = self._given_rate / every
        self.announced = 0 if self.is_camera else int(self._header(cv2.CAP_PROP_FRAME_COUNT))
        self.total = self._find_total()
        self.missing = 0

    def __iter__(self) -> Iterator[Frame]:
        """Yield the frames. Raises DamagedVideo after the last one where the file announces more."""
        given, number, previous = 0, 0, -math.inf
        pixels: np.ndarray | None = self._first
        self._first = None
        while pixels is not None:
            self._last_ms = self._header(cv2.CAP_PROP_POS_MSEC) - self._first_ms
            if number % self._every == 0:
                time_ms = self._time(number, previous)
                if time_ms >= self._limit_ms or given == self._max_frames:
                    return
                yield Frame(pixels=pixels, number=number, time_ms=time_ms)
                given, previous = given + 1, time_ms
                if given == self._max_frames:
                    return
            number += 1
            wanted = number % self._every == 0
            pixels = self._read() if wanted else self._skip()
        self._check_end(number)

    def close(self) -> None:
        """Close the file or the camera, unless a thread is waiting in it for a frame that does not come."""
        if self._reading.acquire(timeout=1.0):
            self._capture.release()
            self._reading.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _header(self, which: int) -> float:
        value = float(self._capture.get(which))
        return value if math.isfinite(value) and value > 0 else 0.0

    def _check_size(self, height: float, width: float) -> None:
        if height * width > MAX_PIXELS:
            raise InputError(
                f"{self.name}: frames of {width:.0f}x{height:.0f} pixels are over the limit of {MAX_PIXELS}; "
                "make a smaller video"
            )

    def _read(self) -> np.ndarray | None:
        """Return the next frame, RGB, or None where there is none."""
        try:
            with self._reading:
                found, pixels = self._capture.read()
        except cv2.error as error:
            raise DamagedVideo(f"{self.name}: cannot decode a frame: {error.err or error}") from None
        if not found or pixels is None:
            return None
        self._check_size(*pixels.shape[:2])
        rgb: np.ndarray = cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB if pixels.ndim == 2 else cv2.COLOR_BGR2RGB)
        return rgb

    def _skip(self) -> np.ndarray | None:
        """Go past the next frame without converting its pixels; None where there is none."""
        with self._reading:
            found = self._capture.grab()
        return _SKIPPED if found else None

    def _time(self, number: int, previous: float) -> float:
        """Return the time of the current frame; time stamps that do not increase are replaced."""
        if self.is_camera:
            return 0.0 if number == 0 else 1000 * (time.monotonic() - self._opened)
        if number == 0:
            return 0.0
        return self._last_ms if self._last_ms > previous else previous + 1000 / self.rate

    def _find_rate(self, place: VideoPlace) -> tuple[float, bool]:
        """Return the frames per second, and whether the file or the camera says them."""
        announced = self._header(cv2.CAP_PROP_FPS)
        if 0 < announced < _FASTEST:
            return announced, True
        if not isinstance(place, int):
            stamps = _first_stamps(Path(place))
            steps = [later - earlier for earlier, later in pairwise(stamps)]
            if steps and min(steps) > 0 and median(steps) > 1000 / _FASTEST:
                return 1000 / median(steps), True
        return _USUAL_RATE, False

    def _find_total(self) -> int | None:
        """Return how many frames will be given, or None."""
        if not self.announced:
            return self._max_frames
        wanted = self.announced
        if math.isfinite(self._limit_ms):
            wanted = min(wanted, math.ceil(self._limit_ms / 1000 * self._given_rate))
        wanted = math.ceil(wanted / self._every)
        return wanted if self._max_frames is None else min(wanted, self._max_frames)

    def _check_end(self, frames: int) -> None:
        """Raise DamagedVideo where the ``frames`` that were read are not all."""
        if self.is_camera:
            raise DamagedVideo(f"{self.name}: gave no more frames after {frames}; is it still connected?")
        by_time = round(self._last_ms / 1000 * self._given_rate) + 1
        # Matroska announces no number: OpenCV computes it from duration and rate. So the time counts, too.
        if max(frames, by_time) >= self.announced - max(1, self.announced // 100):
            self.missing = max(self.announced - frames, 0)
            return
        raise DamagedVideo(
            f"{self.name}: damaged, incomplete or trimmed: it announces {self.announced} frames, and only "
            f"{frames} can be read"
        )


_SKIPPED = np.zeros((0, 0, 3), np.uint8)


def _check(every: int, max_frames: int | None, seconds: float | None) -> None:
    if every < 1:
        raise InputError(f"every: expected 1 or more, not {every}")
    if max_frames is not None and max_frames < 1:
        raise InputError(f"max_frames: expected 1 or more, not {max_frames}")
    if seconds is not None and not (math.isfinite(seconds) and seconds > 0):
        raise InputError(f"seconds: expected a number above 0, not {seconds:g}")


def _open_camera(number: int) -> Any:
    if not 0 <= number < _MOST_CAMERAS:  # OpenCV 5.0 crashes for -1
        raise InputError(f"camera {number}: expected a number from 0, which is the first one")
    capture = cv2.VideoCapture(number)
    if not capture.isOpened():
        capture.release()
        raise InputError(
            f"camera {number}: cannot be opened; 0 is the first one: is it connected, free (no other program "
            f"uses it), and may this user read it (Linux: /dev/video{number})?"
        )
    return capture


def _open_file(path: Path) -> Any:
    """Open a video file of a known container; FFmpeg would follow a playlist to other files and addresses."""
    require_regular(path)
    head = _head(path)
    if not head:
        raise InputError(f"{path}: the file is empty")
    if not _is_known(head):
        raise InputError(
            f"{path}: not a video that can be read: its content is none of MP4, MOV, AVI, Matroska, WebM, "
            "MPEG, WMV, FLV and Ogg; convert it, for example to MP4"
        )
    capture = cv2.VideoCapture(str(path.resolve()), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        capture.release()
        raise InputError(
            f"{path}: cannot read the video: the file is incomplete or damaged, or its codec is not supported"
        )
    return capture


def _first_stamps(path: Path) -> list[float]:
    """Return the time stamps of the first frames of a file, in milliseconds."""
    capture = _open_file(path)
    stamps: list[float] = []
    while len(stamps) < 10 and capture.grab():
        stamps.append(float(capture.get(cv2.CAP_PROP_POS_MSEC)))
    capture.release()
    return stamps


def _head(path: Path) -> bytes:
    require_regular(path)
    try:
        with path.open("rb") as file:
            return file.read(_HEAD)
    except OSError as error:
        raise InputError(f"{path}: cannot read the file: {error.strerror or error}") from None


def _is_known(head: bytes) -> bool:
    """Say whether a file that begins with ``head`` is a video in a container that holds its own data.

    The signatures are those of ISO 14496-12 (and QuickTime), RIFF, EBML, ISO 13818-1, ASF, FLV and Ogg.
    """
    if head[4:8] in (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot"):
        return head[8:11] not in (b"avi", b"hei", b"mif") or head[4:8] != b"ftyp"  # AVIF and HEIC are images
    if head[:4] == b"RIFF":
        return head[8:12] == b"AVI "
    starts = (b"\x1aE\xdf\xa3", b"\0\0\1\xba", b"\0\0\1\xb3", b"\x30\x26\xb2\x75", b"FLV\1", b"OggS")
    return head.startswith(starts) or any(
        head[first : first + 1] == head[first + length : first + length + 1] == b"G"
        for first, length in _MPEG_TS
    )
