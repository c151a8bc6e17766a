#!/usr/bin/env python3
"""How long a run on a data set of COCO's size takes to its first step, and how much memory it needs.

    python benchmarks/coco_scale.py FOLDER                          118,287 training images; about 4 GB
    python benchmarks/coco_scale.py FOLDER --images 5000            a quick run
    python benchmarks/coco_scale.py FOLDER --base ../old-checkout   and the same for another version

The set is made in FOLDER unless it is there, and stays there; delete it yourself. Its images are links to a
few copies of one JPEG, its objects have polygons, and a store holds 1179 dense proposals per image. Then
processes start a run, one after the other: for the first time, without any cache; again, in another folder;
and with ``resume``. Each makes four steps with a small backbone and ends. The table has the seconds to the
end of the first step, from the start of the process and by part, and the process's resident memory. A part's
seconds are without those of parts within it; "rest" has the imports, the network and the step. "processor" is
the time of the processor until then, which other work on the machine changes least.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

TRAIN_IMAGES, TEST_IMAGES, OBJECTS = 118_287, 5_000, 844_004
HEIGHT, WIDTH = 480, 640
CLASSES = 80
LINKS_PER_FILE = 30_000  # ext4 allows 65,000 links to one file
STEPS = 4
RUNS = {"first start": ("first", False), "second start": ("second", False), "resume": ("first", True)}
PARTS = ("annotations", "class names", "proposals", "recall", "statistics", "fingerprints", "rest")


def main() -> None:
    arguments = parse_arguments()
    folder = Path(arguments.folder).resolve()
    if arguments.measure:
        measure(folder, arguments.measure, Path(arguments.work), resume=arguments.resume)
        return
    make_set(folder, arguments.images)
    here = Path(__file__).resolve().parents[1]
    versions = {"this version": here}
    if arguments.base:
        versions = {"base": Path(arguments.base).resolve(), **versions}
    rows = {name: list(runs_of(folder, name, checkout)) for name, checkout in versions.items()}
    show(rows)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="where the set is, or will be made")
    parser.add_argument("--images", type=int, default=TRAIN_IMAGES, help="training images")
    parser.add_argument("--base", metavar="FOLDER", help="the checkout of another version to measure")
    parser.add_argument("--measure", metavar="NAME", help=argparse.SUPPRESS)
    parser.add_argument("--work", default="", help=argparse.SUPPRESS)
    parser.add_argument("--resume", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def make_set(folder: Path, images: int) -> None:
    """Make the data set and the store in ``folder``, or check that they are there with as many images."""
    done = folder / "set.json"
    facts = {"images": images, "test_images": TEST_IMAGES}
    if done.is_file():
        if json.loads(done.read_text()) != facts:
            sys.exit(f"{folder} has a set of another size; delete it or name another folder")
        return
    folder.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    names: list[str] = []
    for split, count, seed in (("train", images, 0), ("test", TEST_IMAGES, 1)):
        link_images(folder / split, count)
        write_annotations(folder / f"instances_{split}.json", split, count, seed)
        names += [f"{split}/{number:012d}.jpg" for number in range(1, count + 1)]
    write_store(folder / "store", names)
    done.write_text(json.dumps(facts))
    print(f"made {len(names)} images in {time.perf_counter() - began:.0f} s", flush=True)


def link_images(folder: Path, count: int) -> None:
    import cv2

    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    picture = cv2.resize(pixels, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    for number in range(count):
        path = folder / f"{number + 1:012d}.jpg"
        if number % LINKS_PER_FILE == 0:
            cv2.imwrite(str(path), picture)
            original = path
        else:
            path.hardlink_to(original)


def write_annotations(path: Path, split: str, images: int, seed: int) -> None:
    """Write COCO's keys, with about the number of objects per image and the bytes per object that it has."""
    rng = np.random.default_rng(seed)
    objects = round(images * OBJECTS / TRAIN_IMAGES)
    owners = np.sort(rng.integers(1, images + 1, objects)).tolist()
    corners = (rng.random((objects, 2)) * [WIDTH - 110, HEIGHT - 110]).round(2).tolist()
    sides = (4 + rng.random((objects, 2)) * 100).round(2).tolist()
    kinds = rng.integers(1, CLASSES + 1, objects).tolist()
    polygons = [json.dumps([(rng.random(26) * 400).round(2).tolist()]) for _ in range(500)]
    entry = '{"license":%d,"file_name":"%012d.jpg","coco_url":"http://images.cocodataset.org/%s/%012d.jpg",'
    entry += f'"height":{HEIGHT},"width":{WIDTH},"date_captured":"2013-11-14 17:02:52","id":%d}}'
    with path.open("w") as file:
        file.write('{"info":{"year":2017},"licenses":[],"images":[')
        lines = (entry % (n % 8, n, split, n, n) for n in range(1, images + 1))
        file.write(",\n".join(lines) + '],"annotations":[')
        things = zip(owners, corners, sides, kinds, strict=True)
        for number, (image, (x, y), (width, height), kind) in enumerate(things, start=1):
            file.write(",\n" if number > 1 else "")
            outline, crowd = polygons[number % 500], int(number % 80 == 0)
            area = width * height * 0.6
            file.write(
                f'{{"segmentation":{outline},"area":{area:.4f},"iscrowd":{crowd},"image_id":{image},'
                f'"bbox":[{x},{y},{width},{height}],"category_id":{kind},"id":{number}}}'
            )
        categories = [
            {"supercategory": "thing", "id": n, "name": f"class {n}"} for n in range(1, CLASSES + 1)
        ]
        file.write('],"categories":' + json.dumps(categories) + "}")


