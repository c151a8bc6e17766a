"""Heads that compare regions with a few examples per class: prototypes and nearest neighbours."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from detector.models.heads import NearestExamples, Prototypes
from detector.staged.region_rows import FitSample


def fill_prototypes(module: Prototypes, sample: FitSample, seed: int) -> None:
    """Set the prototypes of ``module``: the mean of each class, and the centres of clusters of background.

    Features are centred by the mean of the background, and scaled to length 1 before the mean and
    again after it (SimpleShot, Wang et al., 2019). k-means divides the background, which
    looks more varied than a class. A class without regions stays at zero.
    """
    unit, labels = _centred(module, sample)
    with torch.no_grad():
        module.classes.zero_()
        for label in range(1, module.num_classes + 1):
            rows = unit[labels == label]
            if len(rows):
                module.classes[label - 1] = functional.normalize(rows.mean(dim=0), dim=0)
        background = unit[labels == 0]
        if len(background):
            module.background.copy_(_clusters(background, len(module.background), seed))


def _clusters(unit: Tensor, count: int, seed: int) -> Tensor:
    """Return ``count`` centres (count, F) of length 1; with fewer regions, these regions, repeated."""
    if len(unit) <= count:
        return unit[torch.arange(count) % len(unit)]
    from sklearn.cluster import KMeans

    centres = KMeans(count, n_init=1, max_iter=50, random_state=seed).fit(unit.numpy()).cluster_centers_
    return functional.normalize(torch.from_numpy(np.asarray(centres, np.float32)), dim=1)


def fill_examples(module: NearestExamples, sample: FitSample) -> None:
    """Store the regions of ``sample`` in ``module``, centred by the mean of the background."""
    unit, labels = _centred(module, sample)
    module.examples, module.labels = unit, labels


def _centred(module: Prototypes | NearestExamples, sample: FitSample) -> tuple[Tensor, Tensor]:
    """Set the mean of ``module``; return the features (n, F), of length 1, and labels (n,) of ``sample``."""
    features, labels = torch.from_numpy(sample.features), torch.from_numpy(sample.labels)
    background = features[labels == 0]
    with torch.no_grad():
        module.mean.copy_((background if len(background) else features).double().mean(dim=0))
        return module.unit(features), labels
