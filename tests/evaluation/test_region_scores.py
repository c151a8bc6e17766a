"""The file of all scores of all regions: what numpy reads, and that it is whole or not there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from detector.core.errors import InputError
from detector.evaluation.region_scores import check_name, writing

NAMES = {"classes": ["background", "grün"], "images": ["a", "b/c"], "keys": ["a.jpg", "b/c.jpg"]}


def test_numpy_reads_what_was_written(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = [
        tuple(rng.random(shape, np.float32) for shape in ((count, 4), (count, 2), (count, 2, 4)))
        for count in (3, 0)
    ]
    for place in (tmp_path / "one.npz", tmp_path / "two.npz"):
        with writing(place, NAMES) as file:
            for columns in images:
                file.add(*columns)
    with np.load(tmp_path / "one.npz", allow_pickle=False) as saved:
        assert {name: saved[name].tolist() for name in NAMES} == NAMES
        for number, columns in enumerate(images):
            for name, values in zip(("boxes", "scores", "refined"), columns, strict=True):
                found = saved[f"{number}/{name}"]
                assert found.dtype == np.float32
                assert np.array_equal(found, values)
    assert (tmp_path / "one.npz").read_bytes() == (tmp_path / "two.npz").read_bytes()


def test_an_error_leaves_the_old_file(tmp_path: Path) -> None:
    place = tmp_path / "scores.npz"
    place.write_bytes(b"old")
    columns = np.zeros((1, 4), np.float32), np.zeros((1, 2), np.float32), np.zeros((1, 2, 4), np.float32)
    broken = columns[0], columns[1], np.array([None], object)  # which would have to be pickled
    with pytest.raises(ValueError, match="pickle"), writing(place, NAMES) as file:
        file.add(*broken)
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_another_suffix_is_refused() -> None:
    check_name("--save-scores", Path("a.NPZ"))
    with pytest.raises(InputError, match=r"--save-scores a\.json: name a \.npz file"):
        check_name("--save-scores", Path("a.json"))
