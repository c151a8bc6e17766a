"""The base of the stages that fit a layer on cached features instead of training it with gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor

from detector.config import Config
from detector.core.distributed import main_first
from detector.core.errors import InputError
from detector.core.structures import Embedded, ImageRecord, Targets
from detector.engine.inference import choose_scales
from detector.factory.data import load_training, require_objects
from detector.factory.proposals import open_proposals, stored_proposals, with_proposals
from detector.models.detector import RegionDetector
from detector.models.roi_sampler import trained_objects
from detector.staged.feature_cache import open_cache
from detector.tasks.resume import checked_fingerprint

NORM_IMAGES, NORM_REGIONS = 200, 200
"""The mean norm of features is measured on 200 images and 200 regions of each, as in SPP-net's release."""


Settings = TypeVar("Settings")


class LayerFit(ABC, Generic[Settings]):
    """Fits a layer of ``model`` on the cached features of regions of the training images.

    ``save`` stores the state of an unfinished fit; ``state`` is what was stored last, or None at the start.
    Where there are several processes, all of them build this alike, and share the convolutions; only rank 0
    calls `fit`.
    """

    def __init__(
        self,
        config: Config,
        model: RegionDetector,
        classes: tuple[str, ...],
        cache_folder: Path,
        device: str,
        save: Callable[[dict[str, Any]], None],
        state: dict[str, Any] | None,
    ) -> None:
        self.config = config
        self.model = model.to(device).eval()
        self.classes = classes
        self.device = device
        self.save = save
        self.state = state
        split = config.data.train_split
        with main_first():
            dataset = load_training(config, classes, training=True)
            self.data_fingerprint = checked_fingerprint("training", split, dataset.records, state)
        store = open_proposals(config, dataset.records, split)
        self.records = with_proposals(config, dataset.records, store)
        require_objects((record.targets for record in self.records), config)
        self.source = stored_proposals(config, store, training=True)
        self.cache = open_cache(config, model, self.records, cache_folder, device)

    steps: ClassVar[int] = 1
    """Optimizer steps that the fit counts as, in a run's checkpoints and log."""

    @abstractmethod
    def fit(self, settings: Settings) -> None:
        """Fit the layer and put it into the network."""

    @staticmethod
    @abstractmethod
    def reads_pooled(settings: Settings) -> bool:
        """Say whether the layer reads pooled features; otherwise it reads the box head's hidden ones."""

    @staticmethod
    @abstractmethod
    def find_fault(state: dict[str, Any], num_classes: int, width: int) -> str | None:
        """Return what is wrong with the saved state of a fit on ``width`` features, or None."""

    @torch.inference_mode()
    def embed(self, record: ImageRecord, boxes: Tensor) -> Embedded:
        """Return pooled (P, D) and hidden (P, F) features, on the CPU, of an image's ``boxes`` (P, 4).

        Boxes are in original-image pixels. Each one is pooled at the scale that ``test.scale_rule`` chooses,
        as in detection.
        """
        levels, views = self.cache.levels(record.key, self.device), self.cache.views(record.key)
        rois, roi_levels = choose_scales(
            [view.to_input(boxes) for view in views], self.config.test.scale_rule
        )
        rows = torch.cat((rois.new_zeros(len(rois), 1), rois), dim=1).to(levels[0].device, non_blocking=True)
        parts = [self.model.embed(levels, *at) for at in self.model.chunks(rows, roi_levels)]
        return Embedded(
            torch.cat([part.pooled.float().cpu() for part in parts]),
            torch.cat([part.hidden.float().cpu() for part in parts]),
        )

    def proposals(self, record: ImageRecord) -> Tensor:
        """Return an image's proposals (P, 4), original-image pixels.

        Boxes without an area are left out, since nothing can be regressed from them.
        """
        boxes = self.source(record).boxes
        return boxes[(boxes[:, 2:] > boxes[:, :2]).all(dim=1)]

    def objects(self, record: ImageRecord) -> Targets:
        """Return the objects of an image that the layer is trained to find."""
        return trained_objects(record.targets, use_difficult=self.config.data.difficult == "train")

    def mean_norm(self, *, pooled: bool) -> float:
        """Return the mean L2 norm of the features of regions that the config's seed draws.

        Raises:
            InputError: the features are zero or not finite.
        """
        generator = torch.Generator().manual_seed(self.config.seed)
        norms = []
        for index in torch.randperm(len(self.records), generator=generator)[:NORM_IMAGES].tolist():
            record = self.records[index]
            regions = torch.cat((self.objects(record).boxes, self.proposals(record)))
            chosen = torch.randperm(len(regions), generator=generator)[:NORM_REGIONS]
            if len(chosen):
                embedded = self.embed(record, regions[chosen])
                norms.append((embedded.pooled if pooled else embedded.hidden).norm(dim=1))
        mean = float(torch.cat(norms).mean()) if norms else 0.0
        if not mean > 0:
            raise InputError("the features of all regions are zero or not finite; the network is not trained")
        return mean


def feature_width(model: RegionDetector, *, pooled: bool) -> int:
    """Return the number of pooled or of hidden features per region."""
    return model.region_pool.out_features if pooled else model.box_head.out_features


def fault_of_fit(state: Any, find_fault: Callable[[dict[str, Any]], str | None]) -> str | None:
    """Return what is wrong with the saved state of an unfinished fit (``fit.pt``), or None.

    ``state`` is the content of the file, whatever it is; ``find_fault`` looks at what only its kind has.
    """
    if not isinstance(state, dict) or not isinstance(state.get("key"), str):
        return "it has no key"
    seconds = state.get("seconds", 0.0)
    if not isinstance(seconds, int | float) or isinstance(seconds, bool) or not 0 <= seconds < 2**53:
        return "seconds is not a number"
    if not isinstance(state.get("data_fingerprint", {}), dict):
        return "data_fingerprint is not a mapping"
    return find_fault(state)


def is_finite_float(value: Any, shape: tuple[int, ...]) -> bool:
    """Say whether ``value`` is a dense float32 tensor of ``shape`` with finite values."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and value.dtype == torch.float32
        and value.shape == shape
        and bool(value.isfinite().all())
    )
