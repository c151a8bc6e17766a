"""Experiment configuration: a typed schema (``schema``) and the YAML loader (``load``)."""

from detector.config.load import load_config, parse_config, require_stage, stage_config
from detector.config.schema import Config

__all__ = ["Config", "load_config", "parse_config", "require_stage", "stage_config"]
