"""Measure how well proposals cover the objects: recall by their number, average recall, overlap by group.

The objects of a split of the config are compared with the proposals of one store or several, or with the
config's own. IoU is that of continuous half-open boxes; proposals are used as in training, best first.
Average recall is the mean over IoU 0.5 to 0.95 in steps of 0.05, MABO the mean over the classes of their mean
best overlap."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from detector.commands import cli
from detector.config import Config, load_config
from detector.core.errors import InputError
from detector.core.progress import note, progress_bar, show
from detector.core.structures import ImageRecord
from detector.evaluation.report import recall_tables, write_json
from detector.factory import data as data_parts
from detector.factory import proposals as proposal_parts
from detector.proposals.image_names import keys_of, match_store
from detector.proposals.recall import measure_overlaps, recall_report
from detector.proposals.store import ProposalStore
from detector.visualize import save_image
from detector.visualize.page import pixels_of
from detector.visualize.recall import recall_figure


def main() -> int:
    arguments = parse()
    config = load_config(arguments.config, arguments.overrides)
    split = arguments.split or config.data.test_split
    records = data_parts.split_records(config, [split])[split]
    classes = data_parts.class_names(config)
    reports: dict[str, dict[str, Any]] = {}
    for name, store in open_stores(arguments, config, records, split).items():
        with progress_bar(f"measuring {name}") as advance:
            overlaps = measure_overlaps(
                records,
                store,
                counts=arguments.counts,
                include_difficult=not arguments.skip_difficult,
                progress=advance,
            )
        reports[name] = {"store": str(store.path), **recall_report(overlaps, classes)}
        for table in recall_tables(reports[name], name):
            show(table)
    folder = Path(arguments.output)
    write_json(folder / "recall.json", {"split": split, "stores": reports})
    figure = recall_figure(reports, f"Proposals for {split} of {Path(config.data.root).name}")
    save_image(folder / "recall.png", pixels_of(figure))
    note(f"wrote {folder / 'recall.json'} and {folder / 'recall.png'}")
    return 0


def open_stores(
    arguments: argparse.Namespace, config: Config, records: Sequence[ImageRecord], split: str
) -> dict[str, ProposalStore]:
    """Return the stores to measure, by their names in the tables and the picture."""
    stores: dict[str, ProposalStore] = {}
    for text in arguments.store:
        name, _, place = text.rpartition("=")
        name = name or Path(place).name
        if name in stores:
            raise InputError(f"--store {text}: two are called {name!r}; give a name: --store NAME={place}")
        everything = partial(data_parts.all_names, config)
        stores[name] = match_store(ProposalStore.open(place), records, everything)
        if not (stores[name].find_all(keys_of(records)) >= 0).any():
            raise InputError(f"{place}: no proposals for any image of {split}; is it of another data set?")
    if not stores:
        own = proposal_parts.open_proposals(config, records, split)
        stores[config.proposals.method or own.path.name] = own
    return stores


def parse() -> argparse.Namespace:
    parser = cli.make_parser(
        __doc__ or "",
        "python tools/recall.py --config bccd_squeezenet --split test \\\n"
        "      --store ours=data/proposals/ours --store opencv=data/proposals/opencv --output runs/recall",
    )
    cli.add_config_arguments(parser)
    parser.add_argument("--split", help="split with the objects (default: the config's test split)")
    parser.add_argument(
        "--store",
        action="append",
        default=[],
        metavar="[NAME=]STORE",
        help="store to measure, can be given several times (default: the config's own proposals)",
    )
    parser.add_argument("--counts", metavar="N,N,...", help="numbers of proposals to measure at")
    parser.add_argument("--skip-difficult", action="store_true", help="leave out objects marked difficult")
    parser.add_argument(
        "--output",
        default="runs/recall",
        metavar="DIR",
        help="folder of recall.json and recall.png (runs/recall)",
    )
    arguments = parser.parse_intermixed_args()
    arguments.counts = read_counts(arguments.counts) if arguments.counts else None
    return arguments


def read_counts(text: str) -> list[int]:
    words = text.split(",")
    if not all(word.strip().isdecimal() and int(word) > 0 for word in words):
        raise InputError(f"--counts {text!r}: write whole numbers over 0, such as 100,500,2000")
    return [int(word) for word in words]
