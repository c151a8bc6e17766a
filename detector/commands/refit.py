"""Fit a new head on the stored region features of a run: for other labels, classes or kinds of heads.

No image is opened, and the earlier run stays as it is. The features are those that train.head_only or
tools/embed.py have stored.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

from detector.commands import cli
from detector.core.errors import InputError
from detector.core.machine import process_seconds
from detector.core.progress import note, show
from detector.engine.run_folder import holds_work, run_folder
from detector.evaluation.report import write_json


def main() -> int:
    arguments = parse()
    cli.require_one_process("tools/refit.py")

    from detector.factory.resources import choose_device, use_cores
    from detector.staged.refit import EarlierRun, refit

    device = choose_device(arguments.device)
    earlier, folder = Path(arguments.earlier), Path(arguments.output)
    if folder.resolve() == earlier.resolve():
        raise InputError(f"--output {folder}: is the run that --from names; give another folder")
    if not arguments.resume and holds_work(folder):
        raise InputError(
            f"--output {folder}: holds a run already, which a refit never overwrites; go on with --resume, "
            "or give another folder"
        )
    run = EarlierRun.open(
        earlier, None if arguments.features is None else Path(arguments.features), arguments.overrides
    )
    config = run.new_config(arguments.labels, arguments.overrides)
    use_cores(config, device)
    with run_folder(folder, go_on=arguments.resume, overwrite=False):
        changes = run.changes(config)
        for line in changes.lines():
            note(line)
        training = refit(run, config, folder, device)
        results: dict[str, Any] = {
            "from": str(earlier),
            "labels": arguments.labels,
            "features": str(run.features.folder),
            "images": len(run.features.images),
            "regions": len(run.features),
            "head": config.model.head.kind,
            "checkpoint": str(training.detector),
            **changes.to_dict(),
            "seconds": round(process_seconds(), 2),
        }
        write_json(folder / "refit.json", results)
    show(f"{training.detector}: a head of kind {config.model.head.kind} for {listed_classes(results)}")
    command = ["python", "tools/evaluate.py", "--config", folder / "config.yaml"]
    note(f"score it: {shlex.join(map(str, [*command, '--checkpoint', training.detector]))}")
    return 0


def listed_classes(results: dict[str, Any]) -> str:
    from detector.core.errors import listed

    return f"{listed(results['classes_after'])}, in {results['seconds']:.1f} s"


def parse() -> argparse.Namespace:
    parser = cli.make_parser(
        __doc__ or "",
        "python tools/refit.py --from runs/mine --labels new_annotations --output runs/mine2\n  "
        "python tools/refit.py --from runs/mine --output runs/knn model.head.kind=knn",
    )
    parser.add_argument(
        "--from", dest="earlier", metavar="RUN", required=True, help="the folder of the earlier run"
    )
    parser.add_argument(
        "--labels",
        metavar="PLACE",
        help="the new annotations, in place of data.annotations: a folder, or a file of COCO's format",
    )
    parser.add_argument("--output", metavar="DIR", required=True, help="the folder of the new run")
    parser.add_argument(
        "--features", metavar="DIR", help="where tools/embed.py has stored the run's region features"
    )
    parser.add_argument("--resume", action="store_true", help="go on with a refit that was stopped")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config values to replace")
    cli.add_device_argument(parser)
    arguments = parser.parse_intermixed_args()
    if arguments.labels is None and not arguments.overrides:
        raise InputError("nothing would change: give --labels, or values such as model.head.kind=knn")
    return arguments
