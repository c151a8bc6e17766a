"""Detect objects, or name classes, in your own images, videos or camera with a trained checkpoint."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detector.commands import cli
from detector.commands import video as video_demo
from detector.core.errors import InputError, listed
from detector.core.files import IMAGE_SUFFIXES, file_name_of, is_hidden, refuse_overwriting, require_regular
from detector.core.progress import note, track
from detector.data.video import VIDEO_SUFFIXES, is_video

if TYPE_CHECKING:
    from detector.api import Detector
    from detector.config import Config
    from detector.proposals.store import ProposalStore


def main() -> int:
    arguments = parse()
    videos = find_videos(arguments)

    from detector.api import Detector
    from detector.engine.checkpoint import load_checkpoint
    from detector.factory.resources import choose_device, use_cores

    checkpoint = load_checkpoint(cli.checkpoint_file(arguments.checkpoint))
    config = demo_config(checkpoint, arguments)
    device = choose_device(arguments.device)
    use_cores(config, device, loaders=False)
    detector = Detector(config, checkpoint, device)
    images = [] if videos else find_images([Path(place) for place in arguments.images])
    threshold = arguments.score_threshold
    if threshold is None:
        threshold = default_threshold(detector)
    if videos:
        return video_demo.run_videos(detector, videos, Path(arguments.output), threshold, _options(arguments))
    folder, classifies = Path(arguments.output), config.task == "classification"
    results = run_demo(detector, images, folder, threshold)
    if classifies:
        for result in results:
            print_classes(result, threshold)
    what, file = ("classes named", "classes.json") if classifies else ("detections", "detections.json")
    rows = [row for result in results for row in result["scores" if classifies else "detections"]]
    count = sum(row["score"] >= threshold for row in rows)
    note(f"{count} {what} in {len(images)} images; wrote {folder / file} and the pictures")
    return 0


def demo_config(checkpoint: dict[str, Any], arguments: argparse.Namespace) -> Config:
    """Return the checkpoint's config with the overrides of the command line.

    A checkpoint that was trained on a proposal file gets proposals by selective search instead, unless the
    command line names a file with boxes of the demo's images.
    """
    from detector.config.load import override, parse_stored
    from detector.factory.proposals import file_override

    source, overrides = checkpoint["file"], [*arguments.overrides, *cli.precision_override(arguments)]
    if arguments.proposals:
        overrides.insert(0, file_override(Path(arguments.proposals)))
    config = parse_stored(checkpoint["config"], overrides, source)
    lowest, asked = config.test.score_threshold, arguments.score_threshold
    if config.task == "classification":
        if arguments.proposals:
            raise InputError(f"--proposals: {source} classifies whole images and takes none")
        return config
    own = override({}, overrides).get("proposals")
    if config.proposals.file is not None and not (isinstance(own, dict) and "file" in own):
        note("the checkpoint's proposal file is for other images; making proposals by selective search")
        overrides.append("proposals.method=selective_search")
        config = parse_stored(checkpoint["config"], overrides, source)
    if asked is not None and asked < lowest:
        note(
            f"note: detections below test.score_threshold = {lowest:g} are never returned; add "
            f"--set test.score_threshold={asked:g} to see them"
        )
    return config


def default_threshold(detector: Detector) -> float:
    """Return the checkpoint's own score threshold, or the usual one, and print which."""
    from detector.visualize.drawing import USUAL_THRESHOLD

    stored = detector.best_threshold
    if stored is None:
        note(f"score threshold {USUAL_THRESHOLD:g}: the checkpoint has none of its own")
        return USUAL_THRESHOLD
    note(f"score threshold {stored:.3g}: the checkpoint's, with the best F1 on its validation images")
    return stored


def find_images(places: Sequence[Path]) -> list[Path]:
    """Return the image files that ``places``, files and folders, name; subfolders are not searched.

    Hidden files of a folder are skipped.

    Raises:
        InputError: a place that does not exist or is no file, or no image in any of them.
    """
    images: list[Path] = []
    for place in places:
        if place.is_dir():
            images += sorted(
                path
                for path in place.iterdir()
                if path.suffix.lower() in IMAGE_SUFFIXES and not is_hidden(path, place)
            )
        elif place.exists():
            require_regular(place)
            if place.suffix.lower() not in IMAGE_SUFFIXES:
                _require_image(place)
            images.append(place)
        else:
            raise InputError(f"{place}: no such image or folder")
    if not images:
        videos = [
            path for place in places for path in place.iterdir() if path.suffix.lower() in VIDEO_SUFFIXES
        ]
        hint = f"; name videos one by one, such as {sorted(videos)[0]}" if videos else ""
        raise InputError(
            f"no image in {', '.join(map(str, places))}; known: {', '.join(IMAGE_SUFFIXES)}{hint}"
        )
    return images


def _require_image(path: Path) -> None:
    """Raise InputError where a file that is not named like an image is none; a video is not given here."""
    from detector.data.images import upright_size

    try:
        upright_size(path)
    except InputError:
        raise InputError(
            f"{path}: neither an image nor a video that can be read; images end with "
            f"{', '.join(IMAGE_SUFFIXES)}, videos with {', '.join(VIDEO_SUFFIXES)}"
        ) from None


