"""tools/check_data.py: every planted fault is reported with file and object, and fixed by the fix list."""

from __future__ import annotations

import json
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from detector.commands.check import show_report
from detector.config import load_config
from detector.data.check.image import Rules
from detector.data.check.report import summarise
from detector.data.convert import voc_to_coco
from detector.data.generated.dataset import generate_voc
from detector.data.problems import Problem
from detector.data.targets import AS_ANNOTATED
from detector.tasks.start import start_run
from tests.commands.conftest import PROJECT, Result, Tool
from tests.data.splits import COCO, VOC, numbered_coco, voc_folders
from tests.tiny import TINY
from tests.typed import read_picture


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("original") / "voc"
    generate_voc(root, train_images=12, test_images=4, image_size=(96, 112), seed=2)
    return root


@pytest.fixture
def root(original: Path, tmp_path: Path) -> Path:
    """A copy of the data set that a test may damage."""
    return Path(shutil.copytree(original, tmp_path / "voc"))


def write_config(path: Path, root: Path, **data: object) -> Path:
    values = {**TINY, "data": {**TINY["data"], "root": str(root), **data}}
    path.write_text(yaml.safe_dump(values))
    return path


def problems(tmp_path: Path) -> list[dict[str, object]]:
    found: list[dict[str, object]] = json.loads((tmp_path / "found.json").read_text())["problems"]
    return found


def check(tool: Tool, config: Path, *more: object) -> Result:
    return tool("check_data", "--config", config, "--output", "found.json", *more)


def test_a_sound_data_set(tool: Tool, root: Path, tmp_path: Path) -> None:
    result = check(tool, write_config(tmp_path / "c.yaml", root))
    assert result.returncode == 0, result.stderr
    assert "problems: none\ntraining would start" in result.stdout
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["would_start"] is True
    assert {split: counts["images"] for split, counts in found["splits"].items()} == {
        "trainval": 12,
        "test": 4,
    }
    objects = sum(path.read_text().count("<object>") for path in (root / "Annotations").iterdir())
    assert sum(counts["objects"] for counts in found["splits"].values()) == objects
    assert found["boxes"]["width"]["p0"] <= found["boxes"]["width"]["p50"] <= found["boxes"]["width"]["p100"]
    picture = read_picture(tmp_path / "found.png")
    assert picture.shape[1] > 1000
    assert picture.std() > 10


def with_object(annotation: Path, name: str, *corners: int) -> None:
    tags = zip(("xmin", "ymin", "xmax", "ymax"), corners, strict=True)
    box = "".join(f"<{tag}>{value}</{tag}>" for tag, value in tags)
    thing = f"<object><name>{name}</name><bndbox>{box}</bndbox></object></annotation>"
    annotation.write_text(annotation.read_text().replace("</annotation>", thing))


def planted(root: Path) -> dict[str, tuple[str, bool]]:
    """Damage one image per kind of fault; return the kind and whether it stops training, by image id."""
    ids = (root / "ImageSets" / "Main" / "trainval.txt").read_text().split()
    annotation = {image_id: root / "Annotations" / f"{image_id}.xml" for image_id in ids}
    image = {image_id: next((root / "JPEGImages").glob(f"{image_id}.*")) for image_id in ids}
    with_object(annotation[ids[0]], "ring", 50, 20, 40, 30)
    with_object(annotation[ids[1]], "ring", 50, 20, 50, 20)
    with_object(annotation[ids[2]], "ring", 50, 20, 300, 60)
    with_object(annotation[ids[3]], "rnig", 50, 20, 60, 30)
    for _ in range(2):
        with_object(annotation[ids[4]], "ring", 3, 4, 60, 70)
    Image.new("RGB", (50, 40)).save(image[ids[5]])
    image[ids[6]].write_bytes(b"this is no picture")
    image[ids[7]].write_bytes(image[ids[7]].read_bytes()[:-500])
    image[ids[8]].unlink()
    pixels = np.asarray(Image.open(image[ids[9]]))
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(pixels).save(image[ids[9]], exif=exif)
    annotation[ids[10]].write_text("<annotation><object><name>ring</name></object></annotation>")
    with (root / "ImageSets" / "Main" / "test.txt").open("a") as file:
        file.write(f"{ids[11]}\n")
    kinds = {
        "swapped": False, "under 2 px": False, "outside": False, "unknown class": True,
        "duplicate object": False,
        "image size": True, "unreadable image": True, "truncated image": True, "missing image": True,
        "EXIF rotation": False, "annotation": True, "in two splits": False,
    }  # fmt: skip
    return dict(zip(ids, kinds.items(), strict=True))


