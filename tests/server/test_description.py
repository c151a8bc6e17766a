"""The OpenAPI description is true: schemathesis sends what it allows, and what it forbids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from detector.server.gate import Limits
from detector.server.service import Service

schemathesis = pytest.importorskip("schemathesis")

SETTINGS = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@st.composite
def boxes(draw: st.DrawFn) -> list[float]:
    x1, y1 = draw(st.integers(0, 100)), draw(st.integers(0, 80))
    return [x1, y1, draw(st.integers(x1 + 1, 110)), draw(st.integers(y1 + 1, 90)) + 0.5]


def operations(gate: Any) -> dict[str, Any]:
    schema = schemathesis.openapi.from_asgi("/openapi.json", gate)
    found = [operation.ok() for operation in schema.get_all_operations()]
    return {operation.label: operation for operation in found}


@pytest.mark.parametrize("kind", ["detector", "classifier"])
def test_answers_are_as_described(kind: str, request: pytest.FixtureRequest, photo: Path) -> None:
    from detector.server.application import build_application

    gate = build_application(Service(request.getfixturevalue(kind)), Limits(hosts={"testserver"}))
    found = operations(gate)
    paths = ["GET /health", "GET /model", "POST /detect"] + ["POST /classify"] * (kind == "detector")
    assert sorted(found) == sorted(paths)
    for operation in found.values():
        check_allowed(operation, photo.read_bytes())
        if operation.method == "post":
            check_forbidden(operation)


def check_allowed(operation: Any, image: bytes) -> None:
    """Whatever the description allows is answered as it says, and accepted.

    It cannot say that the bytes are an image and that the text of the boxes is JSON, so these are replaced.
    """
    mode = schemathesis.GenerationMode.POSITIVE

    @SETTINGS
    @given(case=operation.as_strategy(generation_mode=mode), drawn=st.lists(boxes(), max_size=5))
    def check(case: Any, drawn: list[list[float]]) -> None:
        if operation.method == "post":
            case.body = {**case.body, "image": image}
            if "boxes" in case.body:
                case.body["boxes"] = json.dumps(drawn)
        # It would judge the replaced bytes by the schema, to which only text is a string.
        rejection = schemathesis.checks.negative_data_rejection
        assert case.call_and_validate(excluded_checks=[rejection]).status_code == 200

    check()


def check_forbidden(operation: Any) -> None:
    """Whatever the description forbids is refused with a sentence, and never with a failure."""
    mode = schemathesis.GenerationMode.NEGATIVE

    @SETTINGS
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        response = case.call_and_validate()
        assert 400 <= response.status_code < 500
        assert isinstance(response.json()["detail"], str)

    check()
