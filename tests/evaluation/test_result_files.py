"""VOC result files: what is written, and that nothing is lost when it is read back."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.core.errors import InputError
from detector.core.structures import Detections
from detector.evaluation.result_files import (
    other_result_files,
    read_result_files,
    write_class_scores,
    write_result_files,
)

CLASSES = ["cat", "dog"]


def detections(rows: Sequence[tuple[float, ...]]) -> Detections:
    """Rows of label, score and box, by falling score."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Detections(boxes=table[:, 2:], scores=table[:, 1], labels=table[:, 0].long())


def test_lines_are_one_based_and_short(tmp_path: Path) -> None:
    found = {"000001": detections([(2, 0.9, 0, 9.5, 352, 498), (1, 0.1, 12.3, 0, 13, 14)])}
    paths = write_result_files(tmp_path / "new", found, CLASSES, split="val")
    assert [path.name for path in paths] == ["comp4_det_val_cat.txt", "comp4_det_val_dog.txt"]
    assert paths[0].read_text() == "000001 0.1 13.3 1.0 13.0 14.0\n"
    assert paths[1].read_text() == "000001 0.9 1.0 10.5 352.0 498.0\n"


def test_a_class_without_detections_has_an_empty_file(tmp_path: Path) -> None:
    write_result_files(tmp_path, {"a": Detections.empty()}, CLASSES)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        "comp4_det_test_cat.txt": "",
        "comp4_det_test_dog.txt": "",
    }


numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
rows = st.lists(st.tuples(st.integers(1, 2), *[numbers] * 5), max_size=6)


@settings(max_examples=100, deadline=None)
@given(st.lists(rows, min_size=1, max_size=3))
def test_every_float32_survives(tmp_path_factory: pytest.TempPathFactory, images: list) -> None:
    folder = tmp_path_factory.mktemp("results")
    # Within an image the files hold class after class.
    written = {f"image {n}": detections(sorted(r, key=lambda row: row[0])) for n, r in enumerate(images)}
    write_result_files(folder, written, CLASSES)
    read = read_result_files(folder, list(written), CLASSES)
    for image_id, found in written.items():
        assert torch.equal(read[image_id].boxes, found.boxes)
        assert torch.equal(read[image_id].scores.float(), found.scores)
        assert torch.equal(read[image_id].labels, found.labels)


def test_random_coordinates_of_every_size_survive(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    values = generator.standard_normal((2000, 4)) * 10.0 ** generator.integers(-12, 5, (2000, 4))
    found = Detections(
        boxes=torch.from_numpy(values).float(),
        scores=torch.from_numpy(generator.random(2000)).float(),
        labels=torch.ones(2000, dtype=torch.int64),
    )
    write_result_files(tmp_path, {"a": found}, CLASSES)
    read = read_result_files(tmp_path, ["a"], CLASSES)["a"]
    assert torch.equal(read.boxes, found.boxes)
    assert torch.equal(read.scores.float(), found.scores)


def test_reads_what_other_tools_write(tmp_path: Path) -> None:
    (tmp_path / "comp4_det_test_cat.txt").write_bytes(
        b"\xef\xbb\xbf000001\t0.25  1 1.000000 10 2e1\r\n\r\nmy image 0.123456789012 3 4 5 6\r\n"
        b"000001 0.750 48 240 195 371"
    )
    read = read_result_files(tmp_path, ["000001", "my image", "empty"], CLASSES)
    assert read["000001"].boxes.tolist() == [[0, 0, 10, 20], [47, 239, 195, 371]]
    assert read["000001"].lines.tolist() == [1, 4]
    assert read["my image"].scores.tolist() == [0.123456789012]
    assert read["000001"].detections().scores.tolist() == [0.75, 0.25]
    assert len(read["empty"].detections()) == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a 0.5 1 2 3", "line 2: has 5 fields"),
        ("a 0.5 1 2 3 x", "line 2: .* are not five numbers"),
        ("a high 1 2 3 4", "line 2: .* are not five numbers"),
        ("a nan 1 2 3 4", "line 2: .* NaN or too large"),
        ("a 0.5 1 2 inf 4", "line 2: .* NaN or too large"),
        ("a 0.5 nan 2 3 4", "line 2: .* NaN or too large"),
        ("a 0.5 snan 2 3 4", "line 2: .* are not five numbers"),
        ("a 0.5 1e9999999 2 3 4", "line 2: .* (NaN or too large|not five numbers)"),
        ("a 0.5 1 1e39 3 4", "line 2: .* NaN or too large"),
        ("b 0.5 1 2 3 4", "line 2: image id 'b' is not in the split"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "comp4_det_test_dog.txt"
    path.write_text(f"a 0.5 1 2 3 4\n{line}\n")
    with pytest.raises(InputError, match=message) as error:
        read_result_files(tmp_path, ["a"], CLASSES)
    assert str(path) in str(error.value)


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "comp4_det_test_dog.txt").write_bytes(b"\xff\xfe\x00\x9f")
    with pytest.raises(InputError, match="cannot read the result file"):
        read_result_files(tmp_path, ["a"], CLASSES)


def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "comp4_det_test_dog.txt")
    with pytest.raises(InputError, match="named pipe"):
        read_result_files(tmp_path, ["a"], CLASSES)


