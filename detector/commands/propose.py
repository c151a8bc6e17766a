"""Make proposals for a data set or a folder of images, convert a file of proposals, or describe one.

The proposals are written to a ProposalStore, which a config can name as proposals.file with format: store;
the proposals of the config's own method are written where training looks for them. A job that was stopped
continues where it stopped. An image that fails or takes longer than --time-limit is reported, gets no
proposals, and is tried again in the next run; the exit status is then 1. proposals.missing in the config sets
what training does with such images. Started by torchrun, the processes share the images."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from detector.commands import cli
from detector.config import load_config
from detector.core.errors import InputError, nearest
from detector.core.progress import said_once, show
from detector.proposals.convert import FAULT_POLICIES
from detector.proposals.inspection import describe, inspect
from detector.proposals.readers import FORMATS

EXAMPLE = """python tools/propose.py --config quickstart
  python tools/propose.py --images photos/ --output photos_store proposals.mode=quality
  python tools/propose.py --inspect voc_2007_test.mat
  python tools/propose.py --from voc_2007_test.mat --format mat --config mine.yaml --split test \\
      --output voc_2007_test_store
  python tools/propose.py --config mine.yaml --shard 2/8 --output part_2
  python tools/propose.py --merge part_1 part_2 --output whole"""


def main() -> int:
    arguments = parse()
    for option in ("inspect", "merge", "source"):
        if getattr(arguments, option):
            cli.require_one_process(f"--{option.replace('source', 'from')}")
    if arguments.inspect:
        summary = inspect(arguments.inspect, arguments.format)
        show(json.dumps(summary, indent=2) if arguments.json else "\n".join(describe(summary)))
        return 0
    with cli.processes("cpu"):
        return do_job(arguments)


def do_job(arguments: argparse.Namespace) -> int:
    """Make, convert or merge proposals, report on them, and return the exit status."""
    from detector.commands import proposal_jobs as jobs  # slow to import, and the workers import this module
    from detector.factory.data import split_records

    shard = jobs.parse_shard(arguments.shard)
    config = load_config(arguments.config, arguments.overrides) if arguments.config else None
    with said_once():
        splits = split_records(config, arguments.split) if config else {}
    target = Path(arguments.output) if arguments.output else None
    if arguments.merge:
        reports = [jobs.merge(arguments.merge, target, config, splits)]
    elif arguments.source:
        names = ("convention", "faults", "missing", "top_k", "min_size", "deduplicate")
        options = {name: getattr(arguments, name) for name in names}
        reports = [jobs.convert_file(arguments.source, arguments.format, target, config, splits, options)]
    elif config is None:
        reports = [
            jobs.generate_for_folder(arguments.images, arguments.overrides, target, shard, arguments.workers)
        ]
    elif config.proposals.method is None:
        reports = [jobs.open_split(config, split, records) for split, records in splits.items()]
    else:
        reports = [jobs.generate_for_config(config, splits, target, shard, arguments.workers)]
    for report in reports:
        with said_once():
            if config is not None:
                jobs.report_splits(report, config)
            jobs.print_report(report)
    stores = [report.as_json() for report in reports]
    show(json.dumps({"stores": stores}, indent=2) if arguments.json else str(reports[0].store.path))
    return 1 if any(report.failed for report in reports) else 0


def parse() -> argparse.Namespace:
    parser = cli.make_parser(__doc__ or "", EXAMPLE)
    cli.add_config_arguments(parser, required=False)
    work = parser.add_mutually_exclusive_group()
    work.add_argument("--images", metavar="FOLDER", help="make proposals for all images in it and below")
    work.add_argument("--from", dest="source", metavar="FILE", help="convert this file or folder")
    work.add_argument("--inspect", metavar="FILE", help="describe this file or store")
    work.add_argument("--merge", metavar="STORE", nargs="+", help="merge stores of one method")
    parser.add_argument(
        "--output", metavar="STORE", help="folder of the store (default: where training looks)"
    )
    parser.add_argument("--split", action="append", help="a split (default: all splits that training reads)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the store's path")
    making = parser.add_argument_group("making proposals")
    making.add_argument("--method", help="dense, selective_search or module:function (default: the config's)")
    making.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")
    making.add_argument("--time-limit", type=float, metavar="SECONDS", help="limit per image")
    making.add_argument(
        "--shard", default="1/1", metavar="i/n", help="make only part i of n, in a store of its own"
    )
    reading = parser.add_argument_group("converting a file")
    reading.add_argument(
        "--format",
        metavar="FORMAT",
        help=f"{', '.join(FORMATS)}, or module:Name, a function of yours (default: by its content)",
    )
    reading.add_argument("--convention", help="how the file writes a box, or auto; see data/README.md")
    reading.add_argument("--faults", choices=FAULT_POLICIES, help="images with faulty boxes (default error)")
    reading.add_argument("--missing", choices=FAULT_POLICIES, help="images not in the file (default error)")
    reading.add_argument("--top-k", type=int, metavar="N", help="keep the best N of each image")
    reading.add_argument("--min-size", type=float, default=0.0, metavar="PIXELS", help="drop smaller boxes")
    reading.add_argument("--deduplicate", action="store_true", help="keep only the best of equal boxes")
    arguments = parser.parse_intermixed_args()
    check(arguments)
    if arguments.method:
        arguments.overrides.append(f"proposals.method={arguments.method}")
    if arguments.time_limit is not None:
        arguments.overrides.append(f"proposals.time_limit={arguments.time_limit}")
    return arguments


def check(arguments: argparse.Namespace) -> None:
    """Raise InputError for options that do not go together."""
    if arguments.workers is not None and arguments.workers < 0:
        raise InputError(f"--workers {arguments.workers}: expected 0, for this process only, or more")
    if arguments.shard != "1/1" and (arguments.merge or arguments.source):
        raise InputError("--shard is for making proposals; leave it out with --from and --merge")
    if arguments.format and ":" not in arguments.format and arguments.format not in (*FORMATS, "store"):
        raise InputError(
            f"--format {arguments.format}: unknown{nearest(arguments.format, FORMATS)}; use one of "
            f"{', '.join(FORMATS)}, store, or module:Name for a function of yours"
        )
    settings = arguments.overrides or arguments.method
    if settings and (arguments.merge or arguments.source) and not arguments.config:
        raise InputError("with --from and --merge, --method and key=value settings need --config")
    if arguments.images and (arguments.config or arguments.split):
        raise InputError(
            "--images is for a folder without a config: leave --config and --split out, and give settings "
            "as proposals.key=value"
        )
    if arguments.split and not arguments.config:
        raise InputError("--split needs --config, which says where the data set is")
