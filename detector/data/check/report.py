"""The result of checking a data set: as lines for people, as JSON for programs, as a list to leave out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

from detector.core.errors import printable
from detector.data.check.image import CheckedImage, Rules
from detector.data.problems import Problem
from detector.data.selection import list_line
from detector.data.suspicions import similar_names, wrong_first_pixel

PERCENTILES = (0, 5, 25, 50, 75, 95, 100)


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """All problems, and all images with the objects that training can use. ``splits`` are those checked."""

    splits: tuple[str, ...]
    problems: list[Problem]
    checked: list[CheckedImage]

    @property
    def would_start(self) -> bool:
        """Whether training with this config would start and finish, as far as the data are concerned."""
        return not any(problem.stops for problem in self.problems)

    def as_json(self) -> dict[str, Any]:
        """Return problems, counts and statistics; boxes are measured in pixels of the original images."""
        return {
            "would_start": self.would_start,
            "problems": [asdict(problem) for problem in self.problems],
            "problem_counts": dict(Counter(problem.kind for problem in self.problems).most_common()),
            "other_classes": dict(sum((one.others for one in self.checked), Counter())),
            "splits": {split: self._counts(split) for split in self.splits},
            "boxes": self._statistics(),
        }

    def in_splits(self) -> list[CheckedImage]:
        """Return the images that some split names."""
        return [one for one in self.checked if one.listed.splits]

    def _counts(self, split: str) -> dict[str, Any]:
        images = [one for one in self.checked if split in one.listed.splits]
        classes = Counter(thing.name for one in images for thing in one.objects)
        return {
            "images": len(images),
            "images_without_objects": sum(not one.objects for one in images),
            "objects": sum(classes.values()),
            "per_class": dict(sorted(classes.items())),
        }

    def _statistics(self) -> dict[str, dict[str, float]]:
        images = self.in_splits()
        sides = np.array([thing.size for one in images for thing in one.objects]).reshape(-1, 2)
        width, height = sides[:, 0], sides[:, 1]
        columns = {
            "width": width,
            "height": height,
            "size": np.sqrt(width * height),
            "aspect": width / np.maximum(height, 1e-9),
            "objects_per_image": np.array([len(one.objects) for one in images], dtype=float),
        }
        return {name: _percentiles(values) for name, values in columns.items()}


def _percentiles(values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {}
    numbers = np.percentile(values, PERCENTILES).tolist()
    return {f"p{percent}": number for percent, number in zip(PERCENTILES, numbers, strict=True)}


def summarise(
    checked: Sequence[CheckedImage],
    others: Iterable[Problem],
    splits: Sequence[str],
    rules: Rules,
    validation_split: str | None = None,
) -> CheckReport:
    """Combine the results of single images; ``others`` are the problems that belong to no single image.

    An image that is in both the training split and ``validation_split`` stops training.
    """
    problems = [*others, *(problem for one in checked for problem in one.problems)]
    problems += _in_two_splits(checked, splits, {rules.train_split, validation_split})
    at_edge, objects = sum(one.at_edge for one in checked), sum(one.from_voc for one in checked)
    annotated = {name for one in checked for name in (*one.others, *(thing.name for thing in one.objects))}
    problems += wrong_first_pixel(at_edge, objects, rules.first_pixel, ", ".join(splits))
    problems += similar_names([*sorted(rules.classes or ()), *sorted(annotated)], ", ".join(splits))
    return CheckReport(splits=tuple(splits), problems=problems, checked=list(checked))


def _in_two_splits(
    checked: Sequence[CheckedImage], splits: Sequence[str], apart: set[str | None]
) -> Iterable[Problem]:
    """Yield a problem for each image that is in two splits, or only one if the splits have the same images.

    It stops training if the two splits are those that must be ``apart``.
    """
    places = [(one.listed.path.resolve(), one.listed) for one in checked]  # a link shows the same image
    members = {split: {place for place, listed in places if split in listed.splits} for split in splits}
    images = dict(places)
    for first, second in combinations(splits, 2):
        pair, both = (first, second), members[first] & members[second]
        problem = partial(Problem, kind="in two splits", splits=pair, stops=set(pair) == apart)
        if both and members[first] == members[second]:
            message = f"{first} and {second} are the same {len(both)} images: metrics would be meaningless"
            yield problem(file=first, message=message)
            continue
        for image in (images[place] for place in sorted(both)):
            file, message = str(image.annotation), f"image {image.key!r} is in {first} and in {second}"
            yield problem(file=file, message=message, image_id=image.image_id, key=image.key)


def problem_line(problem: Problem) -> str:
    """Return a problem as one whole line."""
    mark = "stops training" if problem.stops else "warning"
    text = " ".join(problem.message.split())
    return printable(f"{problem.place}: {problem.kind}: {text} [{mark}]")


def fix_list(report: CheckReport) -> str:
    """Return a list for ``data.leave_out`` of the images that stop training.

    Images of which only an object is left out are listed as comments.
    """
    lines = [
        "# For data.leave_out: one path of an image below data.root per line; lines that begin with # are "
        "comments."
    ]
    by_image: dict[str, list[Problem]] = {}
    for problem in report.problems:
        if problem.key is not None and (problem.stops or problem.unusable):
            by_image.setdefault(problem.key, []).append(problem)
    for key, problems in sorted(by_image.items()):
        kinds = ", ".join(dict.fromkeys(problem.kind for problem in problems))
        if any(problem.stops for problem in problems):
            lines += [f"# {kinds}:", list_line(key)]
        else:
            lines += [f"# {kinds}; only the object is left out. To leave out the image too, remove the mark:"]
            lines += [f"#{list_line(key)}"]
    return "\n".join(lines) + "\n"
