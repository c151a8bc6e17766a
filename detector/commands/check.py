"""Check a config's whole data set before training: every fault with its file and object, and statistics.

The exit status is 1 if training would not start, or would end with an error later.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from detector.commands import cli
from detector.config import Config, load_config
from detector.core.errors import InputError
from detector.core.files import write_text
from detector.core.progress import note, show
from detector.core.structures import Targets
from detector.data.check.image import CheckedImage, Rules, inspect_images
from detector.data.check.report import CheckReport, fix_list, problem_line, summarise
from detector.data.images import read_image
from detector.data.problems import Problem, message_without
from detector.data.source import DataSource
from detector.data.targets import AS_ANNOTATED, TargetBuilder
from detector.evaluation.report import plain, write_json
from detector.factory import data as data_parts
from detector.visualize.data_page import data_picture

EXAMPLES = 4
"""Images on the page."""


def main() -> int:
    arguments = parse()
    config = load_config(arguments.config, arguments.overrides)
    splits = arguments.split or data_parts.read_splits(config)
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


def check_data(config: Config, splits: Sequence[str], *, images: bool = True) -> CheckReport:
    """Check every image of ``splits`` and its annotation, on all cores; ``images`` False opens no image file.

    Where class names are taken from VOC annotations, those that belong to no split are read as well.
    """
    data_parts.ensure_data(config)
    data, source = config.data, data_parts.build_source(config)
    kept = None if data.classes or source.declares_classes else data_parts.kept_images(config)
    selections = {split: data_parts.split_selection(config, split) for split in splits}
    problems: list[Problem] = []
    listed = list(source.images_to_check(selections, data.train_split, kept, problems.append))
    rules = Rules(
        classes=_known_classes(config, source),
        objects=source.rules,
        train_split=data.train_split,
        images=images,
        first_pixel=data.first_pixel,
        attributes=source.attributes,
    )
    checked = inspect_images(listed, rules)
    return summarise(
        checked,
        [*dict.fromkeys(problems), *_nothing_to_train_on(config, checked)],
        splits,
        rules,
        data_parts.find_validation(config).split,
    )


def _known_classes(config: Config, source: DataSource) -> frozenset[str] | None:
    """Return the class names that an object may have; None if any name becomes a class."""
    if config.data.classes is None and not source.declares_classes:
        return None
    try:
        return frozenset(data_parts.class_names(config))
    except InputError:  # `DataSource.images_to_check` reports it as a problem of the file
        return None


def _nothing_to_train_on(config: Config, checked: Sequence[CheckedImage]) -> list[Problem]:
    """Return the problem that no training image has an object, as training would report it at its start."""
    split = config.data.train_split
    members = [one.objects for one in checked if split in one.listed.splits]
    names = {thing.name for objects in members for thing in objects}
    build_targets = TargetBuilder(list(names), AS_ANNOTATED)
    try:
        if members:
            data_parts.require_objects((build_targets(objects, (0, 0)) for objects in members), config)
    except InputError as error:
        message = message_without(error, config.data.root)
        return [Problem(kind="nothing to train on", file=split, message=message, stops=True)]
    return []


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
    content = report.as_json()
    lines = [
        f"{split}: {counts['images']} images, {counts['images_without_objects']} of them without objects, "
        f"{counts['objects']} objects of {len(counts['per_class'])} classes"
        for split, counts in content["splits"].items()
    ]
    if content["other_classes"]:
        names = ", ".join(f"{count} {name!r}" for name, count in sorted(content["other_classes"].items()))
        lines.append(f"objects of other classes, left out: {names}")
    kinds = ", ".join(f"{count} {kind}" for kind, count in content["problem_counts"].items())
    lines.append(f"problems: {kinds or 'none'}")
    lines.append("training would start" if report.would_start else "training would not start, or would fail")
    return "\n".join(lines)


def draw(report: CheckReport, path: Path, root: str) -> None:
    """Write the page of statistics, with some of the images, to ``path``."""
    images = report.in_splits()
    objects = [thing for one in images for thing in one.objects]
    classes = Counter(thing.name for thing in objects)
    data_picture(
        path,
        examples=example_images(images, list(classes)),
        classes=classes,
        sides=np.array([thing.size for thing in objects]),
        objects_per_image=np.array([len(one.objects) for one in images]),
        title=f"{Path(root).name}: {', '.join(report.splits)}",
        summary=f"{len(images)} images, {len(objects)} objects; {summary(report).splitlines()[-2]}",
    )


def example_images(
    images: Sequence[CheckedImage], classes: Sequence[str]
) -> list[tuple[np.ndarray, Targets]]:
    """Return some readable images from all parts of the data set, with the objects that training can use."""
    examples: list[tuple[np.ndarray, Targets]] = []
    build_targets = TargetBuilder(classes, AS_ANNOTATED)
    sound = [one for one in images if one.objects and not any(problem.stops for problem in one.problems)]
    for one in sound[:: max(1, len(sound) // EXAMPLES)]:
        try:
            image = read_image(one.listed.path, one.listed.size)
        except InputError:  # with --no-images no file has been opened before
            continue
        examples.append((image, build_targets(one.objects, image.shape[:2])))
        if len(examples) == EXAMPLES:
            break
    return examples


def parse() -> argparse.Namespace:
    parser = cli.make_parser(
        __doc__ or "",
        "python tools/check_data.py --config bccd_squeezenet --fix-list leave_out.txt\n  "
        "python tools/check_data.py --config mine.yaml data.leave_out=leave_out.txt",
    )
    cli.add_config_arguments(parser)
    parser.add_argument("--split", action="append", help="a split (default: all that training reads)")
    parser.add_argument("--no-images", action="store_true", help="check only the annotations")
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
