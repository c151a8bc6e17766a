"""Draw how one region is pooled by Caffe's, the exact, the partition and SPP-net's rule, side by side.

The bins are read off the operators themselves: each rule pools maps that hold the index of each cell, and the
greatest and the least index in a bin are its edges. So the picture shows what the kernels do.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from detector.commands import cli
from detector.core.errors import InputError
from detector.core.progress import note

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from detector.config import Config
    from detector.models.backbones import Backbone
    from detector.visualize.pooling import Box, PooledRegion, PoolingScene, RegionCrop, Span

Pool: TypeAlias = "Callable[[Tensor, Tensor], Tensor]"  # features (1, C, H, W), RoI (1, 5) -> (1, C, n, n)


def main() -> int:
    arguments = parse()

    from detector.config.schema import CropPoolConfig
    from detector.data.images import read_image
    from detector.visualize import save_image
    from detector.visualize.pooling import draw_crops, draw_pooling, save_animation

    config, backbone, origin = network(arguments)
    image, box = read_image(Path(arguments.image)), tuple(arguments.roi)
    scene, regions, channel = pool_every_way(config, image, box, arguments.bins, arguments.channel, backbone)
    caption = f"{config.model.backbone.name}, {origin}; channel {channel}"
    save_image(Path(arguments.output), draw_pooling(scene, regions, caption=caption))
    note(f"{caption}; wrote {arguments.output}")
    if arguments.crops:
        pool = config.model.pool
        settings = pool if isinstance(pool, CropPoolConfig) else CropPoolConfig()
        crops = crop_every_way(image, box, settings.crop_size, settings.context)
        save_image(Path(arguments.crops), draw_crops(image, box, crops))
        note(f"wrote {arguments.crops}")
    if arguments.animation:
        save_animation(Path(arguments.animation), scene, regions, caption)
        note(f"wrote {arguments.animation}")
    return 0


def parse() -> argparse.Namespace:
    parser = cli.make_parser(
        (__doc__ or "").partition("\n")[0],
        "python tools/draw_pooling.py photo.jpg --roi 48 240 195 371 "
        "--checkpoint runs/quickstart/checkpoints/best.pt\n  "
        "python tools/draw_pooling.py photo.jpg --roi 48 240 195 371 --config quickstart",
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
    what = "the network to draw, with the config in it (or: --config, before training): "
    cli.add_checkpoint_argument(parser, what, required=False)
    parser.add_argument("--bins", type=int, default=3, help="bins per side, 1 to 8 (default 3)")
    parser.add_argument(
        "--channel", type=int, help="channel of the map (default: the strongest in the region)"
    )
    parser.add_argument(
        "--output", default="pooling.png", metavar="FILE", help="picture (default pooling.png)"
    )
    parser.add_argument("--crops", metavar="FILE", help="also draw R-CNN's crops of the region")
    parser.add_argument("--animation", metavar="FILE", help="a GIF that fills one bin after another")
    arguments = parser.parse_intermixed_args()
    if not 1 <= arguments.bins <= 8:
        raise InputError(f"--bins {arguments.bins}: expected a whole number from 1 to 8")
    if bool(arguments.config) == bool(arguments.checkpoint):
        raise InputError("give either --config, for an untrained network, or --checkpoint")
    return arguments


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
    place = cli.checkpoint_file(arguments.checkpoint)
    checkpoint = load_checkpoint(place)
    config = parse_stored(checkpoint["config"], arguments.overrides, str(place))
    model = restore_model(config, checkpoint, str(place)).eval()
    return config, convolutions(model), f"{place.name} after {checkpoint['step']} steps"


def pool_every_way(
    config: Config,
    image: np.ndarray,
    box: Box,
    bins: int = 3,
    channel: int | None = None,
    trained: Backbone | None = None,
) -> tuple[PoolingScene, list[PooledRegion], int]:
    """Pool ``box`` of ``image`` (H, W, 3) on the map of the config's backbone by every rule.

    ``trained`` is this backbone with its weights; None builds it, with the published weights that the config
    names, or with random filters that depend only on the config's seed.

    Returns what is pooled, one region per rule, and the channel that is shown: ``channel``, or the strongest
    one in the box.

    Raises:
        InputError: a box without area or outside the image, or a channel that the backbone does not have.
    """
    import torch

    from detector.data.transforms import transformed
    from detector.factory.loaders import inference_transforms
    from detector.factory.model import build_normalization
    from detector.ops.normalize import normalization_table, normalize_images
    from detector.visualize.pooling import PoolingScene

    _check_box(box, image.shape[:2])
    backbone = trained or initial_backbone(config)
    meta = inference_transforms(config)[0].plan((image.shape[0], image.shape[1]), "image")
    normalization = build_normalization(config)
    inputs = normalize_images(
        transformed(image, meta)[None],
        normalization_table(normalization),
        [meta.input_size],
        bgr=normalization.bgr,
    )
    with torch.no_grad():
        features = backbone(inputs)
    roi = torch.cat((torch.zeros(1, 1), meta.to_input(torch.tensor([box], dtype=torch.float32))), dim=1)
    rules = pooling_rules(bins, backbone.stride, backbone.center)
    if channel is None:
        channel = int(rules["Caffe"](features, roi).amax(dim=(2, 3)).argmax())
    if not 0 <= channel < backbone.channels:
        raise InputError(f"channel {channel}: the map has channels 0 to {backbone.channels - 1}")
    vertical, horizontal = meta.scale
    middle = backbone.center + 0.5  # the centre of pixel k lies at k + 0.5 in continuous coordinates
    scene = PoolingScene(
        image=image,
        plane=features[0, channel].numpy(),
        box=box,
        stride=(backbone.stride / vertical, backbone.stride / horizontal),
        center=(middle / vertical, middle / horizontal),
    )
    return scene, [pooled_region(name, pool, features, roi, channel) for name, pool in rules.items()], channel


def _check_box(box: Box, size: tuple[int, ...]) -> None:
    x1, y1, x2, y2 = box
    height, width = size
    if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
        raise InputError(
            f"the region {x1:g} {y1:g} {x2:g} {y2:g} must have an area and lie in the image, "
            f"which is {width} pixels wide and {height} high"
        )


def initial_backbone(config: Config) -> Backbone:
    """Return the config's backbone before training; without a weights file its filters come from the seed."""
    import torch

    from detector.factory.model import build_backbone
    from detector.factory.weights import load_published

    torch.manual_seed(config.seed)
    backbone = build_backbone(config).eval()
    if config.model.backbone.weights is not None:
        load_published(config, backbone)
    return backbone


