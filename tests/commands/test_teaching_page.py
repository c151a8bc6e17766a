"""The page that sets three pipelines side by side: its links and keys lead somewhere.

tests/test_pages.py runs its commands.
"""

from __future__ import annotations

import re

import pytest
import yaml

from detector.config import load_config
from tests.conftest import PROJECT

PAGE = PROJECT / "docs" / "three_pipelines.md"
TEXT = PAGE.read_text()


def test_every_file_named_is_there() -> None:
    links = re.findall(r"\]\(([^)]+)\)", TEXT)
    assert links
    for link in links:
        assert (PAGE.parent / link).exists(), link
    for path in re.findall(r"`((?:detector|configs|tools|tests|benchmarks)/[\w/.]+)`", TEXT):
        assert (PROJECT / path).exists(), path


@pytest.mark.parametrize("override", re.findall(r"`((?:model|proposals|test)\.[\w.]+=[^`]+)`", TEXT))
def test_every_change_suggested_is_a_valid_one(override: str) -> None:
    key = override.split("=")[0]
    name = "spp_net_end_to_end_quickstart" if "levels" in key or "freeze" in key else "rcnn_quickstart"
    config = load_config(PROJECT / "configs" / f"{name}.yaml", [override])
    value: object = config.model_dump(mode="json")
    for part in key.split("."):
        assert isinstance(value, dict)
        value = value[part]
    assert value == yaml.safe_load(override.split("=")[1])
