"""Hard negative mining for linear SVMs, one pass over the images (R-CNN, and SPP-net after it).

Of the first image every negative is taken; of each later one those that the SVM of the moment scores above a
threshold. A class is trained after the first image, whenever enough negatives have come, and at the end;
after a training, negatives that have become easy are forgotten, so that the set stays small.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms

from detector.core.errors import InputError
from detector.staged.svm import SVMSettings, fit_svm

NEVER = -1e4
"""Bias of a class that never fires: below any score threshold."""


@dataclass(frozen=True, kw_only=True)
class MiningSettings:
    """When a region is a negative, when it is hard, when an SVM is trained again (SPP-net's release)."""

    svm: SVMSettings = field(default_factory=SVMSettings)
    negative_iou: float = 0.3
    """A negative's IoU with every object of the class is below this (R-CNN, section 2.3)."""
    hard_score: float = -1.0001
    """A negative that scores above this is hard: on the margin, or on the wrong side of it."""
    evict_score: float = -1.2
    """A negative that scores below this after a training is forgotten."""
    retrain_after: int = 2000
    """A class is trained again once it has more new negatives than this."""
    negative_overlap: float | None = None
    """A new negative that overlaps a better one of its image by more than this is left out (SPP-net's paper,
    section 4.1: 0.7; its release: none is)."""
    missing_positives: str = "error"
    """A class without positives: "error", or "never", an SVM that never fires."""


class HardNegativeMining:
    """The state of the mining: K SVMs, their sets of negatives, and how many images have been seen.

    ``positives`` holds one tensor (n, F) a class, the features of its objects. All features are multiplied
    by ``factor`` first. ``weights`` (K, F) and ``biases`` (K,) are the SVMs of the moment, for features so
    multiplied. ``converged`` says of each class whether its last training came to an end.

    Raises:
        InputError: a class has no positive, and ``missing_positives`` is "error".
    """

    def __init__(
        self,
        classes: Sequence[str],
        positives: Sequence[Tensor],
        factor: float = 1.0,
        settings: MiningSettings | None = None,
    ) -> None:
        self.settings = settings or MiningSettings()
        self.classes = tuple(classes)
        self.factor = factor
        self.positives = [features * factor for features in positives]
        width = self.positives[0].shape[1]
        self.negatives = [torch.zeros(0, width) for _ in classes]
        self.added = [0] * len(classes)
        self.converged = [True] * len(classes)
        self.images = 0
        self.weights = torch.zeros(len(classes), width)
        self.biases = torch.full((len(classes),), NEVER)
        absent = [name for name, rows in zip(classes, self.positives, strict=True) if not len(rows)]
        if absent and self.settings.missing_positives == "error":
            raise InputError(
                f"no object to train the SVM of {', '.join(absent)} with; take the class out of "
                "data.classes, add images that show it, or set svm.missing_positives to never, so that it "
                "never fires"
            )

    def add_image(
        self, features: Tensor, overlaps: Tensor, boxes: Tensor, windows: Tensor, *, last: bool = False
    ) -> None:
        """Take one image's P regions; with the ``last`` image every class is trained a last time.

        ``features`` (P, F); ``overlaps`` (P, K), each region's best IoU with an object of each class, 0
        without; ``boxes`` (P, 4) for overlaps among negatives; ``windows`` (P,) integers, equal where two
        regions have the same features: of these one is taken.
        """
        features = features * self.factor
        scores = features @ self.weights.T + self.biases
        first = self.images == 0
        for number in range(len(self.classes)):
            if not len(self.positives[number]):
                continue
            wanted = overlaps[:, number] < self.settings.negative_iou
            if not first:
                wanted &= scores[:, number] > self.settings.hard_score
            rows = self._distinct(torch.nonzero(wanted)[:, 0], scores[:, number], boxes, windows)
            self.negatives[number] = torch.cat((self.negatives[number], features[rows]))
            self.added[number] += len(rows)
            if first or last or self.added[number] > self.settings.retrain_after:
                self._train(number)
        self.images += 1

    def state_dict(self) -> dict[str, Any]:
        """Return everything that changes from image to image."""
        return {
            "images": self.images,
            "added": list(self.added),
            "converged": list(self.converged),
            "negatives": list(self.negatives),
            "weights": self.weights,
            "biases": self.biases,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.images = state["images"]
        self.added = list(state["added"])
        self.converged = list(state["converged"])
        self.negatives = list(state["negatives"])
        self.weights = state["weights"].clone()
        self.biases = state["biases"].clone()

    def _distinct(self, rows: Tensor, scores: Tensor, boxes: Tensor, windows: Tensor) -> Tensor:
        """Return ``rows`` without repeated windows and, if so set, without heavy overlaps."""
        seen: set[int] = set()
        kept = [
            row
            for row, window in zip(rows.tolist(), windows[rows].tolist(), strict=True)
            if not (window in seen or seen.add(window))  # type: ignore[func-returns-value]
        ]
        rows = torch.tensor(kept, dtype=torch.int64)
        if self.settings.negative_overlap is None or not len(rows):
            return rows
        # Greedily from the best score, equal scores in the order given.
        return rows[nms(boxes[rows], scores[rows], self.settings.negative_overlap).sort().values]

    def _train(self, number: int) -> None:
        negatives = self.negatives[number]
        if not len(negatives):
            raise InputError(
                f"no region without {self.classes[number]} to train its SVM against; use proposals that "
                "cover more than the objects, or more images"
            )
        svm = fit_svm(self.positives[number], negatives, self.settings.svm)
        self.weights[number], self.biases[number], self.converged[number] = svm
        self.negatives[number] = negatives[negatives @ svm.weights + svm.bias >= self.settings.evict_score]
        self.added[number] = 0