def pooling_rules(bins: int, stride: float, center: float) -> dict[str, Pool]:
    """Return the pooling rules by their names in the picture; each pools to ``bins`` x ``bins``."""
    from detector.ops import roi_pool, spp_pool

    def spp(features: Tensor, roi: Tensor) -> Tensor:
        pooled = spp_pool(features, roi, (bins,), 1 / stride, window="spp", center=center)
        return pooled.reshape(1, -1, bins, bins)

    rules: dict[str, Pool] = {
        name: partial(roi_pool, output_size=bins, spatial_scale=1 / stride, bins=rule)
        for name, rule in (("Caffe", "caffe"), ("exact", "exact"), ("partition", "partition"))
    }
    return rules | {"SPP-net": spp}


def pooled_region(name: str, pool: Pool, features: Tensor, roi: Tensor, channel: int) -> PooledRegion:
    """Pool ``channel`` of ``features`` (1, C, H, W) in ``roi`` (1, 5); return the bins and their values."""
    from detector.visualize.pooling import PooledRegion

    rows, columns = _edges(pool, features.shape[-2:], roi)
    values = pool(features[:, channel : channel + 1], roi)[0, 0]
    return PooledRegion(name=name, rows=rows, columns=columns, values=values.numpy())


def _edges(pool: Pool, size: torch.Size, roi: Tensor) -> tuple[list[Span], list[Span]]:
    import torch

    y, x = torch.meshgrid(*(torch.arange(1.0, extent + 1) for extent in size), indexing="ij")
    last_y, first_y, last_x, first_x = pool(torch.stack((y, -y, x, -x))[None], roi)[0]
    # An empty bin gives 0, below every last and above every negated first: an empty row stays (0, 0).
    rows = zip(-first_y.amin(1) - 1, last_y.amax(1), strict=True)
    columns = zip(-first_x.amin(0) - 1, last_x.amax(0), strict=True)
    return [_span(*edges) for edges in rows], [_span(*edges) for edges in columns]


def _span(begin: Tensor, end: Tensor) -> Span:
    return (int(begin), int(end)) if end > 0 else (0, 0)


def crop_every_way(image: np.ndarray, box: Box, crop_size: int, context: int) -> list[RegionCrop]:
    """Cut ``box`` out of ``image`` (H, W, 3) by R-CNN's rules: warp and crop, without and with context.

    Crops have ``crop_size`` x ``crop_size`` pixels, ``context`` of them on each side around the box. Outside
    the image they show the mean colour of torchvision's normalisation.
    """
    import torch

    from detector.models import weights
    from detector.models.crops import cut_windows, region_windows
    from detector.visualize.pooling import RegionCrop

    mean = 255 * torch.tensor(weights.normalization("torchvision").mean).view(3, 1, 1)
    pixels = torch.from_numpy(image).permute(2, 0, 1).float() - mean
    region = torch.tensor([box], dtype=torch.float32)
    crops = []
    for name, square in (("warp", False), ("crop", True)):
        for around in (0, context):
            window = region_windows(region, crop_size, around, square)
            crop = cut_windows(pixels[None], window, torch.zeros(1), crop_size)[0] + mean
            shown = crop.round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()
            x1, y1, x2, y2 = window[0].tolist()
            title = f"{name}, context {around}"
            crops.append(RegionCrop(name=title, crop=shown, window=(x1, y1, x2, y2), context=around))
    return crops
