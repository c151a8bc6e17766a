"""The page "Bring your own" is run as it stands: its files are written and its commands given, in order."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import resnet18, squeezenet1_0

from detector.config import load_config
from detector.data.convert import voc_to_coco
from detector.data.generated.dataset import generate_voc
from detector.factory.data import class_names, load_split
from detector.factory.proposals import open_proposals
from tests.conftest import PROJECT
from tests.pages import PAGES, blocks, commands, run_tool, write_named

PAGE = PROJECT / "docs" / "bring_your_own.md"
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


def give(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a command of the page on small images."""
    run_tool([*words, *(SMALL if words[1] == "tools/train.py" else [])], monkeypatch)


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
    given = []
    for block in blocks(PAGE):
        write_named(block, place)
        for words in commands(block) if block.language == "sh" else ():
            give(words, monkeypatch)
            given.append(words)
    assert len(given) >= 6
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
    for page in PAGES:
        for target in re.findall(r"\]\((?!http)([^)#\s]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_addresses_of_other_sites_are_well_formed() -> None:
    """Whether they answer is not tested: the tests need no network."""
    for page in PAGES:
        for address in re.findall(r"\]\((http[^)]*)\)", page.read_text()):
            assert re.fullmatch(r"https://[\w.-]+\.[a-z]{2,}(/[^\s<>]*)?", address), f"{page.name}: {address}"


def test_the_files_that_contributing_names_exist() -> None:
    names = re.findall(
        r"`((?:detector|tests|tools|csrc)/[\w/.]+\.\w+)[`:]", (PROJECT / "CONTRIBUTING.md").read_text()
    )
    assert len(names) > 10
    assert not [name for name in names if not (PROJECT / name).exists()]


def test_every_setting_of_training_has_a_command_that_changes_it() -> None:
    """The commands of docs/training.md, with the settings that their sections are about."""
    page = PROJECT / "docs" / "training.md"
    given = [words for block in blocks(page) if block.language == "sh" for words in commands(block)]
    trainings = [words for words in given if words[1] == "tools/train.py"]
    headings = re.findall(r"^## (.*)$", page.read_text(), re.MULTILINE)
    assert len(trainings) == len(headings) == len(given) - 1  # one command draws samples
    for words in given:
        config = load_config(words[words.index("--config") + 1], [word for word in words if "=" in word])
        assert config.train != load_config("quickstart").train
    anchors = {title.lower().replace(" ", "-") for title in headings}
    assert set(re.findall(r"\]\(#([\w-]+)\)", page.read_text())) == anchors
