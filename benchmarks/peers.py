#!/usr/bin/env python3
"""How much work and time it takes to get from nothing to a detector of one's own, with four programs.

    python benchmarks/peers.py counts                               commands, files and lines of the recipes
    python benchmarks/peers.py install torch torchvision --venv V   seconds and MB of a pip install, into V
    python benchmarks/peers.py ours --data data/cards --images 200 --weights FILE
    python benchmarks/peers.py ours --data data/cards --images 200 --weights FILE --head-only
    python benchmarks/peers.py ultralytics --data data/cards --images 200 --python V/bin/python
    python benchmarks/peers.py torchvision --data data/cards --images 200

The steps of every program are written down in benchmarks/peers_recipes.md. They are counted there, and the
files to run are taken from there; docs/compared.md has the table. The photographs are drawn at random
(`--seed`) from all below `--data` that have an annotation in VOC's XML, and lie in one folder `photos/`; one
more is the new photograph. About a fifth are held out.

Measured are: of ours, everything, to the end. Of ultralytics, whose weights are on no package index, the
conversion and `--epochs` epochs of yolo11n from random weights (which take as long as from trained ones); its
default of 100 epochs is extrapolated, and no mAP is given. Of torchvision, `--steps` steps of two images and
as many test images, without loading them, of the network and the sizes of `--model`, from random weights,
with those layers frozen that are frozen with trained weights; the 26 epochs of its references are
extrapolated. Nothing of detectron2, which is on no package index.

"seconds" is the time that passes; "processor seconds" adds up the cores, and other work on the machine
changes it least. ultralytics is under the AGPL: install it in an environment of its own, and name that by
`--python`.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import itertools
import json
import os
import platform
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RECIPES = ROOT / "benchmarks" / "peers_recipes.md"
SUFFIXES = (".jpg", ".jpeg", ".png")
ULTRALYTICS_EPOCHS = 100
"""The default of `yolo detect train`."""
TORCHVISION_EPOCHS = 26
"""The default of torchvision's references/detection/train.py."""
MODELS = ("fasterrcnn_mobilenet_v3_large_320_fpn", "fasterrcnn_resnet50_fpn")
UNITS = {"kB": 1e-3, "MB": 1.0, "GB": 1e3}


@dataclass(frozen=True)
class Recipe:
    """The commands that a user gives, and the files that a user writes: their text under their names."""

    commands: tuple[str, ...]
    files: Mapping[str, str]

    def write(self, folder: Path) -> None:
        for name, text in self.files.items():
            (folder / name).write_text(text, encoding="utf-8")

    def counts(self) -> dict[str, int]:
        """Return how many commands, files, and lines of code and of configuration there are to write."""
        code = sum(lines_of(text) for name, text in self.files.items() if name.endswith(".py"))
        return {
            "commands": len(self.commands),
            "files copied": sum(command.startswith("wget ") for command in self.commands),
            "files written": len(self.files),
            "lines of code": code,
            "lines of configuration": sum(map(lines_of, self.files.values())) - code,
        }


def lines_of(text: str) -> int:
    """Return the number of lines, blank ones and comments left out."""
    return sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in text.splitlines())


def read_recipes(text: str) -> dict[str, Recipe]:
    """Return the recipe of each second-level heading in Markdown: blocks of sh, and blocks with a title."""
    recipes = {}
    for section in re.split(r"^## ", text, flags=re.MULTILINE)[1:]:
        name, _, rest = section.partition("\n")
        commands: list[str] = []
        files: dict[str, str] = {}
        for language, title, body in re.findall(
            r'^```(\w+)(?: title="([^"]+)")?\n(.*?)^```$', rest, re.MULTILINE | re.DOTALL
        ):
            if title:
                files[title] = body
            elif language == "sh":
                commands += [line for line in body.splitlines() if line.strip()]
        recipes[name.strip()] = Recipe(tuple(commands), files)
    return recipes


def recipe(name: str) -> Recipe:
    return read_recipes(RECIPES.read_text(encoding="utf-8"))[name]


def annotated_photographs(root: Path) -> list[tuple[Path, Path]]:
    """Return the photographs below ``root`` that have an XML file, each with this file, sorted by path.

    The XML file lies beside the photograph, or in a folder `Annotations` beside its folder.
    """
    found = []
    for image in sorted(root.rglob("*")):
        if image.suffix.lower() in SUFFIXES:
            beside = image.with_suffix(".xml")
            other = image.parent.parent / "Annotations" / beside.name
            found += [(image, xml) for xml in (beside, other) if xml.is_file()][:1]
    return found


