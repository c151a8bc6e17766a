"""A detector and a classifier with random weights, behind the application, without training anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from detector import Detector
from detector.config.load import override, parse_config
from detector.factory.data import class_names
from detector.factory.model import build_model
from tests.tiny import TINY

pytest.importorskip("fastapi", reason="needs the extra serve")
pytest.importorskip("httpx", reason="FastAPI's test client needs httpx")

CLASSIFIER = (
    "task=classification",
    "model.pool={kind: spp, levels: [1, 2, 4]}",
    "proposals.method=null",
)
LOW = "test.score_threshold=0.1"  # random weights give every class about 1/6
Make = Callable[..., Detector]


@pytest.fixture(scope="session")
def detector_of(tiny_root: Path) -> Make:
    """Make a detector of the tiny config, with overrides and random weights."""

    def make(*overrides: str, **more: Any) -> Detector:
        values = {**TINY, "data": {**TINY["data"], "root": str(tiny_root)}}
        config = parse_config(override(values, list(overrides)), "tiny.yaml")
        classes = class_names(config)
        state = {"classes": list(classes), "model": build_model(config, len(classes)).state_dict()}
        return Detector(config, {**state, "file": "random.pt", **more}, "cpu")

    return make


@pytest.fixture(scope="session")
def detector(detector_of: Make) -> Detector:
    return detector_of(LOW, score_threshold=0.25)


@pytest.fixture(scope="session")
def classifier(detector_of: Make) -> Detector:
    return detector_of(*CLASSIFIER)


@pytest.fixture(scope="session")
def photo(tiny_root: Path) -> Path:
    return min((tiny_root / "JPEGImages").iterdir())


@pytest.fixture
def open_client() -> Iterator[Callable[..., Any]]:
    """Open a test client of a detector's application; keywords are those of `Limits` and `Service`."""
    from contextlib import ExitStack

    from fastapi.testclient import TestClient

    from detector.server.application import build_application
    from detector.server.gate import Limits
    from detector.server.service import MAX_PIXELS, Service

    with ExitStack() as stack:

        def opened(detector: Detector, max_pixels: int = MAX_PIXELS, **limits: Any) -> Any:
            gate = build_application(Service(detector, max_pixels), Limits(**limits))
            client = TestClient(gate, base_url="http://localhost", raise_server_exceptions=False)
            return stack.enter_context(client)

        yield opened
