"""Ends a run whose evaluations no longer get better."""

from __future__ import annotations


class EarlyStopping:
    """Counts the evaluations in a row without a gain; ``patience`` of them end the run, with None none do.

    ``without_gain`` is the count, which a checkpoint keeps.
    """

    def __init__(self, patience: int | None) -> None:
        self.patience = patience
        self.without_gain = 0

    @property
    def reached(self) -> bool:
        """Whether the run is to end."""
        return self.patience is not None and self.without_gain >= self.patience

    def count(self, *, gained: bool) -> None:
        """Count one evaluation; ``gained`` says whether it was better than all before it."""
        self.without_gain = 0 if gained else self.without_gain + 1
