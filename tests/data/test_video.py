"""Videos that OpenCV can read, damaged ones, what phones and cameras give, and files that are no videos."""

from __future__ import annotations

import itertools
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from detector.core.errors import InputError
from detector.data import video as module
from detector.data.video import DamagedVideo, Frame, Video, is_video

SIZE = (48, 64)
TAGS = {".mp4": "mp4v", ".avi": "MJPG", ".mkv": "FFV1"}


def picture(number: int) -> np.ndarray:
    """A BGR picture with a bright left third, a dark rest and a bar that shows its number."""
    image = np.full((*SIZE, 3), 30, np.uint8)
    image[:, : SIZE[1] // 3] = 220
    image[: number % SIZE[0], -6:] = (0, 0, 255)
    return image


def make(path: Path, frames: int = 30, rate: float = 25.0) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*TAGS[path.suffix]), rate, SIZE[::-1])
    for number in range(frames):
        writer.write(picture(number))
    writer.release()
    return path


def read(place: Any, **options: Any) -> list[Frame]:
    with Video(place, **options) as video:
        return list(video)


def keep(video: Video, frames: list[Frame]) -> None:
    """Append the frames one by one, so that those before an error are kept."""
    for frame in video:
        frames.append(frame)


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv"])
def test_frames_are_those_of_opencv_in_rgb_with_their_times(tmp_path: Path, suffix: str) -> None:
    path = make(tmp_path / f"clip{suffix}")
    with Video(path) as video:
        assert (video.size, video.rate, video.total, video.is_camera) == (SIZE, 25.0, 30, False)
        frames = list(video)
    capture = cv2.VideoCapture(str(path))
    for number, frame in enumerate(frames):
        assert frame.number == number
        assert frame.time_ms == pytest.approx(40 * number, abs=1)
        assert np.array_equal(frame.pixels[:, :, ::-1], capture.read()[1])
    assert len(frames) == 30
    red = frames[20].pixels[5, -3]
    assert red[0] > 150 > red[2]


def test_frames_are_skipped_and_limited(tmp_path: Path) -> None:
    path = make(tmp_path / "clip.mp4")
    whole = read(path)
    for options, numbers in (
        ({"every": 7}, [0, 7, 14, 21, 28]),
        ({"every": 30}, [0]),
        ({"max_frames": 3}, [0, 1, 2]),
        ({"every": 4, "max_frames": 3}, [0, 4, 8]),
        ({"seconds": 0.2}, [0, 1, 2, 3, 4]),
        ({"seconds": 0.2, "every": 3}, [0, 3]),
        ({"seconds": 100.0}, list(range(30))),
    ):
        with Video(path, **options) as video:
            frames = list(video)
            assert video.total == len(numbers)
        assert [frame.number for frame in frames] == numbers
        assert all(np.array_equal(frame.pixels, whole[frame.number].pixels) for frame in frames)
    with Video(path, every=5) as video:
        assert video.rate == 5.0
    for wrong in ({"every": 0}, {"max_frames": 0}, {"seconds": 0.0}, {"seconds": float("nan")}):
        with pytest.raises(InputError, match="expected"):
            Video(path, **wrong)


@pytest.mark.parametrize(("degrees", "turns"), [(90, 3), (180, 2), (270, 1)])
def test_the_rotation_of_a_phone_is_applied(tmp_path: Path, degrees: int, turns: int) -> None:
    """ISO 14496-12, section 8.3.2: the matrix in the track's header turns the picture for display."""
    straight = read(make(tmp_path / "clip.mp4"))[0].pixels
    data = (tmp_path / "clip.mp4").read_bytes()
    unit, whole = 1 << 16, 1 << 30
    matrix = {
        90: (0, unit, 0, -unit, 0, 0, 0, 0, whole),
        180: (-unit, 0, 0, 0, -unit, 0, 0, 0, whole),
        270: (0, -unit, 0, unit, 0, 0, 0, 0, whole),
    }[degrees]
    start = data.index(b"tkhd") + 4 + 4 + 20 + 16  # version 0: times, track, duration, layer, volume
    assert struct.unpack(">9i", data[start : start + 36]) == (unit, 0, 0, 0, unit, 0, 0, 0, whole)
    (tmp_path / "turned.mp4").write_bytes(data[:start] + struct.pack(">9i", *matrix) + data[start + 36 :])
    with Video(tmp_path / "turned.mp4") as video:
        (turned, *_) = video
        assert video.size == turned.pixels.shape[:2]
    assert np.array_equal(turned.pixels, np.rot90(straight, turns))


