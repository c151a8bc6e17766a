"""What a check of a data set found, for people (lines), for programs (JSON) and for the config (fix list)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any

import numpy as np

from detector.core.errors import printable
from detector.data.check import Checked, Problem, count_kinds
from detector.data.choice import list_line
from detector.data.suspicions import Suspicion, names_with_others, similar_names, wrong_first_pixel

PERCENTILES = (0, 5, 25, 50, 75, 95, 100)


@dataclass(frozen=True, kw_only=True)
class CheckReport:
    """All problems, and all images with the objects that can be used. ``splits`` are those looked at."""

    splits: tuple[str, ...]
    train_split: str
    problems: list[Problem]
    checked: list[Checked]

    @property
    def would_start(self) -> bool:
        """Whether training with this config would start and reach its end, as far as the data go."""
        return not any(problem.stops for problem in self.problems)

    def as_json(self) -> dict[str, Any]:
        """Return problems, counts and statistics; boxes are measured in pixels of the original images."""
        return {
            "would_start": self.would_start,
            "problems": [asdict(problem) for problem in self.problems],
            "problem_counts": count_kinds(self.problems),
            "other_classes": dict(sum((one.others for one in self.checked), Counter())),
            "splits": {split: self._counts(split) for split in self.splits},
            "boxes": self._statistics(),
        }

    def in_splits(self) -> list[Checked]:
        """Return the images that some split names."""
        return [one for one in self.checked if one.item.splits]

    def _counts(self, split: str) -> dict[str, Any]:
        images = [one for one in self.checked if split in one.item.splits]
        classes = Counter(name for one in images for name, _, _ in one.objects)
        return {
            "images": len(images),
            "images_without_objects": sum(not one.objects for one in images),
            "objects": sum(classes.values()),
            "per_class": dict(sorted(classes.items())),
        }

    def _statistics(self) -> dict[str, dict[str, float]]:
        images = self.in_splits()
        sides = np.array([(w, h) for one in images for _, w, h in one.objects]).reshape(-1, 2)
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
    checked: Sequence[Checked],
    others: Iterable[Problem],
    splits: Sequence[str],
    train_split: str,
    *,
    first_pixel: int = 1,
    classes: Iterable[str] = (),
    validation_split: str | None = None,
) -> CheckReport:
    """Add up what was found image by image; ``others`` are problems of no single image.

    ``classes`` are the names that training knows, beside those of the objects. An image of ``train_split``
    that is in ``validation_split`` too stops training.
    """
    problems = [*others, *(problem for one in checked for problem in one.problems)]
    problems += _in_two_splits(checked, splits, {train_split, validation_split})
    place = ", ".join(splits)
    suspicions = [*_first_pixel(checked, first_pixel, place), *similar_names(_names(checked, classes), place)]
    problems += [Problem(kind=kind, file=file, message=message) for kind, file, message, _ in suspicions]
    return CheckReport(
        splits=tuple(splits), train_split=train_split, problems=problems, checked=list(checked)
    )


def _first_pixel(checked: Sequence[Checked], first_pixel: int, place: str) -> Iterable[Suspicion]:
    count, objects = sum(one.at_edge for one in checked), sum(one.from_voc for one in checked)
    return wrong_first_pixel(count, objects, first_pixel, place)


def _names(checked: Sequence[Checked], classes: Iterable[str]) -> list[str]:
    found = Counter(name for one in checked for name, _, _ in one.objects)
    found.update(name for one in checked for name in one.others)
    return names_with_others(list(dict.fromkeys(classes)), found)


def _in_two_splits(
    checked: Sequence[Checked], splits: Sequence[str], apart: set[str | None]
) -> Iterable[Problem]:
    """Yield a problem for each image of two splits; one for two splits that are the same. Where the two are
    ``apart``, it stops training."""
    places = [(one.item.image.resolve(), one.item) for one in checked]  # a link shows the same image
    members = {split: {place for place, item in places if split in item.splits} for split in splits}
    items = dict(places)
    for first, second in combinations(splits, 2):
        both, stops = members[first] & members[second], {first, second} == apart
        if both and members[first] == members[second]:
            message = f"{first} and {second} are the same {len(both)} images: figures would say nothing"
            yield Problem(
                kind="in two splits", file=first, message=message, splits=(first, second), stops=stops
            )
            continue
        for item in (items[place] for place in sorted(both)):
            message = f"image {item.key!r} is in {first} and in {second}"
            yield Problem(
                kind="in two splits", file=str(item.file), message=message, image_id=item.image_id,
                key=item.key, splits=(first, second), stops=stops,
            )  # fmt: skip


def problem_line(problem: Problem) -> str:
    """Return a problem as one whole line."""
    place = ": ".join(filter(None, (problem.file, problem.object)))
    mark = "stops training" if problem.stops else "warning"
    text = " ".join(problem.message.split())
    return printable(f"{place}: {problem.kind}: {text} [{mark}]")


def fix_list(report: CheckReport) -> str:
    """Return a list for ``data.leave_out``: images that stop training, those of which an object is left
    out anyway as comments."""
    lines = [
        "# For data.leave_out: the path of one image below data.root a line; lines that begin with # are "
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
