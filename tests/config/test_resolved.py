"""``--print-config``: every value with its origin, in a form that loads again."""

from __future__ import annotations

from pathlib import Path

import pytest

from detector.config import load_config
from detector.config.files import SHIPPED
from detector.config.resolved import resolved_yaml

OVERRIDES = (
    "train.steps=7",
    "data.classes=[a, 'b: #c']",
    "train.learning_rate=1e-5",
    'data.root="d\\u00e9:\\n"',
)


@pytest.mark.parametrize("path", sorted(SHIPPED.glob("*.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("overrides", [(), OVERRIDES], ids=["as shipped", "overridden"])
def test_what_is_printed_loads_again(path: Path, overrides: tuple[str, ...], tmp_path: Path) -> None:
    printed = tmp_path / "printed.yaml"
    printed.write_text(resolved_yaml(path, overrides))
    assert load_config(printed) == load_config(path, overrides)


def test_each_value_has_its_origin(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("_base_: quickstart\ntrain: {flip: 0.1, momentum: 0.8}\n")
    top = tmp_path / "top.yaml"
    top.write_text("_base_: base.yaml\ntrain: {flip: 0.2, epochs: 2}\nmodel: {pool: {kind: spp}}\n")
    lines = resolved_yaml(top, ["train.log_every=3", "model.pool.levels=[2, 1]"]).splitlines()
    quickstart = SHIPPED / "quickstart.yaml"
    for line in (
        f"  flip: 0.2  # {top}",
        f"  epochs: 2.0  # {top}",
        "  steps: null  # default",
        f"  momentum: 0.8  # {tmp_path / 'base.yaml'}",
        f"  learning_rate: 0.02  # {quickstart}",
        f"    train_images: 240  # {quickstart}",
        "  log_every: 3  # command line",
        "    levels: [2, 1]  # command line",
        f"    kind: spp  # {top}",
        "    center: null  # default",  # that of quickstart.yaml belongs to another kind of pool
    ):
        assert line in lines