def test_a_cut_file_gives_its_frames_and_then_says_what_is_missing(tmp_path: Path) -> None:
    data = make(tmp_path / "clip.avi").read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: len(data) // 2])
    frames: list[Frame] = []
    message = r"cut\.avi: damaged.* announces 30 frames, and only \d+ can be"
    with Video(tmp_path / "cut.avi") as video, pytest.raises(DamagedVideo, match=message):
        keep(video, frames)
    assert 5 < len(frames) < 20
    assert len(read(tmp_path / "cut.avi", max_frames=5)) == 5  # a limit before the fault is no fault


def test_a_hole_in_a_file_ends_it(tmp_path: Path) -> None:
    data = make(tmp_path / "clip.mp4", frames=100).read_bytes()
    third = len(data) // 3
    (tmp_path / "hole.mp4").write_bytes(data[:third] + bytes(third) + data[2 * third :])
    with pytest.raises(InputError, match=r"hole\.mp4: (damaged|no frame can be read|cannot)"):
        read(tmp_path / "hole.mp4")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.mp4", b"", "the file is empty"),
        ("text.mp4", b"no video at all" * 50, "not a video that can be read: its content is none of MP4"),
        ("photo.avi", b"\xff\xd8\xff\xe0" + bytes(500), "not a video that can be read"),
        ("head.mp4", b"\0\0\0\x18ftypisom" + bytes(500), "incomplete or damaged"),
        ("list.mp4", b"ffconcat version 1.0\nfile clip.mp4\n", "not a video that can be read"),
        ("list.mov", b"#EXTM3U\n#EXTINF:1,\nclip.mp4\n", "not a video that can be read"),
    ],
)
def test_files_that_are_no_videos(
    tmp_path: Path, name: str, content: bytes, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """FFmpeg would follow a playlist to other files."""
    make(tmp_path / "clip.mp4")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        Video(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    for place in (tmp_path / "missing.mp4", tmp_path):
        with pytest.raises(InputError, match=str(place)):
            Video(place)


def test_videos_are_known_by_name_and_by_content(tmp_path: Path) -> None:
    for suffix in TAGS:
        hidden = make(tmp_path / f"clip{suffix}", frames=2).rename(tmp_path / f"{suffix[1:]}_without_suffix")
        assert is_video(hidden)
        assert len(read(hidden)) == 2
    assert is_video(Path("missing.MOV"))
    cv2.imwrite(str(tmp_path / "photo.webp"), picture(0))  # RIFF, like AVI
    cv2.imwrite(str(tmp_path / "photo.jpg"), picture(0))
    (tmp_path / "photo.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    (tmp_path / "photo.avif").write_bytes(b"\0\0\0\x18ftypavif" + bytes(40))
    for name in ("photo.webp", "photo.jpg", "photo.heic", "photo.avif", "missing.jpg"):
        assert not is_video(tmp_path / name)
    assert is_video(Path(__file__)) is False


class Capture:
    """Stands for `cv2.VideoCapture`: gives ``frames`` with their time stamps, and any header."""

    def __init__(self, frames: list[Any], stamps: list[float], pause: float = 0.0, **header: float) -> None:
        self.frames, self.stamps, self.place, self.pause = frames, stamps, -1, pause
        self.header = {"WIDTH": 64.0, "HEIGHT": 48.0, "FPS": 25.0, "COUNT": float(len(frames)), **header}
        self.released = False

    def isOpened(self) -> bool:
        return True

    def grab(self) -> bool:
        time.sleep(self.pause)
        self.place += 1
        return self.place < len(self.frames)

    def read(self) -> tuple[bool, Any]:
        found = self.grab()
        return found, self.frames[self.place] if found else None

    def get(self, which: int) -> float:
        if which == cv2.CAP_PROP_POS_MSEC:
            return self.stamps[self.place] if self.place < len(self.stamps) else 0.0
        names = {
            cv2.CAP_PROP_FRAME_WIDTH: "WIDTH",
            cv2.CAP_PROP_FRAME_HEIGHT: "HEIGHT",
            cv2.CAP_PROP_FPS: "FPS",
            cv2.CAP_PROP_FRAME_COUNT: "COUNT",
        }
        return self.header[names[which]]

    def release(self) -> None:
        self.released = True


Fake = Callable[..., None]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    """Let every video and camera be a new `Capture` with these arguments."""

    def of(frames: list[Any], stamps: list[float], **header: float) -> None:
        monkeypatch.setattr(module, "_open_file", lambda _: Capture(frames, stamps, **header))
        monkeypatch.setattr(cv2, "VideoCapture", lambda *_: Capture(frames, stamps, **header))

    return of


def test_times_of_a_variable_rate_are_the_files_own(fake: Fake) -> None:
    stamps = [80.0, 120.0, 121.0, 500.0, 520.0, 900.0]
    fake([picture(0)] * 6, stamps, FPS=7.0)
    assert [frame.time_ms for frame in read("clip.mp4")] == [stamp - 80 for stamp in stamps]
    assert [frame.time_ms for frame in read("clip.mp4", every=2)] == [0.0, 41.0, 440.0]
    assert [frame.number for frame in read("clip.mp4", seconds=0.42)] == [0, 1, 2]


def test_stamps_that_do_not_increase_are_replaced(fake: Fake) -> None:
    fake([picture(0)] * 4, [0.0] * 4, FPS=10.0)
    assert [frame.time_ms for frame in read("clip.mp4")] == [0.0, 100.0, 200.0, 300.0]
    fake([picture(0)] * 3, [50.0, float("nan"), 90.0], FPS=100.0)
    assert [frame.time_ms for frame in read("clip.mp4")] == [0.0, 10.0, 40.0]


@pytest.mark.parametrize("announced", [0.0, -3.0, float("nan"), 1000.0, 90000.0])
def test_an_unknown_rate_is_that_of_the_time_stamps(fake: Fake, announced: float) -> None:
    fake([picture(0)] * 12, [50.0 * number for number in range(12)], FPS=announced)
    with Video("clip.webm") as video:
        assert (video.rate, video.rate_is_known) == (20.0, True)
    fake([picture(0)] * 12, [0.0] * 12, FPS=announced)
    with Video("clip.webm") as video:
        assert (video.rate, video.rate_is_known) == (25.0, False)
        assert list(itertools.islice((frame.time_ms for frame in video), 3)) == [0.0, 40.0, 80.0]


@pytest.mark.parametrize("announced", [0.0, -1.0, float("inf")])
def test_an_unknown_number_of_frames_is_no_fault(fake: Fake, announced: float) -> None:
    fake([picture(0)] * 5, [40.0 * number for number in range(5)], COUNT=announced)
    with Video("clip.ts") as video:
        assert (video.total, len(list(video))) == (None, 5)
    with Video("clip.ts", max_frames=3) as video:
        assert video.total == 3


def test_a_number_computed_from_the_duration_is_no_fault_where_the_time_was_reached(fake: Fake) -> None:
    fake([picture(0)] * 10, [100.0 * number for number in range(10)], FPS=30.0, COUNT=28.0)
    with Video("clip.webm") as video:
        assert len(list(video)) == 10
        assert video.missing == 18
    fake([picture(0)] * 10, [100.0 * number for number in range(10)], FPS=30.0, COUNT=60.0)
    with pytest.raises(DamagedVideo, match="announces 60 frames, and only 10 can be read"):
        read("clip.webm")


def test_huge_empty_and_odd_frames(fake: Fake) -> None:
    fake([picture(0)], [0.0], WIDTH=100_000.0, HEIGHT=100_000.0)
    with pytest.raises(InputError, match="frames of 100000x100000 pixels are over the limit"):
        Video("clip.mp4")
    fake([], [])
    with pytest.raises(InputError, match="no frame can be read: the video is empty or damaged"):
        Video("clip.mp4")
    fake([picture(0), picture(0)[:30, :40], picture(0)[:, :, 0]], [0.0, 40.0, 80.0], WIDTH=0.0)
    frames = read("clip.mp4")
    assert [frame.pixels.shape for frame in frames] == [(48, 64, 3), (30, 40, 3), (48, 64, 3)]


def test_a_camera_has_the_times_of_the_clock_and_ends_with_a_fault(fake: Fake) -> None:
    fake([picture(number) for number in range(6)], [0.0] * 6, pause=0.01, COUNT=-1.0, FPS=30.0)
    video = Video(0)
    frames: list[Frame] = []
    assert (video.name, video.is_camera, video.total, video.rate) == ("camera 0", True, None, 30.0)
    with pytest.raises(DamagedVideo, match="camera 0: gave no more frames after 6; is it still connected"):
        keep(video, frames)
    times = [frame.time_ms for frame in frames]
    assert times[0] == 0.0
    assert all(later - earlier >= 9 for earlier, later in itertools.pairwise(times))
    video.close()
    assert video._capture.released
    assert len(read(0, seconds=0.025)) in (1, 2, 3)
    assert len(read(1, max_frames=4)) == 4


def test_a_camera_that_is_not_there(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="camera 93: cannot be opened; 0 is the first one"):
        Video(93)
    for number in (-1, 100, 2**40):
        with pytest.raises(InputError, match=rf"camera {number}: expected a number from 0"):
            Video(number)
