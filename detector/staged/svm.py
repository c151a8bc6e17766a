"""The stage ``svm``: one linear SVM per class in place of cls_score (R-CNN, section 2.3; SPP-net, 4.1).

The SVMs are trained with hard negatives, in one pass over the images. From the first image every negative is
taken, from each later one those that the current SVM scores above a threshold. The SVM of a class is trained
after the first image, whenever enough new negatives have been collected, and at the end; each time, negatives
that have become easy are dropped, so that the set stays small.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from copy import copy, deepcopy
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.ops import nms

from detector.config.schema import SVMConfig
from detector.core import boxes as box_ops
from detector.core.errors import InputError, listed
from detector.core.progress import note, track
from detector.core.structures import ImageRecord
from detector.staged.layer_fit import LayerFit, feature_width, is_finite_float

MAX_ITERATIONS = 20_000
"""Passes of the solver over the regions, twenty times liblinear's default. With features of norm 20 and
C = 1e-3 a few dozen are enough; with a larger C, and classes that differ little, it may never converge."""
NEVER_FIRES = -1e4
"""Bias of the SVM of a class without positives: below any score threshold."""
SAVE_EVERY = 50
"""Number of images after which an unfinished fit is saved."""
_STATE = ("images", "added", "converged", "negatives", "weights", "biases")  # of HardNegativeMining


class SVMFit(LayerFit[SVMConfig]):
    """Trains the SVMs of all classes with hard negatives, in one pass over the images."""

    def fit(self, settings: SVMConfig) -> None:
        """Train the SVMs and put them into ``cls_score``.

        Raises:
            InputError: a class without positives, unless the settings say that it never fires, or a box head
                with hidden layers where pooled features are asked for.
        """
        pooled, layer = self.reads_pooled(settings), self.model.predictor.cls_score
        if not isinstance(layer, nn.Linear):
            raise InputError(
                "the stage svm needs model.head.kind: softmax, or module:Name, whose linear cls_score it "
                "replaces"
            )
        if pooled and self.model.box_head.out_features != self.model.region_pool.out_features:
            raise InputError("svm.features: pooled needs model.head.hidden: [], so that cls_score reads them")
        factor = settings.feature_norm / self.mean_norm(pooled=pooled)
        mining = HardNegativeMining(self.classes, self._positives(pooled), factor, settings)
        if self.state is not None:
            mining.load_state_dict(self.state)
        for record in track(self.records[mining.images :], len(self.records) - mining.images, "SVMs"):
            last = mining.images == len(self.records) - 1
            mining.add_image(*self._candidates(record, pooled), last=last)
            if mining.images % SAVE_EVERY == 0:
                self.save(mining.state_dict())
        note_unconverged(mining)
        fold_svms(layer, mining.weights, mining.biases, factor)

    @staticmethod
    def reads_pooled(settings: SVMConfig) -> bool:
        return settings.features == "pooled"

    @staticmethod
    def find_fault(state: dict[str, Any], num_classes: int, width: int) -> str | None:
        images = state.get("images")
        if not isinstance(images, int) or isinstance(images, bool) or images < 0:
            return "images is not a number of images"
        weights, biases = state.get("weights"), state.get("biases")
        if not (is_finite_float(weights, (num_classes, width)) and is_finite_float(biases, (num_classes,))):
            return f"weights or biases are not those of {num_classes} classes and {width} features"
        for name, kind in (("added", int), ("converged", bool), ("negatives", Tensor)):
            values = state.get(name)
            if not isinstance(values, list | tuple) or len(values) != num_classes:
                return f"{name} does not have one entry for each of {num_classes} classes"
            if not all(isinstance(value, kind) for value in values):
                return f"{name} holds values of another type"
        if not all(
            rows.dim() == 2 and is_finite_float(rows, (len(rows), width)) for rows in state["negatives"]
        ):
            return "negatives have another number of features than weights"
        return None

    def _positives(self, pooled: bool) -> list[Tensor]:
        """Return the features of each class's objects, one tensor (n, F) per class."""
        empty = torch.zeros(0, feature_width(self.model, pooled=pooled))
        parts: list[list[Tensor]] = [[empty] for _ in self.classes]
        for record in track(self.records, len(self.records), "objects' features"):
            objects = self.objects(record)
            if not len(objects):
                continue
            embedded = self.embed(record, objects.boxes)
            features = embedded.pooled if pooled else embedded.hidden
            for label, rows in enumerate(parts, start=1):
                rows.append(features[objects.labels == label])
        return [torch.cat(rows) for rows in parts]

    def _candidates(self, record: ImageRecord, pooled: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the arguments of ``HardNegativeMining.add_image`` for the regions of an image.

        A region on a ``difficult`` object is not a negative of its class, whether or not the object is a
        positive.
        """
        regions = self.proposals(record)
        embedded = self.embed(record, regions)
        annotated = record.targets
        overlaps = torch.zeros(len(regions), len(self.classes))
        for number in range(len(self.classes)):
            own_boxes = annotated.boxes[annotated.labels == number + 1]
            if len(own_boxes):
                overlaps[:, number] = box_ops.iou(regions, own_boxes).amax(dim=1)
        # Regions that cover the same cells have the same pooled features, bit for bit.
        windows = torch.tensor([hash(row.tobytes()) for row in embedded.pooled.numpy()], dtype=torch.int64)
        return embedded.pooled if pooled else embedded.hidden, overlaps, regions, windows


class HardNegativeMining:
    """The state of the mining: K SVMs, their sets of negatives, and the number of images seen.

    ``positives`` holds one tensor (n, F) per class, the features of its objects. All features are first
    multiplied by ``factor``. ``weights`` (K, F) and ``biases`` (K,) are the current SVMs, for features
    multiplied by ``factor``. ``converged`` says for each class whether its last training converged.

    Raises:
        InputError: a class has no positive, and ``settings.missing_positives`` is "error".
    """

    def __init__(
        self, classes: Sequence[str], positives: Sequence[Tensor], factor: float, settings: SVMConfig
    ) -> None:
        self.settings = settings
        self.classes = tuple(classes)
        self.factor = factor
        self.positives = [features * factor for features in positives]
        width = self.positives[0].shape[1]
        self.negatives = [torch.zeros(0, width) for _ in classes]
        self.added = [0] * len(classes)
        self.converged = [True] * len(classes)
        self.images = 0
        self.weights = torch.zeros(len(classes), width)
        self.biases = torch.full((len(classes),), NEVER_FIRES)
        absent = [name for name, rows in zip(classes, self.positives, strict=True) if not len(rows)]
        if absent and settings.missing_positives == "error":
            raise InputError(
                f"no object to train the SVM of {', '.join(absent)} with; take the class out of "
                "data.classes, add images that show it, or set svm.missing_positives to never, so that it "
                "never fires"
            )

    def add_image(
        self, features: Tensor, overlaps: Tensor, boxes: Tensor, windows: Tensor, *, last: bool = False
    ) -> None:
        """Take the P regions of one image; with the ``last`` image every class is trained a last time.

        ``features`` (P, F); ``overlaps`` (P, K), the best IoU of each region with an object of each class, 0
        without objects; ``boxes`` (P, 4), for overlaps among negatives; ``windows`` (P,) integers, equal
        where two regions have the same features: only the first of these is taken.
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
        return {name: copy(getattr(self, name)) for name in _STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in _STATE:
            setattr(self, name, deepcopy(state[name]))

    def _distinct(self, rows: Tensor, scores: Tensor, boxes: Tensor, windows: Tensor) -> Tensor:
        """Return ``rows`` without repeated windows and, where the settings say so, without large overlaps."""
        first_rows: dict[int, int] = {}
        for row, window in zip(rows.tolist(), windows[rows].tolist(), strict=True):
            first_rows.setdefault(window, row)
        rows = torch.tensor(list(first_rows.values()), dtype=torch.int64)
        if self.settings.negative_overlap is None or not len(rows):
            return rows
        # Greedily from the best score; equal scores in the order given.
        return rows[nms(boxes[rows], scores[rows], self.settings.negative_overlap).sort().values]

    def _train(self, number: int) -> None:
        negatives = self.negatives[number]
        if not len(negatives):
            raise InputError(
                f"no region without {self.classes[number]} to train its SVM against; use proposals that "
                "cover more than the objects, or more images"
            )
        svm = fit_svm(self.positives[number], negatives, self.settings)
        self.weights[number], self.biases[number], self.converged[number] = svm
        self.negatives[number] = negatives[negatives @ svm.weights + svm.bias >= self.settings.evict_score]
        self.added[number] = 0


class FittedSVM(NamedTuple):
    """Weights (F,) float32 and bias; ``converged`` is False where the solver ran out of passes."""

    weights: Tensor
    bias: float
    converged: bool


def fit_svm(positives: Tensor, negatives: Tensor, settings: SVMConfig) -> FittedSVM:
    """Return the SVM between ``positives`` (P, F) and ``negatives`` (N, F), with liblinear and hinge loss.

    The solver's own order of visits is seeded, so equal arguments give equal results.
    """
    features = torch.cat((positives, negatives)).double().numpy()
    labels = np.concatenate((np.ones(len(positives)), np.zeros(len(negatives))))
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.svm import LinearSVC

    solver = LinearSVC(
        loss="hinge",
        C=settings.c,
        class_weight={0: 1.0, 1: settings.positive_weight},
        intercept_scaling=settings.bias_multiplier,
        random_state=0,
        max_iter=MAX_ITERATIONS,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # reported by the stage, once and with the class
        solver.fit(features, labels)
    weights = torch.from_numpy(solver.coef_[0]).float()
    return FittedSVM(weights, float(solver.intercept_[0]), bool(np.max(solver.n_iter_) < MAX_ITERATIONS))


def fold_svms(layer: nn.Linear, weights: Tensor, biases: Tensor, factor: float) -> None:
    """Put K SVMs into ``cls_score``: rows 1..K, and a background row of zeros.

    ``weights`` (K, F) and ``biases`` (K,) are for features multiplied by ``factor``; the layer gets them for
    features as the network computes them.
    """
    with torch.no_grad():
        layer.weight.zero_()
        layer.bias.zero_()
        layer.weight[1:] = weights * factor
        layer.bias[1:] = biases


def note_unconverged(mining: HardNegativeMining) -> None:
    """Report the classes for which the solver did not converge; their SVMs are used as they are."""
    names = [name for name, done in zip(mining.classes, mining.converged, strict=True) if not done]
    if names:
        note(
            f"warning: the SVM of {listed(names)} did not converge in {MAX_ITERATIONS} passes: it is "
            "close to the best one, not equal to it; a smaller svm.c converges sooner"
        )
