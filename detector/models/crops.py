"""R-CNN's regions: each is cut out of the image and goes through the convolutions by itself.

The rule is that of "Rich feature hierarchies for accurate object detection and semantic segmentation"
(Girshick et al., 2014), section 2.2 and appendix A. A crop of S x S pixels shows the region in its inner
S - 2p pixels, and around it p pixels of the region's surroundings. "warp" stretches both axes to fit; "crop"
takes the smallest square around the region, which keeps its proportions. Pixels outside the image have the
mean colour, 0 after normalisation. Sampling is bilinear at the crop's pixel centres without smoothing, as in
the release. The release also rounds the window to whole pixels; this module does not.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from detector.core.cell_masks import CellMasks
from detector.core.devices import sent
from detector.core.errors import InputError
from detector.models.backbones import Backbone
from detector.models.region_pools import LevelPool
from detector.ops.spp_pool import spp_pool, whole_map_rois

MIN_SIDE = 1.0
"""A shorter side, in pixels, is extended to this length around its middle (the release rounds it up)."""


def region_windows(boxes: Tensor, crop_size: int, context: int, square: bool = False) -> Tensor:
    """Return the part of the image that each crop shows, (R, 4), for ``boxes`` (R, 4), both in input pixels.

    ``context`` is in pixels of the crop. ``square`` takes the smallest square around each box.
    """
    center = (boxes[:, :2] + boxes[:, 2:]) / 2
    sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=MIN_SIDE)
    if square:
        sides = sides.amax(dim=1, keepdim=True).expand(-1, 2)
    half = sides / 2 * (crop_size / (crop_size - 2 * context))
    return torch.cat((center - half, center + half), dim=1)


def cut_windows(images: Tensor, windows: Tensor, numbers: Tensor, crop_size: int) -> Tensor:
    """Return crops (R, C, S, S) of ``images`` (N, C, H, W), bilinear, zero where a window leaves its image.

    ``windows`` (R, 4) are in pixels of the image that ``numbers`` (R,) give. Each window is cut out of every
    image, and its own one is chosen: to sort the windows by image, the host would have to wait for a GPU.
    """
    steps = (torch.arange(crop_size, device=windows.device, dtype=windows.dtype) + 0.5) / crop_size
    corner, size = windows[:, None, :2], windows[:, None, 2:] - windows[:, None, :2]
    points = corner + steps[:, None] * size  # (R, S, 2): x and y of each column and row
    x, y = points[..., 0] / images.shape[-1] * 2 - 1, points[..., 1] / images.shape[-2] * 2 - 1
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=3).flatten(0, 1)[None]
    crops = images.new_zeros(len(windows), images.shape[1], crop_size, crop_size)
    for number, image in enumerate(images):
        cut = grid_sample(image[None], grid, "bilinear", "zeros", align_corners=False)
        cut = cut[0].unflatten(1, (len(windows), crop_size)).transpose(0, 1)
        crops = torch.where((numbers == number)[:, None, None, None], cut, crops)
    return crops.contiguous(memory_format=torch.channels_last)


class CropPooling(LevelPool):
    """Cuts each region out of the image, runs ``convolutions`` on it, and pools the resulting map.

    It takes the place of the other pools, so its levels are images (N, 3, H, W) and the detector's backbone
    is the identity. The map of a crop is max-pooled to ``output_size`` x ``output_size`` cells and flattened
    (channel, row, column), as in RoI pooling. No gradient goes back to the image.

    Raises:
        InputError: crops too small for a single cell of the feature map.
    """

    def __init__(
        self,
        convolutions: Backbone,
        output_size: int,
        *,
        crop_size: int = 224,
        context: int = 16,
        square: bool = False,
    ) -> None:
        super().__init__()
        if min(convolutions.map_size((crop_size, crop_size))) < 1:
            raise InputError(
                f"model.pool.crop_size {crop_size}: a crop is smaller than one cell of the feature map; "
                "raise it"
            )
        self.convolutions = convolutions
        self.output_size = output_size
        self.crop_size = crop_size
        self.context = context
        self.square = square
        self.out_features = convolutions.channels * output_size**2

    @torch.no_grad()
    def cut(self, images: Tensor, rois: Tensor) -> Tensor:
        """Return the crops (R, 3, S, S) of RoI rows (R, 5), in the number type of the RoIs."""
        windows = region_windows(rois[:, 1:], self.crop_size, self.context, self.square)
        return cut_windows(images.to(rois.dtype), windows, rois[:, 0], self.crop_size)

    def pool(
        self,
        features: Tensor,
        rois: Tensor,
        level: int = 0,
        masks: CellMasks | None = None,
        *,
        convolutions: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Return (R, D) as every pool; ``convolutions`` may be a compiled version of the pool's own.

        There are no masks: the pool cuts out boxes.
        """
        if not len(rois):  # batch statistics of no crop would be NaN
            return features.new_zeros(0, self.out_features)
        maps: Tensor = (convolutions or self.convolutions)(self.cut(features, rois))
        # Equal to adaptive_max_pool2d, whose gradient on CUDA adds in another order each time, except that
        # here NaN is never a maximum.
        whole = sent(whole_map_rois([(maps.shape[2], maps.shape[3])] * len(maps)), maps.device)
        return spp_pool(maps, whole, (self.output_size,), window="cells").to(features.dtype)
