"""The demo on videos and cameras: a drawn video, one line of JSON per frame, and where the time went."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
from rich.table import Table

from detector.core.errors import InputError, printable
from detector.core.files import file_name_of, make_folder, refuse_overwriting, require_regular
from detector.core.pipeline import Pipeline, Worker
from detector.core.progress import frame_progress, note, show
from detector.data.video import DamagedVideo, Frame, Video
from detector.visualize.video import VideoWriter, codec_named

if TYPE_CHECKING:
    from detector.api import Detector, Result

Drawn = tuple[Frame, "Result", np.ndarray]

DAMAGED = 1
"""The exit status where a video ends before the end that it announces; what was read is kept."""
INTERRUPTED = 130


class Options(NamedTuple):
    """The options of the command line for videos and cameras."""

    every: int = 1
    max_frames: int | None = None
    seconds: float | None = None
    codec: str = "mp4v"
    name: str | None = None
    proposal_threads: int | None = None


def run_videos(
    detector: Detector,
    places: Sequence[Path | int],
    folder: Path,
    score_threshold: float,
    options: Options,
) -> int:
    """Run `run_video` on each of ``places``, paths or the number of a camera, and return the exit status."""
    names = _names(places, options)
    suffix = codec_named(options.codec).suffix
    _check_files(places, [Paths.of(folder, name, suffix) for name in names])
    quiet_decoder()
    status = 0
    with _terminated_like_interrupted():
        for place, name in zip(places, names, strict=True):
            summary = run_video(detector, place, folder, name, score_threshold, options)
            show(timing_table(summary))
            note(_told(summary, folder, name))
            if summary["frames_missing"]:
                note(
                    f"note: {summary['video']} announces {summary['frames_missing']} frames more than it "
                    "has, although it was read to its last second: some are missing, or their rate varies"
                )
            if summary["ended"] == "damaged":
                note(f"error: {summary['fault']}; the frames before are kept")
                status = DAMAGED
            if summary["ended"] == "interrupted":
                return status if isinstance(place, int) else INTERRUPTED
    return status


def run_video(
    detector: Detector,
    place: Path | int,
    folder: Path,
    name: str,
    score_threshold: float,
    options: Options,
) -> dict[str, Any]:
    """Write the video with its detections drawn, NAME.jsonl and NAME.summary.json, and return the summary.

    Decoding, proposals, network, drawing and writing run at the same time. The files get their names when
    they are complete; until then, and after an error, they are NAME.partial.SUFFIX.

    Raises:
        InputError: no video, a place that cannot be written, or a frame that cannot be processed.
    """
    from detector.api import frame_pipeline

    paths = Paths.of(folder, name, codec_named(options.codec).suffix)
    _check_files([place], [paths])
    limits = options.max_frames, options.seconds
    with Video(place, every=options.every, max_frames=limits[0], seconds=limits[1]) as video:
        if not video.rate_is_known:
            note(f"note: {video.name} does not say its frames per second; the drawn video has {video.rate:g}")
        workers = detector.frame_workers(proposal_threads=options.proposal_threads)
        with Recorder(paths, video, options.codec) as recorder:
            workers += [Worker("draw", drawing(score_threshold)), Worker("write", recorder.write)]
            with frame_pipeline(video, workers) as frames:
                ended, fault = _run(frames, video)
            if not recorder.frames:
                raise KeyboardInterrupt  # before the first frame; there is nothing to keep
            recorder.complete()
            summary = {
                "classes": list(detector.classes),
                "score_threshold": score_threshold,
                "frames_dropped": frames.dropped,
                "ended": ended,
                "fault": fault,
                **_facts_of(video, recorder),
                "timing": timing_of(frames),
            }
            recorder.finish(summary)
    return summary


def _facts_of(video: Video, recorder: Recorder) -> dict[str, Any]:
    """Return what a summary says of a video and of its drawn one."""
    return {
        "video": video.name,
        "height": video.size[0],
        "width": video.size[1],
        "frames": recorder.frames,
        "frames_missing": video.missing,
        "drawn": recorder.video.path.name,
        "drawn_frames": recorder.video.frames,
        "drawn_frames_per_second": video.rate,
    }


def _run(frames: Pipeline, video: Video) -> tuple[str, str | None]:
    """Let all frames through. Return how it ended ("complete", "interrupted" or "damaged"), and the fault."""
    with frame_progress(f"detecting in {video.name}", video.total) as report:
        try:
            try:
                _report_all(frames, report)
            except KeyboardInterrupt:
                frames.stop()
                note("stopping: writing the last frames; Ctrl-C again stops at once")
                _report_all(frames, report)
                return "interrupted", None
        except DamagedVideo as error:
            return "damaged", str(error)
    return "complete", None


def _report_all(frames: Pipeline, report: Callable[[int, str], None]) -> None:
    for _ in frames:
        done = frames.timings[-1].items
        dropped = f"  {frames.dropped} dropped" if frames.dropped else ""
        report(done, f"{done / frames.seconds:.1f} frames/s{dropped}")


def drawing(score_threshold: float) -> Callable[[tuple[Frame, Result]], Drawn]:
    """Return what draws the boxes or the classes of a result on its frame."""
    from detector.visualize import label_with_classes

    def draw(found: tuple[Frame, Result]) -> Drawn:
        frame, result = found
        if result.class_scores is None:
            return frame, result, result.draw(frame.pixels, score_threshold)
        scores = result.class_scores.tolist()
        return frame, result, label_with_classes(frame.pixels, scores, result.classes, score_threshold)

    return draw


class Paths(NamedTuple):
    """The files of one video."""

    video: Path
    lines: Path
    summary: Path

    @classmethod
    def of(cls, folder: Path, name: str, suffix: str) -> Paths:
        return cls(folder / f"{name}{suffix}", folder / f"{name}.jsonl", folder / f"{name}.summary.json")

    def written(self) -> list[Path]:
        """Return all paths that are written: the files, and their partial ones until they are complete."""
        return [*self, _partial(self.video), _partial(self.lines)]


def _partial(path: Path) -> Path:
    return path.with_suffix(f".partial{path.suffix}")


def _check_files(places: Sequence[Path | int], written: Sequence[Paths]) -> None:
    """Check all videos before the first one is processed.

    Raises:
        InputError: a video is missing or not a regular file, or a file of any of the videos would take the
            place of one of them.
    """
    sources = [place for place in places if not isinstance(place, int)]
    for source in sources:
        require_regular(source)
    refuse_overwriting(
        (path for paths in written for path in paths.written()),
        sources,
        "give another --output folder or --name",
    )


class Recorder:
    """Writes the frames of one video: the drawn video and one line of JSON per frame.

    A context manager: where its block ends without `finish`, the files stay as NAME.partial.SUFFIX. They are
    removed if they hold nothing.
    """

    def __init__(self, paths: Paths, video: Video, codec: str) -> None:
        self._paths, self._real_time, self._rate = paths, video.is_camera, video.rate
        self.frames = 0
        self._lines = _Lines(paths.lines)
        try:
            self.video = VideoWriter(paths.video, video.size, video.rate, codec)
        except InputError:
            self._lines.close()
            self._lines.partial.unlink(missing_ok=True)
            raise
        self._last: np.ndarray | None = None
        self._finished = False

    def write(self, drawn: Drawn) -> None:
        """Append a frame to both files."""
        frame, result, picture = drawn
        if self._real_time:
            self._write_in_time(frame.time_ms, picture)
        else:
            self.video.write(picture)
        self._lines.write({"frame": frame.number, "time_ms": round(frame.time_ms, 3), **result.to_dict()})
        self.frames += 1

    def _write_in_time(self, time_ms: float, picture: np.ndarray) -> None:
        """Write a camera's picture at its time: the one before is repeated until then."""
        due = round(time_ms / 1000 * self._rate)
        if self._last is not None and due > self.video.frames:
            self.video.write(self._last, due - self.video.frames)
        if due >= self.video.frames:
            self.video.write(picture)
        self._last = picture

    def complete(self) -> None:
        """Close both files; InputError where not all of them could be written."""
        self._lines.close()
        self.video.close()

    def finish(self, summary: Mapping[str, Any]) -> None:
        """Give the files their names; the summary comes last, and so shows that the others are complete."""
        from detector.evaluation.report import write_json

        self._paths.summary.unlink(missing_ok=True)
        self.video.finish()
        self._lines.partial.replace(self._paths.lines)
        write_json(self._paths.summary, summary)
        self._finished = True

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self.complete()
        if self._finished:
            return
        parts = (self.video.partial, self._lines.partial)
        if self.frames == 0:
            for part in parts:
                part.unlink(missing_ok=True)
        elif error is not None:
            note(f"the {self.frames} frames before are in {parts[0]} and {parts[1]}")


