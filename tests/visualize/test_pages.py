"""Drawings: what has to change in the picture, what must not, and that nothing unusual breaks them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from detector.core.errors import InputError
from detector.core.structures import Detections, Targets
from detector.visualize import (
    class_colour,
    draw_detections,
    draw_targets,
    drawing,
    example_grid,
    run_charts,
    save_image,
)
from detector.visualize.data_page import data_picture
from detector.visualize.page import line_colour
from detector.visualize.recall import recall_figure
from tests.typed import read_picture

GREY = 128
CLASSES = ("disc", "Blutplättchen", "Ωжñ")


class Curve(NamedTuple):
    recall: np.ndarray
    precision: np.ndarray


def blank(height: int = 200, width: int = 300) -> np.ndarray:
    return np.full((height, width, 3), GREY, np.uint8)


def detections(*rows: tuple[float, ...]) -> Detections:
    """Rows are (x1, y1, x2, y2, score, label)."""
    table = torch.tensor(rows).reshape(-1, 6)
    return Detections(boxes=table[:, :4], scores=table[:, 4], labels=table[:, 5].long())


def changed(drawn: np.ndarray) -> np.ndarray:
    return (drawn != GREY).any(axis=2)


def extent(mask: np.ndarray) -> tuple[int, int, int, int]:
    y, x = np.nonzero(mask)
    return int(x.min()), int(y.min()), int(x.max()) + 1, int(y.max()) + 1


def is_colour(drawn: np.ndarray, label: int) -> np.ndarray:
    return (drawn == class_colour(label)).all(axis=2)


def test_the_rim_lies_on_the_box() -> None:
    drawn = draw_detections(blank(), detections((60, 50, 161, 141, 0.9, 1)), CLASSES, labels=False)
    assert extent(is_colour(drawn, 1)) == (60, 50, 161, 141)
    assert extent(changed(drawn)) == (59, 49, 162, 142)  # with the dark seam
    assert not changed(drawn)[60:130, 70:150].any()
    for side in (drawn[50, 60:161], drawn[140, 60:161], drawn[50:141, 60], drawn[50:141, 160]):
        assert (side == class_colour(1)).all()


def test_labels_stand_above_the_box_or_inside_the_image() -> None:
    without = draw_detections(blank(), detections((60, 50, 161, 141, 0.9, 1)), CLASSES, labels=False)
    above = draw_detections(blank(), detections((60, 50, 161, 141, 0.9, 1)), CLASSES)
    _, top, _, bottom = extent((above != without).any(axis=2))
    assert top > 30
    assert bottom == 50
    at_top = draw_detections(blank(), detections((0, 0, 100, 100, 0.9, 1)), CLASSES)
    assert is_colour(at_top, 1)[:9, :40].mean() > 0.5
    at_right = draw_detections(blank(), detections((290, 50, 300, 100, 0.9, 2)), CLASSES)
    left, _, right, _ = extent(is_colour(at_right, 2))
    assert left < 230
    assert right == 300


def test_labels_of_one_place_do_not_cover_each_other() -> None:
    box, first = (60, 80, 110, 130), [0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6]
    rows = [(*box, score, label) for label, score in enumerate(first, start=1)]
    names = [*CLASSES, "red", "round", "old", "wet"]
    together = draw_detections(blank(), detections(*rows), names)
    for row in rows:
        alone = draw_detections(blank(), detections(row), names)
        without = draw_detections(blank(), detections(row), names, labels=False)
        label = int(row[5])
        ground = int(is_colour(alone, label).sum() - is_colour(without, label).sum())
        assert is_colour(together, label).sum() >= 0.8 * ground


def test_a_part_that_is_nearly_the_whole_loss_does_not_hide_it() -> None:
    series = [(float(step), 1 / (1 + step)) for step in range(60)]
    losses = {"loss_cls": series, "loss": series}
    page = run_charts(losses=losses, pr_curves={}, metrics={}, classes=["a"], title="")
    only = run_charts(losses={"loss_cls": series}, pr_curves={}, metrics={}, classes=["a"], title="")
    cls = np.abs(only - np.array([round(255 * c) for c in line_colour(1)])).sum(axis=2) < 12
    total = np.abs(page.astype(int) - 178).max(axis=2) < 6
    upper_right = np.s_[: page.shape[0] // 3, page.shape[1] // 4 :]
    total[upper_right] = False  # the legend
    assert total.sum() > 1000
    assert (np.abs(page.astype(int) - np.array([round(255 * c) for c in line_colour(1)])).sum(axis=2) < 12)[
        cls
    ].mean() > 0.9


def test_the_legends_of_recall_cover_no_axes() -> None:
    report = {
        "counts": [1, 10, 100],
        "proposals_per_image": 100.0,
        "images": 3,
        "iou_thresholds": [0.5, 0.7, 0.9],
        "recall": {threshold: [0.1, 0.5, 0.9] for threshold in ("0.5", "0.7", "0.9")},
        "average_recall": [0.1, 0.4, 0.6],
        "MABO": [0.2, 0.5, 0.7],
        "per_class": {"disc": {"objects": 4, "mean_best_overlap": [0.2, 0.5, 0.7]}},
        "per_size": {"small": {"objects": 4, "mean_best_overlap": [0.2, 0.5, 0.7]}},
    }
    figure = recall_figure({"ours": report, "a store with a name that is rather long": report}, "recall")
    FigureCanvasAgg(figure).draw()
    panels = [axes.get_window_extent() for axes in figure.axes]
    for axes in figure.axes:
        legend = axes.get_legend()
        assert legend is not None
        box = legend.get_window_extent()
        assert not any(box.overlaps(panel) for panel in panels)
        assert figure.bbox.x1 >= box.x1


def test_the_page_of_a_data_set_shows_photographs(tmp_path: Path) -> None:
    shown: dict[str, Any] = {
        "classes": {"disc": 2, "ring": 1},
        "sides": np.array([[20.0, 30], [40, 30], [50, 60]]),
        "objects_per_image": np.array([1, 2]),
        "title": "set",
        "summary": "",
    }
    data_picture(tmp_path / "without.png", **shown)
    targets = Targets.make(torch.tensor([[60.0, 50, 161, 141]]), torch.tensor([2]))
    data_picture(tmp_path / "with.png", **shown, examples=[(blank(), targets)] * 6)
    without, page = (read_picture(tmp_path / name)[..., ::-1] for name in ("without.png", "with.png"))
    assert (page[: len(without)] == without).all()
    row = page[len(without) :]
    assert (row == GREY).all(axis=2).mean() > 0.5
    assert is_colour(row, 2).sum() > 400


def test_the_label_tells_name_and_score() -> None:
    box = (60, 50, 161, 141)
    first = draw_detections(blank(), detections((*box, 0.9, 1)), CLASSES)
    assert (first != draw_detections(blank(), detections((*box, 0.8, 1)), CLASSES)).any()
    assert (first != draw_detections(blank(), detections((*box, 0.9, 1)), ("ring", "b", "c"))).any()
    accented = draw_detections(blank(), detections((*box, 0.9, 1)), ("Zelle ä", "b", "c"))
    plain = draw_detections(blank(), detections((*box, 0.9, 1)), ("Zelle a", "b", "c"))
    replaced = draw_detections(blank(), detections((*box, 0.9, 1)), ("Zelle ?", "b", "c"))
    assert (accented != plain).any()
    assert (accented != replaced).any()


def test_only_what_scores_enough_is_drawn() -> None:
    low, high = (10, 20, 60, 80, 0.49, 1), (150, 50, 250, 150, 0.5, 2)
    drawn = draw_detections(blank(), detections(low, high), CLASSES)
    assert (drawn == draw_detections(blank(), detections(high), CLASSES)).all()
    both = draw_detections(blank(), detections(low, high), CLASSES, score_threshold=0.1)
    assert is_colour(both, 1).any()
    assert is_colour(both, 2).any()


def test_better_detections_are_on_top() -> None:
    rows = [(40, 50, 161, 141, 0.9, 1), (40, 50, 161, 141, 0.6, 2)]
    for order in (rows, rows[::-1]):
        drawn = draw_detections(blank(), detections(*order), CLASSES, labels=False)
        assert is_colour(drawn, 1).any()
        assert not is_colour(drawn, 2).any()


def test_difficult_objects_are_dashed() -> None:
    boxes, labels = torch.tensor([[60.0, 50, 161, 141]]), torch.tensor([1])
    solid = draw_targets(blank(), Targets.make(boxes, labels), CLASSES, labels=False)
    dashed = draw_targets(
        blank(), Targets.make(boxes, labels, difficult=torch.tensor([True])), CLASSES, labels=False
    )
    crowd = draw_targets(
        blank(), Targets.make(boxes, labels, crowd=torch.tensor([True])), CLASSES, labels=False
    )
    assert is_colour(solid, 1)[50, 60:161].all()
    assert 0.3 < is_colour(dashed, 1)[50, 60:161].mean() < 0.7
    assert (crowd == dashed).all()


def test_the_image_handed_in_is_not_changed() -> None:
    image = blank()[:, ::-1]  # not contiguous, as after a flip
    image.flags.writeable = False
    targets = Targets.make(torch.tensor([[1.0, 1, 50, 50]]), torch.tensor([3]))
    assert changed(draw_targets(image, targets, CLASSES)).any()
    assert not changed(image).any()
    assert not changed(draw_targets(image, Targets.empty(), CLASSES)).any()
    assert not changed(draw_detections(image, Detections.empty(), CLASSES)).any()


@pytest.mark.parametrize(
    "image", [blank().astype(np.float32), blank()[..., 0], blank()[..., :2], blank(0)], ids=lambda i: i.shape
)
def test_other_arrays_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match="uint8"):
        draw_detections(image, Detections.empty(), CLASSES)


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 120), st.integers(1, 120)),
    box=st.tuples(*[st.floats(-200, 400, width=32)] * 4),
    name=st.text(max_size=40),
)
def test_any_box_and_name_on_any_image(
    size: tuple[int, int], box: tuple[float, float, float, float], name: str
) -> None:
    image = blank(*size)
    drawn = draw_detections(image, detections((*box, 0.9, 1)), (name,))
    assert drawn.shape == image.shape
    assert changed(drawn).any()


def test_colours_of_neighbouring_classes_differ() -> None:
    colours = np.array([class_colour(label) for label in range(1, 81)], dtype=float)
    assert len(np.unique(colours[:35], axis=0)) == 35
    assert np.linalg.norm(np.diff(colours, axis=0), axis=1).min() > 45


@pytest.mark.parametrize("name", ["a.png", "b.JPG", "c.jpeg"])
def test_save_image(tmp_path: Path, name: str) -> None:
    image = draw_detections(blank(), detections((60, 50, 161, 141, 0.9, 1)), CLASSES)
    path = tmp_path / "new" / name
    save_image(path, image)
    read = read_picture(path)[..., ::-1]
    assert np.abs(read.astype(int) - image).mean() < (0.01 if name == "a.png" else 4)
    assert [found.name for found in path.parent.iterdir()] == [name]


@pytest.mark.parametrize(("name", "width"), [("wide.jpg", 65_500), ("wide.png", 70_000)])
def test_a_picture_wider_than_jpeg_can_be_is_shrunk(tmp_path: Path, name: str, width: int) -> None:
    save_image(tmp_path / name, np.zeros((40, 70_000, 3), np.uint8))
    with Image.open(tmp_path / name) as written:
        assert written.width == width


def test_save_image_refuses_what_it_cannot_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"picture\.bmp.*\.png"):
        save_image(tmp_path / "picture.bmp", blank())
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match=r"picture\.png: cannot write the file"):
        save_image(tmp_path / "file" / "picture.png", blank())
    (tmp_path / "old.png").write_bytes(b"old")

    def full(self: object, file: BinaryIO, *_: object, **__: object) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(drawing.Image.Image, "save", full)
    with pytest.raises(InputError, match="No space left"):
        save_image(tmp_path / "old.png", blank())
    assert (tmp_path / "old.png").read_bytes() == b"old"
    assert sorted(found.name for found in tmp_path.iterdir()) == ["file", "old.png"]


def test_the_grid_shows_detections_from_the_stored_threshold_on() -> None:
    example = (blank(), detections((10, 20, 60, 80, 0.3, 1)), Targets.empty())
    assert not is_colour(example_grid([example], CLASSES, 1800), 1).any()
    assert is_colour(example_grid([example], CLASSES, 1800, 0.25), 1).any()


def test_the_grid_shows_detections_left_and_truth_right() -> None:
    found = detections((10, 20, 60, 80, 0.9, 1))
    truth = Targets.make(torch.tensor([[100.0, 50, 180, 150]]), torch.tensor([2]))
    grid = example_grid([(blank(), found, truth)], CLASSES, 1800)
    assert grid.shape[1] == 1800
    assert extent(is_colour(grid, 1))[2] < extent(is_colour(grid, 2))[0]
    # Boxes follow the change of size: the rim of the truth has its share of the picture.
    is_grey = (grid == GREY).all(axis=2)
    is_grey[:24] = False  # the captions' soft edges
    pictures = extent(is_grey)
    scale = (pictures[3] - pictures[1]) / 200
    rim = is_colour(grid, 2)
    rim[: pictures[1] + int(100 * scale)] = False  # the label is wider than the box
    x1, _, x2, y2 = extent(rim)
    assert (x2 - x1) / scale == pytest.approx(80, abs=3)
    assert (y2 - pictures[1]) / scale == pytest.approx(150, abs=3)
    assert example_grid([], CLASSES, 1800).shape == (0, 1800, 3)
    twelve = example_grid([(blank(), found, truth)] * 12, CLASSES, 1800)
    assert len(twelve) == 2 * len(grid)


def history(last: int = 400) -> list[tuple[float, float]]:
    return [(step, 2 / (1 + step / 50)) for step in range(20, last + 1, 20)]


def curve(count: int) -> Curve:
    hits = np.cumsum(np.arange(count) % 3 != 2)
    return Curve(recall=hits / 40, precision=hits / np.arange(1, count + 1))


def picture(**changes: Any) -> np.ndarray:
    shown: dict[str, Any] = {
        "losses": {"loss": history(), "loss_cls": history()},
        "pr_curves": {name: curve(30) for name in CLASSES},
        "metrics": {"voc07_mAP": 0.5, "per_class": {name: {"voc07_AP": 0.5} for name in CLASSES}},
        "examples": [(blank(), detections((10, 20, 60, 80, 0.9, 1)), Targets.empty())],
        "classes": CLASSES,
        "title": "A run",
    }
    shown |= changes
    examples = shown.pop("examples")
    plots = run_charts(**shown)
    return np.concatenate((plots, example_grid(examples, shown["classes"], plots.shape[1])))


def test_the_page_of_a_run_shows_each_part() -> None:
    whole = picture()
    changes = {
        "losses": {"loss": history(200)},
        "pr_curves": {name: curve(9) for name in CLASSES},
        "metrics": {"voc07_mAP": 0.6, "per_class": {name: {"voc07_AP": 0.5} for name in CLASSES}},
        "title": "Another run",
        "evaluations": {"voc07_mAP": [(100, 0.2), (400, 0.5)]},
    }
    for name, value in changes.items():
        other = picture(**{name: value})
        assert other.shape == whole.shape
        assert (other != whole).any(), name
    assert len(picture(examples=[])) < len(whole)


MANY = [f"class {number} with a long name" for number in range(80)]
UNUSUAL: dict[str, dict[str, Any]] = {
    "nothing": {"losses": {}, "pr_curves": {}, "metrics": {}, "examples": [], "classes": ()},
    "empty series": {"losses": {"loss": []}, "evaluations": {"voc07_mAP": []}},
    "not finite": {"losses": {"loss": [(20, float("nan")), (40, 1.0), (60, float("inf"))]}},
    "one step": {"losses": {"loss": [(1, 0.0)]}, "evaluations": {"voc07_mAP": [(1, float("nan"))]}},
    "no detections": {"pr_curves": {"disc": curve(0)}, "metrics": {"per_class": {"disc": {"voc07_AP": 0.0}}}},
    "no objects": {
        "pr_curves": {"disc": Curve(np.full(3, np.nan), np.zeros(3))},
        "metrics": {"voc07_mAP": None, "per_class": {"disc": {"voc07_AP": None}}},
    },
    "80 classes": {
        "pr_curves": {name: curve(10 + number) for number, name in enumerate(MANY)},
        "metrics": {"per_class": {name: {"voc07_AP": number / 80} for number, name in enumerate(MANY)}},
        "classes": MANY,
    },
    "odd shapes": {
        "examples": [(blank(*size), Detections.empty(), Targets.empty()) for size in ((3, 900), (900, 3))]
    },
    "markup": {"title": "$x_1$ and $ alone", "pr_curves": {"disc": curve(5), "$": curve(3)},
               "classes": ("disc", "$")},
}  # fmt: skip


@pytest.mark.parametrize("name", UNUSUAL)
@pytest.mark.filterwarnings("error")
def test_the_page_of_a_run_bears_what_is_unusual(name: str) -> None:
    assert picture(**UNUSUAL[name]).shape[1] == 1800