def test_nothing_is_left_behind_where_nothing_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"comp4_det_test_cat\.txt: cannot write the file"):
        write_result_files(tmp_path / "file", {}, CLASSES)
    (tmp_path / "comp4_det_test_cat.txt").mkdir()
    with pytest.raises(InputError, match="cannot write"):
        write_result_files(tmp_path, {}, CLASSES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["comp4_det_test_cat.txt", "file"]


HARD_NAMES = [
    *(
        "cabinet/shelf",
        "../cat",
        "..",
        ".",
        "CON",
        "con.x",
        "50% off",
        "a:b",
        "a\\b",
        "a b ",
        "x.",
        ".hidden",
    ),
    *("n" * 300, "n" * 301, "图" * 100, "\x1b[2J", "a\nb", "a\u202eb", "cabinet%2Fshelf", "comp4_det_test_"),
]


def test_every_class_has_a_file_of_its_own_and_is_read_back(tmp_path: Path) -> None:
    rows = [(label, 0.5, 0, 0, label, 9) for label in range(1, len(HARD_NAMES) + 1)]
    for split in ("test", "a/b", "s" * 200):
        folder = tmp_path / str(len(split))
        paths = write_result_files(folder, {"cam1/1": detections(rows)}, HARD_NAMES, split)
        assert len(set(paths)) == len(HARD_NAMES) == len(list(folder.iterdir()))
        assert all(path.parent == folder and len(path.name.encode()) < 240 for path in paths)
        read = read_result_files(folder, ["cam1/1"], HARD_NAMES, split)["cam1/1"]
        assert read.boxes[:, 2].tolist() == read.labels.tolist() == list(range(1, len(HARD_NAMES) + 1))
        assert not other_result_files(folder, split, HARD_NAMES)
        assert other_result_files(folder, split, HARD_NAMES[1:]) == [paths[0].name]
        scores = {"x": torch.zeros(len(HARD_NAMES))}
        assert len(set(write_class_scores(folder, scores, HARD_NAMES, split))) == len(HARD_NAMES)


def test_files_of_other_programs_have_the_bare_class_name(tmp_path: Path) -> None:
    (tmp_path / "comp4_det_test_a:b.txt").write_text("x 0.5 1 1 3 9\n")
    (tmp_path / "comp4_det_test_a%3Ab.txt").write_text("x 0.5 1 1 4 9\n")
    read = read_result_files(tmp_path, ["x"], ["a:b", "a%3Ab"])["x"]
    assert read.boxes[:, 2].tolist() == [4]  # that is the file of a:b, and the other class has none
    (tmp_path / "comp4_det_test_a%3Ab.txt").unlink()
    read = read_result_files(tmp_path, ["x"], ["a:b", "a%3Ab"])["x"]
    assert (read.boxes[:, 2].tolist(), read.labels.tolist()) == ([3], [1])


def test_classification_files_have_every_image_and_every_digit(tmp_path: Path) -> None:
    scores = {"000001": torch.tensor([0.1, 1e-9]), "my image": torch.tensor([1 / 3, 0.0])}
    paths = write_class_scores(tmp_path / "new", scores, CLASSES, split="val")
    assert [path.name for path in paths] == [f"comp2_cls_val_{name}.txt" for name in CLASSES]
    for number, path in enumerate(paths):
        rows = [line.rsplit(" ", 1) for line in path.read_text().splitlines()]
        assert [image_id for image_id, _ in rows] == list(scores)
        read = torch.tensor([float(score) for _, score in rows])
        assert torch.equal(read, torch.stack([row[number] for row in scores.values()]))