class _Lines:
    """A file of one JSON object per line, of which a killed process or a full disk leaves whole lines."""

    def __init__(self, path: Path) -> None:
        self.partial = _partial(path)
        try:
            make_folder(path.parent)
            self.partial.unlink(missing_ok=True)
            self._file = self.partial.open("wb", buffering=0)
        except OSError as error:
            raise InputError(f"{self.partial}: cannot write the file: {error.strerror or error}") from None

    def write(self, row: Mapping[str, Any]) -> None:
        """Append a line; InputError where the disk is full."""
        line, start = memoryview(json.dumps(row, allow_nan=False).encode() + b"\n"), self._file.tell()
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            self._file.truncate(start)
            raise InputError(
                f"{self.partial}: cannot write the file: {error.strerror or error}; free space on the disk "
                "or choose another folder"
            ) from None

    def close(self) -> None:
        self._file.close()


def timing_of(frames: Pipeline) -> dict[str, Any]:
    """Return the frames per second, what limits them, and the milliseconds per frame of each worker."""
    seconds, done = frames.seconds, frames.timings[-1].items
    slowest = max(frames.timings, key=lambda timing: timing.load(seconds))
    return {
        "seconds": seconds,
        "frames_per_second": done / seconds if seconds else 0.0,
        "slowest": slowest.name,
        "workers": [
            {
                "name": timing.name,
                "threads": timing.threads,
                "frames": timing.items,
                "working_ms": 1000 * timing.busy / max(timing.items, 1),
                "waiting_for_input_ms": 1000 * timing.starved / max(timing.items, 1),
                "waiting_for_output_ms": 1000 * timing.blocked / max(timing.items, 1),
                "load": timing.load(seconds),
            }
            for timing in frames.timings
        ],
    }


