"""Damages valid files of every format at random and reads them: `make fuzz-readers`.

    python -m tests.fuzz_readers --cases 10000 --seed 0

A reader may accept a damaged file or refuse it with an `InputError` that names it. Anything else is a
failure: another exception, more than 5 seconds of processor time, more than 1.5 GiB of memory beyond what
the process has. A case is a function of seed and number, so ``--first N --cases 1`` runs a failure again.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2

from detector.config import load_config
from detector.data.coco_json import read_coco
from detector.data.convert import voc_to_coco
from detector.data.generated import generate_voc
from detector.data.images import read_image
from detector.data.voc_xml import read_annotation
from detector.errors import InputError
from detector.evaluation.coco_results import read_coco_results
from detector.progress import track
from detector.proposals.readers import read_images
from tests.fuzz_checkpoints import change_checkpoint, read_checkpoint, write_checkpoint
from tests.proposals.formats import (
    make_boxes,
    make_records,
    write_coco,
    write_detectron,
    write_detectron2,
    write_mat,
    write_mmdetection,
    write_npz,
)
from tests.run_records import record_seeds

PROJECT = Path(__file__).parents[1]
SECONDS = 5
MEMORY = 3 * 2**29
NUMBERS = (
    b"0",
    b"-1",
    b"NaN",
    b"1e999",
    b"-Infinity",
    b"4294967296",
    b"9" * 30,
    b"0.1",
    b"1000000000",
    b"true",
)
TOKENS = (
    *(b"<!DOCTYPE a [<!ENTITY b 'c'>]>", b"<object>", b"</", b"&lt;", b"&a;", b"]]>", b"[", b"{", b"}", b"]"),
    *(b'"', b"\x00", b"\xff\xfe", b"!!python/object/apply:os.system ", b"&a ", b"*a", b"../../", b"null"),
    *(b"cos\nsystem\n", b"\x80\x05", b"R", b"\xff\xc0", b"\xff\xd9", b"PK\x03\x04", b"\n", b"\r\n", b"\t"),
)


class Outcome(NamedTuple):
    """One case: ``fault`` is None where the reader did as it should; ``memory`` is by how many bytes the
    peak of its process has risen since it began."""

    case: int
    kind: str
    refused: bool
    seconds: float
    memory: int
    fault: str | None


class Seed(NamedTuple):
    """A valid file and how to read it."""

    path: Path
    read: Callable[[Path], object]
    change: Callable[[bytes, random.Random], bytes] | None = None
    """How a case differs from the file; None is `damage`."""


def make_seeds(folder: Path) -> dict[str, Seed]:
    """Write a valid file of every kind to ``folder``."""
    root = folder / "voc"
    generate_voc(root, train_images=2, test_images=1, image_size=(64, 80), seed=0)
    voc_to_coco(root, "trainval", folder / "instances.json")
    results = [{"image_id": 1, "category_id": 1, "bbox": [1, 2, 30.5, 4], "score": 0.5} for _ in range(4)]
    (folder / "detections.json").write_text(json.dumps(results))
    config = (PROJECT / "configs" / "quickstart.yaml").read_bytes()
    (folder / "config.yaml").write_bytes(config)
    boxes = make_boxes(make_records(["000004", "000012"]), 6)
    proposals = {
        "npz": write_npz(folder, boxes),
        "mat": write_mat(folder, boxes),
        "detectron": write_detectron(folder, boxes),
        "detectron2": write_detectron2(folder, boxes),
        "mmdetection": write_mmdetection(folder, boxes, 0),
        "coco": write_coco(folder, boxes),
    }
    return {
        "xml": Seed(next((root / "Annotations").iterdir()), read_annotation),
        "yaml": Seed(folder / "config.yaml", load_config),
        "jpeg": Seed(next((root / "JPEGImages").iterdir()), read_image),
        "coco annotations": Seed(folder / "instances.json", read_coco),
        "coco results": Seed(
            folder / "detections.json", partial(read_coco_results, image_ids=[1], category_ids=[1])
        ),
        **{
            f"proposals, {kind}": Seed(path, partial(read_all, file_format=kind))
            for kind, path in proposals.items()
        },
        "checkpoint": Seed(write_checkpoint(folder), read_checkpoint),
        "checkpoint values": Seed(folder / "step_2.pt", read_checkpoint, change_checkpoint),
        **{kind: Seed(path, read) for kind, (path, read) in record_seeds(folder).items()},
    }


def read_all(path: Path, file_format: str) -> object:
    return list(read_images(path, file_format))


def damage(content: bytes, rng: random.Random) -> bytes:
    """Return ``content`` with one to six changes, of single bytes, blocks, numbers or the end."""
    found = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 6))):
        place = rng.randrange(len(found) + 1)
        length = rng.choice((1, 2, 8, 40, 400))
        match rng.randrange(8):
            case 0:
                found[place : place + 1] = bytes([rng.randrange(256)])
            case 1 if place < len(found):
                found[place] ^= 1 << rng.randrange(8)
            case 2:
                del found[place : place + length]
            case 3:
                found[place:place] = found[place : place + length] * rng.choice((1, 1, 50))
            case 4:
                found[place:place] = rng.choice(TOKENS)
            case 5:
                _change_number(found, rng)
            case 6:
                found[place : place + 4] = rng.choice((b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff", b"\0\0\0\0"))
            case _ if rng.random() < 0.2:
                del found[place:]
    return bytes(found)


def _change_number(content: bytearray, rng: random.Random) -> None:
    numbers = list(re.finditer(rb"-?\d+(\.\d+)?", content))
    if numbers:
        start, end = rng.choice(numbers).span()
        content[start:end] = rng.choice(NUMBERS)


def run_case(case: int, seeds: dict[str, Seed], seed: int) -> Outcome:
    """Damage one file and read it."""
    rng = random.Random(f"{seed}:{case}")
    kind = list(seeds)[case % len(seeds)]
    valid = seeds[kind]
    folder = Path(tempfile.gettempdir()) / f"fuzz_{os.getpid()}"
    folder.mkdir(exist_ok=True)
    path = folder / valid.path.name
    path.write_bytes((valid.change or damage)(valid.path.read_bytes(), rng))
    refused, fault = False, None
    start = time.process_time()  # not the clock's: other work on the machine is no fault of the reader
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            valid.read(path)
    except InputError as error:
        refused = True
        if str(path) not in str(error):
            fault = f"the file is not named: {error}"
    except BaseException as error:
        fault = f"{type(error).__name__}: {error}"[:300]
    seconds = time.process_time() - start
    if seconds > SECONDS and fault is None:
        fault = f"took {seconds:.1f} s"
    path.unlink()
    return Outcome(case, kind, refused, seconds, peak() - _start.get("peak", 0), fault)


def peak() -> int:
    """Return the most memory that this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def guarded_case(case: int, seeds: dict[str, Seed], seed: int) -> Outcome:
    """`run_case` with an alarm that ends a reader which does not come back."""
    signal.signal(signal.SIGPROF, _late)
    signal.setitimer(signal.ITIMER_PROF, 3 * SECONDS)
    try:
        return run_case(case, seeds, seed)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _late(*_: Any) -> None:
    raise TimeoutError(f"no answer after {3 * SECONDS} s")


