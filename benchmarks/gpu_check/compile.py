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
from typing import Any, NamedTuple

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


class Setting(NamedTuple):
    """Where the photographs and the runs lie, and where everything is computed."""

    photographs: Path
    folder: Path
    device: str
    rehearsal: bool


def time_compiled(setting: Setting, precision: str, result: Result) -> None:
    """Write how long steps take, first not compiled and then compiled, and whether the targets are met."""
    eager = time_kind(setting, "eager", precision, None, result)
    time_kind(setting, "compiled", precision, eager, result)


def time_kind(
    setting: Setting, kind: str, precision: str, eager: tuple[Timed, Timed] | None, result: Result
) -> tuple[Timed, Timed]:
    """Return the times of a step alone and with the loader, after writing their rows.

    ``eager`` are those of the network that is not compiled, None where this is that network.
    """
    changes = [f"train.precision={precision}", "data.workers=null"]
    changes += ["train.compile=true"] if kind == "compiled" else []
    config = photograph_config(setting.photographs, changes, rehearsal=setting.rehearsal)
    use_cores(config, setting.device)
    workers = worker_count(config, setting.device)
    length = REHEARSED if setting.rehearsal else Length()
    loop = Loop(config, setting.device, setting.folder / f"{kind}_{precision}", length, result)
    seconds, graphs = (first_steps(loop), compiled_graphs()) if kind == "compiled" else (None, None)
    if seconds is not None:
        result.note(f"{precision}: the first steps, which compile {graphs} graphs, took {seconds:.0f} s")
    timed = loop.alone(), loop.with_loader(workers)
    again = None if graphs is None else compiled_graphs() - graphs
    for what, one, base in zip(("alone", f"loader, {workers} threads"), timed, eager or timed, strict=True):
        row: dict[str, Any] = {
            "what": f"{kind}, {what}",
            "precision": precision,
            "ms per step": 1e3 * one.step,
        }
        row |= {"against eager": one.step / base.step, "against alone": one.step / timed[0].step}
        row |= {"data_wait_share": one.wait_share, f"{STEPS} steps, minutes": one.step * STEPS / 60}
        row |= {"compiling, seconds": seconds, "graphs": graphs, "compiled again later": again}
        result.row(TABLE, row)
    write_targets(kind, precision, *timed, result)
    return timed


def first_steps(loop: Loop) -> float:
    """Return how long the first steps take, which compile the network, in seconds."""
    usual, began = loop.length, time.perf_counter()
    loop.length = replace(usual, every=1, lines=1)
    loop.alone()
    loop.length = usual
    return time.perf_counter() - began


def compiled_graphs() -> int:
    """Return how many graphs this process has compiled so far."""
    from torch._dynamo.utils import counters

    return int(counters["stats"]["unique_graphs"])


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
            setting = Setting(arguments.photographs, Path(folder), device, arguments.dry_run)
            result.attempt(time_compiled, setting, precision, result)
    return 1 if result.faults else 0


if __name__ == "__main__":
    sys.exit(main())
