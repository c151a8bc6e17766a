"""Experiment configuration: a typed schema, its YAML files, and their checks."""

from detector.config.load import load_config, parse_config, require_stage, stage_config
from detector.config.schema import Config

__all__ = ["Config", "load_config", "parse_config", "require_stage", "stage_config"]
