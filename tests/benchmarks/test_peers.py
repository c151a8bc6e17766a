"""The comparison with peers: what is counted, which photographs are drawn, how times are extrapolated."""

from __future__ import annotations

import ast
import itertools
import re
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from benchmarks import peers
from detector.config import load_config
from tests.conftest import PROJECT

RECIPES = peers.read_recipes(peers.RECIPES.read_text(encoding="utf-8"))
NAMES = ("ours", "ours, head only", "ultralytics", "torchvision", "detectron2")
MARKDOWN = """
# Title

## one

```yaml title="a.yaml"
# a comment

key: value
```

Text.

```sh
wget x/y.py

run a.yaml
```

## two

```python title="b.py"
print("```")
# no
print(1)
```
"""


def photograph(folder: Path, name: str, annotations: Path | None = None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (40, 20)).save(folder / name)
    place = annotations or folder
    place.mkdir(parents=True, exist_ok=True)
    box = "<bndbox><xmin>11</xmin><ymin>6</ymin><xmax>31</xmax><ymax>16</ymax></bndbox>"
    (place / name).with_suffix(".xml").write_text(
        f"<annotation><filename>{name}</filename><size><width>40</width><height>20</height></size>"
        f"<object><name>ten</name>{box}</object></annotation>"
    )


def test_commands_files_and_lines_are_counted_without_comments_and_blank_lines() -> None:
    one, two = peers.read_recipes(MARKDOWN).values()
    assert one.commands == ("wget x/y.py", "run a.yaml")
    assert one.files == {"a.yaml": "# a comment\n\nkey: value\n"}
    assert list(one.counts().values()) == [2, 1, 1, 0, 1]
    assert list(two.counts().values()) == [0, 0, 1, 2, 0]


def test_the_recipes_are_whole_programs_and_configs_that_this_project_reads(tmp_path: Path) -> None:
    assert tuple(RECIPES) == NAMES
    for recipe in RECIPES.values():
        for name, text in recipe.files.items():
            ast.parse(text) if name.endswith(".py") else yaml.safe_load(text)
        scripts = [word for command in recipe.commands for word in command.split() if word.endswith(".py")]
        copied = {word.rpartition("/")[2] for word in scripts if "/" in word}
        assert {word for word in scripts if "/" not in word} <= set(recipe.files) - copied
    for name in NAMES[:2]:
        RECIPES[name].write(tmp_path)
        config = load_config(tmp_path / "mine.yaml")
        assert config.data.split_ratio == {"train": 0.8, "test": 0.2}
        assert config.train.head_only == (name == "ours, head only")


def test_the_page_has_the_numbers_that_the_program_counts() -> None:
    text = (PROJECT / "docs" / "compared.md").read_text(encoding="utf-8")
    counts = peers.count_all()
    for label, key in {
        "commands": "commands",
        "files to copy": "files copied",
        "files to write": "files written",
        "lines of code": "lines of code",
        "lines of configuration": "lines of configuration",
    }.items():
        row = re.search(rf"^\| {label} \|(.*)\|$", text, re.MULTILINE)
        assert row is not None, label
        assert [int(cell) for cell in row[1].split("|")] == [counts[name][key] for name in NAMES], label


def test_photographs_are_chosen_by_seed_and_lie_with_their_annotations(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for number in range(4):
        photograph(data / "train", f"a{number}.JPG")
        photograph(data / "JPEGImages", f"b{number}.jpg", data / "Annotations")
    Image.new("RGB", (4, 4)).save(data / "train" / "without.png")
    pairs = peers.annotated_photographs(data)
    assert [image.stem for image, _ in pairs] == [f"{kind}{n}" for kind in "ba" for n in range(4)]
    chosen = []
    for name, seed in (("first", 0), ("again", 0), ("other", 1)):
        peers.lay_out(data, 5, seed, tmp_path / name)
        assert (tmp_path / name / "new.jpg").is_file()
        images = {path.stem for path in (tmp_path / name / "photos").glob("*.[jJ]*")}
        assert images == {path.stem for path in (tmp_path / name / "photos").glob("*.xml")}
        assert len(images) == 5
        chosen.append(images)
    assert chosen[0] == chosen[1] != chosen[2]


def test_too_few_photographs_and_equal_names_are_refused(tmp_path: Path) -> None:
    for folder in ("train", "test"):
        photograph(tmp_path / folder, "a.jpg")
    with pytest.raises(SystemExit, match="has 2 annotated photographs; 3 are needed"):
        peers.lay_out(tmp_path, 2, 0, tmp_path / "out")
    photograph(tmp_path / "test", "b.jpg")
    photograph(tmp_path / "test" / "more", "a.jpg")
    with pytest.raises(SystemExit, match="several photographs of one name"):
        peers.lay_out(tmp_path, 3, 0, tmp_path / "out")  # four, three of them of one name


def test_the_packages_that_pip_fetched_are_added_up(tmp_path: Path) -> None:
    (tmp_path / "a-1.whl").write_bytes(bytes(2_000_000))
    log = f"""Processing {tmp_path}/a-1.whl
  Downloading b-2-py3-none-any.whl.metadata (5.3 kB)
Downloading b-2-py3-none-any.whl (1.5 MB)
Using cached c-3.whl (250 kB)
"""
    assert peers.downloaded(log) == {"packages": 3, "MB": pytest.approx(3.75)}


def test_what_is_not_in_epochs_counts_once() -> None:
    rows = [{"epoch": str(n), "time": str(time)} for n, time in enumerate((10.0, 15.0, 21.0))]
    found = peers.epochs_of(rows, seconds=30.0)
    assert found["epochs measured"] == [10.0, 5.0, 6.0]
    assert found["seconds per epoch"] == 6.0
    assert found["extrapolated training"] == 9.0 + 100 * 6.0


def test_the_conversion_writes_what_ultralytics_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photograph(tmp_path / "photos", "a.jpg")
    text = RECIPES["ultralytics"].files["convert.py"]
    monkeypatch.chdir(tmp_path)
    exec("\n".join(line for line in text.splitlines() if "autosplit" not in line), {})
    label, *box = (tmp_path / "photos/a.txt").read_text().split()
    assert label == "1"
    assert [float(number) for number in box] == pytest.approx([21 / 40, 11 / 20, 20 / 40, 10 / 20])


@pytest.mark.slow
def test_the_data_set_of_torchvision_gives_boxes_and_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photograph(tmp_path / "photos", "a.jpg")
    RECIPES["torchvision"].write(tmp_path)
    monkeypatch.chdir(tmp_path)
    image, target = peers.photographs_of(tmp_path)[0]
    assert image.shape == (3, 20, 40)
    assert target["boxes"].tolist() == [[11, 6, 31, 16]]
    assert target["labels"].tolist() == [2]


def test_norms_are_fixed_at_the_statistics_of_the_images() -> None:
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    images = 7 + 3 * torch.randn(2, 3, 30, 30)
    fixed = peers.fix_norms(backbone, images)
    assert not [module for module in fixed.modules() if isinstance(module, nn.BatchNorm2d)]
    features = fixed[:2](images)
    assert features.mean().item() == pytest.approx(0, abs=1e-4)
    assert features.std().item() == pytest.approx(1, abs=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("model", peers.MODELS)
def test_the_first_blocks_are_frozen_as_with_trained_weights(model: str) -> None:
    network = peers.frozen_as_trained(model, classes=3, images=torch.rand(1, 3, 64, 64))
    trained = [parameter.requires_grad for parameter in network.backbone.body.parameters()]
    assert [key for key, _ in itertools.groupby(trained)] == [False, True]
