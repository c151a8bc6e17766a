"""The tool: making, converting, looking into files, parts and merging, exit statuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from detector.data.generated.dataset import generate_voc
from detector.proposals.inspection import inspect
from detector.proposals.store import ProposalStore
from tests.commands.conftest import Tool
from tests.data.splits import COCO, VOC, numbered_coco, voc_folders
from tests.typed import float32, read_picture, save_arrays

CONFIG = """
data: {root: voc, workers: 0}
proposals: {method: selective_search, options: {min_side: 8}}
model: {backbone: {name: small}}
train: {steps: 1}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    generate_voc(tmp_path / "voc", train_images=5, test_images=3, image_size=(96, 128), seed=1)
    (tmp_path / "mine.yaml").write_text(CONFIG)
    return tmp_path / "mine.yaml"


def assert_equal(first: ProposalStore, second: ProposalStore) -> None:
    assert first.ids() == second.ids()
    assert len(first) > 0
    for image_id in first.ids():
        assert first.fingerprint(image_id) == second.fingerprint(image_id)
        assert first.image_size(image_id) == second.image_size(image_id)


def test_a_configs_proposals_lie_where_training_looks(tool: Tool, config: Path, tmp_path: Path) -> None:
    result = tool("propose", "--config", config)
    assert result.returncode == 0, result.stderr
    assert "proposals for trainval" in result.stderr
    assert "proposals for test" in result.stderr
    path = tmp_path / result.stdout.strip()
    assert len(ProposalStore.open(path)) == 8
    before = boxes_written(path)
    trained = tool("train", "--config", config, "--output", "run", "--device", "cpu")
    assert trained.returncode == 0, trained.stderr
    assert boxes_written(path) == before


def boxes_written(store: Path) -> dict[str, int]:
    """Return when each file of a store was written, but for what is computed from its boxes."""
    parts = (part for part in store.iterdir() if not part.name.startswith("kept_"))
    return {part.name: part.stat().st_mtime_ns for part in parts}


def test_parts_merged_are_the_whole(tool: Tool, config: Path, tmp_path: Path) -> None:
    whole = tool("propose", "--config", config, "--output", "whole")
    assert whole.returncode == 0
    parts = []
    for number in (1, 2, 3):
        result = tool("propose", "--config", config, "--shard", f"{number}/3", "--json")
        report = json.loads(result.stdout)["stores"][0]
        assert report["images"] == (3, 3, 2)[number - 1]
        assert report["store"].endswith(f"_shard_{number}_of_3")
        parts.append(report["store"])
    merged = tool("propose", "--merge", *parts, "--config", config)
    assert merged.returncode == 0, merged.stderr
    store = ProposalStore.open(tmp_path / merged.stdout.strip())
    assert_equal(store, ProposalStore.open(tmp_path / "whole"))
    assert "shard" not in store.path.name
    for bad in ("0/3", "4/3", "3", "a/b"):
        result = tool("propose", "--config", config, "--shard", bad)
        assert (result.returncode, "--shard" in result.stderr) == (2, True)


