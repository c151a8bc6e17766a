"""One region of one image, pooled by every rule: what the teaching picture shows.

The bins are asked of the operators themselves, by pooling ramps: the greatest and the least cell index in a
bin are its edges. So the picture shows what the kernels do and not what somebody thinks they do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from detector.config import Config
from detector.core.errors import InputError
from detector.factory.loaders import inference_transforms
from detector.factory.model import build_backbone
from detector.factory.weights import load_published
from detector.models.backbones import Backbone
from detector.ops import roi_pool, spp_pool
from detector.visualize.pooling import PooledRegion, RegionView, Span

Pool = Callable[[Tensor, Tensor], Tensor]  # features (1, C, H, W), a RoI (1, 5) -> (1, C, n, n)


def pooling_rules(bins: int, stride: float, center: float) -> dict[str, Pool]:
    """Return the rules by the name they are shown under, each pooling to ``bins`` x ``bins``."""

    def spp(features: Tensor, roi: Tensor) -> Tensor:
        pooled = spp_pool(features, roi, (bins,), 1 / stride, window="spp", center=center)
        return pooled.reshape(1, -1, bins, bins)

    rules: dict[str, Pool] = {
        name: partial(roi_pool, output_size=bins, spatial_scale=1 / stride, bins=rule)
        for name, rule in (("Caffe", "caffe"), ("exact", "exact"), ("partition", "partition"))
    }
    return rules | {"SPP-net": spp}


def pooled_region(name: str, pool: Pool, features: Tensor, roi: Tensor, channel: int) -> PooledRegion:
    """Return what ``pool`` makes of ``channel`` of ``features`` (1, C, H, W) in ``roi`` (1, 5)."""
    rows, columns = _edges(pool, features.shape[-2:], roi)
    values = pool(features[:, channel : channel + 1], roi)[0, 0]
    return PooledRegion(name=name, rows=rows, columns=columns, values=values.numpy())


def _edges(pool: Pool, size: torch.Size, roi: Tensor) -> tuple[list[Span], list[Span]]:
    y, x = torch.meshgrid(*(torch.arange(1.0, extent + 1) for extent in size), indexing="ij")
    last_y, first_y, last_x, first_x = pool(torch.stack((y, -y, x, -x))[None], roi)[0]
    # An empty bin gives 0, below every last and above every negated first: an empty row stays (0, 0).
    rows = zip(-first_y.amin(1) - 1, last_y.amax(1), strict=True)
    columns = zip(-first_x.amin(0) - 1, last_x.amax(0), strict=True)
    return [_span(*edges) for edges in rows], [_span(*edges) for edges in columns]


def _span(begin: Tensor, end: Tensor) -> Span:
    return (int(begin), int(end)) if end > 0 else (0, 0)


def pool_every_way(
    config: Config,
    image: np.ndarray,
    box: tuple[float, float, float, float],
    bins: int = 3,
    channel: int | None = None,
    trained: Backbone | None = None,
) -> tuple[RegionView, list[PooledRegion], int]:
    """Pool ``box`` (x1, y1, x2, y2) of ``image`` (H, W, 3) on the config's backbone by every rule.

    ``trained`` is that backbone with its weights; None builds it, with the config's published weights or, if
    it names none, with random filters that are the same every time.

    Returns the view, one region per rule, and the channel shown: ``channel``, or the strongest in the box.

    Raises:
        InputError: a box without area or outside the image, or a channel the backbone does not have.
    """
    _check_box(box, image.shape[:2])
    backbone = trained or initial_backbone(config)
    pixels, meta = inference_transforms(config)[0](image, "image")
    with torch.no_grad():
        features = backbone(pixels[None])
    roi = torch.cat((torch.zeros(1, 1), meta.to_input(torch.tensor([box], dtype=torch.float32))), dim=1)
    rules = pooling_rules(bins, backbone.stride, backbone.center)
    if channel is None:
        channel = int(rules["Caffe"](features, roi).amax(dim=(2, 3)).argmax())
    if not 0 <= channel < backbone.channels:
        raise InputError(f"channel {channel}: the map has channels 0 to {backbone.channels - 1}")
    view = _view(image, features[0, channel], box, backbone, meta.scale)
    regions = [pooled_region(name, pool, features, roi, channel) for name, pool in rules.items()]
    return view, regions, channel


def initial_backbone(config: Config) -> Backbone:
    """Return the config's backbone before training; without a weights file its filters come from the seed."""
    torch.manual_seed(config.seed)
    backbone = build_backbone(config).eval()
    if config.model.backbone.weights is not None:
        load_published(config, backbone)
    return backbone


def _view(
    image: np.ndarray,
    plane: Tensor,
    box: tuple[float, float, float, float],
    backbone: Backbone,
    scale: tuple[float, float],
) -> RegionView:
    vertical, horizontal = scale
    middle = backbone.center + 0.5  # of a pixel that is counted from 0, in continuous coordinates
    return RegionView(
        image=image,
        plane=plane.numpy(),
        box=box,
        stride=(backbone.stride / vertical, backbone.stride / horizontal),
        center=(middle / vertical, middle / horizontal),
    )


def _check_box(box: tuple[float, float, float, float], size: tuple[int, ...]) -> None:
    x1, y1, x2, y2 = box
    height, width = size
    if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
        raise InputError(
            f"the region {x1:g} {y1:g} {x2:g} {y2:g} must have an area and lie in the image, "
            f"which is {width} pixels wide and {height} high"
        )