def write_store(path: Path, names: list[str]) -> None:
    """Write the dense proposals of every image, which depend only on its size."""
    from detector.proposals.dense import dense_proposals
    from detector.proposals.store import Entry, ProposalStore

    entry = Entry(dense_proposals((HEIGHT, WIDTH)), None, (HEIGHT, WIDTH))
    store = ProposalStore.create(path, generator="dense", parameters={})
    for start in range(0, len(names), 1024):
        store.append(dict.fromkeys(names[start : start + 1024], entry))
    store.compact()


def runs_of(folder: Path, name: str, checkout: Path) -> Iterator[dict[str, Any]]:
    """Yield what each of `RUNS` measured for the version in ``checkout``."""
    work = folder / f"work {name}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    for path in set((folder / "store").iterdir()) - _made(folder / "store"):  # kept by an earlier version
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for run, (target, resume) in RUNS.items():
        command = [sys.executable, __file__, str(folder), "--measure", target, "--work", str(work)]
        environment = {**os.environ, "PYTHONPATH": str(checkout)}
        began = time.time()
        subprocess.run(
            [*command, *(["--resume"] if resume else [])],
            env={**environment, "COCO_SCALE_BEGAN": str(began)},
            cwd=work,
            check=True,
        )
        print(f"{name}, {run}: done", flush=True)
        yield json.loads((work / "measured.json").read_text())
    shutil.rmtree(work)


def _made(store: Path) -> set[Path]:
    """Return the files that the store itself is made of."""
    return {path for path in store.iterdir() if path.suffix == ".npy" or path.name == "manifest.json"}


def measure(folder: Path, target: str, work: Path, *, resume: bool) -> None:
    """Start a run in this process as the tools do; write the times and the memory, and end the process."""
    from detector.config import load_config
    from detector.tasks.start import start_run

    clock = Clock(float(os.environ["COCO_SCALE_BEGAN"]))
    clock.watch_parts()
    path = work / "config.json"
    path.write_text(json.dumps(config_of(folder)))
    run = start_run(load_config(path, []), work / target, "cpu", resume=resume)
    step, done = run.task.step, 0

    def timed_step(batch: Any, count: float) -> Any:
        nonlocal done
        losses = step(batch, count)
        done += 1
        if done == 1:
            clock.stop()
        if done == STEPS:
            peak, now, own = (memory(name) for name in ("VmHWM", "VmRSS", "RssAnon"))
            facts = {"seconds": clock.total, "processor": clock.processor, "parts": clock.parts}
            (work / "measured.json").write_text(json.dumps({**facts, "peak": peak, "later": now, "own": own}))
            os._exit(0)
        return losses

    run.task.step = timed_step  # type: ignore[method-assign]
    (work / target).mkdir(exist_ok=True)
    run.run()


