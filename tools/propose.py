#!/usr/bin/env python3
"""Make proposals for a data set, or convert a file of them, into a ProposalStore."""

from __future__ import annotations

import argparse
from pathlib import Path

from detector import cli
from detector.build import data as data_parts
from detector.build import proposals as proposal_parts
from detector.config import load_config
from detector.errors import InputError
from detector.progress import note
from detector.proposals.convert import convert
from detector.proposals.store import ProposalStore


def main() -> int:
    arguments = parse()
    if arguments.config is None:
        store = convert(arguments.source, arguments.format, arguments.output)
    else:
        store = for_config(arguments)
    note(f"{store.path}: {len(store)} images")
    print(store.path)
    return 0


def for_config(arguments: argparse.Namespace) -> ProposalStore:
    """Make or convert the proposals of a config's splits and say how much of the objects they cover."""
    config = load_config(arguments.config, arguments.overrides)
    data_parts.ensure_data(config)
    classes = data_parts.class_names(config)
    splits = arguments.split or list(dict.fromkeys((config.data.train_split, config.data.test_split)))
    by_split = {
        split: data_parts.load_split(config, split, classes, training=False).records for split in splits
    }
    records = list({record.image_id: record for found in by_split.values() for record in found}.values())
    target = Path(arguments.output) if arguments.output else None
    if arguments.source:
        if target is None:
            raise InputError("--from needs --output STORE")
        store = convert(arguments.source, arguments.format, target, records=records)
    elif config.proposals.method is not None:
        store = proposal_parts.make_proposals(config, records, target)
    else:
        store = proposal_parts.open_proposals(config, records)
    for split, found in by_split.items():
        known = [record for record in found if record.image_id in store]
        proposal_parts.report_recall(known, store, config, split)
        if len(known) < len(found):
            note(f"warning: {len(found) - len(known)} of {len(found)} images of {split} have no proposals")
    return store


def parse() -> argparse.Namespace:
    parser = cli.make_parser(
        __doc__ or "",
        "python tools/propose.py --config configs/quickstart.yaml\n  "
        "python tools/propose.py --from boxes.npz --format npz --output data/proposals/mine",
    )
    cli.add_config_arguments(parser, required=False)
    parser.add_argument("--split", action="append", help="a split (default: the config's training and test)")
    parser.add_argument("--method", help="instead of the config's: dense")
    parser.add_argument("--from", dest="source", metavar="FILE", help="convert this file")
    parser.add_argument("--format", default="npz", help="the file's format (default npz)")
    parser.add_argument("--output", metavar="STORE", help="the store's folder (default: in data/proposals/)")
    arguments = parser.parse_intermixed_args()
    if arguments.method:
        arguments.overrides.append(f"proposals.method={arguments.method}")
    if arguments.config is None and not (arguments.source and arguments.output):
        raise InputError("give --config, or --from FILE with --output STORE")
    return arguments


if __name__ == "__main__":
    cli.run(main)
