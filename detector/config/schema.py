"""The typed schema of an experiment: every key, its unit, its default and where the default comes from.

"Paper" is Girshick, "Fast R-CNN" (2015); "release" is the code published with it. A schema object is
frozen and knows no unknown keys. Whatever can be checked without reading a file is checked here.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from detector.config.sections.base import Section, Seed
from detector.config.sections.data import DataConfig
from detector.config.sections.model import ModelConfig
from detector.config.sections.proposals import ProposalsConfig
from detector.config.sections.testing import TestConfig
from detector.config.sections.training import StageConfig, TrainConfig


class Config(Section):
    seed: Seed = 0
    task: Literal["detection"] = "detection"
    data: DataConfig
    proposals: ProposalsConfig
    model: ModelConfig
    train: TrainConfig
    test: TestConfig = TestConfig()
    stages: tuple[StageConfig, ...] = Field(default=(), max_length=0)