def timing_table(summary: Mapping[str, Any]) -> Table:
    """Return a table of `timing_of`."""
    timing = summary["timing"]
    title = f"{timing['frames_per_second']:.1f} frames per second; slowest: {timing['slowest']}"
    table = Table("worker", title=title)
    for heading in ("threads", "work, ms per frame", "waits for input", "waits for output", "load"):
        table.add_column(heading, justify="right")
    for row in timing["workers"]:
        times = [row[key] for key in ("working_ms", "waiting_for_input_ms", "waiting_for_output_ms")]
        load = f"{100 * row['load']:.0f} %"
        table.add_row(row["name"], str(row["threads"]), *(f"{value:.1f}" for value in times), load)
    return table


def _told(summary: Mapping[str, Any], folder: Path, name: str) -> str:
    """Return the last line of the output."""
    dropped = f", {summary['frames_dropped']} dropped" if summary["frames_dropped"] else ""
    seconds = summary["timing"]["seconds"]
    return (
        f"{summary['frames']} frames of {summary['video']} in {seconds:.1f} s{dropped}; wrote "
        f"{folder / summary['drawn']}, {name}.jsonl and {name}.summary.json"
    )


def _names(places: Sequence[Path | int], options: Options) -> list[str]:
    """Return the name of each video's files: its stem, with a number where a stem comes again."""
    if options.name is not None:
        if len(places) > 1:
            raise InputError(f"--name {options.name}: is for one video, and there are {len(places)}")
        if not options.name or file_name_of(options.name) != options.name:
            raise InputError(
                f"--name {printable(options.name)!r}: expected a file's name without folder or suffix"
            )
        return [options.name]
    names: list[str] = []
    for place in places:
        stem = f"camera_{place}_{time.strftime('%Y%m%d_%H%M%S')}" if isinstance(place, int) else place.stem
        name, number = file_name_of(stem), 2
        while _is_taken(name, names):
            name, number = f"{file_name_of(stem)}_{number}", number + 1
        names.append(name)
    return names


def _is_taken(name: str, names: Sequence[str]) -> bool:
    """Whether files of ``name``, or its partial ones, would be those of one of ``names``.

    Upper and lower case are the same letter, as in the file systems of macOS and Windows.
    """
    ours, others = name.casefold(), {other.casefold() for other in names}
    return not others.isdisjoint((ours, f"{ours}.partial", ours.removesuffix(".partial")))


def quiet_decoder() -> None:
    """Keep OpenCV and FFmpeg from printing about damaged files; this program's own messages say it."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Let a request to end, such as that of a container that is stopped, complete the files like Ctrl-C."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