def find_videos(arguments: argparse.Namespace) -> list[Path | int]:
    """Return the video files, or the number of the camera, that the command line names; none for images.

    Raises:
        InputError: images and videos together, neither, or options that are only for the other.
    """
    places = [Path(place) for place in arguments.images]
    videos: list[Path | int] = [path for path in places if not path.is_dir() and is_video(path)]
    if arguments.camera is not None:
        videos.append(arguments.camera)
    if len(videos) not in (0, len(places) + (arguments.camera is not None)) or (
        places and arguments.camera is not None
    ):
        raise InputError(
            "give either images, or videos, or a camera, and call the tool once for each of them"
        )
    if not videos:
        for name in ("every", "max_frames", "seconds", "codec", "name", "proposal_threads"):
            if getattr(arguments, name) is not None:
                option = f"--{name.replace('_', '-')}"
                raise InputError(f"{option} is for videos and cameras, and there is none; leave it out")
        if not places:
            raise InputError("no image: name image files, folders, or videos, or --camera 0")
    elif arguments.proposals:
        raise InputError(
            "--proposals: boxes are looked up by file name, and the frames of a video have none; leave it "
            "out, so that the checkpoint's method makes them, or give frames as image files"
        )
    return videos


def _options(arguments: argparse.Namespace) -> video_demo.Options:
    return video_demo.Options(
        every=1 if arguments.every is None else arguments.every,
        max_frames=arguments.max_frames,
        seconds=arguments.seconds,
        codec=arguments.codec or "mp4v",
        name=arguments.name,
        proposal_threads=arguments.proposal_threads,
    )


def run_demo(
    detector: Detector, images: Sequence[Path], folder: Path, score_threshold: float
) -> list[dict[str, Any]]:
    """Draw each image with its detections or classes into ``folder``, and write one JSON of all results.

    Detections below ``score_threshold`` are in the JSON and not in the pictures. Returns the JSON's images.
    """
    from detector.api import record_of
    from detector.evaluation.report import write_json
    from detector.factory.proposals import temporary_store
    from detector.visualize import save_image

    pictures = picture_names(images)
    classifies = detector.config.task == "classification"
    json_file = folder / ("classes.json" if classifies else "detections.json")
    given = detector.config.proposals.file or {}
    files = given.values() if isinstance(given, dict) else [given]
    read = [*images, *map(Path, files)]
    written = [*(folder / name for name in pictures), json_file]
    refuse_overwriting(written, read, "give another --output folder")
    results: list[dict[str, Any]] = []
    made: AbstractContextManager[ProposalStore | None] = nullcontext()
    if not classifies:  # made for all images at once, on all cores
        made = temporary_store(detector.config, [record_of(path) for path in images])
    with made as store:
        stream = track(
            detector.stream(images, proposals=store),
            len(images),
            "classifying" if classifies else "detecting",
        )
        for path, picture, result in zip(images, pictures, stream, strict=True):
            save_image(folder / picture, result.draw(path, score_threshold))
            results.append({"drawn": picture, **result.to_dict()})
    content = {"classes": list(detector.classes), "images": results}
    write_json(json_file, content)
    return results


def picture_names(images: Sequence[Path]) -> list[str]:
    """Return a file name for each image's picture: its stem, with a number where a stem comes again.

    Upper and lower case are the same letter, as in the file systems of macOS and Windows.
    """
    stems: dict[str, str] = {}
    for path in images:
        stem, number = path.stem, 2
        while stem.casefold() in stems:
            stem, number = f"{path.stem}_{number}", number + 1
        stems[stem.casefold()] = stem
    return [f"{file_name_of(stem)}.jpg" for stem in stems.values()]


def print_classes(result: dict[str, Any], score_threshold: float) -> None:
    """Print the classes of one image that score at least ``score_threshold``."""
    named = [row for row in result["scores"] if row["score"] >= score_threshold]
    shown = listed(f"{row['class']} {row['score']:.2f}" for row in named)
    note(f"{result['image']}: {shown or 'no class'}")


def _add_video_arguments(parser: argparse.ArgumentParser) -> None:
    videos = parser.add_argument_group("videos and cameras")
    videos.add_argument(
        "--camera", type=int, metavar="N", help="a camera: 0 is the first one; Ctrl-C ends it"
    )
    videos.add_argument("--every", type=int, metavar="N", help="take each N-th frame only")
    videos.add_argument("--max-frames", type=int, metavar="N", help="end after N frames")
    videos.add_argument(
        "--seconds", type=float, metavar="S", help="end after S seconds of the video, or of the camera's time"
    )
    videos.add_argument(
        "--codec",
        metavar="NAME",
        help="of the drawn video: mp4v (default), h264 (where OpenCV can), vp9 or mjpg",
    )
    videos.add_argument("--name", help="of the written files, without suffix (default: the video's)")
    videos.add_argument(
        "--proposal-threads",
        type=int,
        metavar="N",
        help="frames whose proposals are made at the same time (default: one per core, less one)",
    )


def parse() -> argparse.Namespace:
    parser = cli.make_parser(
        __doc__ or "",
        "python tools/demo.py --checkpoint runs/quickstart/checkpoints/best.pt my_photos/ --output drawn",
    )
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE_FOLDER_OR_VIDEO",
        help="image files and folders of them, or video files",
    )
    _add_video_arguments(parser)
    cli.add_checkpoint_argument(parser)
    parser.add_argument("--output", required=True, metavar="DIR", help="where pictures and JSON go")
    parser.add_argument(
        "--proposals",
        metavar="PLACE",
        help="a ProposalStore or a proposal file with boxes of these images, by file name (default: made by "
        "the checkpoint's method, or by selective search)",
    )
    parser.add_argument(
        "--score-threshold",
        type=float,
        help="draw detections, or name classes, from this score on (default: the checkpoint's, chosen on its "
        "validation images, else 0.5)",
    )
    cli.add_overrides_argument(parser)
    cli.add_precision_argument(parser)
    cli.add_device_argument(parser)
    arguments = parser.parse_intermixed_args()
    if arguments.score_threshold is not None and not math.isfinite(arguments.score_threshold):
        raise InputError(f"--score-threshold {arguments.score_threshold:g}: expected a finite number")
    return arguments
