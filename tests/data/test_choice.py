"""Splits by ratio, and lists of images to leave out."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from detector.data.choice import by_ratio, divide, in_turn, read_left_out, without
from detector.errors import InputError

IDS = [f"image_{number:04d}" for number in range(1000)]


def test_every_image_is_in_exactly_one_split_and_shares_are_met() -> None:
    splits = divide(IDS, {"train": 0.7, "val": 0.1, "test": 0.2}, seed=0)
    assert {name: len(ids) for name, ids in splits.items()} == {"train": 700, "val": 100, "test": 200}
    assert sorted(splits["train"] + splits["val"] + splits["test"]) == IDS
    assert all(ids == sorted(ids) for ids in splits.values()), "the order of the ids is kept"


@pytest.mark.parametrize("count", range(1, 12))
def test_shares_that_do_not_come_out_even_lose_nothing(count: int) -> None:
    splits = divide(IDS[:count], {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}, seed=1)
    assert sorted(splits["a"] + splits["b"] + splits["c"]) == IDS[:count]
    assert max(map(len, splits.values())) - min(map(len, splits.values())) <= 1


def test_the_division_depends_on_ids_and_seed_alone() -> None:
    ratio = {"train": 0.5, "test": 0.5}
    shuffled = IDS.copy()
    random.Random(0).shuffle(shuffled)
    first, again = divide(IDS, ratio, seed=3), divide(shuffled, ratio, seed=3)
    assert set(first["train"]) == set(again["train"])
    assert again["train"] != first["train"]
    both = set(first["train"]) & set(divide(IDS, ratio, seed=4)["train"])
    assert 180 < len(both) < 320, "another seed draws another half: a quarter is in both"


def test_a_part_of_the_images_can_stay_unused() -> None:
    splits = divide(IDS, {"train": 0.2, "test": 0.1}, seed=0)
    assert (len(splits["train"]), len(splits["test"])) == (200, 100)
    assert not set(splits["train"]) & set(splits["test"])


def test_choices_say_what_is_wrong() -> None:
    with pytest.raises(InputError, match=r"no split 'trian' \(did you mean 'train'\?\); it has train, test"):
        by_ratio("trian", {"train": 0.9, "test": 0.1}, 0)
    with pytest.raises(InputError, match=r"0\.1 of 3 images leaves none for 'test'"):
        by_ratio("test", {"train": 0.9, "test": 0.1}, 0)(IDS[:3])


def test_left_out_after_dividing_so_that_the_others_stay_where_they_are(tmp_path: Path) -> None:
    ratio = {"train": 0.5, "test": 0.5}
    whole = divide(IDS, ratio, seed=0)
    listed = tmp_path / "out.txt"
    listed.write_bytes(b"\xef\xbb\xbf# two boxes\r\n" + whole["train"][3].encode() + b"  \r\n\r\nno such\r\n")
    left_out = read_left_out(listed)
    assert left_out == {whole["train"][3], "no such"}
    chosen = in_turn([by_ratio("train", ratio, 0), without(left_out)])(IDS)
    assert list(chosen) == [one for one in whole["train"] if one != whole["train"][3]]


def test_a_list_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"out\.txt: cannot read the list"):
        read_left_out(tmp_path / "out.txt")
    (tmp_path / "out.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"out\.txt: cannot read the list"):
        read_left_out(tmp_path / "out.txt")
