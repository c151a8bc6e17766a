"""The network: a pure function from images and RoIs to class logits and box deltas."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from detector.core.cell_masks import CellMasks, cell_masks_by_level
from detector.core.masks import Masks
from detector.core.structures import Embedded, HeadOutput, ImageMeta, Normalization
from detector.models.backbones import Backbone
from detector.models.box_coder import BoxCoder
from detector.models.feature_pyramid import FeaturePyramid
from detector.models.heads import BoxHead, BoxPredictor
from detector.models.region_pools import LevelPool
from detector.ops.normalize import normalization_table, normalize_images
from detector.ops.windows import distinct_rows


class RegionPool(Protocol):
    """Pools each RoI (R, 5) from its feature level to one row of ``out_features`` features.

    ``windows`` returns rows (R, n) for RoIs (R, 5) and their levels. RoIs of one level whose rows are equal
    pool to equal bits.
    """

    out_features: int

    def __call__(
        self,
        levels: Sequence[Tensor],
        rois: Tensor,
        roi_levels: Tensor | None,
        masks: CellMasks | None = None,
    ) -> Tensor: ...
    def windows(self, rois: Tensor, roi_levels: Tensor | None = None) -> Tensor: ...


class RegionDetector(nn.Module):
    """Backbone, region pool, box head and predictor; the same call in training, evaluation and demo.

    Images pass through `inputs` first. RoIs come from outside, as rows (R, 5) in network-input pixels;
    the output goes to ``DetectionLoss`` in training and to ``Postprocess`` otherwise. ``box_coder`` is a part
    of the network so that its constants are saved with the weights; ``normalization`` is what the backbone's
    weights expect of their input. ``roi_chunk`` is the largest number of RoIs that inference pools and
    classifies at a time.
    """

    pixel_values: Tensor

    def __init__(
        self,
        backbone: Backbone,
        region_pool: RegionPool,
        box_head: BoxHead,
        predictor: BoxPredictor,
        box_coder: BoxCoder,
        roi_chunk: int,
        normalization: Normalization,
        neck: FeaturePyramid | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.neck = neck
        self.region_pool = region_pool
        self.box_head = box_head
        self.predictor = predictor
        self.box_coder = box_coder
        self.roi_chunk = roi_chunk
        self.bgr = normalization.bgr
        self.register_buffer("pixel_values", normalization_table(normalization), persistent=False)
        self.to(memory_format=torch.channels_last)  # convolutions run about twice as fast on a CPU

    def inputs(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Return the input (N, 3, H, W) float32 of images (N, H, W, 3) uint8 RGB on the network's device.

        ``sizes`` are the (height, width) of the images without their padding, which becomes 0, the mean
        colour.
        """
        return normalize_images(images, self.pixel_values, sizes, bgr=self.bgr)

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the feature levels (N, C, h, w) of inputs (N, 3, H, W): one, or those of the pyramid."""
        images = images.contiguous(memory_format=torch.channels_last)
        if self.neck is None:
            return [self.backbone(images)]
        levels: list[Tensor] = self.neck(self.backbone.pyramid(images))
        return levels

    def place(self, rois: Tensor, roi_levels: Tensor | None) -> Tensor | None:
        """Return the level (R,) of each of ``rois`` (R, 5), given the number of its scale, on the CPU.

        Without a pyramid each scale has one level, and ``roi_levels`` is returned: None for a single scale.
        With one of L levels they are scale * L + level; see `FeaturePyramid.place`.
        """
        return roi_levels if self.neck is None else self.neck.place(rois, roi_levels)

    def cover(self, masks: Masks, metas: Sequence[ImageMeta], roi_levels: Tensor | None) -> CellMasks | None:
        """Return the ``masks`` of R regions at the maps of their levels, on the CPU; None where boxes pool.

        ``metas`` has the view of the image at each scale; ``roi_levels`` (R,) are as `place` returns them.
        """
        pool = self.region_pool
        if not isinstance(pool, LevelPool) or pool.mask == "none":
            return None
        if self.neck is None:
            grids = [pool.cell_grid(0, self.backbone.map_size)]
        else:
            grids = [pool.cell_grid(level, place.size) for level, place in enumerate(self.backbone.maps)]
        return cell_masks_by_level(masks, metas, grids, roi_levels)

    def embed(
        self,
        levels: Sequence[Tensor],
        rois: Tensor,
        roi_levels: Tensor | None = None,
        masks: CellMasks | None = None,
    ) -> Embedded:
        """Return pooled (R, D) and hidden (R, F) features of RoI rows (R, 5).

        ``roi_levels`` (R,) gives the level that each RoI is pooled from; None takes the first one for all.
        ``masks`` are those of the RoIs, as `cover` returns them; None pools boxes.
        """
        pooled = self.region_pool(levels, rois, roi_levels, masks)
        return Embedded(pooled, self.box_head(pooled))

    def predict(
        self,
        levels: Sequence[Tensor],
        rois: Tensor,
        roi_levels: Tensor | None = None,
        masks: CellMasks | None = None,
    ) -> HeadOutput:
        """Return class logits (R, K+1) and box deltas for RoI rows (R, 5), as ``BoxPredictor`` shapes them.

        Without gradients the RoIs are processed in chunks of ``roi_chunk``. In evaluation mode on the CPU,
        RoIs without masks that pool the same cells are processed once; on a GPU that would take longer than
        it saves.
        """
        on_cpu = rois.device.type == "cpu"
        if self.training or not on_cpu or torch.is_grad_enabled() or masks is not None:
            return self._predict(levels, rois, roi_levels, masks)
        windows = self.region_pool.windows(rois, roi_levels)
        if roi_levels is not None:
            windows = torch.cat((roi_levels[:, None].to(windows.dtype), windows), dim=1)
        chosen, places = distinct_rows(windows)
        output = self._predict(levels, rois[chosen], None if roi_levels is None else roi_levels[chosen])
        return output.take(places)

    def _predict(
        self,
        levels: Sequence[Tensor],
        rois: Tensor,
        roi_levels: Tensor | None,
        masks: CellMasks | None = None,
    ) -> HeadOutput:
        parts = self.chunks(rois, roi_levels, masks)
        return HeadOutput.join([self.predictor(self.embed(levels, *at)) for at in parts])

    def describe(
        self,
        levels: Sequence[Tensor],
        rois: Tensor,
        roi_levels: Tensor | None = None,
        masks: CellMasks | None = None,
    ) -> tuple[Embedded, HeadOutput]:
        """As `predict`, with the features of all RoIs, which takes memory for (R, D) and (R, F)."""
        embedded = [self.embed(levels, *at) for at in self.chunks(rois, roi_levels, masks)]
        output = HeadOutput.join([self.predictor(chunk) for chunk in embedded])
        return Embedded(*(torch.cat(parts) for parts in zip(*embedded, strict=True))), output

    def pooled(
        self,
        levels: Sequence[Tensor],
        rois: Tensor,
        roi_levels: Tensor | None = None,
        masks: CellMasks | None = None,
    ) -> Tensor:
        """Return the pooled features (R, D) that `describe` gives, without running the box head."""
        return torch.cat([self.region_pool(levels, *at) for at in self.chunks(rois, roi_levels, masks)])

    def hidden(
        self,
        levels: Sequence[Tensor],
        rois: Tensor,
        roi_levels: Tensor | None = None,
        masks: CellMasks | None = None,
    ) -> Tensor:
        """Return the hidden features (R, F) that `describe` gives."""
        return torch.cat([self.embed(levels, *at).hidden for at in self.chunks(rois, roi_levels, masks)])

    def chunks(
        self, rois: Tensor, roi_levels: Tensor | None, masks: CellMasks | None = None
    ) -> Iterator[tuple[Tensor, Tensor | None, CellMasks | None]]:
        """Yield the RoIs, their levels and masks, all with gradients, else at most ``roi_chunk`` at a time.

        Chunks are of about equal size. A small one at the end would take longer than its share, as a layer's
        weights are read for each, and products of few rows are rounded differently.
        """
        largest = len(rois) if torch.is_grad_enabled() else self.roi_chunk
        count = max(-(-len(rois) // max(largest, 1)), 1)
        size = max(-(-len(rois) // count), 1)
        for start in range(0, max(len(rois), 1), size):
            at = slice(start, start + size)
            own = None if roi_levels is None else roi_levels[at]
            yield rois[at], own, None if masks is None else masks.select(at)

    def forward(
        self,
        images: Tensor,
        rois: Tensor,
        roi_levels: Tensor | None = None,
        masks: CellMasks | None = None,
    ) -> HeadOutput:
        return self.predict(self.features(images), rois, roi_levels, masks)
