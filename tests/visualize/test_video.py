"""What is written is read again: number, size, rate and content of the frames; no half-written files."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from detector.core.errors import InputError
from detector.visualize.video import CODECS, VideoWriter


def picture(number: int, size: tuple[int, int] = (48, 64)) -> np.ndarray:
    """RGB: a red square that moves to the right over grey."""
    image = np.full((*size, 3), 90, np.uint8)
    image[10:30, number : number + 20] = (220, 30, 20)
    return image


def frames_of(path: Path) -> tuple[list[np.ndarray], float]:
    capture, frames = cv2.VideoCapture(str(path)), []
    while (read := capture.read())[0]:
        frames.append(read[1][:, :, ::-1])
    return frames, capture.get(cv2.CAP_PROP_FPS)


@pytest.mark.parametrize("codec", ["mp4v", "vp9", "mjpg"])
@pytest.mark.parametrize("rate", [25.0, 30000 / 1001, 7.5])
def test_what_is_written_is_read_again(tmp_path: Path, codec: str, rate: float) -> None:
    path = tmp_path / "new folder" / f"clip{CODECS[codec].suffix}"
    writer = VideoWriter(path, (48, 64), rate, codec)
    for number in range(30):
        writer.write(picture(number))
    assert not path.exists()
    writer.finish()
    assert list(path.parent.iterdir()) == [path]
    frames, found = frames_of(path)
    assert (len(frames), frames[0].shape) == (30, (48, 64, 3))
    assert found == pytest.approx(rate, abs=0.002)
    for number, frame in enumerate(frames):
        assert np.abs(frame.astype(int) - picture(number)).mean() < 12
        assert frame[20, number + 10, 0] > 150 > frame[20, number + 10, 2]  # red is red, and in its place


@pytest.mark.parametrize(
    ("size", "written"), [((47, 63), (48, 64)), ((47, 64), (48, 64)), ((48, 63), (48, 64))]
)
def test_odd_sides_get_one_more_pixel_instead_of_losing_one(
    tmp_path: Path, size: tuple[int, int], written: tuple[int, int]
) -> None:
    writer = VideoWriter(tmp_path / "odd.avi", size, 10, "mjpg")
    picture_ = np.zeros((*size, 3), np.uint8)
    picture_[:, -1], picture_[-1] = 255, 255
    writer.write(picture_, times=3)
    writer.finish()
    frames, _ = frames_of(tmp_path / "odd.avi")
    assert (len(frames), frames[0].shape[:2], writer.size) == (3, written, written)
    assert frames[0][-1].min() > 200 < frames[0][:, -1].min()


def test_a_picture_of_another_size_is_resized(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "clip.mp4", (48, 64), 10)
    writer.write(picture(0))
    writer.write(picture(0, (96, 128)))
    writer.finish()
    assert [frame.shape for frame in frames_of(tmp_path / "clip.mp4")[0]] == [(48, 64, 3)] * 2


def test_rates_that_mpeg4_cannot_store_exactly_are_rounded(tmp_path: Path) -> None:
    for rate in (123.4567, 59.94005994, 999.5):
        writer = VideoWriter(tmp_path / "clip.mp4", (48, 64), rate)
        writer.write(picture(0), times=3)
        writer.finish()
        assert frames_of(tmp_path / "clip.mp4")[1] == pytest.approx(rate, rel=1e-3)


def test_until_it_is_finished_the_old_file_stays(tmp_path: Path) -> None:
    path, elsewhere = tmp_path / "clip.mp4", tmp_path / "elsewhere"
    path.write_bytes(b"old")
    elsewhere.write_bytes(b"mine")
    (tmp_path / "clip.partial.mp4").symlink_to(elsewhere)
    writer = VideoWriter(path, (48, 64), 10)
    writer.write(picture(0))
    writer.close()
    assert path.read_bytes() == b"old"
    assert elsewhere.read_bytes() == b"mine"  # a link is replaced and not followed
    assert len(frames_of(writer.partial)[0]) == 1
    writer.finish()
    assert len(frames_of(path)[0]) == 1


def test_a_full_disk_is_an_error(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "clip.avi", (48, 64), 10, "mjpg")
    for number in range(30):
        writer.write(picture(number))
    writer.close()
    content = writer.partial.read_bytes()
    writer.partial.write_bytes(content[:500])  # OpenCV does not say that it could write no more
    with pytest.raises(
        InputError, match=r"clip\.partial\.avi: only \d+ of 30 frames were written; free space"
    ):
        writer.finish()
    assert not (tmp_path / "clip.avi").exists()


def test_faulty_arguments(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match=r"codec 'mp4' is unknown \(did you mean 'mp4v'"):
        VideoWriter(tmp_path / "a.mp4", (48, 64), 10, "mp4")
    with pytest.raises(InputError, match=r"the codec mjpg is written to \.avi files"):
        VideoWriter(tmp_path / "a.mp4", (48, 64), 10, "mjpg")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot make the folder"):
        VideoWriter(tmp_path / "file" / "a.mp4", (48, 64), 10)


def test_a_codec_without_an_encoder_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Writer:
        fourcc = cv2.VideoWriter.fourcc

        def __init__(self, *_: object) -> None:
            pass

        def isOpened(self) -> bool:
            return False

    monkeypatch.setattr(cv2, "VideoWriter", Writer)
    with pytest.raises(
        InputError, match=r"cannot write 64x48 pixels with the codec h264 here; .* another: mp4v, vp9, mjpg$"
    ):
        VideoWriter(tmp_path / "a.mp4", (48, 64), 10, "h264")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("codec", ["mp4v", "mjpg", "vp9"])
@pytest.mark.parametrize("rate", [0.0, 25 / 100_000, 1e9])
def test_rates_that_no_file_can_have_become_the_nearest(tmp_path: Path, codec: str, rate: float) -> None:
    path = tmp_path / f"drawn{CODECS[codec].suffix}"
    writer = VideoWriter(path, (48, 64), rate, codec)
    writer.write(picture(0), times=2)
    writer.finish()
    assert len(frames_of(path)[0]) == 2
