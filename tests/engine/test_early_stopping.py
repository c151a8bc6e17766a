"""When a run ends early."""

from __future__ import annotations

from detector.engine.early_stopping import EarlyStopping


def test_only_evaluations_in_a_row_count() -> None:
    stopping = EarlyStopping(2)
    reached = []
    for gained in (True, False, True, False, False, False):
        stopping.count(gained=gained)
        reached.append(stopping.reached)
    assert reached == [False, False, False, False, True, True]
    assert stopping.without_gain == 3


def test_without_a_limit_no_run_ends_early() -> None:
    stopping = EarlyStopping(None)
    for _ in range(100):
        stopping.count(gained=False)
    assert not stopping.reached
