"""Both ways of reading a COCO file, msgspec in bulk and entry by entry, accept and give the same."""

from __future__ import annotations

import json
import random
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detector.core.errors import InputError
from detector.core.records import Texts
from detector.core.structures import Targets
from detector.data.coco import columns as columns_module
from detector.data.coco.columns import CocoColumns, columns_of, decode, read_columns
from detector.data.coco.file import annotated_objects, annotations_by_image, category_names, read_coco
from detector.data.targets import ObjectRules, TargetBuilder
from tests.fuzz_changes import change_json, damage


def assert_same(one: CocoColumns, other: CocoColumns) -> None:
    for field in fields(CocoColumns):
        if field.name == "missing":  # the entries do not say whether an empty section was there
            continue
        ours, theirs = getattr(one, field.name), getattr(other, field.name)
        if isinstance(ours, Texts):
            assert list(ours) == list(theirs), field.name
        else:
            assert ours.dtype == theirs.dtype, field.name
            assert ours.shape == theirs.shape, field.name
            assert ours.tobytes() == theirs.tobytes() or np.array_equal(ours, theirs, equal_nan=True)


def compare(path: Path, content: bytes) -> bool:
    """Read ``content`` both ways; return whether the fast way accepted it."""
    path.write_bytes(content)
    fast = decode(content)
    try:
        data = read_coco(path, unannotated=True)
    except InputError:
        assert fast is None
        with pytest.raises(InputError):
            read_columns(path, None, unannotated=True)
        return False
    assert_same(read_columns(path, None, unannotated=True), columns_of(data))
    if fast is None:
        return False
    assert_same(fast, columns_of(data))
    strict = [name for name in ("categories", "annotations") if name not in json.loads(content)]
    assert list(fast.missing) == strict
    if strict:
        with pytest.raises(InputError) as expected:
            read_coco(path)
        with pytest.raises(InputError) as found:
            read_columns(path, None)
        assert str(found.value) == str(expected.value)
    return True


NUMBERS = st.one_of(
    st.integers(-30, 120),
    st.floats(-30, 120, allow_nan=False),
    st.sampled_from([-0.0, 2.0**24, 2**24 + 1, 1e300, 10**30, 59.5, 90.0, 91, 1e-300]),
)
ODD: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, False, 0, 1, 2, 1.0, 0.5, "1", "", [], {}, -1, 2**63, 2**70, "\ud800", 60.0]
)
NAMES = st.sampled_from(
    (
        *("a.jpg", "b/c.jpg", "b//c.jpg", "./a.jpg", "a..b.jpg", "ü.png", "x y.jpg", "a%20b.jpg", "C:a.jpg"),
        *(
            "b\\c.jpg",
            "../a.jpg",
            "/a.jpg",
            "a\x00.jpg",
            "",
            ".",
            "..",
            "a" * 300,
            "é" * 130,
            "日本.jpg",
            "_",
        ),
    )
)
IDS = st.one_of(st.integers(-2, 6), st.sampled_from([2**63 - 1, -(2**63) + 1, -(2**63), 2**63, 10**30]))