def config_of(folder: Path) -> dict[str, Any]:
    sampling = {"rois_per_image": 64, "background_iou": [0.0, 0.5]}
    return {
        "seed": 3,
        "data": {
            "format": "coco",
            "root": str(folder),
            "annotations": "instances_{split}.json",
            "images": "{split}",
            "train_split": "train",
            "test_split": "test",
            "workers": 0,  # an older checkout's worker processes would stay when this one ends
        },
        "proposals": {"file": str(folder / "store"), "format": "store"},
        "model": {
            "backbone": {"name": "small"},
            "pool": {"output_size": 4},
            "head": {"hidden": [32, 32]},
            "box": {"normalize": "dataset"},
        },
        "train": {
            "steps": 100,
            "images_per_batch": 2,
            "scales": [240],
            "max_size": 320,
            "sampling": sampling,
            "log_every": 1,
            "checkpoint_every": 2,
        },
        "test": {"scales": [240], "max_size": 320},
    }


class Clock:
    """Seconds since ``began``, in total and by part; a part's seconds are without those of parts within."""

    def __init__(self, began: float) -> None:
        self.began = began
        self.total = self.processor = 0.0
        self.parts = dict.fromkeys(PARTS, 0.0)
        self._inner: list[float] = []

    def watch_parts(self) -> None:
        from detector.data import fingerprint
        from detector.factory import data, proposals
        from detector.tasks.detection import RegionTask

        self._watch(data, "load_split", "annotations")
        self._watch(data, "class_names", "class names")
        self._watch(proposals, "open_proposals", "proposals")
        self._watch(proposals, "with_proposals", "proposals")
        self._watch(proposals, "report_recall", "recall")
        self._watch(RegionTask, "_measured_coder", "statistics")
        self._watch(fingerprint, "fingerprint", "fingerprints")

    def _watch(self, owner: Any, name: str, part: str) -> None:
        """Time a function wherever a module of the project has it by this name."""
        function = getattr(owner, name)
        timed = self._timed(function, part)
        setattr(owner, name, timed)
        for module in [one for key, one in sys.modules.items() if key.startswith("detector.")]:
            if getattr(module, name, None) is function:
                setattr(module, name, timed)

    def _timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def call(*values: Any, **named: Any) -> Any:
            began = time.perf_counter()
            self._inner.append(0.0)
            try:
                return function(*values, **named)
            finally:
                seconds = time.perf_counter() - began
                self.parts[part] += seconds - self._inner.pop()
                if self._inner:
                    self._inner[-1] += seconds

        return call

    def stop(self) -> None:
        self.total, self.processor = time.time() - self.began, time.process_time()
        self.parts["rest"] = self.total - sum(self.parts.values())


def memory(name: str) -> float:
    """Return one of this process's counts of memory, in MiB (Linux)."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) / 1024


def show(rows: dict[str, list[dict[str, Any]]]) -> None:
    heads = ("version", "start", "first step", "processor", *PARTS, "peak MiB", "later MiB", "of its own")
    print("| " + " | ".join(heads) + " |")
    print("|---|---" + "|---:" * (len(heads) - 2) + "|")
    for version, runs in rows.items():
        for run, facts in zip(RUNS, runs, strict=True):
            seconds = [facts["seconds"], facts["processor"], *(facts["parts"][part] for part in PARTS)]
            sizes = [facts[name] for name in ("peak", "later", "own")]
            cells = [version, run, *(f"{one:.1f} s" for one in seconds), *(f"{one:.0f}" for one in sizes)]
            print("| " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