def lay_out(root: Path, count: int, seed: int, folder: Path) -> None:
    """Copy ``count`` photographs with annotations to ``folder/photos``, and another to ``folder/new.jpg``."""
    pairs = annotated_photographs(root)
    if len(pairs) <= count:
        sys.exit(f"{root} has {len(pairs)} annotated photographs; {count + 1} are needed (--images)")
    *chosen, (new, _) = random.Random(seed).sample(pairs, count + 1)
    if len({image.stem for image, _ in chosen}) < count:
        sys.exit(f"{root} has several photographs of one name, which cannot lie in one folder")
    (folder / "photos").mkdir(parents=True)
    for image, xml in chosen:
        shutil.copyfile(image, folder / "photos" / image.name)
        shutil.copyfile(xml, folder / "photos" / f"{image.stem}.xml")
    shutil.copyfile(new, folder / "new.jpg")


def timed(command: Sequence[str | Path], folder: Path, **variables: str) -> tuple[dict[str, float], str]:
    """Run ``command`` in ``folder``; return its seconds and the processor's, and what it printed."""
    print("$ " + " ".join(map(str, command)), file=sys.stderr, flush=True)
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    ended = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    seconds, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if ended.returncode:
        sys.exit(f"{command[0]} ended with status {ended.returncode}:\n{ended.stdout[-4000:]}")
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"seconds": seconds, "processor seconds": processor}, ended.stdout


def downloaded(log: str) -> dict[str, float]:
    """Return the number and the MB of the packages that a pip install has fetched, from what pip printed."""
    sizes = {}
    for name, number, unit in re.findall(r"(?:Downloading|Using cached) (\S+) \(([\d.]+) (kB|MB|GB)\)", log):
        sizes[name.rpartition("/")[2]] = float(number) * UNITS[unit]
    for path in map(Path, re.findall(r"Processing (\S+\.whl)", log)):
        sizes[path.name] = path.stat().st_size / 1e6
    sizes = {name: size for name, size in sizes.items() if not name.endswith(".metadata")}
    return {"packages": len(sizes), "MB": sum(sizes.values())}


def install(arguments: argparse.Namespace) -> dict[str, Any]:
    """Install packages by pip into an environment, which is made unless it is there."""
    python = Path(arguments.venv) / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", arguments.venv], check=True)
    pip: list[str | Path] = [python, "-m", "pip", "install", "--no-cache-dir", "--progress-bar", "off"]
    seconds, log = timed([*pip, *arguments.packages], Path.cwd())
    return seconds | downloaded(log)