def test_every_planted_fault_is_reported_and_fixed_by_the_fix_list(
    tool: Tool, root: Path, tmp_path: Path
) -> None:
    faults = planted(root)
    names = ["disc", "ring", "square", "triangle", "cross"]
    config = write_config(tmp_path / "c.yaml", root, classes=names)
    result = check(tool, config, "--fix-list", "out.txt")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    found = problems(tmp_path)
    assert {one["image_id"]: (one["kind"], one["stops"]) for one in found} == faults
    assert len(found) == len(faults)
    lines = result.stdout.splitlines()
    for one in found:
        assert [one["file"], True] == [one["file"], Path(str(one["file"])).is_absolute()]
        line = next(
            text for text in lines if text.startswith(f"{one['file']}: ") and str(one["kind"]) in text
        )
        assert str(one["message"]) in line, "nothing is shortened"
    objects = {one["kind"]: one["object"] for one in found if one["object"]}
    assert set(objects) == {
        "swapped",
        "under 2 px",
        "outside",
        "unknown class",
        "duplicate object",
        "annotation",
    }
    assert all(str(place).startswith("object ") for place in objects.values())

    out = (tmp_path / "out.txt").read_text()
    ids = [line for line in out.splitlines() if line and not line.startswith("#")]
    assert [Path(line).stem for line in ids] == sorted(key for key, (_, stops) in faults.items() if stops)
    assert {Path(line).parent for line in ids} == {Path("JPEGImages")}
    assert check(tool, config, "data.leave_out=out.txt").returncode == 0
    assert {one["kind"] for one in problems(tmp_path)} == {
        kind for kind, stops in faults.values() if not stops
    }
    (tmp_path / "run").mkdir()
    start_run(load_config(config, ["data.leave_out=out.txt", "train.steps=6"]), tmp_path / "run", "cpu").run()


def test_invalid_boxes_stop_training_where_the_config_says_error(
    tool: Tool, root: Path, tmp_path: Path
) -> None:
    image_id = (root / "ImageSets" / "Main" / "trainval.txt").read_text().split()[0]
    with_object(root / "Annotations" / f"{image_id}.xml", "ring", 50, 20, 50, 20)
    config = write_config(tmp_path / "c.yaml", root)
    assert check(tool, config).returncode == 0
    assert check(tool, config, "data.invalid_boxes=error").returncode == 1


def test_without_images_only_annotations_are_read(tool: Tool, root: Path, tmp_path: Path) -> None:
    shutil.rmtree(root / "JPEGImages")
    config = write_config(tmp_path / "c.yaml", root)
    assert check(tool, config, "--no-images").returncode == 0
    assert check(tool, config).returncode == 1
    assert {one["kind"] for one in problems(tmp_path)} == {"missing image"}


def test_an_annotation_of_no_split_counts_where_classes_are_found(
    tool: Tool, root: Path, tmp_path: Path
) -> None:
    (root / "Annotations" / "stray.xml").write_text("<annotation><object></annotation>")
    config = write_config(tmp_path / "c.yaml", root)
    assert check(tool, config, "--fix-list", "out.txt").returncode == 1
    assert [(one["kind"], one["image_id"]) for one in problems(tmp_path)] == [("annotation", "stray")]
    assert check(tool, config, "data.leave_out=out.txt").returncode == 0
    assert check(tool, config, "data.classes=[ring, disc, square, triangle, cross]").returncode == 0


def test_splits_that_are_missing_or_the_same(tool: Tool, root: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "c.yaml", root)
    result = check(tool, config, "data.test_split=tset")
    assert result.returncode == 1
    assert "did you mean 'test'?" in result.stdout
    assert check(tool, config, "data.splits=null").returncode == 0
    assert [one["kind"] for one in problems(tmp_path)] == ["in two splits"]


