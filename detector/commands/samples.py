"""Draw training samples of a config as the network will see them, with their objects and proposals.

A row shows one image: first only resized, then as training samples with random scales, flips and whatever
train.augment asks for. Objects have the colours of their classes; the proposal that fits each best is dashed.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from detector.commands import cli
from detector.config import Config, load_config
from detector.core.errors import InputError
from detector.core.progress import note
from detector.core.structures import ImageRecord, ProposalSource, Sample
from detector.data.images import open_image
from detector.data.samples import TrainingSamples, make_sample
from detector.factory import data as data_parts
from detector.factory import loaders
from detector.factory import proposals as proposal_parts
from detector.tasks.start import task_class
from detector.visualize import save_image
from detector.visualize.samples import sample_grid

WIDTH = 1800
"""Width of the picture in pixels."""
MOST = 64
"""The most images, and the most samples of each."""


def main() -> int:
    arguments = parse()
    config = load_config(arguments.config, arguments.overrides)
    data_parts.ensure_data(config)
    classes = data_parts.class_names(config)
    dataset = data_parts.load_training(config, classes, training=task_class(config).uses_boxes)
    count = min(arguments.images, len(dataset.records))
    chosen = [dataset.records[number * len(dataset.records) // count] for number in range(count)]
    rows = draw_rows(config, chosen, proposals_of(config, dataset.records, chosen), arguments.samples)
    if not config.train.augment.active:
        note("train.augment is off: the samples differ in scale and flips only")
    save_image(Path(arguments.output), sample_grid(rows, classes, WIDTH))
    note(f"wrote {arguments.output}")
    return 0


def proposals_of(
    config: Config, records: Sequence[ImageRecord], chosen: Sequence[ImageRecord]
) -> ProposalSource:
    """Return the proposals of ``chosen``, some of all training ``records``; those that are missing are made.

    A file is checked against all images, as before training.
    """
    if config.task == "classification":
        return loaders.no_proposals
    wanted = records if config.proposals.method is None else chosen
    store = proposal_parts.open_proposals(config, wanted, config.data.train_split)
    return proposal_parts.stored_proposals(config, store, training=True)


def draw_rows(
    config: Config, records: Sequence[ImageRecord], source: ProposalSource, samples: int
) -> list[list[Sample]]:
    """Return a row per image: the image resized, then ``samples`` training samples of it."""
    transform = loaders.training_transform(config)
    sample = TrainingSamples(
        records, source, transform, config.seed, augmentation=loaders.build_augmentation(config)
    )
    rows = []
    for index, record in enumerate(records):
        meta = transform.plan((record.height, record.width), record.image_id)
        image = open_image(record.path, meta.original_size, meta.full_size)
        plain = make_sample(record, image, source(record), meta)
        rows.append([plain, *(sample(index, index * samples + number) for number in range(samples))])
    return rows


def parse() -> argparse.Namespace:
    parser = cli.make_parser(
        __doc__ or "",
        "python tools/draw_samples.py --config bccd_squeezenet --output samples.png \\\n"
        "      train.augment.crop.probability=1 train.augment.color_jitter.brightness=0.3",
    )
    cli.add_config_arguments(parser)
    parser.add_argument("--images", type=int, default=4, metavar="N", help="number of images (default 4)")
    parser.add_argument(
        "--samples", type=int, default=5, metavar="N", help="random samples of each image (default 5)"
    )
    parser.add_argument(
        "--output", default="samples.png", metavar="FILE", help="picture (default samples.png)"
    )
    arguments = parser.parse_intermixed_args()
    for name in ("images", "samples"):
        if not 1 <= getattr(arguments, name) <= MOST:
            raise InputError(f"--{name} {getattr(arguments, name)}: expected a whole number from 1 to {MOST}")
    return arguments
