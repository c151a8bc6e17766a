"""Training in float16, whose loss is scaled, against float32 and bfloat16: time, memory, and the losses.

VGG16 is timed with its batches in memory, as in `steps`. A tiny detector is trained for more steps, because
that of `steps` hardly changes its weights.
"""

from __future__ import annotations

import copy
import gc
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, get_args

import torch
import yaml

from benchmarks.gpu_check import repeat
from benchmarks.gpu_check.result import Result, part_arguments
from benchmarks.gpu_check.step_data import step_config
from benchmarks.gpu_check.steps import Steps
from detector.config import load_config, schema
from detector.data.generated.dataset import generate_voc
from detector.engine.run_log import read_log
from detector.tasks.start import start_run

TABLE = "Losses of a tiny detector"
TRAINED, EVERY = 120, 20
"""Steps of the tiny detector, and the steps whose losses are averaged at both ends."""
MOST_WORSE = 1.25
"""The last losses may be so many times as high as in float32; the batches are the same."""


def accepted(precision: str) -> bool:
    """Whether ``train.precision`` knows the value."""
    return precision in get_args(schema.Precision)


def time_steps(data: Path, folder: Path, precision: str, rehearsal: bool, result: Result) -> None:
    """Write the time of a step of VGG16 and its peak memory; a weight that is not finite is a fault."""
    device, warm_up, count = ("cpu", 1, 2) if rehearsal else ("cuda", 8, 40)
    gc.collect()  # the network before
    apart = 0 if rehearsal else torch.cuda.memory_allocated()
    config, _ = step_config(data, folder, [f"train.precision={precision}"], rehearsal=rehearsal)
    steps = Steps(config, device, folder / precision, count, result)
    steps.row("ours, in memory", steps.ours(warm_up), apart)
    bad = [name for name, value in steps.task.model.state_dict().items() if not bool(value.isfinite().all())]
    if bad:
        result.fault(f"{precision}: weights that are not finite: {', '.join(bad)[:200]}")


def train_tiny(
    folder: Path, precision: str, rehearsal: bool, known: dict[str, float], result: Result
) -> None:
    """Write the first and the last losses of a run; they have to fall, and to end near those of float32.

    ``known`` has the last losses by precision, and gets those of this run.
    """
    steps, every = (4, 2) if rehearsal else (TRAINED, EVERY)
    changes = [f"train.steps={steps}", f"train.log_every={every}", f"train.checkpoint_every={steps}"]
    config = load_config(folder / "tiny.yaml", [*changes, f"train.precision={precision}"])
    place = folder / f"tiny_{precision}"
    place.mkdir()
    start_run(config, place, "cpu" if rehearsal else "cuda").run()
    lines = [line for line in read_log(place / "log.jsonl") if line["kind"] == "train"]
    first, last = lines[0]["loss"], lines[-1]["loss"]
    row = {"precision": precision, "steps": steps, "first losses, mean": first, "last losses, mean": last}
    row |= {"ms per step": 1e3 * statistics.median(line["seconds_per_step"] for line in lines)}
    row |= {name: lines[-1].get(name) for name in ("loss_scale",)}
    row |= {"skipped steps": sum(line.get("skipped_steps", 0) for line in lines)}
    known[precision] = last
    result.row(TABLE, {**row, "last, against float32": last / known["float32"]})
    if not rehearsal and not last < min(first, MOST_WORSE * known["float32"]):
        result.fault(f"{precision}: the loss does not fall as in float32: from {first:.3g} to {last:.3g}")


def prepare_tiny(folder: Path) -> None:
    generate_voc(folder / "voc", train_images=16, test_images=2, image_size=(96, 128), seed=1)
    values: dict[str, Any] = copy.deepcopy(repeat.CONFIG)
    values["data"]["root"] = str(folder / "voc")
    values["model"]["head"]["dropout"] = 0.0
    (folder / "tiny.yaml").write_text(yaml.safe_dump(values))


def main() -> int:
    parser, result = part_arguments(__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="the project's folder of data sets")
    arguments = parser.parse_args()
    rehearsal = arguments.dry_run
    precisions = ["float32", "bfloat16"]
    if not accepted("float16"):
        result.fault("not there: train.precision does not accept float16")
    elif not rehearsal:  # a CPU does not compute in float16
        precisions.append("float16")
    known: dict[str, float] = {}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as temporary:
        folder = Path(temporary)
        prepare_tiny(folder)
        for precision in precisions:
            result.attempt(train_tiny, folder, precision, rehearsal, known, result)
        for precision in precisions:
            result.attempt(time_steps, arguments.data, folder, precision, rehearsal, result)
    return 1 if result.faults else 0


if __name__ == "__main__":
    sys.exit(main())