def test_every_faulty_line_of_a_split_is_reported_and_the_rest_is_checked(
    tool: Tool, root: Path, tmp_path: Path
) -> None:
    split = root / "ImageSets" / "Main" / "trainval.txt"
    ids = split.read_text().split()
    split.write_text("\n".join(["../secret", *ids, ids[0], "/etc/passwd", "gone"]))
    assert check(tool, write_config(tmp_path / "c.yaml", root)).returncode == 1
    found = problems(tmp_path)
    lines = [str(one["message"]) for one in found if one["kind"] == "annotations"]
    assert [line.partition(": image id")[0] for line in lines] == ["line 1", "line 14", "line 15"]
    assert {one["file"] for one in found if one["kind"] == "annotations"} == {str(split.resolve())}
    assert [one["image_id"] for one in found if one["kind"] == "missing annotation"] == ["gone"]
    assert json.loads((tmp_path / "found.json").read_text())["splits"]["trainval"]["images"] == len(ids) + 1


def test_a_terminal_shows_a_table_that_loses_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    show = show_report
    fault = Problem(
        kind="swapped", file="a/[b]/1.xml", object="object 1 (c)", message="box 5, 4, 3, 2", stops=True
    )
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "60")
    show(summarise([], [fault], ["train"], Rules(classes=None, objects=AS_ANNOTATED, train_split="train")))
    said = "".join(capsys.readouterr().out.split())
    for column in ("a/[b]/1.xml", "object 1 (c)", "swapped (stops training)", "box 5, 4, 3, 2"):
        assert all(word in said for word in column.split())
    assert "…" not in said


def test_a_coco_data_set(tool: Tool, root: Path, tmp_path: Path) -> None:
    for split in ("trainval", "test"):
        voc_to_coco(root, split, root / "annotations" / f"instances_{split}.json")
    config = write_config(tmp_path / "c.yaml", root, format="coco", images="JPEGImages")
    assert check(tool, config).returncode == 0
    assert problems(tmp_path) == []
    path = root / "annotations" / "instances_trainval.json"
    data = json.loads(path.read_text())
    first, second, third = data["annotations"][:3]
    first["bbox"][2] = 1
    second["bbox"] = [1, 2, 3]
    third["category_id"] = 77
    data["images"][5]["file_name"] = "gone.jpg"
    path.write_text(json.dumps(data))
    assert check(tool, config).returncode == 1
    found = {(one["kind"], str(one["message"])[:14], one["object"]) for one in problems(tmp_path)}
    place = f"annotations[0], image {first['image_id']}"
    assert {kind for kind, _, _ in found} == {"under 2 px", "annotations", "missing image"}
    assert ("missing image", "there is no su", None) in found
    assert "png" not in next(
        str(one["message"]) for one in problems(tmp_path) if one["kind"] == "missing image"
    )
    assert ("annotations", "annotations[1]", None) in found
    assert ("annotations", "annotations[2]", None) in found
    assert [thing for kind, _, thing in found if kind == "under 2 px"] == [place]


def test_bccd_has_two_boxes_of_one_pixel(tool: Tool, tmp_path: Path) -> None:
    root = PROJECT / "data" / "bccd"
    if not root.is_dir():
        pytest.skip("data/bccd is not there")
    config = write_config(tmp_path / "c.yaml", root)
    result = check(tool, config, "--no-images")
    assert result.returncode == 0
    found = problems(tmp_path)
    assert [(one["image_id"], one["kind"]) for one in found] == [
        ("BloodImage_00338", "under 2 px"),
        ("BloodImage_00343", "under 2 px"),
    ]
    assert "504, 337, 504, 337" in str(found[0]["message"])


def test_all_annotations_of_voc_2007_test(tool: Tool, tmp_path: Path) -> None:
    archive = PROJECT / "data" / "voc_eval" / "voc2007_test_annotations.tar.xz"
    if not archive.is_file():
        pytest.skip("data/voc_eval is not there")
    with tarfile.open(archive) as file:
        file.extractall(tmp_path, filter="data")
    root = next(tmp_path.rglob("Annotations")).parent
    config = write_config(tmp_path / "c.yaml", root, classes="voc", train_split="test")
    result = check(tool, config, "--no-images", "--split", "test")
    assert result.returncode == 0, result.stdout[-2000:]
    counts = json.loads((tmp_path / "found.json").read_text())["splits"]["test"]
    assert counts["images"] == 4952
    unusable = sum(1 for one in problems(tmp_path) if one["unusable"])
    assert counts["objects"] + unusable == 14976


