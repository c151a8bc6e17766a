"""Fast R-CNN and SPP-net: training, evaluation and use of region-based detectors."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detector.api import Detector, Result

__version__ = "0.2.0"
__all__ = ["Detector", "Result", "__version__"]


def __getattr__(name: str) -> object:
    """Import ``Detector`` and ``Result`` when they are first used, since they need torch."""
    if name in ("Detector", "Result"):
        from detector import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
