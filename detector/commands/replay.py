"""Repeat the steps before a loss that was not finite, and report the first value that is not finite.

A run whose loss becomes NaN or infinite at step N ends and leaves faults/step_N.pt in its folder. The replay
loads the run's last checkpoint before that step, computes the steps up to it again with torch's anomaly
detection, and names the layer, gradient or parameter that is the first with a value that is not finite. The
run's folder stays as it is. Exit status 0: such a value was found; 1: all values stayed finite."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from detector.commands import cli
from detector.config import Config
from detector.core.errors import InputError, listed
from detector.core.progress import note, show

EXAMPLE = """python tools/replay.py runs/mine/faults/step_120.pt
  python tools/replay.py runs/mine/faults/step_120.pt train.clip_gradient_norm=10"""


def main() -> int:
    arguments = parse()

    from detector.config.load import parse_stored
    from detector.engine.faults import is_same, read_fault
    from detector.engine.replay import replay
    from detector.factory.resources import choose_device, use_cores

    path = Path(arguments.fault)
    fault = read_fault(path)
    # The layers of a compiled network cannot be inspected one by one.
    config = parse_stored(fault.config, ["train.compile=false", *arguments.overrides], str(path))
    device = choose_device(arguments.device)
    use_cores(config, device)
    if device.partition(":")[0] != fault.device.partition(":")[0]:  # "cuda:0" is a GPU like "cuda"
        note(f"warning: the run computed on {fault.device}, the replay computes on {device}; bits may differ")

    def compare(step: int, parts: list[Any]) -> None:
        if step == fault.step and not is_same(parts, fault.batches):
            note(
                f"warning: the batch of step {step} is not the one in {path}: images or settings have changed"
            )

    with TemporaryDirectory() as place:
        run = start(config, path, fault.step, Path(place), device)
        begin = run.step
        outcome = replay(run, fault.step, compare)
    finding = outcome.finding
    result = {
        "fault": str(path),
        "losses": {name: str(value) for name, value in fault.losses.items()},
        "from_step": begin,
        "step": outcome.step,
        "image_ids": outcome.image_ids,
        "finding": None if finding is None else asdict(finding),
    }
    show(json.dumps(result, indent=2) if arguments.json else "\n".join(describe(result, finding)))
    return 1 if finding is None else 0


def start(config: Config, path: Path, step: int, place: Path, device: str) -> Any:
    """Return the run as of its last sound checkpoint before ``step``, in the empty folder ``place``."""
    from detector.engine.checkpoint import DamagedCheckpoint, load_resumable, save_checkpoint
    from detector.engine.faults import checkpoints_before
    from detector.tasks.start import build_task, start_run

    folder = path.resolve().parent.parent
    train = config.train.model_copy(update={"callbacks": ()})  # a replay is no run to report
    config = config.model_copy(update={"train": train})
    for checkpoint in reversed(checkpoints_before(folder, step)):
        try:
            state = load_resumable(checkpoint)
        except DamagedCheckpoint as error:
            note(f"warning: {error}")
            continue
        known = {key: value for key, value in state.items() if key != "file"}
        save_checkpoint(
            place / "checkpoints" / checkpoint.name, {**known, "best": {}}
        )  # no best.pt is needed
        note(f"replaying from {checkpoint}")
        break
    else:
        note("there is no checkpoint from before the step: replaying from the first step")
    return start_run(
        config,
        place,
        device,
        resume=(place / "checkpoints").is_dir(),
        accept_changed_data=True,
        make_task=fine_tuning(folder) or build_task,
        ignored=["train.initial_weights", "train.callbacks"],
    )


def fine_tuning(folder: Path) -> Any:
    """Return what builds the task of a fine-tuning stage in ``folder``; None for a run of another kind."""
    from detector.config import load_config
    from detector.staged.runner import fine_tuning_in

    whole = folder.parent.parent
    if folder.parent.name != "stages" or not (whole / "config.yaml").is_file():
        return None
    name = folder.name.partition("_")[2]
    kinds = {stage.name: stage.kind for stage in load_config(str(whole / "config.yaml"), []).stages}
    if name not in kinds:
        raise InputError(f"{whole / 'config.yaml'}: has no stage {name!r}, whose folder is {folder}")
    return fine_tuning_in(whole) if kinds[name] == "fine_tune" else None


def describe(result: dict[str, Any], finding: Any) -> list[str]:
    """Return the outcome as lines of text."""
    if finding is None:
        return [f"steps {result['from_step'] + 1} to {result['step']}: all values stayed finite"]
    kind = f" ({finding.kind})" if finding.kind else ""
    lines = [
        f"step {result['step']}: the first value that is not finite is in the {finding.part} "
        f"{finding.name}{kind}"
    ]
    if finding.values is not None:
        lines.append(f"  values: {finding.values}")
    lines += [f"  input {number}: {values}" for number, values in enumerate(finding.inputs)]
    lines += [f"  {name}: {values}" for name, values in finding.parameters.items()]
    return [*lines, f"  images: {listed(result['image_ids'])}"]


def parse() -> argparse.Namespace:
    parser = cli.make_parser(__doc__ or "", EXAMPLE)
    parser.add_argument("fault", metavar="FILE", help="faults/step_N.pt in a run's folder, or in a stage's")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="config values to try instead of the run's"
    )
    cli.add_device_argument(parser)
    parser.add_argument("--json", action="store_true", help="print the outcome as JSON")
    return parser.parse_intermixed_args()
