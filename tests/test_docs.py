"""The page "Bring your own" is run as it stands: its files are written and its commands given, in order."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import resnet18, squeezenet1_0

from detector.config import load_config
from detector.core.command_line import COMMANDS
from detector.data.convert import voc_to_coco
from detector.data.generated.dataset import generate_voc
from detector.factory.data import class_names, load_split
from detector.factory.proposals import open_proposals
from tests.conftest import PROJECT

PAGE = PROJECT / "docs" / "bring_your_own.md"
BLOCK = re.compile(r"^( *)```(\w+)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
SMALL = [
    "train.steps=2",
    "train.scales=[64]",
    "train.max_size=96",
    "train.draw_images=1",
    "train.images_per_batch=2",
    "test.scales=[64]",
    "test.max_size=96",
    "model.head.hidden=[8]",
    "proposals.top_k_train=60",
    "proposals.top_k_test=60",
]
"""Two steps on small images stand for a training; nothing else of the page is changed."""


def blocks(page: Path) -> list[tuple[str, str]]:
    """Return the language and the text of every fenced block, without the indentation of its list."""
    found = []
    for indent, language, text in BLOCK.findall(page.read_text()):
        found.append((language, "".join(line[len(indent) :] or "\n" for line in text.splitlines(True))))
    return found


def write_named(text: str, folder: Path) -> None:
    """Write a block to the file that its first line names."""
    name = re.match(r"# (\S+)\n", text)
    assert name, f"the block names no file: {text[:60]}"
    (folder / name[1]).write_text(text)


def give(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command of the page in this process, which saves loading torch again."""
    python, script, *arguments = shlex.split(command)
    assert python == ".venv/bin/python"
    path = PROJECT / script if script.startswith("tools/") else Path(script)
    small = SMALL if script == "tools/train.py" else []
    monkeypatch.setattr(sys, "argv", [str(path), *arguments, *small])
    status: str | int | None = 0
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as end:
        status = end.code
    assert not status, command


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the project's configs and the files that the page takes for granted."""
    shutil.copytree(PROJECT / "configs", tmp_path / "configs")
    data = tmp_path / "my_data"
    generate_voc(data, train_images=8, test_images=4, image_size=(72, 96), seed=1)
    (tmp_path / "my_coco").mkdir()
    for split, theirs in (("train", "trainval"), ("test", "test")):
        voc_to_coco(data, theirs, tmp_path / "my_coco" / "annotations" / f"{split}.json")
    shutil.copytree(data / "JPEGImages", tmp_path / "my_coco" / "photos")
    (data / "JPEGImages").rename(data / "images")
    (data / "Annotations").rename(data / "annots")
    shutil.rmtree(data / "ImageSets")
    (tmp_path / "my_text_boxes").mkdir()
    for path in sorted((data / "images").iterdir())[:-1]:  # one image has no boxes
        (tmp_path / "my_text_boxes" / f"{path.stem}.txt").write_text("0 0 49 39 0.2\n10 20 59 49 0.5\n")
    (tmp_path / "my_weights").mkdir()
    torch.save(resnet18().state_dict(), tmp_path / "my_weights" / "resnet18-f37072fd.pth")
    (tmp_path / "data" / "weights").mkdir(parents=True)
    torch.save(squeezenet1_0().state_dict(), tmp_path / "data" / "weights" / "squeezenet1_0.pth")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_bring_your_own(
    place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    commands = []
    for language, text in blocks(PAGE):
        if language == "sh":
            for command in text.splitlines():
                give(command, monkeypatch)
                commands.append(command)
        else:
            write_named(text, place)
    assert len(commands) >= 6
    said = capfd.readouterr()
    assert "validation images: 1, set aside from train" in said.err
    assert "train: 8 images" in said.err
    assert "data/weights/squeezenet1_0.pth: tensors loaded 44" in said.err
    assert "training would start" in said.out
    assert "my_weights/resnet18-f37072fd.pth: tensors loaded 75, left out 47" in said.err
    assert "runs/mine/checkpoints/best.pt: tensors loaded" in said.err
    for run in ("mine", "mine_boxes", "mine_resnet", "second"):
        assert "voc07_mAP" in json.loads((place / "runs" / run / "metrics.json").read_text())
    assert {path.stem for path in (place / "my_data" / "images").iterdir()} == set(np.load("my_boxes.npz"))

    coco = load_config("configs/mine_coco.yaml")
    assert len(load_split(coco, "train", class_names(coco), training=False).records) == 8

    with_text = load_config("configs/mine_text.yaml")
    records = load_split(with_text, "train", class_names(with_text), training=False).records
    store = open_proposals(with_text, records, "train")
    for record in records:
        boxes = store[record.key].boxes.tolist()
        whole = not Path(f"my_text_boxes/{record.image_id}.txt").exists()
        assert boxes == (
            [[0, 0, record.width, record.height]] if whole else [[0, 0, 50, 40], [10, 20, 60, 50]]
        )


def test_links_of_the_documents_lead_somewhere() -> None:
    pages = [PROJECT / name for name in ("README.md", "CONTRIBUTING.md", "data/README.md")]
    for page in (*pages, *(PROJECT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!http)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_readme_lists_every_command() -> None:
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)\.py` \|", (PROJECT / "README.md").read_text(), re.MULTILINE)
    assert rows == [(command.name, command.script) for command in COMMANDS]


def test_the_files_that_contributing_names_exist() -> None:
    names = re.findall(
        r"`((?:detector|tests|tools|csrc)/[\w/.]+\.\w+)[`:]", (PROJECT / "CONTRIBUTING.md").read_text()
    )
    assert len(names) > 10
    assert not [name for name in names if not (PROJECT / name).exists()]


def test_every_example_of_the_settings_of_training_is_a_config() -> None:
    """The commands of docs/training.md, with the settings that their sections are about."""
    text = (PROJECT / "docs" / "training.md").read_text().replace("\\\n", " ")
    commands = [
        shlex.split(line) for line in text.splitlines() if line.startswith("    python tools/train.py")
    ]
    assert len(commands) == text.count("\n## ")
    for command in commands:
        config = load_config(
            command[command.index("--config") + 1], [word for word in command if "=" in word]
        )
        assert config.train != load_config("quickstart").train


def test_the_settings_of_the_page_about_training_are_valid() -> None:
    page = (PROJECT / "docs" / "training.md").read_text().replace("\\\n", " ")
    commands = re.findall(r"^    python tools/(?:train|draw_samples)\.py (.*)$", page, re.MULTILINE)
    for words in map(shlex.split, commands):
        load_config(words[words.index("--config") + 1], [word for word in words if "=" in word])
    headings = {title.lower().replace(" ", "-") for title in re.findall(r"^## (.*)$", page, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([\w-]+)\)", page)) == headings
    assert len(commands) == len(headings) + 1  # a command for each, and the one that draws samples
