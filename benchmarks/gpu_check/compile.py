"""Times training steps of VGG16 with ``train.compile`` against the usual ones, also with the loader.

The first step of a compiled network includes compiling it. As in `loop`, the times come from the log of a
run, and "alone" means that the batches lie in the device's memory.
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.gpu_check.loop import (
    MOST_SLOWER,
    REHEARSED,
    STEPS,
    TARGET_MINUTES,
    Length,
    Loop,
    Timed,
)
from benchmarks.gpu_check.photographs import photograph_config
from benchmarks.gpu_check.result import Result, part_arguments, seconds_left
from detector.config.schema import TrainConfig
from detector.factory.resources import use_cores, worker_count

TABLE, TARGETS = "Compiled training steps, VGG16", "Compiled training steps, targets"
PRECISIONS = {"bfloat16": 0.0, "float32": 45.0}
"""The precisions in order of importance, and the seconds that must be left for each."""


def time_compiled(
    photographs: Path, folder: Path, precision: str, device: str, rehearsal: bool, result: Result
) -> None:
    """Write a row per way to run a step, first not compiled and then compiled, and the targets."""
    timed: dict[tuple[str, str], Timed] = {}
    for kind in ("eager", "compiled"):
        changes = [f"train.precision={precision}", "data.workers=null"]
        changes += ["train.compile=true"] if kind == "compiled" else []
        config = photograph_config(photographs, changes, rehearsal=rehearsal)
        use_cores(config, device)
        workers = worker_count(config, device)
        loop = Loop(config, device, folder / f"{kind}_{precision}", REHEARSED if rehearsal else Length(), result)
        seconds = first_steps(loop) if kind == "compiled" else None
        ways = {"alone": loop.alone, f"loader, {workers} threads": lambda loop=loop: loop.with_loader(workers)}
        for way, measure in ways.items():
            timed[kind, way] = one = measure()
            base = timed["eager", way].step
            row = {"what": f"{kind}, {way}", "precision": precision, "ms per step": 1e3 * one.step}
            row |= {"against eager": one.step / base, "against alone": one.step / timed[kind, "alone"].step}
            row |= {"data_wait_share": one.wait_share, f"{STEPS} steps, minutes": one.step * STEPS / 60}
            result.row(TABLE, {**row, "compiling, seconds": seconds if way == "alone" else None})
        write_targets(kind, precision, *(timed[kind, way] for way in ways), result)


def first_steps(loop: Loop) -> float:
    """Return how long the first steps take, which compile the network, in seconds."""
    usual, began = loop.length, time.perf_counter()
    loop.length = replace(usual, every=1, lines=1)
    loop.alone()
    loop.length = usual
    return time.perf_counter() - began


def write_targets(kind: str, precision: str, alone: Timed, loaded: Timed, result: Result) -> None:
    minutes = loaded.step * STEPS / 60
    slower = loaded.step / alone.step
    for target, measured, met in (
        (f"{STEPS} steps in {TARGET_MINUTES:g} minutes", f"{minutes:.1f}", minutes <= TARGET_MINUTES),
        (f"at most {MOST_SLOWER:g} times as long as alone", f"{slower:.2f}", slower <= MOST_SLOWER),
    ):
        row = {"target": target, "network": kind, "precision": precision, "measured": measured}
        result.row(TARGETS, {**row, "outcome": "met" if met else "missed"})


def main() -> int:
    parser, result = part_arguments(__doc__.splitlines()[0])
    parser.add_argument("--photographs", type=Path, required=True, help="folder, filled if it is empty")
    arguments = parser.parse_args()
    if "compile" not in TrainConfig.model_fields:
        result.fault("not there: there is no train.compile")
        return 1
    device = "cpu" if arguments.dry_run else "cuda"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        for precision, needed in PRECISIONS.items():
            if seconds_left() < needed:
                result.note(f"{precision} is skipped: {seconds_left():.0f} s were left")
                continue
            given = (arguments.photographs, Path(folder), precision, device, arguments.dry_run, result)
            result.attempt(time_compiled, *given)
    return 1 if result.faults else 0


if __name__ == "__main__":
    sys.exit(main())
