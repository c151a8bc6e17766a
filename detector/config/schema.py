"""The typed schema of an experiment: every key, its unit, its default and where the default comes from.

"Paper" is Girshick, "Fast R-CNN" (2015); "release" is the code published with it. A schema object is
frozen and knows no unknown keys. Whatever can be checked without reading a file is checked here.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from detector.config.sections.base import Section, Seed
from detector.config.sections.data import DataConfig
from detector.config.sections.model import ModelConfig
from detector.config.sections.proposals import ProposalsConfig
from detector.config.sections.testing import TestConfig
from detector.config.sections.training import StageConfig, TrainConfig


class Config(Section):
    seed: Seed = 0
    task: Literal["detection", "classification"] = "detection"
    """"classification" trains and scores a network for the classes of whole images (SPP-net, section 3)."""
    data: DataConfig
    proposals: ProposalsConfig = ProposalsConfig()
    """Detection needs a ``file`` or a ``method``."""
    model: ModelConfig
    train: TrainConfig
    test: TestConfig = TestConfig()
    stages: Annotated[tuple[StageConfig, ...], Field(max_length=32)] = ()
    """A staged training; empty trains in one go."""

    @model_validator(mode="after")
    def _task_has_what_it_needs(self) -> Config:
        if self.task == "detection":
            if self.proposals.file is None and self.proposals.method is None:
                raise ValueError("proposals needs either 'file' with 'format', or 'method'")
            if self.model.pool.rule == "sliding":
                raise ValueError("model.pool.rule: sliding is for whole images, task: classification")
        elif self.test.metric == "coco":
            raise ValueError("test.metric: coco scores boxes; task: classification has voc07 and voc")
        elif self.model.pool.kind != "spp":
            raise ValueError(
                "task: classification pools whole images by a pyramid; set model.pool.kind to spp"
            )
        return self

    @model_validator(mode="after")
    def _stage_names_differ(self) -> Config:
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise ValueError("stages: each needs a name of its own, which names its folder")
        return self