def test_a_coco_split_with_a_class_that_is_not_trained(tool: Tool, root: Path, tmp_path: Path) -> None:
    for split in ("trainval", "test"):
        data = voc_to_coco(root, split, path := root / "annotations" / f"instances_{split}.json")
        if split == "test":
            data["categories"][data["annotations"][0]["category_id"] - 1]["name"] = "stranger"
            path.write_text(json.dumps(data))
    config = write_config(
        tmp_path / "c.yaml",
        root,
        format="coco",
        images="JPEGImages",
        annotations="annotations/instances_{split}.json",
    )
    assert check(tool, config).returncode == 1
    assert {one["kind"] for one in problems(tmp_path)} == {"unknown class"}


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["coco", "voc"])
def test_names_that_start_again_in_every_split(tool: Tool, tmp_path: Path, layout: str) -> None:
    """The images differ, so none is in two splits, and leaving one out leaves its namesake in."""
    root, data = (
        (numbered_coco(tmp_path / "set", {"train": 4, "valid": 4}), COCO)
        if layout == "coco"
        else (voc_folders(tmp_path / "set"), VOC)
    )
    config = write_config(tmp_path / "c.yaml", root, **data)
    result = check(tool, config)
    assert (result.returncode, "problems: none" in result.stdout) == (0, True)
    images = root / "train" / ("" if layout == "coco" else "JPEGImages")
    torn = sorted(images.glob("*.jpg"))[1]
    torn.write_bytes(torn.read_bytes()[:-300])
    assert check(tool, config, "--fix-list", "out.txt").returncode == 1
    listed = [line for line in (tmp_path / "out.txt").read_text().splitlines() if not line.startswith("#")]
    assert listed == [str(torn.relative_to(root))]
    assert check(tool, config, "data.leave_out=out.txt").returncode == 0
    splits = json.loads((tmp_path / "found.json").read_text())["splits"]
    assert {split: counts["images"] for split, counts in splits.items()} == {"train": 3, "valid": 4}

    bare = "1" if layout == "coco" else torn.stem
    (tmp_path / "out.txt").write_text(f"{bare}\n")
    result = check(tool, config, "data.leave_out=out.txt")
    assert result.returncode in (1, 2)
    assert f"out.txt: '{bare}' is the id of 'train/" in result.stdout + result.stderr
    assert "and of 'valid/" in result.stdout + result.stderr


def test_one_file_under_two_ids_in_two_splits(tool: Tool, tmp_path: Path) -> None:
    root = numbered_coco(tmp_path / "set", {"train": 3, "valid": 2})
    path = root / "valid" / "_annotations.coco.json"
    content = json.loads(path.read_text())
    first = json.loads((root / "train" / "_annotations.coco.json").read_text())["images"][2]
    shutil.copy(root / "train" / first["file_name"], root / "valid")
    content["images"][0]["file_name"] = first["file_name"]
    path.write_text(json.dumps(content))
    for image in root.glob("*/*.jpg"):
        shutil.copy(image, root)
    config = write_config(tmp_path / "c.yaml", root, **{**COCO, "images": "."})
    assert check(tool, config).returncode == 0
    assert [(one["kind"], one["key"]) for one in problems(tmp_path)] == [
        ("in two splits", first["file_name"])
    ]


def test_one_image_behind_two_folders(tool: Tool, root: Path, tmp_path: Path) -> None:
    for split in ("train", "valid"):
        (tmp_path / "set" / split).mkdir(parents=True)
        for kind in ("Annotations", "JPEGImages"):
            (tmp_path / "set" / split / kind).symlink_to(root / kind)
    config = write_config(tmp_path / "c.yaml", tmp_path / "set", **VOC, splits=None)
    assert check(tool, config).returncode == 0
    assert [one["kind"] for one in problems(tmp_path)] == ["in two splits"]
