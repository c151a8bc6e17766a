"""The reference of all keys is complete and current; the schema for editors accepts the shipped configs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from detector.config import load_config, reference
from detector.config.files import SHIPPED, read_yaml
from detector.config.schema import Config, Section, sections_of
from tests.conftest import PROJECT

SHIPPED_FILES = [path for path in sorted(SHIPPED.rglob("*.yaml")) if path.parent.name != "suites"]
jsonschema = pytest.importorskip("jsonschema", reason="jsonschema is not installed (pip install -e .[dev])")
VALIDATOR = jsonschema.Draft7Validator(json.loads(reference.SCHEMA.read_text()))


def keys(section: type[Section] = Config) -> Iterator[tuple[type[Section], str]]:
    for name, field in section.model_fields.items():
        yield section, name
        for below in sections_of(field.annotation).values():
            yield from keys(below)


def test_every_key_has_a_description() -> None:
    bare = [(section.__name__, name) for section, name in keys() if not reference.description(section, name)]
    assert len(list(keys())) > 100
    assert not bare


def test_the_reference_is_current() -> None:
    how = "run python -m detector.config.reference"
    assert reference.DOCUMENT.read_text() == reference.document(), how
    assert json.loads(reference.SCHEMA.read_text()) == reference.editor_schema(), how


def test_the_reference_names_every_key() -> None:
    text = reference.DOCUMENT.read_text()
    assert all(
        f"**`{name}`**" in text for section, name in keys() if not sections_of(annotation(section, name))
    )


def annotation(section: type[Section], name: str) -> Any:
    return section.model_fields[name].annotation


def test_the_schema_is_one() -> None:
    jsonschema.Draft7Validator.check_schema(VALIDATOR.schema)


@pytest.mark.parametrize("path", SHIPPED_FILES, ids=lambda path: str(path.relative_to(SHIPPED)))
def test_editors_accept_the_shipped_configs_and_find_the_schema(path: Path) -> None:
    VALIDATOR.validate(read_yaml(path))
    first = path.read_text().splitlines()[0]
    _, _, schema = first.partition("# yaml-language-server: $schema=")
    assert (path.parent / schema).resolve() == PROJECT / "configs" / "schema.json"


@pytest.mark.parametrize("name", ["quickstart", "spp_net_staged_voc07", "rcnn_voc07", "spp_classifier_bccd"])
def test_editors_accept_a_resolved_config(name: str) -> None:
    VALIDATOR.validate(load_config(name).model_dump(mode="json"))


@pytest.mark.parametrize(
    ("values", "valid"),
    [
        ({"_base_": "quickstart"}, True),
        ({"_base_": ["a.yaml", "b.yaml"]}, True),
        ({"_base_": 3}, False),
        ({"train": {"clip_gradient_norm": None, "epochs": 2}}, True),
        ({"train": {"scales": 600}}, False),
        ({"train": {"sampling": {"background_iou": [0.1]}}}, False),
        ({"model": {"pool": {"levels": [3, 1]}}}, True),  # the kind may come from the base
        ({"model": {"pool": {"kind": "roi", "levels": [3, 1]}}}, False),
        ({"proposals": {"method": "dense", "scales": [0.5]}}, True),
        ({"proposals": {"method": "dense", "width": 300}}, False),
        ({"proposals": {"top_k_test": 10}}, True),
        ({"stages": [{"name": "a", "kind": "svm", "settings": {"test": {"flip": True}}}]}, True),
        ({"stages": [{"name": "a", "kind": "svm", "settings": {"stages": []}}]}, False),
        ({"stages": [{"name": "a", "kind": "train", "svm": {}}]}, False),
    ],
)
def test_editors_know_wrong_from_right(values: dict[str, Any], valid: bool) -> None:
    assert VALIDATOR.is_valid(values) == valid
