"""The experiment trackers that a config names."""

from __future__ import annotations

from detector.config import Config
from detector.config.schema import MlflowConfig, WandbConfig
from detector.engine.callbacks import Callback


def build_callbacks(config: Config) -> list[Callback]:
    """Return the trackers of ``train.callbacks``, in order.

    Raises:
        InputError: the package of one of them is not installed.
    """
    return [_build(one) for one in config.train.callbacks]


def _build(chosen: WandbConfig | MlflowConfig) -> Callback:
    from detector.engine.trackers import MlflowTracker, WandbTracker

    match chosen:
        case WandbConfig():
            return WandbTracker(chosen.project, entity=chosen.entity, name=chosen.name, mode=chosen.mode)
        case MlflowConfig():
            return MlflowTracker(chosen.tracking_uri, chosen.experiment, name=chosen.name)