_start: dict[str, int] = {}


def _set_up_worker() -> None:
    """Limit the memory, and silence the decoders' own words about damaged files."""
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, mapped + MEMORY))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    cv2.setNumThreads(0)
    _start["peak"] = peak()


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kind", default="", help="only kinds of file whose name has this text in it")
    arguments = parser.parse_args()
    cases = range(arguments.first, arguments.first + arguments.cases)
    with tempfile.TemporaryDirectory() as folder:
        tempfile.tempdir = folder
        seeds = {kind: one for kind, one in make_seeds(Path(folder)).items() if arguments.kind in kind}
        with ProcessPoolExecutor(len(os.sched_getaffinity(0)), initializer=_set_up_worker) as pool:
            results = pool.map(partial(guarded_case, seeds=seeds, seed=arguments.seed), cases, chunksize=25)
            outcomes = list(track(results, len(cases), "damaged files"))
    return report(outcomes)


def report(outcomes: list[Outcome]) -> int:
    """Print what happened by kind of file; return the number of failures, at most 1."""
    for kind in dict.fromkeys(one.kind for one in outcomes):
        mine = [one for one in outcomes if one.kind == kind]
        refused = sum(one.refused for one in mine)
        longest = max(one.seconds for one in mine)
        print(f"{kind:24} {len(mine):6} cases {refused:6} refused, longest {longest * 1000:6.0f} ms")
    failures = [one for one in outcomes if one.fault is not None]
    for one in failures:
        print(f"FAILED case {one.case} ({one.kind}): {one.fault}")
    growth = max(one.memory for one in outcomes)
    print(
        f"{len(outcomes)} cases, {len(failures)} failures {dict(Counter(one.kind for one in failures))}; ",
        end="",
    )
    print(f"longest {max(one.seconds for one in outcomes):.2f} s, memory grew by {growth / 2**20:.0f} MiB")
    return int(bool(failures))


if __name__ == "__main__":
    raise SystemExit(main())
