"""The demo on videos and cameras: the results of single frames, complete files, and clear errors."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from detector.api import Detector, Result
from detector.commands import video as module
from detector.commands.video import Options, run_video, run_videos, timing_table
from detector.config import Config
from detector.core.errors import InputError
from detector.data import video as reading
from detector.data.generated.clip import moving_shapes
from detector.data.video import Video
from detector.visualize.video import VideoWriter
from tests.commands.conftest import PROJECT, Tool
from tests.commands.test_demo import detector_of
from tests.data.test_video import Capture
from tests.test_api import save_random

Load = Callable[..., Config]
FEW = ("proposals.top_k_test=20", "test.score_threshold=0.1", "test.max_detections=4")
CLASSIFIER = ("task=classification", "model.pool={kind: spp, levels: [1, 2, 4]}", "proposals.method=null")
FRAMES = 8


@pytest.fixture(scope="session")
def original_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    writer = VideoWriter(path, (96, 128), 25)
    for scene in moving_shapes(FRAMES, (96, 128)):
        writer.write(scene.image)
    writer.finish()
    return path


@pytest.fixture
def clip(original_clip: Path, tmp_path: Path) -> Path:
    path = tmp_path / "clip.mp4"
    path.write_bytes(original_clip.read_bytes())
    return path


def lines_of(path: Path) -> list[dict[str, Any]]:
    text = path.read_text()
    assert text.endswith("\n") or not text
    return [json.loads(line) for line in text.splitlines()]


def frames_of(path: Path) -> list[np.ndarray]:
    with Video(path) as video:
        return [frame.pixels for frame in video]


def run(detector: Detector, place: Path | int, out: Path, **options: Any) -> dict[str, Any]:
    return run_video(detector, place, out, "drawn", 0.1, Options(**options))


@pytest.mark.parametrize("threads", [1, 3])
def test_every_frame_has_the_result_of_a_call_and_its_drawing(
    tiny: Load, clip: Path, tmp_path: Path, threads: int
) -> None:
    detector = detector_of(tiny(*FEW))
    summary = run(detector, clip, tmp_path / "out", codec="mjpg", proposal_threads=threads)
    lines, pixels = lines_of(tmp_path / "out/drawn.jsonl"), frames_of(clip)
    drawn = frames_of(tmp_path / "out/drawn.avi")
    assert len(lines) == len(pixels) == len(drawn) == FRAMES
    for number, (line, image, picture) in enumerate(zip(lines, pixels, drawn, strict=True)):
        expected = detector(image)
        assert len(expected) > 0
        assert line == {"frame": number, "time_ms": 40.0 * number, **expected.to_dict()}
        assert (
            np.abs(picture - expected.draw(image, 0.1).astype(int)).mean() < 8
        )  # Motion JPEG loses some colour
    assert json.loads((tmp_path / "out/drawn.summary.json").read_text()) == summary
    assert (summary["frames"], summary["ended"], summary["fault"]) == (FRAMES, "complete", None)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "drawn.avi",
        "drawn.jsonl",
        "drawn.summary.json",
    }


def test_the_times_of_all_workers_are_in_the_summary_and_the_table(
    tiny: Load, clip: Path, tmp_path: Path
) -> None:
    timing = (summary := run(detector_of(tiny(*FEW)), clip, tmp_path / "out"))["timing"]
    assert [row["name"] for row in timing["workers"]] == ["decode", "proposals", "network", "draw", "write"]
    assert all(row["frames"] == FRAMES and 0 < row["load"] <= 1 for row in timing["workers"])
    assert timing["frames_per_second"] == pytest.approx(FRAMES / timing["seconds"])
    assert timing["slowest"] == max(timing["workers"], key=lambda row: row["load"])["name"]
    assert timing_table(summary).row_count == 5


def test_a_classifier_names_the_classes_on_the_frame(tiny: Load, clip: Path, tmp_path: Path) -> None:
    detector = detector_of(tiny(*CLASSIFIER))
    summary = run(detector, clip, tmp_path / "out", codec="mjpg")
    first, *rest = lines_of(tmp_path / "out/drawn.jsonl")
    pixels = frames_of(clip)
    assert first == {"frame": 0, "time_ms": 0.0, **detector(pixels[0]).to_dict()}
    assert len(rest) == FRAMES - 1
    assert [row["name"] for row in summary["timing"]["workers"]][1] == "prepare"
    changed = np.abs(frames_of(tmp_path / "out/drawn.avi")[0].astype(int) - pixels[0]).sum(axis=2) > 150
    assert changed[:40, :60].any()
    assert not changed[:, 100:].any()


def test_options_are_those_of_the_reader(tool: Tool, tiny: Load, clip: Path, tmp_path: Path) -> None:
    save_random(tiny(*FEW), tmp_path / "random.pt", score_threshold=0.1)
    arguments = ("--checkpoint", "random.pt", "--device", "cpu", "--output", "out", "clip.mp4")
    result = tool("demo", *arguments, "--every", 5, "--name", "mine", "--codec", "vp9")
    assert result.returncode == 0, result.stderr
    assert "2 frames of clip.mp4 in " in result.stderr
    assert "out/mine.mp4, mine.jsonl and mine.summary.json" in result.stderr
    assert "frames per second; slowest: " in result.stdout
    assert [line["frame"] for line in lines_of(tmp_path / "out/mine.jsonl")] == [0, 5]
    with Video(tmp_path / "out/mine.mp4") as video:
        assert (video.rate, video.total) == (5.0, 2)
    result = tool("demo", *arguments, "--max-frames", 4)
    assert result.returncode == 0, result.stderr
    assert len(lines_of(tmp_path / "out/clip.jsonl")) == 4
    result = tool("demo", *arguments, "--seconds", 0.1)
    assert result.returncode == 0, result.stderr
    assert len(lines_of(tmp_path / "out/clip.jsonl")) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["clip.mp4", "photo.jpg"], "give either images, or videos, or a camera"),
        (["photo.jpg", "--camera", "0"], "give either images, or videos, or a camera"),
        (["clip.mp4", "--camera", "0"], "give either images, or videos, or a camera"),
        ([], "no image: name image files, folders, or videos, or --camera 0"),
        (["photo.jpg", "--every", "2"], "--every is for videos and cameras"),
        (["photo.jpg", "--max-frames", "2"], "--max-frames is for videos and cameras"),
        (["clip.mp4", "--proposals", "boxes.npz"], "--proposals: boxes are looked up by file name"),
        (["clip.mp4", "--codec", "divx"], "codec 'divx' is unknown"),
        (["clip.mp4", "--every", "0"], "every: expected 1 or more"),
        (["clip.mp4", "--proposal-threads", "0"], "proposal_threads: expected 1 or more"),
        (["clip.mp4", "--name", "a/b"], "expected a file's name without folder"),
        (["clip.mp4", "clip.mp4", "--name", "a"], "is for one video, and there are 2"),
        (["missing.mp4"], "missing.mp4: no such file"),
        (["folder"], "no image in folder; .*name videos one by one, such as folder/a.mp4"),
        (["clip.mp4", "--output", "."], "clip.mp4 would overwrite this file"),
        (["clip.partial.mp4", "--output", ".", "--name", "clip"], "would overwrite this file"),
        (["clip.mp4", "out/clip.mp4"], "out/clip.mp4 would overwrite this file; give another --output"),
        (["clip.mp4", "out/clip.partial.mp4"], "out/clip.partial.mp4 would overwrite this file"),
        (["clip.mp4", "missing.mp4"], "missing.mp4: no such file"),
        (["clip.mp4", "folder/pipe.mp4"], "pipe.mp4: is a named pipe"),
        (["--camera", "-1"], "camera -1: expected a number from 0"),
        (["text.mp4"], "text.mp4: not a video that can be read"),
        (["tiny.yaml"], r"tiny.yaml: neither an image nor a video that can be read; .*\.mp4"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_faulty_command_lines(
    tool: Tool, tiny: Load, clip: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    save_random(tiny(*FEW), tmp_path / "random.pt")
    cv2.imwrite(str(tmp_path / "photo.jpg"), np.zeros((96, 128, 3), np.uint8))
    (tmp_path / "text.mp4").write_text("a text")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "folder/pipe.mp4")
    for place in ("folder/a.mp4", "clip.partial.mp4", *filter(re.compile("out/").match, arguments)):
        (tmp_path / place).parent.mkdir(exist_ok=True)
        (tmp_path / place).write_bytes(clip.read_bytes())
    before, files = clip.read_bytes(), sorted(tmp_path.glob("out/*"))
    result = tool("demo", "--checkpoint", "random.pt", "--device", "cpu", "--output", "out", *arguments)
    assert result.returncode == 2, result.stderr
    assert result.stderr.count("error: ") == 1
    assert re.search(message, result.stderr)
    assert clip.read_bytes() == before == (tmp_path / "clip.partial.mp4").read_bytes()
    assert sorted(tmp_path.glob("out/*")) == files
    assert all(path.read_bytes() == before for path in files)


def test_the_files_of_several_videos_do_not_overwrite_each_other() -> None:
    """While a video is processed, its files have ``.partial`` in their names."""

    def names(*places: str) -> list[str]:
        return module._names([Path(place) for place in places], Options())

    assert names("a/clip.mp4", "b/clip.avi", "CLIP.mov") == ["clip", "clip_2", "CLIP_3"]
    assert names("clip.partial.avi", "clip.mp4") == ["clip.partial", "clip_2"]
    assert names("clip.mp4", "clip.partial.avi") == ["clip", "clip.partial_2"]


def test_a_damaged_video_keeps_its_frames_and_is_said(
    tool: Tool, tiny: Load, clip: Path, tmp_path: Path
) -> None:
    writer = VideoWriter(tmp_path / "whole.avi", (96, 128), 25, "mjpg")
    for picture in frames_of(clip):
        writer.write(picture, 3)
    writer.finish()
    (tmp_path / "cut.avi").write_bytes((tmp_path / "whole.avi").read_bytes()[:-20_000])
    save_random(tiny(*FEW), tmp_path / "random.pt")
    arguments = ("--checkpoint", "random.pt", "--device", "cpu", "--output", "out")
    result = tool("demo", *arguments, "cut.avi", "clip.mp4")
    assert result.returncode == 1, result.stderr
    assert "error: cut.avi: damaged, incomplete or trimmed: it announces 24 frames" in result.stderr
    summary = json.loads((tmp_path / "out/cut.summary.json").read_text())
    assert summary["ended"] == "damaged"
    assert 2 < summary["frames"] < 24
    assert len(lines_of(tmp_path / "out/cut.jsonl")) == len(frames_of(tmp_path / "out/cut.mp4"))
    assert len(lines_of(tmp_path / "out/clip.jsonl")) == FRAMES  # the next one is done nevertheless


@pytest.mark.parametrize("faulty", ["decode", "proposals", "network", "draw", "write video", "write lines"])
@pytest.mark.parametrize("number", [0, 4])
def test_a_fault_anywhere_keeps_the_frames_before_it(
    tiny: Load,
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    faulty: str,
    number: int,
) -> None:
    detector = detector_of(tiny(*FEW))
    places = {
        "decode": (reading.Video, "_read"),
        "proposals": (detector, "_views"),
        "network": (detector, "_result"),
        "draw": (Result, "draw"),
        "write video": (VideoWriter, "write"),
        "write lines": (module._Lines, "write"),
    }
    owner, name = places[faulty]
    original, count = getattr(owner, name), [0]

    def fail(*arguments: Any, **options: Any) -> Any:
        if count[0] == number + (faulty == "decode"):  # the first frame is read before the threads start
            raise RuntimeError(f"no {faulty}")
        count[0] += 1
        return original(*arguments, **options)

    monkeypatch.setattr(owner, name, fail)
    before = threading.active_count()
    with pytest.raises(RuntimeError, match=f"no {faulty}"):
        run(detector, clip, tmp_path / "out", proposal_threads=1)
    assert threading.active_count() == before
    kept = number + (faulty == "decode")
    if not kept:
        assert list((tmp_path / "out").iterdir()) == []
        return
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "drawn.partial.mp4",
        "drawn.partial.jsonl",
    }
    assert len(lines_of(tmp_path / "out/drawn.partial.jsonl")) == kept
    assert f"the {kept} frames before are in " in capsys.readouterr().err


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = module._Lines(tmp_path / "a.jsonl")
    lines.write({"frame": 0})
    file = lines._file

    class Full:
        def __getattr__(self, name: str) -> Any:
            return getattr(file, name)

        def write(self, data: memoryview) -> int:
            if len(data) <= 5:
                raise OSError(28, "No space left on device")
            return file.write(data[:5])

    monkeypatch.setattr(lines, "_file", Full())
    with pytest.raises(
        InputError, match=r"a\.partial\.jsonl: cannot write the file: No space left on device"
    ):
        lines.write({"frame": 1})
    lines.close()
    assert lines_of(tmp_path / "a.partial.jsonl") == [{"frame": 0}]


def test_ctrl_c_before_the_first_frame_leaves_nothing(
    tiny: Load, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(frames: Any, _: Any) -> Any:
        frames.close()
        return "interrupted", None

    monkeypatch.setattr(module, "_run", stopped)
    monkeypatch.setattr(module.Recorder, "write", lambda *_: None)
    with pytest.raises(KeyboardInterrupt):
        run(detector_of(tiny(*FEW)), clip, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_codec_that_is_missing_leaves_nothing(tiny: Load, clip: Path, tmp_path: Path) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "probe.mp4"), cv2.VideoWriter.fourcc(*"avc1"), 25, (64, 48))
    if writer.isOpened():
        pytest.skip("this OpenCV has an encoder for H.264")
    with pytest.raises(
        InputError, match=r"drawn\.mp4: OpenCV .* cannot write 128x96 pixels with the codec h264"
    ):
        run(detector_of(tiny(*FEW)), clip, tmp_path / "out", codec="h264")
    assert list((tmp_path / "out").iterdir()) == []


def test_ctrl_c_completes_the_files(
    tiny: Load, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = module._report_all
    calls = 0

    def interrupted(frames: Any, report: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            next(frames)
            signal.raise_signal(signal.SIGTERM)  # a container that is stopped; SIGINT does the same
        original(frames, report)

    monkeypatch.setattr(module, "_report_all", interrupted)
    detector = detector_of(tiny(*FEW))
    handler = signal.getsignal(signal.SIGTERM)
    status = run_videos(detector, [clip, clip], tmp_path / "out", 0.1, Options())
    assert (status, calls) == (130, 2)
    assert signal.getsignal(signal.SIGTERM) == handler
    summary = json.loads((tmp_path / "out/clip.summary.json").read_text())
    assert (summary["ended"], summary["frames"]) == (
        "interrupted",
        len(lines_of(tmp_path / "out/clip.jsonl")),
    )
    assert 1 <= summary["frames"] == len(frames_of(tmp_path / "out/clip.mp4"))
    assert not (tmp_path / "out/clip_2.mp4").exists()


def test_a_camera_keeps_real_time_and_drops_what_it_must(
    tiny: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The camera gives 100 frames per second; the network takes 50 ms for each."""
    pictures = [scene.image for scene in moving_shapes(40, (96, 128))]
    fast = Capture(pictures, [0.0] * 40, pause=0.01, FPS=100.0, COUNT=-1.0)
    original = cv2.VideoCapture
    monkeypatch.setattr(
        cv2, "VideoCapture", lambda place, *more: fast if place == 0 else original(place, *more)
    )
    detector = detector_of(tiny(*FEW))
    result = detector._result

    def slow(*arguments: Any) -> Any:
        time.sleep(0.05)
        return result(*arguments)

    monkeypatch.setattr(detector, "_result", slow)
    assert run_videos(detector, [0], tmp_path / "out", 0.1, Options(seconds=0.3)) == 0
    (file,) = (tmp_path / "out").glob("camera_0_*.summary.json")
    summary = json.loads(file.read_text())
    lines = lines_of(tmp_path / "out" / file.name.replace(".summary.json", ".jsonl"))
    assert summary["frames_dropped"] > 5
    assert len(lines) + summary["frames_dropped"] == summary["timing"]["workers"][0]["frames"]
    drawn = frames_of(tmp_path / "out" / summary["drawn"])
    assert len(drawn) == summary["drawn_frames"] == round(lines[-1]["time_ms"] / 10) + 1
    assert f"{summary['frames_dropped']} dropped" in capsys.readouterr().err