def sometimes(name: str, values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.one_of(st.just({}), st.just({}), values.map(lambda value: {name: value}))


def joined(*parts: st.SearchStrategy[dict[str, Any]]) -> st.SearchStrategy[dict[str, Any]]:
    return st.tuples(*parts).map(lambda found: {key: value for one in found for key, value in one.items()})


@st.composite
def files(draw: st.DrawFn, *, valid: bool) -> dict[str, Any]:
    """Draw a file: with ``valid``, one without faults; otherwise most have some."""
    odd = st.nothing() if valid else ODD
    flag = st.one_of(st.sampled_from([0, 1, True, False, 1.0, 0.0]), odd)
    side = st.one_of(st.sampled_from([60, 90, 90.0, 0]), odd)
    ids = draw(st.lists(st.integers(-2, 9) if valid else IDS, unique=valid, min_size=1, max_size=5))
    kinds = draw(st.lists(st.integers(-2, 9) if valid else IDS, unique=valid, min_size=1, max_size=3))
    name = st.sampled_from(["a.jpg", "b/c.jpg", "x y.png", "ü.jpg"]) if valid else NAMES
    images = [
        {"id": key, "file_name": draw(name)}
        | draw(joined(*(sometimes(one, side) for one in ("height", "width"))))
        | draw(sometimes("voc_id", st.just(f"v{number}") if valid else st.one_of(NAMES, ODD)))
        for number, key in enumerate(ids)
    ]
    class_name = st.sampled_from(["cat", "ant", "dog", "Cat", "ünder"]) if valid else st.one_of(NAMES, ODD)
    names = draw(st.lists(class_name, min_size=len(kinds), max_size=len(kinds), unique=valid))
    number = st.one_of(st.integers(-30, 120), st.floats(-30, 120)) if valid else NUMBERS
    reference = {"image_id": st.sampled_from(ids), "category_id": st.sampled_from(kinds)}
    thing = joined(
        st.fixed_dictionaries({**reference, "bbox": st.lists(number, min_size=4, max_size=4)}),
        *(sometimes(one, flag) for one in ("iscrowd", "difficult", "ignore")),
        sometimes("area", st.one_of(st.integers(0, 900), st.floats(0, 900), odd)),
        sometimes("segmentation", st.sampled_from([[[1.5, 2]], {"counts": "a\u00e9", "size": [1, 2]}])),
        *(sometimes(one, odd) for one in ("image_id", "bbox") if not valid),
    )
    return {
        "info": {"year": 2014},
        "images": images,
        "categories": [{"id": key, "name": name} for key, name in zip(kinds, names, strict=True)],
        "annotations": draw(st.lists(thing, max_size=6)),
    }


same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@same_folder
@given(data=files(valid=True), ascii_only=st.booleans(), missing=st.sampled_from(["", "annotations"]))
def test_valid_files_are_read_in_bulk(
    tmp_path: Path, data: dict[str, Any], ascii_only: bool, missing: str
) -> None:
    data.pop(missing, None)
    assert compare(tmp_path / "a.json", json.dumps(data, ensure_ascii=ascii_only).encode())


@settings(same_folder, max_examples=150)
@given(data=files(valid=False))
def test_odd_files_are_accepted_or_refused_by_both(tmp_path: Path, data: dict[str, Any]) -> None:
    compare(tmp_path / "a.json", json.dumps(data).encode())


@pytest.mark.parametrize("change", [change_json, damage])
def test_changed_files_are_accepted_or_refused_by_both(tmp_path: Path, change: Any) -> None:
    rng = random.Random(3)
    things = [
        {"image_id": one, "category_id": 7, "bbox": [1, 2, 30.5, 4], "area": 9, "segmentation": [[1, 2.5]]}
        for one in (1, 2, 1)
    ]
    data = {
        "images": [{"id": one, "file_name": f"{one}.jpg", "height": 9, "width": 8} for one in (1, 2)],
        "categories": [{"id": 7, "name": "cät"}],
        "annotations": things,
    }
    content = json.dumps(data, ensure_ascii=False).encode()
    accepted = [compare(tmp_path / "a.json", change(content, rng)) for _ in range(500)]
    assert 50 < sum(accepted) < 450  # otherwise the changes show nothing


SKIPPED = ['"\\q"', '"a\nb"', '"\\ud800"', "01", "1.", "NaN", "1" * 4301, "1" * 4300 + ".5", "1e999", "[1,]"]


@pytest.mark.parametrize(
    "value", [*SKIPPED, '{"a":1,}', '"\x7f"', "[" * 900 + "]" * 900, "nul"], ids=range(14)
)
def test_a_value_that_is_not_used_must_be_json_too(tmp_path: Path, value: str) -> None:
    text = json.dumps({"images": [{"id": 1, "file_name": "a.jpg"}], "categories": [], "annotations": []})
    for place in ('"id": 1', '"images"'):
        compare(tmp_path / "a.json", text.replace(place, f'"unused": {value}, {place}').encode())


@pytest.mark.parametrize("junk", [b"\xff", b"\xed\xa0\x80", b"\xc3"])
def test_bytes_that_are_not_utf_8(tmp_path: Path, junk: bytes) -> None:
    text = b'{"images": [{"id": 1, "file_name": "a.jpg"}], "categories": [], "annotations": [], "x": "%s"}'
    compare(tmp_path / "a.json", text % junk)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_other_encodings_are_read_entry_by_entry(tmp_path: Path, encoding: str) -> None:
    data = {"images": [{"id": 1, "file_name": "ü.jpg"}], "categories": [], "annotations": []}
    content = json.dumps(data, ensure_ascii=False).encode(encoding)
    assert decode(content) is None
    assert not compare(tmp_path / "a.json", content)
    assert list(read_columns(tmp_path / "a.json", None).files) == ["ü.jpg"]


def test_long_files_are_decoded_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columns_module, "_AT_ONCE", 3)
    things = [
        {"image_id": n % 3, "category_id": 1, "bbox": [n, 0, 5, 5], "iscrowd": n % 2} for n in range(10)
    ]
    images = [{"id": n, "file_name": f"{n}.jpg"} for n in range(3)]
    data = {"images": images, "categories": [{"id": 1, "name": "cat"}], "annotations": things}
    assert compare(tmp_path / "a.json", json.dumps(data).encode())


