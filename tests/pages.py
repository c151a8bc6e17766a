"""The documentation's pages: their blocks, the commands in these, and a folder in which these can run."""

from __future__ import annotations

import json
import pickle
import re
import runpy
import shlex
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torchvision.models import squeezenet1_0

from detector import visualize
from detector.config import files
from detector.data.convert import voc_to_coco
from detector.data.generated.dataset import generate_voc
from tests.conftest import PROJECT

PAGES = [
    *(PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "data/README.md")),
    *sorted((PROJECT / "docs").rglob("*.md")),
]
_BLOCK = re.compile(
    r"(?:^ *<!-- needs: (?P<needs>[^>]+) -->\n)?^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^ *```$",
    re.MULTILINE | re.DOTALL,
)
SIZES = {
    "train_images": 8,
    "test_images": 4,
    "steps": 2,
    "epochs": 1,
    "images_per_batch": 2,
    "scales": [64],
    "max_size": 96,
    "hidden": [8],
    "top_k_train": 60,
    "top_k_test": 60,
    "rois_per_image": 8,
    "draw_images": 0,
    "validation_fraction": 0.3,
}
"""What the configs are made small by, so that a command of a page takes a second; nothing else is changed."""


WEIGHTS = "data/weights/squeezenet1_0.pth"
"""Random weights, in the place of the published ones."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; ``needs`` is what a comment above says that it needs, or None."""

    page: Path
    line: int
    language: str
    text: str
    needs: str | None

    @property
    def place(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


def name_of(page: Path) -> str:
    return page.relative_to(PROJECT).as_posix()


def blocks(page: Path) -> Iterator[Block]:
    """Yield the fenced blocks of a page, without the indentation of a list that they are in."""
    content = page.read_text(encoding="utf-8")
    for match in _BLOCK.finditer(content):
        indent = len(match["indent"])
        text = "".join(line[indent:] or "\n" for line in match["text"].splitlines(True))
        line = content.count("\n", 0, match.start("indent")) + 1
        yield Block(page, line, match["language"], text, match["needs"])


def commands(block: Block) -> list[list[str]]:
    """Return the words of each command of a block; lines that end with a backslash go on in the next."""
    lines = block.text.replace("\\\n", " ").splitlines()
    found = [shlex.split(line, comments=True) for line in lines]
    return [words for words in found if words]


def write_named(block: Block, folder: Path) -> None:
    """Write a block to the file that its first line names, if it names one."""
    name = re.match(r"# ([\w/]+\.\w+)\n", block.text)
    if name:
        (folder / name[1]).write_text(re.sub(r"steps: \d+", "steps: 2", block.text))


def made_small(value: Any) -> Any:
    """Return the values of a config with those of `SIZES` in the place of its own."""
    if isinstance(value, list):
        return [made_small(one) for one in value]
    if isinstance(value, dict):
        return {key: SIZES[key] if key in SIZES else made_small(one) for key, one in value.items()}
    if isinstance(value, str) and value.startswith("data/weights/squeezenet1_0"):
        return WEIGHTS
    if isinstance(value, str) and re.fullmatch(r"[\d.]+e-?\d+", value):
        return float(value)  # 1e-3, which YAML 1.1 reads as text and the configs' own reader as a number
    return value


def make_place(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill ``folder`` with what the pages take for granted, and make it the working directory."""
    shutil.copytree(PROJECT / "configs", folder / "configs")
    for path in (folder / "configs").rglob("*.yaml"):
        if path.parent.name != "suites":
            path.write_text(json.dumps(made_small(yaml.safe_load(path.read_text()))))  # JSON is YAML, too
    monkeypatch.setattr(files, "SHIPPED", folder / "configs")
    blank = np.zeros((8, 1280, 3), np.uint8)  # charts take as long as all else; tests/visualize draws them
    monkeypatch.setattr(visualize, "run_charts", lambda **_: blank)
    monkeypatch.chdir(folder)
    data = folder / "my_data"
    generate_voc(data, train_images=8, test_images=4, image_size=(72, 96), seed=1)
    for link, target in {"images": "JPEGImages", "annots": "Annotations"}.items():
        (data / link).symlink_to(target)
    for name in ("my_photos", "photos"):
        (folder / name).symlink_to(data / "JPEGImages")
    (folder / "my_voc").symlink_to(data)
    _write_regions(folder)
    (folder / WEIGHTS).parent.mkdir(parents=True)
    torch.save(squeezenet1_0().state_dict(), folder / WEIGHTS)


def _write_regions(folder: Path) -> None:
    """Write a photograph, proposals of my_data in two formats, and results with their annotations."""
    image = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / "photo.jpg"), image)
    boxes = {}
    for path in sorted((folder / "my_data" / "JPEGImages").iterdir()):
        width, height = Image.open(path).size
        parts = np.array([[0, 0, 2, 2], [1, 1, 3, 3], [2, 2, 4, 4], [0, 1, 4, 3]], np.float32) / 4
        boxes[path.stem] = parts * np.array([width, height, width, height], np.float32)
    np.savez(folder / "my_boxes.npz", **boxes)  # type: ignore[arg-type]  # NumPy's stubs take names for flags
    listed = {"boxes": list(boxes.values()), "indexes": list(boxes)}
    (folder / "boxes.pkl").write_bytes(pickle.dumps(listed))
    instances = voc_to_coco(folder / "my_data", "test", folder / "instances.json")
    (folder / "instances.json").write_text(json.dumps(instances))
    found = [
        {key: one[key] for key in ("image_id", "category_id", "bbox")} for one in instances["annotations"]
    ]
    (folder / "results.json").write_text(json.dumps([{**one, "score": 0.5} for one in found]))


def run_tool(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run ``python SCRIPT ARGUMENTS`` in this process, which saves loading torch again.

    Raises AssertionError if its exit status is not 0.
    """
    assert words[0] == "python", words
    path = PROJECT / words[1] if words[1].startswith("tools/") else Path(words[1])
    arguments = [re.sub(r"train\.steps=\d+", "train.steps=2", word) for word in words[2:]]
    arguments = [re.sub(r"step_600\.pt$", "step_2.pt", word) for word in arguments]
    if path.name == "train.py" and "--resume" not in arguments:
        shutil.rmtree(_output(arguments), ignore_errors=True)  # each page is for another reader
    for word in arguments:
        if word.startswith("data/quickstart/JPEGImages/") and not Path(word).exists():
            shutil.copy("photo.jpg", word)  # the whole data set has more images
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    status: str | int | None = 0
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as end:
        status = end.code
    assert not status, shlex.join(words)


def _output(arguments: list[str]) -> Path:
    """Return the folder of the run that these arguments of tools/train.py start."""
    if "--output" in arguments:
        return Path(arguments[arguments.index("--output") + 1])
    return Path("runs") / Path(arguments[arguments.index("--config") + 1]).stem
