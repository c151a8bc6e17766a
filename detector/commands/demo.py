"""Detect objects, or name classes, in your own images with a trained checkpoint: pictures and one JSON."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

from detector.commands import cli
from detector.core.errors import InputError
from detector.core.progress import note
from detector.proposals.inspection import guess_format


def main() -> int:
    arguments = parse()

    from detector.config.files import override
    from detector.config.load import parse_stored
    from detector.engine.checkpoint import load_checkpoint
    from detector.factory.model import restore_model
    from detector.factory.resources import use_cores
    from detector.tasks.demo import find_images, run_demo
    from detector.tasks.demo_classes import run_class_demo

    checkpoint = load_checkpoint(arguments.checkpoint)
    config = parse_stored(checkpoint["config"], arguments.overrides, arguments.checkpoint)
    classifies = config.task == "classification"
    if classifies and arguments.proposals:
        raise InputError(f"--proposals: {arguments.checkpoint} classifies whole images and takes none")
    own = override({}, arguments.overrides).get("proposals")
    named = isinstance(own, dict) and "file" in own
    if config.proposals.file is not None and not named:
        note("the checkpoint's proposals are a file, of other images; making some by selective search")
        overrides = [*arguments.overrides, "proposals.method=selective_search"]
        config = parse_stored(checkpoint["config"], overrides, arguments.checkpoint)
    device = cli.choose_device(arguments.device)
    use_cores(config, device)
    lowest, asked = config.test.score_threshold, arguments.score_threshold
    if not classifies and asked is not None and asked < lowest:
        note(
            f"note: no detections below test.score_threshold = {lowest:g} are made; add "
            f"--set test.score_threshold={asked:g} to see them"
        )
    model = restore_model(config, checkpoint, arguments.checkpoint).to(device)
    images = find_images([Path(place) for place in arguments.images])
    folder = Path(arguments.output)
    run, what, file = (
        (run_class_demo, "classes named", "classes.json")
        if classifies
        else (run_demo, "detections", "detections.json")
    )
    threshold = arguments.score_threshold
    if threshold is None:
        threshold = default_threshold(checkpoint)
    found = run(config, model, checkpoint["classes"], images, folder, device, threshold)
    note(f"{found} {what} in {len(images)} images; wrote {folder / file} and the pictures")
    return 0


def default_threshold(checkpoint: dict[str, Any]) -> float:
    """Return the checkpoint's own score threshold, or the usual one, and say which."""
    from detector.visualize.drawing import USUAL_THRESHOLD

    stored: float | None = checkpoint.get("score_threshold")
    if stored is None:
        note(f"score threshold {USUAL_THRESHOLD:g}: the checkpoint has none of its own")
        return USUAL_THRESHOLD
    note(f"score threshold {stored:.3g}: the checkpoint's, with the best F1 on its validation images")
    return stored


def parse() -> argparse.Namespace:
    parser = cli.make_parser(
        __doc__ or "",
        "python tools/demo.py --checkpoint runs/quickstart/checkpoints/best.pt my_photos/ --output drawn",
    )
    parser.add_argument(
        "images", nargs="+", metavar="IMAGE_OR_FOLDER", help="image files, or folders of them"
    )
    parser.add_argument("--checkpoint", required=True, metavar="FILE", help="a checkpoint of tools/train.py")
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
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="key=value",
        help="replace config values",
    )
    cli.add_device_argument(parser)
    arguments = parser.parse_intermixed_args()
    if arguments.proposals:
        kind = guess_format(Path(arguments.proposals))
        given = [f"proposals.file={arguments.proposals}", f"proposals.format={kind}"]
        arguments.overrides = given + arguments.overrides
    if arguments.score_threshold is not None and not math.isfinite(arguments.score_threshold):
        raise InputError(f"--score-threshold {arguments.score_threshold:g}: expected a finite number")
    return arguments
