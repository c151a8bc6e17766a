"""Splits by ratio, and lists of images to leave out."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from detector.core.errors import InputError
from detector.core.structures import ImageName
from detector.data.selection import by_ratio, divide, in_turn, list_line, read_left_out, without

IDS = [f"image_{number:04d}" for number in range(1000)]
NAMES = [ImageName(image_id, f"images/{image_id}.jpg") for image_id in IDS]


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


def test_the_division_depends_only_on_ids_and_seed() -> None:
    ratio = {"train": 0.5, "test": 0.5}
    shuffled = IDS.copy()
    random.Random(0).shuffle(shuffled)
    first, again = divide(IDS, ratio, seed=3), divide(shuffled, ratio, seed=3)
    assert set(first["train"]) == set(again["train"])
    assert again["train"] != first["train"]
    both = set(first["train"]) & set(divide(IDS, ratio, seed=4)["train"])
    assert 180 < len(both) < 320, "another seed draws another half: a quarter is in both"


def test_a_file_name_that_is_not_utf_8_is_divided_too() -> None:
    odd = [*IDS[:9], os.fsdecode(b"caf\xe9")]
    splits = divide(odd, {"train": 0.5, "test": 0.5}, seed=0)
    assert sorted(splits["train"] + splits["test"]) == sorted(odd)


def test_a_part_of_the_images_can_stay_unused() -> None:
    splits = divide(IDS, {"train": 0.2, "test": 0.1}, seed=0)
    assert (len(splits["train"]), len(splits["test"])) == (200, 100)
    assert not set(splits["train"]) & set(splits["test"])


def test_choices_say_what_is_wrong() -> None:
    with pytest.raises(InputError, match=r"no split 'trian' \(did you mean 'train'\?\); it has train, test"):
        by_ratio("trian", {"train": 0.9, "test": 0.1}, 0)
    with pytest.raises(InputError, match=r"0\.1 of 3 images leaves none for 'test'"):
        by_ratio("test", {"train": 0.9, "test": 0.1}, 0)(NAMES[:3])


def test_left_out_after_dividing_so_that_the_others_stay_where_they_are(tmp_path: Path) -> None:
    ratio = {"train": 0.5, "test": 0.5}
    whole = divide(IDS, ratio, seed=0)
    listed = tmp_path / "out.txt"
    listed.write_bytes(b"\xef\xbb\xbf# two boxes\r\n" + whole["train"][3].encode() + b"  \r\n\r\nno such\r\n")
    left_out = read_left_out(listed)
    assert left_out == {whole["train"][3], "no such"}
    chosen = in_turn([by_ratio("train", ratio, 0), without(left_out, listed)])(NAMES)
    assert [name.image_id for name in chosen] == [one for one in whole["train"] if one != whole["train"][3]]


def test_a_list_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"out\.txt: cannot read the list"):
        read_left_out(tmp_path / "out.txt")
    (tmp_path / "out.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"out\.txt: cannot read the list"):
        read_left_out(tmp_path / "out.txt")


class TestLeavingOut:
    TRAIN = (ImageName("1", "train/a.jpg"), ImageName("2", "train/b.jpg"))
    VALID = (ImageName("1", "valid/c.jpg"), ImageName("3", "valid/d.jpg"))

    def kept(self, listed: set[str]) -> list[str]:
        choice = without(listed, "out.txt", lambda: [*self.TRAIN, *self.VALID])
        return [name.key for names in (self.TRAIN, self.VALID) for name in choice(names)]

    @pytest.mark.parametrize("name", ["a\u2028b.jpg", "\u00a0a.jpg", "9.41.12\u202fAM", "a.jpg\u202f"])
    def test_spaces_of_unicode_belong_to_a_listed_name(self, tmp_path: Path, name: str) -> None:
        (tmp_path / "out.txt").write_text(f"  {name} \r\nother.jpg\n", encoding="utf-8")
        assert read_left_out(tmp_path / "out.txt") == {name, "other.jpg"}

    def test_a_path_is_one_image_although_its_id_comes_twice(self) -> None:
        assert self.kept({"train/a.jpg"}) == ["train/b.jpg", "valid/c.jpg", "valid/d.jpg"]

    def test_an_id_of_an_older_list_is_the_one_image_that_has_it(self) -> None:
        assert self.kept({"3"}) == ["train/a.jpg", "train/b.jpg", "valid/c.jpg"]

    def test_an_id_of_two_images_is_an_error_that_names_both(self) -> None:
        with pytest.raises(
            InputError, match=r"out\.txt: '1' is the id of 'train/a\.jpg' and of 'valid/c\.jpg'"
        ):
            self.kept({"1"})

    def test_other_splits_are_not_read_for_paths(self) -> None:
        choice = without({"train/a.jpg", "valid/c.jpg"}, "out.txt", lambda: pytest.fail("read"))
        assert choice(self.TRAIN) == [self.TRAIN[1]]

    def test_names_that_look_like_comments_or_begin_with_a_blank(self, tmp_path: Path) -> None:
        keys = ["#1.jpg", " #.jpg", " a.jpg", "\tb.jpg", "a\u2028b.jpg", "c d.jpg"]
        (tmp_path / "out.txt").write_text("".join(f"{list_line(key)}\n" for key in keys))
        assert read_left_out(tmp_path / "out.txt") == set(keys)