def ours(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Train and try a detector by our own recipe, to the end."""
    steps = recipe("ours, head only" if arguments.head_only else "ours")
    steps.write(folder)
    if arguments.weights:
        (folder / "data" / "weights").mkdir(parents=True)
        (folder / "data" / "weights" / "squeezenet1_0.pth").symlink_to(Path(arguments.weights).resolve())
    console = "from detector.commands.console import main; main()"
    path = {} if arguments.python else {"PYTHONPATH": str(ROOT)}
    found: dict[str, Any] = {}
    for command in steps.commands:
        program, name, *options = command.split()
        if program == "region-detector":
            call: list[str | Path] = [arguments.python or sys.executable, "-c", console, name, *options]
            found[name], log = timed(call, folder, **path)
            print(log, file=sys.stderr)
    found["metrics"] = json.loads((folder / "runs/mine/metrics.json").read_text())
    for unit in ("seconds", "processor seconds"):
        found[unit] = found["train"][unit] + found["demo"][unit]
    return found


def ultralytics(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Convert, train for some epochs from random weights, and try the result; extrapolate to all epochs."""
    steps = recipe("ultralytics")
    steps.write(folder)
    python = Path(arguments.python or sys.executable).absolute()
    quiet = {"YOLO_OFFLINE": "true", "YOLO_CONFIG_DIR": str(folder)}
    found: dict[str, Any] = {}
    found["convert"], _ = timed([python, "convert.py"], folder, **quiet)
    train, predict = (command.split()[1:] for command in steps.commands if command.startswith("yolo "))
    train = [option.replace("model=yolo11n.pt", f"model={arguments.model}.yaml") for option in train]
    yolo = python.with_name("yolo")
    found["train"], log = timed([yolo, *train, f"epochs={arguments.epochs}"], folder, **quiet)
    weights = next(folder.rglob("best.pt"))
    with (weights.parents[1] / "results.csv").open() as file:
        found |= epochs_of(list(csv.DictReader(file)), found["train"]["seconds"])
    predict = [option if not option.startswith("model=") else f"model={weights}" for option in predict]
    found["predict"], _ = timed([yolo, *predict], folder, **quiet)
    found["version"] = (re.findall(r"Ultralytics (\S+)", log) or ["unknown"])[0]
    grown = found["extrapolated training"] / found["train"]["seconds"]
    for unit in ("seconds", "processor seconds"):
        parts = found["convert"][unit], grown * found["train"][unit], found["predict"][unit]
        found[f"extrapolated {unit}"] = sum(parts)
    return found


def epochs_of(rows: Sequence[Mapping[str, str]], seconds: float) -> dict[str, Any]:
    """Return the median time of an epoch and the extrapolated time of a training with all epochs.

    ``rows`` are those of ultralytics' results.csv, whose column `time` has the seconds since the first epoch
    began; ``seconds`` is the time of the whole command. What is in no epoch, such as the start, counts once.
    """
    ends = [0.0, *(float({key.strip(): value for key, value in row.items()}["time"]) for row in rows)]
    epochs = [end - start for start, end in itertools.pairwise(ends)]
    epoch = statistics.median(epochs)
    return {
        "epochs measured": epochs,
        "seconds per epoch": epoch,
        "extrapolated training": seconds - ends[-1] + ULTRALYTICS_EPOCHS * epoch,
    }


def torchvision(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Time training steps and test images of torchvision's Faster R-CNN; extrapolate to its 26 epochs."""
    import torch
    from torch.nn.functional import interpolate

    recipe("torchvision").write(folder)
    os.chdir(folder)
    photographs = photographs_of(folder)
    torch.manual_seed(0)
    some = torch.cat([interpolate(photographs[i][0][None], (320, 320)) for i in (0, 1)])
    network = frozen_as_trained(arguments.model, classes=7, images=some)
    order = torch.randperm(len(photographs)).tolist()
    batches = ([photographs[i] for i in order[n : n + 2]] for n in range(0, len(order) - 1, 2))
    steps = training(network, batches, arguments.steps)
    images = testing(network, (photographs[i][0] for i in order), arguments.steps)
    held_out = len(photographs) // 5
    found: dict[str, Any] = {"model": arguments.model}
    for index, unit in enumerate(("seconds", "processor seconds")):
        step, image = (statistics.median(each[index] for each in times) for times in (steps, images))
        epoch = -(-(len(photographs) - held_out) // 2) * step + held_out * image
        found |= {f"{unit} per step": step, f"{unit} per test image": image, f"{unit} per epoch": epoch}
        found[f"extrapolated {unit}"] = TORCHVISION_EPOCHS * epoch
    return found


def photographs_of(folder: Path) -> Any:
    """Return the data set of the recipe's own class, with uint8 images turned into floats."""
    from torchvision.transforms import v2

    spec = importlib.util.spec_from_file_location("dataset", folder / "dataset.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    import torch

    return module.Photos("photos", v2.Compose([v2.ToDtype(torch.float, scale=True), v2.ToPureTensor()]))


def frozen_as_trained(model: str, classes: int, images: Any) -> Any:
    """Return a detector with random weights, frozen like one that starts from trained weights.

    With weights, torchvision trains three blocks of the backbone and fixes all its batch norms, which saves
    time; without, it trains everything. The batch norms are fixed at the statistics of ``images``
    (N, 3, H, W), so that features and gradients have ordinary magnitudes.
    """
    from torch import nn
    from torchvision.models import detection
    from torchvision.models.detection import anchor_utils, backbone_utils

    options: dict[str, Any] = {"weights": None, "trainable_layers": 3, "norm_layer": nn.BatchNorm2d}
    if model == "fasterrcnn_resnet50_fpn":
        backbone = backbone_utils.resnet_fpn_backbone(backbone_name="resnet50", **options)
        return detection.FasterRCNN(fix_norms(backbone, images), classes)
    backbone = backbone_utils.mobilenet_backbone(backbone_name="mobilenet_v3_large", fpn=True, **options)
    sizes = ((32, 64, 128, 256, 512),) * 3
    anchors = anchor_utils.AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    small = {"min_size": 320, "max_size": 640, "rpn_pre_nms_top_n_test": 150, "rpn_post_nms_top_n_test": 150}
    return detection.FasterRCNN(fix_norms(backbone, images), classes, rpn_anchor_generator=anchors, **small)


def fix_norms(backbone: Any, images: Any) -> Any:
    """Replace the batch norms of ``backbone`` by fixed ones with the statistics of ``images``."""
    import torch
    from torch import nn
    from torchvision.ops import FrozenBatchNorm2d

    norms = [name for name, module in backbone.named_modules() if isinstance(module, nn.BatchNorm2d)]
    for name in norms:
        backbone.get_submodule(name).momentum = None  # the statistics of the one batch that follows
    with torch.no_grad():
        backbone.train()(images)
    for name in norms:
        old = backbone.get_submodule(name)
        fixed = FrozenBatchNorm2d(old.num_features, eps=old.eps)
        fixed.load_state_dict(
            {key: value for key, value in old.state_dict().items() if key in fixed.state_dict()}
        )
        backbone.get_submodule(name.rpartition(".")[0])._modules[name.rpartition(".")[2]] = fixed
    return backbone


def training(network: Any, batches: Iterator[Any], steps: int) -> list[tuple[float, float]]:
    """Return the times of ``steps`` steps, made as in the references, after one that does not count."""
    import torch

    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-5, momentum=0.9, weight_decay=1e-4)
    network.train()
    times = []
    for _, batch in zip(range(steps + 1), batches, strict=False):
        images, targets = zip(*batch, strict=True)
        began = now()
        loss = torch.stack(list(network(list(images), list(targets)).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        times.append(since(began))
    return times[1:]


def testing(network: Any, images: Iterator[Any], count: int) -> list[tuple[float, float]]:
    """Return the times of ``count`` images, after one that does not count."""
    import torch

    network.eval()
    times = []
    with torch.inference_mode():
        for _, image in zip(range(count + 1), images, strict=False):
            began = now()
            network([image])
            times.append(since(began))
    return times[1:]


def now() -> tuple[float, float]:
    """Return the time that passes and the processor's, in seconds."""
    return time.perf_counter(), time.process_time()


def since(began: tuple[float, float]) -> tuple[float, float]:
    ended = now()
    return ended[0] - began[0], ended[1] - began[1]


def surroundings() -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load before": os.getloadavg()[0],
        "commit": commit.stdout.strip(),
        "command": " ".join(sys.argv),
    }


def count_all() -> dict[str, dict[str, int]]:
    return {name: each.counts() for name, each in read_recipes(RECIPES.read_text(encoding="utf-8")).items()}


def show_counts(rows: Mapping[str, Mapping[str, int]]) -> None:
    columns = list(next(iter(rows.values())))
    print("| | " + " | ".join(columns) + " |\n|---|" + "---|" * len(columns))
    for name, row in rows.items():
        print(f"| {name} | " + " | ".join(str(row[column]) for column in columns) + " |")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="what", required=True, metavar="WHAT")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", type=Path, metavar="FILE", help="write the numbers to FILE as well")
    data = argparse.ArgumentParser(add_help=False, parents=[common])
    data.add_argument("--data", type=Path, default=ROOT / "data/cards", help="annotated photographs")
    data.add_argument("--images", type=int, default=200, help="how many of them (default 200)")
    data.add_argument("--seed", type=int, default=0, help="which of them")
    data.add_argument("--python", help="the interpreter of the environment to run in (default: this one)")
    kinds.add_parser("counts", parents=[common], help="count commands, files and lines")
    pip = kinds.add_parser("install", parents=[common], help="time a pip install")
    pip.add_argument("packages", nargs="+", help="names, wheels or options for pip")
    pip.add_argument("--venv", required=True, help="the environment; made unless it is there")
    us = kinds.add_parser("ours", parents=[data], help="train a detector with this project")
    us.add_argument("--weights", help="a file of torchvision's SqueezeNet, instead of the download")
    us.add_argument("--head-only", action="store_true", help="train only the head, on stored features")
    yolo = kinds.add_parser("ultralytics", parents=[data], help="convert, and time some epochs")
    yolo.add_argument("--model", default="yolo11n", help="the network (default yolo11n)")
    yolo.add_argument("--epochs", type=int, default=3, help="epochs to measure (default 3)")
    vision = kinds.add_parser("torchvision", parents=[data], help="time some steps and test images")
    vision.add_argument("--model", choices=MODELS, default=MODELS[0])
    vision.add_argument("--steps", type=int, default=9, help="steps, and images, to measure (default 9)")
    return parser.parse_args()


def main() -> None:
    arguments = parse()
    if arguments.what == "counts":
        found: dict[str, Any] = count_all()
        show_counts(found)
    elif arguments.what == "install":
        found = surroundings() | install(arguments)
    else:
        found = surroundings()
        with tempfile.TemporaryDirectory(prefix="peers_") as name:
            folder = Path(name).resolve()
            lay_out(arguments.data, arguments.images, arguments.seed, folder)
            run = {"ours": ours, "ultralytics": ultralytics, "torchvision": torchvision}[arguments.what]
            found |= run(arguments, folder)
            os.chdir(ROOT)
    if arguments.what != "counts":
        print(json.dumps(found, indent=2))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
