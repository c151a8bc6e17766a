"""The stage ``head``: ``model.head`` is trained or fitted on stored features of the regions.

Every image has passed through the convolutions once (`detector.staged.region_features`). After that neither
another head nor other labels need a pixel.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from detector.config import Config
from detector.config.schema import (
    KnnHeadConfig,
    LogisticHeadConfig,
    PrototypesHeadConfig,
    RandomSamplingConfig,
    RidgeConfig,
    SoftmaxHeadConfig,
    SVMConfig,
    SVMHeadConfig,
    TrainedHead,
)
from detector.core.distributed import main_first
from detector.core.errors import InputError, listed
from detector.core.progress import note, track
from detector.core.records import Records
from detector.factory.data import load_training, report_several_labels, require_objects
from detector.factory.model import measures_targets
from detector.factory.proposals import open_proposals, report_recall, stored_proposals, with_proposals
from detector.models.box_coder import BoxCoder, TargetSums, measured_coder
from detector.models.detector import RegionDetector
from detector.models.heads import NearestExamples, Prototypes
from detector.staged.box_ridge import Regression, fit_ridge, fold_ridge
from detector.staged.layer_fit import is_finite_float
from detector.staged.linear_fit import LinearScores, fit_logistic, fit_svms
from detector.staged.region_features import RegionFeatures, embed_split
from detector.staged.region_rows import OnObjects, RegionRows, draw_sample, label_regions
from detector.staged.similarity_fit import fill_examples, fill_prototypes
from detector.staged.softmax_fit import HeadLayers, SoftmaxFit, head_steps
from detector.tasks.resume import checked_fingerprint

Save = Callable[[dict[str, Any]], None]
BLOCK_ROWS = 2000
"""Ridge regression reads the features in blocks of this many regions."""
MARGINS_BELOW = -0.5
"""A score threshold above this hides most of the margins of SVMs from the evaluation."""


class HeadData:
    """The annotated images that a head learns from, and the stored features of their regions."""

    def __init__(
        self,
        config: Config,
        classes: Sequence[str],
        features: RegionFeatures,
        records: Records,
        ridge: RidgeConfig,
    ) -> None:
        """Compare the stored regions with the annotations.

        Raises:
            InputError: images without stored features, or no region that lies on an object.
        """
        sampling = config.train.sampling
        assert isinstance(sampling, RandomSamplingConfig)  # the schema refuses others for a head
        self.config, self.classes, self.features, self.records = config, tuple(classes), features, records
        self.rows = label_regions(
            features,
            records,
            sampling,
            use_difficult=config.data.difficult == "train",
            lowest_iou=ridge.min_iou,
            multi_label=len(self.classes) if config.model.head.scores == "sigmoid" else None,
        )
        self._describe(sampling)

    def counts(self) -> list[int]:
        """Return the number of foreground regions of each class."""
        return self.rows.foreground.counts(len(self.classes))

    def coder(self) -> BoxCoder:
        """Return the coder of box targets whose constants are measured on the foreground regions."""
        sums, rows = TargetSums.empty(len(self.classes)), self.rows.foreground
        places, labels = np.arange(len(rows.rows)), rows.labels
        if rows.label_sets is not None:  # measured per label
            places, labels = np.nonzero(rows.label_sets)
        boxes, objects = torch.from_numpy(rows.boxes[places]), torch.from_numpy(rows.objects[places])
        sums.add(boxes, objects, torch.from_numpy(labels))
        return measured_coder(sums, class_agnostic=self.config.model.agnostic_boxes)

    def _describe(self, sampling: RandomSamplingConfig) -> None:
        counts = self.counts()
        background = len(self.rows.near) + (len(self.rows.far) if sampling.far_background_fraction else 0)
        shown = listed(f"{name} {count}" for name, count in zip(self.classes, counts, strict=True))
        note(f"regions to learn from: {shown}, background {background}")
        if not sum(counts):
            raise InputError(
                f"no stored region reaches an IoU of {sampling.foreground_iou:g} with an object "
                f"(train.sampling.foreground_iou); use proposals that cover the objects, or lower the limit"
            )
        if not background:
            raise InputError(
                "no stored region is background by train.sampling.background_iou: "
                f"{list(sampling.background_iou)}; use proposals that cover more than objects, or another "
                "interval"
            )
        for name, count in zip(self.classes, counts, strict=True):
            if not count:
                note(f"warning: no region lies on an object of {name!r}: the head never reports it")


class HeadFit:
    """Trains or fits the head of ``model``, whose convolutions have their weights already.

    ``save`` stores the state of an unfinished fit; ``state`` is what was stored last, or None at the start.
    ``folder`` gets the log. Where there are several processes, all of them build this alike, and share the
    convolutions; only rank 0 calls `fit`.
    """

    def __init__(
        self,
        config: Config,
        model: RegionDetector,
        classes: Sequence[str],
        folder: Path,
        device: str,
        save: Save,
        state: dict[str, Any] | None,
        ridge: RidgeConfig,
        features: RegionFeatures | None = None,
    ) -> None:
        """Read the annotations, and make the ``features`` that are missing; given ones are not changed."""
        self.config, self.classes, self.device, self.folder = config, tuple(classes), device, folder
        self.model = model.to(device).eval()
        self.save, self.state, self.ridge = save, state, ridge
        split = config.data.train_split
        with main_first():
            dataset = load_training(config, classes, training=True, look_at_images=features is None)
            self.data_fingerprint = checked_fingerprint("training", split, dataset.records, state)
        records = dataset.records
        report_several_labels(config, dataset)
        if features is None:
            store = open_proposals(config, records, split)
            records = with_proposals(config, records, store)
            report_recall(records, store, config, split)
            source = stored_proposals(config, store, training=True)
            place = Path(config.train.features_folder)
            features = embed_split(config, self.model, records, source, place, device)
        require_objects((record.targets for record in records), config)
        self.features = features
        self.data = HeadData(config, classes, features, records, ridge)

    @property
    def steps(self) -> int:
        """Optimizer steps of the fit; 1 where it has none."""
        trained = isinstance(self.config.model.head, SoftmaxHeadConfig)
        return head_steps(self.config, len(self.data.records)) if trained else 1

    def fit(self) -> None:
        """Fit the head and put it into the network.

        Raises:
            InputError: features or losses that are not finite.
        """
        rows, head = self.data.rows, self.config.model.head
        if measures_targets(self.config):
            self.model.box_coder.load_state_dict(self.data.coder().state_dict())
        if isinstance(head, SoftmaxHeadConfig):
            SoftmaxFit(
                self.config,
                self.model,
                rows,
                self.device,
                self.folder,
                self.save,
                self.state,
                self.steps,
            ).run()
        else:
            self.model.to("cpu")
            self._fit_scores(rows)
        if self._regresses:
            self._fit_boxes(rows)

    @property
    def _regresses(self) -> bool:
        """Whether boxes are fitted by ridge regression."""
        layer = self.model.predictor.bbox_pred
        trained = isinstance(self.config.model.head, SoftmaxHeadConfig)
        return layer is not None and (self.model.predictor.reads_pooled or not trained)

    @staticmethod
    def find_fault(state: dict[str, Any], model: RegionDetector) -> str | None:
        """Return what is wrong with the saved state of a softmax head's training for ``model``, or None."""
        step = state.get("step")
        if not isinstance(step, int) or isinstance(step, bool) or step < 0:
            return "step is not a number of steps"
        wanted = HeadLayers(model.box_head, model.predictor).state_dict()
        for name in ("layers", "ema"):
            layers = state.get(name)
            if name == "ema" and layers is None:
                continue
            if not isinstance(layers, dict) or layers.keys() != wanted.keys():
                return f"{name} are not those of this head"
            for key, value in layers.items():
                if not is_finite_float(value, tuple(wanted[key].shape)):
                    return f"{name} holds other values than the weights of this head"
        optimizer = state.get("optimizer")
        if not isinstance(optimizer, dict) or not {"state", "param_groups"} <= optimizer.keys():
            return "optimizer is missing"
        return None

    def _fit_scores(self, rows: RegionRows) -> None:
        """Fit class scores with scikit-learn, or store the examples."""
        head, seed = self.config.model.head, self.config.seed
        assert not isinstance(head, TrainedHead)
        sampling = self.config.train.sampling
        assert isinstance(sampling, RandomSamplingConfig)
        sample = draw_sample(
            rows,
            len(self.classes),
            max_examples=head.max_examples,
            max_background=head.max_background,
            far=sampling.far_background_fraction,
            seed=seed,
        )
        if not np.isfinite(sample.features).all():
            raise InputError(f"{rows.features.folder}: has features that are not finite; make them again")
        note(f"fitting a head of kind {head.kind} on {len(sample.labels)} regions")
        cls_score = self.model.predictor.cls_score
        match head:
            case LogisticHeadConfig():
                self._put(fit_logistic(sample, len(self.classes), head, seed))
            case SVMHeadConfig():
                if head.scores == "svm" and self.config.test.score_threshold > MARGINS_BELOW:
                    note(
                        f"warning: test.score_threshold {self.config.test.score_threshold:g} hides regions "
                        "with lower margins, and margins of SVMs are often negative; -1 is usual"
                    )
                self._put(fit_svms(sample, len(self.classes), head, seed))
            case PrototypesHeadConfig():
                assert isinstance(cls_score, Prototypes)
                fill_prototypes(cls_score, sample, seed)
            case KnnHeadConfig():
                assert isinstance(cls_score, NearestExamples)
                fill_examples(cls_score, sample)

    def _put(self, scores: LinearScores) -> None:
        layer = self.model.predictor.cls_score
        assert isinstance(layer, torch.nn.Linear)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(scores.weights))
            layer.bias.copy_(torch.from_numpy(scores.biases))

    def _fit_boxes(self, rows: RegionRows) -> None:
        """Fit one ridge regression per class to the regions on its objects, as ``box_ridge`` does."""
        layer = self.model.predictor.bbox_pred
        assert layer is not None
        fits: dict[int, Regression] = {}
        every = rows.on_objects.take(rows.on_objects.overlaps > self.ridge.min_iou)
        for label in track(range(1, len(self.classes) + 1), len(self.classes), "ridge regression"):
            chosen = self._thinned(every.take(every.of(label)), label)
            if len(chosen.rows):
                features = rows.read(chosen.rows)
                norm = float(features.norm(dim=1).mean())
                factor = SVMConfig().feature_norm / norm if norm > 0 else 1.0
                blocks = features.split(BLOCK_ROWS)
                fits[label] = fit_ridge(blocks, chosen.deltas(), rows.width, factor, self.ridge)
        coder = self.model.box_coder
        fold_ridge(layer, fits, coder.means, coder.deviations)

    def _thinned(self, rows: OnObjects, label: int) -> OnObjects:
        """Return at most ``ridge.max_rows`` of the regions, drawn by the seed and the label."""
        if len(rows.rows) <= self.ridge.max_rows:
            return rows
        rng = np.random.default_rng((self.config.seed, 2, label))
        return rows.take(np.sort(rng.permutation(len(rows.rows))[: self.ridge.max_rows]))
