"""A split's fingerprint: independent of the folder, different after every change that affects training."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest

from detector.core.errors import InputError
from detector.core.structures import Targets
from detector.data.fingerprint import fingerprint
from detector.data.generated.dataset import generate_voc
from detector.data.voc.source import VocSource


@pytest.fixture
def root(tmp_path: Path) -> Path:
    generate_voc(tmp_path / "a/voc", train_images=4, test_images=1, image_size=(64, 80), seed=2)
    return tmp_path / "a/voc"


def taken(root: Path) -> str:
    return fingerprint(VocSource(root).load("trainval").records)


def change_box(root: Path, image: str) -> None:
    path = next(one for one in sorted((root / "Annotations").iterdir()) if "<xmin>" in one.read_text())
    text = path.read_text()
    number = int(text.split("<xmax>")[1].split("<")[0])
    path.write_text(text.replace(f"<xmax>{number}<", f"<xmax>{number - 1}<", 1))


def change_flag(root: Path, image: str) -> None:
    path = next(one for one in sorted((root / "Annotations").iterdir()) if "<difficult>0" in one.read_text())
    path.write_text(path.read_text().replace("<difficult>0", "<difficult>1", 1))


def change_image(root: Path, image: str) -> None:
    with (root / f"JPEGImages/{image}.jpg").open("ab") as file:
        file.write(b"\0")


def drop_image(root: Path, image: str) -> None:
    split = root / "ImageSets/Main/trainval.txt"
    split.write_text(split.read_text().replace(f"{image}\n", ""))


def turn_round(root: Path, image: str) -> None:
    split = root / "ImageSets/Main/trainval.txt"
    split.write_text("\n".join(reversed(split.read_text().split())) + "\n")


@pytest.mark.parametrize("change", [change_box, change_flag, change_image, drop_image, turn_round])
def test_every_change_that_training_sees_is_another_fingerprint(root: Path, change: object) -> None:
    before = taken(root)
    change(root, "000001")  # type: ignore[operator]
    assert taken(root) != before


def test_neither_the_place_nor_the_time_of_the_files_counts(root: Path, tmp_path: Path) -> None:
    before = taken(root)
    shutil.copytree(root, tmp_path / "elsewhere", copy_function=shutil.copyfile)
    assert taken(tmp_path / "elsewhere") == before


def test_the_same_records_as_a_list_and_as_columns_have_the_same_fingerprint(root: Path) -> None:
    records = VocSource(root).load("trainval").records
    assert fingerprint(list(records)) == fingerprint(records) == fingerprint(records.take(range(4)))
    assert len({fingerprint(records[:number]) for number in range(5)}) == 5


def test_objects_belong_to_their_images(root: Path) -> None:
    records = VocSource(root).load("trainval").records
    first, *others = sorted(records, key=lambda one: len(one.targets), reverse=True)
    moved = [dataclasses.replace(first, targets=Targets.empty()), *others]
    second = dataclasses.replace(others[0], targets=first.targets)
    assert len({fingerprint(one) for one in ([first, *others], moved, [moved[0], second, *others[1:]])}) == 3


def test_a_missing_image_is_named(root: Path) -> None:
    records = VocSource(root).load("trainval").records
    records[1].path.unlink()
    with pytest.raises(InputError, match=r"000002\.jpg: cannot read the image"):
        fingerprint(records)
