"""Which image of a data set a name in a proposal file or store means."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from detector.core.errors import InputError
from detector.core.files import file_hash
from detector.core.structures import ImageName, ImageRecord, Proposals, Targets
from detector.proposals.image_names import ImageMatcher, match_store
from detector.proposals.store import Entry, ProposalStore


def named(*keys: str) -> list[ImageName]:
    """Images of a VOC layout, whose ids are their paths in JPEGImages without the suffix."""
    return [
        ImageName(str(Path(key).relative_to("JPEGImages").with_suffix("")), key)
        for key in (f"JPEGImages/{key}" for key in keys)
    ]


def numbered(folder: str, *files: str) -> list[ImageName]:
    """Images of a COCO file that counts from 1."""
    return [ImageName(str(number), f"{folder}/{file}") for number, file in enumerate(files, 1)]


def match(
    names: list[str], images: list[ImageName], everything: list[ImageName] | None = None
) -> dict[str, str]:
    return ImageMatcher(images, lambda: everything or images).match(names, "boxes.npz")


VOC = named("000004.jpg", "2008_000001.jpg", "42.png", "cam1/1.jpg", "cam2/1.jpg", "007.jpg", "07.jpg")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("JPEGImages/000004.jpg", "000004.jpg"),
        ("000004", "000004.jpg"),
        ("000004.jpg", "000004.jpg"),
        ("000004.png", "000004.jpg"),
        ("./JPEGImages//000004.jpg", "000004.jpg"),
        ("/home/me/VOC/JPEGImages/000004.jpg", "000004.jpg"),
        ("C:\\VOC\\JPEGImages\\000004.JPEG", "000004.jpg"),
        ("VOC/JPEGImages/000004", "000004.jpg"),
        ("cam1/1", "cam1/1.jpg"),
        ("cam2/1.jpg", "cam2/1.jpg"),
        ("4", "000004.jpg"),
        ("2008000001", "2008_000001.jpg"),
        ("COCO_val2014_000000000042", "42.png"),
        ("7.5", None),
        ("cam3/1.jpg", None),
        ("other/000004.jpg", None),
        ("cam12/1", None),
        ("", None),
        ("2008_00001", None),
    ],
)
def test_one_image_has_many_names(name: str, key: str | None) -> None:
    assert match([name], VOC) == ({} if key is None else {name: f"JPEGImages/{key}"})


@pytest.mark.parametrize("name", ["1", "1.jpg", "7"])
def test_a_name_of_two_images_is_an_error_that_names_both(name: str) -> None:
    with pytest.raises(InputError, match=rf"boxes\.npz: '{name}' could be 'JPEG.*' or 'JPEG.*'"):
        match([name], VOC)


def test_a_name_of_two_images_that_have_names_of_their_own_is_of_neither() -> None:
    assert set(match(["cam1/1", "cam2/1", "1"], VOC)) == {"cam1/1", "cam2/1"}


def test_two_names_of_one_image() -> None:
    with pytest.raises(InputError, match=r"has image 'JPEGImages/000004\.jpg' twice, as '000004' and as"):
        match(["000004", "000004.jpg"], VOC)


def test_exact_ids_are_no_numbers() -> None:
    """1_12 and 11_2 were both taken for 112."""
    frames = named("1_11.jpg", "1_12.jpg", "11_1.jpg", "11_2.jpg")
    names = [image.image_id for image in frames]
    assert match(names, frames) == {image.image_id: image.key for image in frames}
    assert match(names[:2], frames[2:], frames) == {}
    assert match(names[:2], frames[2:]) == {}


def test_file_names_come_before_numbers() -> None:
    """COCO ids 1 to 3 of images 000002 to 000004: the name 000002 is no id."""
    images = numbered("train", "000002.jpg", "000003.jpg", "000004.jpg")
    by_stem = {f"00000{n}": f"train/00000{n}.jpg" for n in (2, 3, 4)}
    assert match(["000001", *by_stem], images) == by_stem
    assert match([f"{name}.jpg" for name in by_stem], images).keys() == {f"{name}.jpg" for name in by_stem}
    by_id = {"1": "train/000002.jpg", "2": "train/000003.jpg", "3": "train/000004.jpg"}
    assert match(list(by_id), images) == by_id
    with pytest.raises(InputError, match=r"'02' could be 'train/000002\.jpg' or 'train/000003\.jpg'"):
        match(["02"], images)


def test_numbers_are_compared_only_where_nothing_else_fits() -> None:
    images = named("000004.jpg", "000005.jpg")
    assert match(["4", "5"], images).keys() == {"4", "5"}
    assert match(["000004", "5"], images).keys() == {"000004"}


def test_boxes_of_another_split_are_never_taken() -> None:
    train, valid = numbered("train", "a.jpg", "b.jpg"), numbered("valid", "a.jpg", "c.jpg")
    both = [*train, *valid]
    assert match(["valid/a.jpg", "valid/c.jpg"], train) == {}
    assert match(["c", "b"], train, both) == {"b": "train/b.jpg"}
    with pytest.raises(InputError, match=r"'a' could be 'train/a\.jpg' or 'valid/a\.jpg'; use these paths"):
        match(["a"], train, both)
    with pytest.raises(InputError, match=r"'2' could be 'train/b\.jpg' or 'valid/c\.jpg'"):
        match(["2"], valid, both)
    assert match(["1", "2"], valid).keys() == {"1", "2"}, "a file of one split alone"


def test_a_file_name_decides_where_an_id_is_of_two_splits() -> None:
    train, valid = numbered("train", "5.jpg", "6.jpg"), numbered("valid", "1.jpg", "7.jpg")
    assert match(["1"], valid, [*train, *valid]) == {"1": "valid/1.jpg"}


def test_ids_and_file_names_that_contradict_each_other_are_an_error() -> None:
    train, valid = numbered("train", "3.jpg", "1.jpg", "2.jpg"), numbered("valid", "a.jpg", "b.jpg", "c.jpg")
    for images, everything in ((train, [*train, *valid]), (valid, [*train, *valid]), (train, train)):
        with pytest.raises(InputError, match=r"'1' could be 'train/1\.jpg' or .*; use these paths as names"):
            match(["1", "2", "3"], images, everything)
    with pytest.raises(InputError, match=r"or 'train/3\.jpg'; use these paths as names in the file$"):
        match(["1", "2", "3"], train)
    named = [image.key for image in train]
    assert match(named, train, [*train, *valid]) == dict(zip(named, named, strict=True))


def test_the_reading_that_finds_more_images_is_that_of_the_whole_file() -> None:
    train = [ImageName("8", "train/a.jpg"), ImageName("3", "train/b.jpg"), ImageName("1", "train/c.jpg")]
    valid = [ImageName("101", "valid/8.jpg"), ImageName("102", "valid/3.jpg")]
    both = [*train, *valid]
    for images in (train, valid):
        with pytest.raises(InputError, match=r"'8' could be 'train/a\.jpg' or 'valid/8\.jpg'; .* own"):
            match(["8", "3"], images, both)
    stems = ["8", "3", "a", "b", "1"]
    assert match(stems, train, both) == {"a": "train/a.jpg", "b": "train/b.jpg"}
    assert match(stems, valid, both) == {"8": "valid/8.jpg", "3": "valid/3.jpg"}
    ids = ["8", "3", "1", "101", "102"]
    assert match(ids, train, both) == {"8": "train/a.jpg", "3": "train/b.jpg", "1": "train/c.jpg"}
    assert match(ids, valid, both) == {"101": "valid/8.jpg", "102": "valid/3.jpg"}


def test_other_splits_are_not_read_for_exact_keys() -> None:
    matcher = ImageMatcher(VOC, lambda: pytest.fail("read"))
    assert len(matcher.match([image.key for image in VOC], "boxes.npz")) == len(VOC)


def record(root: Path, image_id: str, key: str) -> ImageRecord:
    path = root / key
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(key)
    return ImageRecord(image_id=image_id, key=key, path=path, height=9, width=9, targets=Targets.empty())


def store_of(path: Path, entries: dict[str, int], hashes: dict[str, str] | None = None) -> ProposalStore:
    """A store in which an image has as many boxes as ``entries`` says."""
    store = ProposalStore.create(path / "store", generator="test", parameters={})
    boxes = {name: Proposals(boxes=torch.ones(count, 4).cumsum(1)) for name, count in entries.items()}
    store.append({name: Entry(found, (hashes or {}).get(name)) for name, found in boxes.items()})
    return store


@pytest.fixture
def train(tmp_path: Path) -> list[ImageRecord]:
    return [record(tmp_path, str(number), f"train/{name}.jpg") for number, name in enumerate("abc", 1)]


@pytest.fixture
def valid(tmp_path: Path) -> list[ImageRecord]:
    return [record(tmp_path, str(number), f"valid/{name}.jpg") for number, name in enumerate("xy", 1)]


def counts(store: ProposalStore, records: list[ImageRecord]) -> list[int | None]:
    return [store.count(one.key) if one.key in store else None for one in records]


def test_a_store_of_keys_is_taken_as_it_is(tmp_path: Path, train: list[ImageRecord]) -> None:
    store = store_of(tmp_path, {one.key: place for place, one in enumerate(train, 1)})
    assert match_store(store, train, lambda: pytest.fail("read")) is store


@pytest.mark.parametrize("name", ["{0.image_id}", "{0.path.name}", "{0.path.stem}"])
def test_other_names_of_one_split(tmp_path: Path, train: list[ImageRecord], name: str) -> None:
    store = store_of(tmp_path, {name.format(one): place for place, one in enumerate(train, 1)})
    matched = match_store(store, train)
    assert counts(matched, train) == [1, 2, 3]
    assert [len(matched[one.key]) for one in train] == [1, 2, 3]
    assert matched.content_hash(train[0].key) is None
    assert matched.image_size(train[0].key) is None
    assert matched.fingerprint(train[1].key)[0] == 2


def test_the_content_decides_where_an_older_store_has_ids_of_two_splits(
    tmp_path: Path, train: list[ImageRecord], valid: list[ImageRecord]
) -> None:
    """The images of the second split have taken the place of those of the first with the same ids."""
    holders = {"1": valid[0], "2": valid[1], "3": train[2]}
    hashes = {name: file_hash(one.path) for name, one in holders.items()}
    store = store_of(tmp_path, {"1": 1, "2": 2, "3": 3}, hashes)
    everything = [*train, *valid]
    assert counts(match_store(store, train, lambda: everything), train) == [None, None, 3]
    assert counts(match_store(store, valid, lambda: everything), valid) == [1, 2]


def test_without_content_an_id_of_two_splits_is_an_error(
    tmp_path: Path, train: list[ImageRecord], valid: list[ImageRecord]
) -> None:
    store = store_of(tmp_path, {"1": 1, "2": 2, "3": 3})
    with pytest.raises(InputError, match=r"store: '1' could be 'train/a\.jpg' or 'valid/x\.jpg'"):
        match_store(store, train, lambda: [*train, *valid])


def test_an_image_that_has_changed_or_is_gone_is_not_matched(
    tmp_path: Path, train: list[ImageRecord]
) -> None:
    store = store_of(
        tmp_path, {"1": 1, "2": 2, "3": 3}, {str(n): file_hash(train[n - 1].path) for n in (1, 2, 3)}
    )
    train[0].path.write_text("another picture")
    train[1].path.unlink()
    assert counts(match_store(store, train), train) == [None, None, 3]
