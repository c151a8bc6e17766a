#!/usr/bin/env python3
"""Measures the demo on a generated clip of moving shapes: frames per second, and where the time goes.

    python benchmarks/video.py --checkpoint runs/quickstart/checkpoints/best.pt
    python benchmarks/video.py --checkpoint runs/quickstart/checkpoints/best.pt --size 480x640 --frames 60

The overlapped pipeline of ``tools/demo.py`` is compared with the same work done one step after another, frame
by frame, in the same process. Both alternate, and each round begins with the other one. Their lines of JSON
must be the same. Medians over the rounds, and the best round of each, which other work on the machine affects
least, are printed, and the average precision of the detector on the frames, as they are decoded.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from detector.api import Detector
from detector.commands.demo import default_threshold
from detector.commands.video import Options, Paths, Recorder, drawing, run_video, timing_table
from detector.core.progress import show
from detector.core.structures import Targets
from detector.data.generated.clip import moving_shapes
from detector.data.generated.scenes import Scene
from detector.data.video import Video
from detector.evaluation.voc import VocEvaluator
from detector.visualize.video import VideoWriter


def make_clip(path: Path, arguments: argparse.Namespace) -> list[Scene]:
    """Write the clip, lightly compressed as Motion JPEG, and return its scenes."""
    height, width = (int(side) for side in arguments.size.split("x"))
    scenes = list(moving_shapes(arguments.frames, (height, width), arguments.shapes, arguments.seed))
    writer = VideoWriter(path, (height, width), 25, "mjpg")
    for scene in scenes:
        writer.write(scene.image)
    writer.finish()
    return scenes


def one_after_another(detector: Detector, clip: Path, folder: Path, threshold: float) -> dict[str, float]:
    """Do the demo's work without threads; return the seconds of each kind of work, and of all."""
    spent = dict.fromkeys(("decode", "proposals", "network", "draw", "write"), 0.0)
    propose, predict = (worker.work for worker in detector.frame_workers(proposal_threads=1))
    draw, start = drawing(threshold), time.perf_counter()
    with Video(clip) as video, Recorder(Paths.of(folder, "plain", ".mp4"), video, "mp4v") as recorder:
        frames = iter(video)
        steps = (("proposals", propose), ("network", predict), ("draw", draw), ("write", recorder.write))
        while True:
            begin = time.perf_counter()
            item: Any = next(frames, None)
            spent["decode"] += time.perf_counter() - begin
            if item is None:
                break
            for name, step in steps:
                begin = time.perf_counter()
                item = step(item)
                spent[name] += time.perf_counter() - begin
        recorder.complete()
        recorder.finish({})
    return {**spent, "all": time.perf_counter() - start}


def compare(detector: Detector, clip: Path, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time both alternately, and return the medians over the rounds and the last summary of the pipeline."""
    threshold = default_threshold(detector)
    options = Options(proposal_threads=arguments.proposal_threads)
    plain: list[dict[str, float]] = []
    overlapped: list[dict[str, Any]] = []
    for round_ in range(-1, arguments.rounds):  # the first one warms up
        for kind in ("plain", "overlapped") if round_ % 2 else ("overlapped", "plain"):
            if kind == "plain":
                plain.append(one_after_another(detector, clip, folder, threshold))
            else:
                overlapped.append(run_video(detector, clip, folder, "overlapped", threshold, options))
    same = (folder / "plain.jsonl").read_bytes() == (folder / "overlapped.jsonl").read_bytes()
    assert same, "the pipeline's results differ"
    seconds = [summary["timing"]["seconds"] for summary in overlapped[1:]]
    ratios = [one["all"] / other for one, other in zip(plain[1:], seconds, strict=True)]
    frames = overlapped[-1]["frames"]
    return {
        "overlapped_frames_per_second": frames / statistics.median(seconds),
        "one_after_another_frames_per_second": frames / statistics.median(one["all"] for one in plain[1:]),
        "times_as_fast": statistics.median(ratios),
        "ratios": ratios,
        "best_frames_per_second": {
            "overlapped": frames / min(seconds),
            "one_after_another": frames / min(one["all"] for one in plain[1:]),
        },
        "one_after_another_ms": {
            name: 1000 * statistics.median(one[name] for one in plain[1:]) / frames for name in plain[0]
        },
        "last": overlapped[-1],
    }


def precision(detector: Detector, clip: Path, scenes: Sequence[Scene]) -> dict[str, Any]:
    """Return VOC's metrics of the detector on the frames; objects that are mostly hidden are difficult."""
    targets = {str(number): _targets(scene, detector.classes) for number, scene in enumerate(scenes)}
    evaluator = VocEvaluator(targets, detector.classes)
    for frame, result in detector.video(clip):
        evaluator.update([str(frame.number)], [result.detections])
    return evaluator.compute()


def _targets(scene: Scene, classes: Sequence[str]) -> Targets:
    objects = scene.objects()
    boxes = torch.tensor([one.box for one in objects], dtype=torch.float32).reshape(-1, 4)
    sides = boxes[:, 2:] - boxes[:, :2]
    return Targets(
        boxes=boxes,
        labels=torch.tensor([classes.index(one.name) + 1 for one in objects], dtype=torch.int64),
        difficult=torch.tensor([one.difficult for one in objects], dtype=torch.bool),
        crowd=torch.zeros(len(objects), dtype=torch.bool),
        area=sides.prod(dim=1),
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", required=True, help="of the quick start")
    parser.add_argument("--size", default="160x200", metavar="HxW", help="of the frames, in pixels")
    parser.add_argument("--frames", type=int, default=150)
    parser.add_argument("--shapes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--proposal-threads", type=int)
    parser.add_argument("--threads", type=int, help="compute threads of torch (default: its own choice)")
    parser.add_argument("--set", dest="overrides", action="append", default=[], metavar="key=value")
    parser.add_argument("--output", help="write the results as JSON to this file")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    detector = Detector.load(arguments.checkpoint, "cpu", overrides=arguments.overrides)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        scenes = make_clip(folder / "clip.avi", arguments)
        found = compare(detector, folder / "clip.avi", folder, arguments)
        metrics = precision(detector, folder / "clip.avi", scenes)
    show(timing_table(found.pop("last")))
    found |= {"size": arguments.size, "frames": arguments.frames, "voc07_mAP": metrics["voc07_mAP"]}
    found |= {"compute_threads": torch.get_num_threads(), "cores": os.cpu_count()}
    show(json.dumps(found, indent=2))
    if arguments.output:
        Path(arguments.output).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
