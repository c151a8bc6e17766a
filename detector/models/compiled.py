"""A network whose convolutions and head torch.compile has compiled, for training.

The network itself is not changed: its tensors keep their names, copies of it are not compiled, and whatever
does not go through `CompiledDetector` computes as before.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from detector.core.cell_masks import CellMasks
from detector.core.errors import InputError
from detector.core.structures import Embedded, HeadOutput
from detector.models.crops import CropPooling
from detector.models.detector import RegionDetector
from detector.models.region_pools import LevelPool


class CompiledDetector:
    """The calls of ``model`` that a training step makes.

    The sizes of the images and the number of RoIs are variables of the compiled code, so other ones are not
    compiled again; only 0 and 1 are special. Nothing falls back to Python in between (``fullgraph``), except
    that RoIs are sorted by level, where there are several, pooled by their masks, and, in R-CNN, cut out of
    the image by the usual code. ``backend`` is torch.compile's.
    """

    def __init__(self, model: RegionDetector, backend: str | Callable[..., Any] = "inductor") -> None:
        self.model = model

        def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
            return torch.compile(function, backend=backend, dynamic=True, fullgraph=True)

        pool = model.region_pool
        self._features = compiled(lambda images: model.features(images))
        self._convolutions = compiled(pool.convolutions.forward) if isinstance(pool, CropPooling) else None
        self._pool_and_head = compiled(lambda level, rois: self._head(pool([level], rois, None)))
        self._head_only = compiled(self._head)

    def inputs(self, images: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
        return self.model.inputs(images, sizes)

    def features(self, images: Tensor) -> list[Tensor]:
        """Return the feature levels of inputs (N, 3, H, W), as ``RegionDetector.features``."""
        size = images.shape[-2], images.shape[-1]
        if self._convolutions is not None or min(self.model.backbone.map_size(size)) < 1:
            # The convolutions run on crops, and the levels are the images; or the network refuses them.
            return self.model.features(images)
        levels: list[Tensor] = self._features(images)
        return levels

    def predict(
        self,
        levels: Sequence[Tensor],
        rois: Tensor,
        roi_levels: Tensor | None = None,
        masks: CellMasks | None = None,
    ) -> HeadOutput:
        """Return class logits and box deltas for RoI rows (R, 5), as ``RegionDetector.predict``."""
        pool = self.model.region_pool
        if isinstance(pool, CropPooling):
            return self._head_only(pool.pool(levels[0], rois, convolutions=self._convolutions))
        if roi_levels is not None or (isinstance(pool, LevelPool) and pool.mask != "none"):
            return self._head_only(pool(levels, rois, roi_levels, masks))
        return self._pool_and_head(levels[0], rois)

    def __call__(
        self,
        images: Tensor,
        rois: Tensor,
        roi_levels: Tensor | None = None,
        masks: CellMasks | None = None,
    ) -> HeadOutput:
        return self.predict(self.features(images), rois, roi_levels, masks)

    def _head(self, pooled: Tensor) -> HeadOutput:
        return self.model.predictor(Embedded(pooled, self.model.box_head(pooled)))


def check_compiler(device: torch.device | str) -> None:
    """Compile a tiny function for ``device``.

    Raises:
        InputError: torch.compile does not work here, for instance because there is no C++ compiler.
    """
    try:
        torch.compile(lambda numbers: numbers.sin() + 1)(torch.ones(2, device=device))
    except Exception as error:  # whatever the tools that it starts raise
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise InputError(
            f"train.compile: torch.compile does not work on this machine: {reason:.300}; install a C++ "
            "compiler (Debian: apt-get install g++), on a GPU also Triton, or set train.compile to false"
        ) from None
