"""The page about parts of your own: its examples are short, and each one trains."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from detector.api import Detector
from detector.config import Config
from detector.core.errors import InputError
from detector.data.voc.source import VocSource
from detector.tasks.start import start_run
from tests.conftest import PROJECT

Load = Callable[..., Config]
PAGE = (PROJECT / "docs" / "extend.md").read_text()
EXAMPLES: dict[str, str] = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE, re.DOTALL))
USES = {
    "my_backbone": "model.backbone.name=my_backbone:network",
    "my_pool": "model.pool={kind: 'my_pool:CenterPool', options: {size: 3}}",
    "my_head": "model.head={kind: 'my_head:NormHead', options: {width: 64}}",
    "my_boxes": "proposals={method: 'my_boxes:tiles', options: {side: 32}}",
    "my_data": "data={root: mine, format: 'my_data:load', generate: null}",
    "my_reader": "proposals={file: boxes.csv, format: 'my_reader:rows'}",
}


def label_lines(root: Path) -> Iterator[str]:
    """Yield the lines of labels.csv for a data set in VOC layout."""
    source = VocSource(root)
    classes = source.class_names("trainval", "test")
    for split in ("trainval", "test"):
        for record in source.load(split, classes).records:
            image = f"{split},JPEGImages/{record.path.name}"
            for box, label in zip(record.targets.boxes.tolist(), record.targets.labels.tolist(), strict=True):
                yield ",".join([image, classes[label - 1], *map(str, box)])


@pytest.fixture
def folder(tiny_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name, code in EXAMPLES.items():
        (tmp_path / f"{name}.py").write_text(code)
    images = sorted(path.name for path in (tiny_root / "JPEGImages").iterdir())
    lines = [f"{name},{x},10,{x + 50},60,0.{x}" for x in (0, 20, 40) for name in images]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "JPEGImages").symlink_to(tiny_root / "JPEGImages")
    (tmp_path / "mine" / "labels.csv").write_text("\n".join(label_lines(tiny_root)))
    (tmp_path / "boxes.csv").write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in EXAMPLES:
        sys.modules.pop(name, None)


def test_the_examples_are_short_and_all_used() -> None:
    assert EXAMPLES.keys() == USES.keys()
    for name, code in EXAMPLES.items():
        assert len(code.splitlines()) < 25
        assert USES[name] in PAGE


@pytest.mark.parametrize("name", USES)
def test_each_example_trains_and_is_loaded_only_if_it_is_allowed(tiny: Load, folder: Path, name: str) -> None:
    config = tiny(USES[name], "train.steps=2", "train.checkpoint_every=2")
    run = start_run(config, folder / "run", "cpu")
    run.run()
    (checkpoint,) = (folder / "run" / "checkpoints").glob("step_*.pt")
    sys.modules.pop(name, None)
    with pytest.raises(InputError, match="may not choose code that runs here"):
        Detector.load(checkpoint, "cpu")
    assert name not in sys.modules
    code = re.search(r"my_\w+:\w+", USES[name])
    assert code is not None
    image = next((Path(config.data.root) / "JPEGImages").iterdir())
    boxes = [[0, 0, 50, 50]] if name == "my_reader" else None  # its file has those of the data set only
    found = Detector.load(checkpoint, "cpu", allow_code=[code[0]])(image, boxes=boxes)
    assert torch.isfinite(found.scores).all()
