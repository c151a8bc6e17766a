"""Draw how one region is pooled by Caffe's, the exact, the partition and SPP-net's rule, side by side."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from detector.commands import cli
from detector.core.errors import InputError
from detector.core.progress import note

if TYPE_CHECKING:
    from detector.config import Config
    from detector.models.backbones import Backbone


def main() -> int:
    arguments = parse()

    from detector.commands.crops import crop_every_way
    from detector.commands.pooling import pool_every_way
    from detector.config.schema import CropPoolConfig
    from detector.data.images import read_image
    from detector.visualize import save_image
    from detector.visualize.crops import draw_crops
    from detector.visualize.pooling import draw_pooling, save_animation

    config, backbone, origin = network(arguments)
    image = read_image(Path(arguments.image))
    view, regions, channel = pool_every_way(
        config, image, tuple(arguments.roi), arguments.bins, arguments.channel, backbone
    )
    caption = f"{config.model.backbone.name}, {origin}; channel {channel}"
    save_image(Path(arguments.output), draw_pooling(view, regions, caption=caption))
    note(f"{caption}; wrote {arguments.output}")
    if arguments.crops:
        pool = config.model.pool
        settings = pool if isinstance(pool, CropPoolConfig) else CropPoolConfig()
        crops = crop_every_way(image, tuple(arguments.roi), settings.crop_size, settings.context)
        save_image(Path(arguments.crops), draw_crops(image, tuple(arguments.roi), crops))
        note(f"wrote {arguments.crops}")
    if arguments.animation:
        save_animation(Path(arguments.animation), view, regions, caption)
        note(f"wrote {arguments.animation}")
    return 0


def network(arguments: argparse.Namespace) -> tuple[Config, Backbone | None, str]:
    """Return the config, the checkpoint's backbone (None without one), and where the weights come from."""
    from detector.config import load_config
    from detector.config.load import parse_stored
    from detector.engine.checkpoint import load_checkpoint
    from detector.factory.model import convolutions, restore_model
    from detector.factory.weights import weights_file

    if arguments.checkpoint is None:
        config = load_config(arguments.config, arguments.overrides)
        if config.model.backbone.weights is not None:
            return config, None, f"weights {weights_file(config).name}"
        note("the filters are random: the config names no weights; --checkpoint FILE draws a trained network")
        return config, None, "random filters (untrained)"
    checkpoint = load_checkpoint(arguments.checkpoint)
    config = parse_stored(checkpoint["config"], arguments.overrides, arguments.checkpoint)
    model = restore_model(config, checkpoint, arguments.checkpoint).eval()
    return config, convolutions(model), f"{Path(arguments.checkpoint).name} after {checkpoint['step']} steps"


def parse() -> argparse.Namespace:
    parser = cli.make_parser(
        __doc__ or "",
        "python tools/draw_pooling.py photo.jpg --roi 48 240 195 371 "
        "--checkpoint runs/quickstart/checkpoints/best.pt\n  "
        "python tools/draw_pooling.py photo.jpg --roi 48 240 195 371 --config configs/quickstart.yaml",
    )
    parser.add_argument("image", metavar="IMAGE", help="an image file")
    parser.add_argument(
        "--roi",
        required=True,
        nargs=4,
        type=float,
        metavar=("X1", "Y1", "X2", "Y2"),
        help="the region, half-open, in pixels of the image",
    )
    cli.add_config_arguments(parser, required=False)
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="draw this checkpoint's network, with its config (without it: the config's, before training)",
    )
    parser.add_argument("--bins", type=int, default=3, help="bins a side, 1 to 8 (default 3)")
    parser.add_argument(
        "--channel", type=int, help="channel of the map (default: the strongest in the region)"
    )
    parser.add_argument(
        "--output", default="pooling.png", metavar="FILE", help="picture (default pooling.png)"
    )
    parser.add_argument("--crops", metavar="FILE", help="a picture of R-CNN's crops of the region, too")
    parser.add_argument("--animation", metavar="FILE", help="a GIF that fills one bin after another")
    arguments = parser.parse_intermixed_args()
    if not 1 <= arguments.bins <= 8:
        raise InputError(f"--bins {arguments.bins}: expected a whole number from 1 to 8")
    if bool(arguments.config) == bool(arguments.checkpoint):
        raise InputError("give either --config, for an untrained network, or --checkpoint")
    return arguments
