"""Region features on the disk: those of `Detector.classify`, made again only where something changed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from detector.api import Detector
from detector.config import Config
from detector.core.structures import ImageRecord, ProposalSource
from detector.factory.data import class_names, split_records
from detector.factory.model import initial_model
from detector.factory.proposals import open_proposals, stored_proposals
from detector.models.detector import RegionDetector
from detector.staged.region_features import embed_split

Load = Callable[..., Config]


def parts_of(config: Config) -> tuple[RegionDetector, Sequence[ImageRecord], ProposalSource]:
    records = split_records(config, ["test"])["test"]
    store = open_proposals(config, records, "test")
    return (
        initial_model(config, class_names(config)).eval(),
        records,
        stored_proposals(config, store, training=False),
    )


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("test.scales=[64,96]", "test.flip=true"),
        ("test.scales=[96,64]", "test.scale_rule=all", "test.flip=true"),
    ],
)
def test_stored_features_are_those_of_classify(
    tiny: Load, tmp_path: Path, overrides: tuple[str, ...], hidden: bool
) -> None:
    config = tiny(*overrides)
    model, records, source = parts_of(config)
    found = embed_split(config, model, records, source, tmp_path / "features", "cpu", hidden=hidden)
    state = {"classes": class_names(config), "file": "x.pt", "model": model.state_dict()}
    detector = Detector(config, state)
    assert found.images == tuple(record.key for record in records)
    for record in records:
        proposals = source(record)
        expected = detector.classify(record.path, proposals.boxes, features=True)
        features = expected.hidden if hidden else expected.pooled
        assert features is not None
        assert found.features(record.key).dtype == np.float16
        np.testing.assert_array_equal(found.features(record.key), features.numpy().astype(np.float16))
        np.testing.assert_array_equal(found.boxes(record.key), proposals.boxes.numpy())