def test_a_camera_that_stops_keeps_its_frames(
    tiny: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = [scene.image for scene in moving_shapes(4, (96, 128))]
    monkeypatch.setattr(
        reading, "_open_camera", lambda _: Capture(pictures, [0.0] * 4, pause=0.02, FPS=30.0, COUNT=-1.0)
    )
    assert run_videos(detector_of(tiny(*FEW)), [2], tmp_path / "out", 0.1, Options(name="mine")) == 1
    assert "error: camera 2: gave no more frames after 4; is it still connected" in capsys.readouterr().err
    assert json.loads((tmp_path / "out/mine.summary.json").read_text())["ended"] == "damaged"


@pytest.mark.slow
def test_a_killed_process_leaves_whole_lines_and_no_finished_file(
    tiny: Load, clip: Path, tmp_path: Path
) -> None:
    writer = VideoWriter(tmp_path / "long.mp4", (96, 128), 25)
    for picture in frames_of(clip):
        writer.write(picture, 200)
    writer.finish()
    save_random(tiny("proposals.top_k_test=300", "test.score_threshold=0.01"), tmp_path / "random.pt")
    command = [sys.executable, str(PROJECT / "tools/demo.py"), "--checkpoint", "random.pt", "--device", "cpu"]
    process = subprocess.Popen(
        [*command, "--output", "out", "long.mp4"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        stderr=subprocess.DEVNULL,
    )
    lines, until = tmp_path / "out/long.partial.jsonl", time.monotonic() + 60
    while not (lines.exists() and lines.stat().st_size > 20_000) and time.monotonic() < until:
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"long.partial.jsonl", "long.partial.mp4"}
    assert [line["frame"] for line in lines_of(lines)] == list(range(len(lines_of(lines))))