def test_a_folder_of_images(tool: Tool, config: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    images = sorted((tmp_path / "voc/JPEGImages").iterdir())
    (folder / "a.jpg").write_bytes(images[0].read_bytes())
    (folder / "deep/b.JPG").write_bytes(images[1].read_bytes())
    (folder / "torn.jpg").write_bytes(images[2].read_bytes()[:500])
    arguments = ("--images", folder, "--output", "store", "proposals.seed=3", "--workers", "0")
    result = tool("propose", *arguments, "--json")
    assert result.returncode == 1  # one image failed
    report = json.loads(result.stdout)["stores"][0]
    assert list(report["failed"]) == ["torn.jpg"]
    assert "torn.jpg: the image is truncated" in result.stderr
    assert report["parameters"]["seed"] == 3
    store = ProposalStore.open(tmp_path / "store")
    assert store.ids() == ["a.jpg", "deep/b.JPG"]
    assert store.image_size("a.jpg") == read_picture(images[0]).shape[:2]

    (folder / "torn.jpg").unlink()
    assert tool("propose", *arguments).returncode == 0
    (folder / "a.png").write_bytes(images[3].read_bytes())
    assert tool("propose", *arguments).returncode == 0
    store = ProposalStore.open(tmp_path / "store")
    assert store.ids() == ["a.jpg", "a.png", "deep/b.JPG"]
    assert store.fingerprint("a.jpg") != store.fingerprint("a.png")


def test_a_method_of_the_command_line(tool: Tool, config: Path, tmp_path: Path) -> None:
    (tmp_path / "my_boxes.py").write_text(
        "def whole(image):\n    return [[0, 0, image.shape[1], image.shape[0]]]\n"
    )
    result = tool("propose", "--config", config, "--split", "test", "--method", "my_boxes:whole")
    assert result.returncode == 0, result.stderr
    store = ProposalStore.open(tmp_path / result.stdout.strip())
    assert store.generator == "my_boxes:whole"
    size = store.image_size(store.ids()[0])
    assert size is not None
    assert store[store.ids()[0]].boxes.tolist() == [[0, 0, size[1], size[0]]]


def test_converting_with_and_without_a_config(tool: Tool, config: Path, tmp_path: Path) -> None:
    ids = [path.stem for path in (tmp_path / "voc/Annotations").glob("*.xml")]
    boxes = float32([[0, 0, 90, 50, 0.5], [0, 0, 90, 50, 0.75], [3, 4, 40, 60, 0.25], [0, 0, 2, 2, 1]])
    save_arrays(tmp_path / "boxes.npz", dict.fromkeys(ids, boxes))
    filters = ("--top-k", 2, "--min-size", 3, "--deduplicate")
    result = tool("propose", "--from", "boxes.npz", "--output", "a", "--config", config, *filters)
    assert result.returncode == 0, result.stderr
    found = ProposalStore.open(tmp_path / "a")[f"JPEGImages/{ids[0]}.jpg"]
    assert torch.equal(found.boxes, torch.tensor([[0.0, 0, 90, 50], [3, 4, 40, 60]]))
    plain = tool("propose", "--from", "boxes.npz", "--format", "npz", "--output", "b")
    assert plain.returncode == 0
    assert len(ProposalStore.open(tmp_path / "b")[ids[0]]) == 4

    save_arrays(tmp_path / "fewer.npz", dict.fromkeys(ids[1:], boxes))
    arguments = ("--from", "fewer.npz", "--output", "c", "--config", config)
    result = tool("propose", *arguments)
    assert result.returncode == 2
    assert "fewer.npz: 1 of 8 images are not in the file" in result.stderr
    assert f"voc/JPEGImages/{ids[0]}.jpg, the file has" in result.stderr
    result = tool("propose", *arguments, "--missing", "full_image")
    assert result.returncode == 0
    assert "1 images given one box, the whole image" in result.stderr


def test_inspecting_says_it_in_words_and_in_json(tool: Tool, config: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "boxes.npz", a=float32([[1, 2, 30, 40, 0.5], [5, 6, 7, 8, np.nan]]))
    words = tool("propose", "--inspect", "boxes.npz")
    assert words.returncode == 0
    assert words.stdout.splitlines() == [
        "format: npz",
        "images: 1, such as a",
        "boxes: 2, 2 to 2 per image, 2 on average",
        "column 1: 1 to 5",
        "column 2: 2 to 6",
        "column 3: 7 to 30",
        "column 4: 8 to 40",
        "scores: 0.5 to 0.5",
        "note: whole numbers from 1: it may count pixels from 1 and include the last",
    ]
    found = json.loads(tool("propose", "--inspect", "boxes.npz", "--json").stdout)
    assert found == json.loads(json.dumps(inspect(tmp_path / "boxes.npz")))


def test_what_is_missing_on_the_command_line_is_said(tool: Tool, config: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for arguments, message in (
        ((), "give --config, --images FOLDER with --output STORE"),
        (("--images", tmp_path), "give --config, --images FOLDER with --output STORE"),
        (("--from", "x.npz"), "--from needs --output STORE"),
        (("--merge", "a", "b"), "--merge needs --output STORE"),
        (("--images", tmp_path / "none", "--output", "s"), "none is not a folder of .jpg or"),
        (("--images", tmp_path / "empty", "--output", "s"), "empty has no .jpg or"),
        (("--images", tmp_path, "--output", "s", "--config", config), "leave --config"),
        (("--images", tmp_path, "--output", "s", "--split", "test"), "leave --config and --split out"),
        (("--from", "x.npz", "--output", "s", "--split", "test"), "--split needs --config"),
        (("--from", "x.npz", "--output", "s", "--shard", "1/2"), "--shard is for making proposals"),
        (("--from", "x.npz", "--output", "s", "proposals.mode=quality"), "settings need --config"),
        (("--inspect", "absent.npz"), "absent.npz"),
        (("--config", config, "--workers", "-1"), "--workers -1"),
        (("--config", config, "--method", "dens"), "did you mean 'dense'"),
    ):
        result = tool("propose", *arguments)
        assert result.returncode == 2, arguments
        assert message in result.stderr
        assert "Traceback" not in result.stderr


def split_config(tmp_path: Path, layout: str, **proposals: object) -> Path:
    """A config for a data set in which ids (COCO) or file names (VOC) start again in every split."""
    if not (tmp_path / layout).exists():
        if layout == "coco":
            numbered_coco(tmp_path / layout, {"train": 5, "valid": 3})
        else:
            voc_folders(tmp_path / layout)
    values = {
        "data": {"root": layout, "workers": 0, **(COCO if layout == "coco" else VOC)},
        "proposals": proposals,
        "model": {"backbone": {"name": "small"}},
        "train": {"steps": 1, "scales": [96], "max_size": 160},
        "test": {"scales": [96], "max_size": 160},
    }
    (tmp_path / "splits.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "splits.yaml"


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["coco", "voc"])
def test_names_that_start_again_in_every_split(tool: Tool, tmp_path: Path, layout: str) -> None:
    count = 8
    config = split_config(tmp_path, layout, method="selective_search")
    result = tool("propose", "--config", config, "--json")
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)["stores"][0]
    assert report["images"] == count
    path = tmp_path / report["store"]
    assert {key.split("/")[0] for key in ProposalStore.open(path).ids()} == {"train", "valid"}
    assert {split: figures["images"] for split, figures in report["recall"].items()} == (
        {"train": 5, "valid": 3} if layout == "coco" else {"train": 4, "valid": 4}
    )
    before = {part.name: part.stat().st_mtime_ns for part in path.iterdir()}
    for split in ("train", "valid"):
        assert tool("propose", "--config", config, "--split", split).returncode == 0
    assert {part.name: part.stat().st_mtime_ns for part in path.iterdir()} == before, "nothing is made twice"

    config = split_config(tmp_path, layout, file=report["store"], format="store")
    again = tool("propose", "--config", config, "--json")
    assert again.returncode == 0, again.stderr
    found = [store["recall"] for store in json.loads(again.stdout)["stores"]]
    assert {split: figures for one in found for split, figures in one.items()} == report["recall"]
    assert tool("train", "--config", config, "--output", "run", "--device", "cpu").returncode == 0


def test_a_part_speaks_of_its_own_images_alone(tool: Tool, tmp_path: Path) -> None:
    config = split_config(tmp_path, "coco", method="dense")
    result = tool("propose", "--config", config, "--shard", "2/4", "--json")
    assert result.returncode == 0
    assert "part 2 of 4: 2 of 8 images" in result.stderr
    assert "have no proposals" not in result.stderr
    figures = json.loads(result.stdout)["stores"][0]["recall"]
    assert {split: one["images"] for split, one in figures.items()} == {"train": 1, "valid": 1}
    result = tool("propose", "--config", config, "--shard", "8/8", "--json")
    assert list(json.loads(result.stdout)["stores"][0]["recall"]) == ["valid"]
