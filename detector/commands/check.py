"""Look at a config's whole data set before training: every fault with its file and object, and statistics.

The exit status is 1 if training would not start, or would end with an error later.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from rich.table import Table

from detector.commands import cli
from detector.commands.checking import check_data
from detector.config import load_config
from detector.core.errors import InputError
from detector.core.files import write_text
from detector.core.progress import note, show
from detector.core.structures import Targets
from detector.data.check import Checked
from detector.data.check_report import CheckReport, fix_list, problem_line
from detector.data.images import read_image
from detector.evaluation.report import plain, write_json
from detector.factory.splits import read_splits
from detector.visualize.data_page import data_picture

EXAMPLES = 4
"""Images on the page."""


def main() -> int:
    arguments = parse()
    config = load_config(arguments.config, arguments.overrides)
    splits = arguments.split or read_splits(config)
    report = check_data(config, splits, images=not arguments.no_images)
    show_report(report)
    output = Path(arguments.output or f"runs/check/{Path(arguments.config).stem}.json")
    write_json(output, report.as_json())
    picture = output.with_suffix(".png")
    draw(report, picture, config.data.root)
    note(f"wrote {output} and {picture}")
    if arguments.fix_list:
        write_text(Path(arguments.fix_list), fix_list(report))
        note(f"wrote {arguments.fix_list}; use it with data.leave_out={arguments.fix_list}")
    return 0 if report.would_start else 1


def show_report(report: CheckReport) -> None:
    """Print all problems, as a table on a terminal and whole lines elsewhere, then the counts."""
    if sys.stdout.isatty() and report.problems:
        table = Table("file", "object", "problem", "what", title="Problems", show_lines=False)
        for problem in report.problems:
            kind = f"{problem.kind} (stops training)" if problem.stops else problem.kind
            cells = (problem.file, problem.object or "", kind, problem.message)
            table.add_row(
                *(plain(cell, overflow="fold") for cell in cells), style="red" if problem.stops else ""
            )
        show(table)
    else:
        for problem in report.problems:
            show(problem_line(problem))
    show(summary(report))


def summary(report: CheckReport) -> str:
    """Return the counts in a few lines."""
    found = report.as_json()
    lines = [
        f"{split}: {counts['images']} images, {counts['images_without_objects']} of them without objects, "
        f"{counts['objects']} objects of {len(counts['per_class'])} classes"
        for split, counts in found["splits"].items()
    ]
    if found["other_classes"]:
        names = ", ".join(f"{count} {name!r}" for name, count in sorted(found["other_classes"].items()))
        lines.append(f"objects of other classes, left out: {names}")
    kinds = ", ".join(f"{count} {kind}" for kind, count in found["problem_counts"].items())
    lines.append(f"problems: {kinds or 'none'}")
    lines.append("training would start" if report.would_start else "training would not start, or would fail")
    return "\n".join(lines)


def draw(report: CheckReport, path: Path, root: str) -> None:
    """Write the page of statistics, with some of the images, to ``path``."""
    images = report.in_splits()
    objects = [thing for one in images for thing in one.objects]
    classes = Counter(name for name, _, _ in objects)
    data_picture(
        path,
        examples=example_images(images, list(classes)),
        classes=classes,
        sides=np.array([(width, height) for _, width, height in objects]),
        objects_per_image=np.array([len(one.objects) for one in images]),
        title=f"{Path(root).name}: {', '.join(report.splits)}",
        summary=f"{len(images)} images, {len(objects)} objects; {summary(report).splitlines()[-2]}",
    )


def example_images(images: Sequence[Checked], classes: Sequence[str]) -> list[tuple[np.ndarray, Targets]]:
    """Return some images that can be read with the objects that can be used, from all over the data set."""
    examples: list[tuple[np.ndarray, Targets]] = []
    sound = [one for one in images if one.objects and not any(problem.stops for problem in one.problems)]
    for one in sound[:: max(1, len(sound) // EXAMPLES)]:
        try:
            image = read_image(one.item.image, one.item.size)
        except InputError:  # with --no-images nobody has looked at it before
            continue
        labels = torch.tensor([classes.index(name) + 1 for name, _, _ in one.objects])
        ignored = torch.tensor([difficult or crowd for difficult, crowd in one.flags])
        boxes = torch.tensor(one.boxes, dtype=torch.float32)
        examples.append((image, Targets.make(boxes, labels, difficult=ignored)))
        if len(examples) == EXAMPLES:
            break
    return examples


def parse() -> argparse.Namespace:
    parser = cli.make_parser(
        __doc__ or "",
        "python tools/check_data.py --config configs/bccd_squeezenet.yaml --fix-list leave_out.txt\n  "
        "python tools/check_data.py --config configs/mine.yaml data.leave_out=leave_out.txt",
    )
    cli.add_config_arguments(parser)
    parser.add_argument("--split", action="append", help="a split (default: all that training reads)")
    parser.add_argument("--no-images", action="store_true", help="look at the annotations alone")
    parser.add_argument(
        "--output",
        metavar="FILE.json",
        help="problems and statistics, with a picture beside it, FILE.png (default: in runs/check/)",
    )
    parser.add_argument(
        "--fix-list", metavar="FILE", help="write the images to leave out, for data.leave_out"
    )
    arguments = parser.parse_intermixed_args()
    if arguments.output and Path(arguments.output).suffix.lower() != ".json":
        raise InputError(f"--output {arguments.output}: name a .json file")
    return arguments