RULES = st.builds(
    ObjectRules,
    invalid_boxes=st.sampled_from(["drop", "clip", "error", None]),
    min_box_size=st.sampled_from([0.0, 2.0, 7.5]),
    other_classes=st.sampled_from(["error", "ignore"]),
)


@settings(same_folder, max_examples=120)
@given(
    data=files(valid=True),
    rules=RULES,
    classes=st.permutations(["cat", "ant", "dog", "Cat", "ünder"]),
    known=st.integers(1, 5),
    size=st.sampled_from([(60, 90), (100, 100), (0, 0)]),
)
def test_rules_applied_to_columns_are_those_applied_to_each_object(
    tmp_path: Path,
    data: dict[str, Any],
    rules: ObjectRules,
    classes: list[str],
    known: int,
    size: tuple[int, int],
) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(data))
    entries, columns = read_coco(path), read_columns(path, None)
    names, annotations = category_names(entries), annotations_by_image(entries)
    one_by_one, in_bulk = (TargetBuilder(classes[:known], rules) for _ in range(2))
    sizes = np.array([size] * len(columns), np.int32)
    try:
        expected = [
            one_by_one(annotated_objects(annotations[image["id"]], names, path), size)
            for image in entries["images"]
        ]
    except InputError as error:
        with pytest.raises(InputError, match=f"^{re.escape(str(error))}$"):
            in_bulk.columns(columns.objects(path), sizes)
        return
    objects = in_bulk.columns(columns.objects(path), sizes)
    for number, targets in enumerate(expected):
        same_targets(objects.targets(number), targets)
    assert (in_bulk.counts, in_bulk.others) == (one_by_one.counts, one_by_one.others)
    rows = np.arange(len(columns))[::-1]
    turned = TargetBuilder(classes[:known], rules).columns(columns.objects(path).take(rows), sizes)
    for number, row in enumerate(rows.tolist()):
        same_targets(turned.targets(number), expected[row])


def same_targets(one: Targets, other: Targets) -> None:
    for name in ("boxes", "labels", "difficult", "crowd", "area"):
        ours, theirs = getattr(one, name), getattr(other, name)
        assert ours.dtype == theirs.dtype
        assert ours.numpy().tobytes() == theirs.numpy().tobytes(), name
