"""The resolved config as YAML, with the origin of each value: a file, the command line, or the default."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from detector.config.files import Layers, read_layers, value_at
from detector.config.load import load_config
from detector.core.errors import printable

DEFAULT = "default"


def resolved_yaml(path: str | Path, overrides: Sequence[str]) -> str:
    """Return every value of a config with its origin as a comment; loading the text gives the same config.

    Raises:
        InputError: as `detector.config.load.load_config`.
    """
    config = load_config(path, overrides)
    given, source, layers = read_layers(path, overrides)
    changes = f", with {' '.join(json.dumps(text) for text in overrides)}" if overrides else ""
    lines = _lines(config.model_dump(mode="json"), given, layers, ())
    return "\n".join([f"# {printable(source)} resolved{changes}", *lines]) + "\n"


def _lines(values: Mapping[str, Any], given: Any, layers: Layers, above: tuple[str, ...]) -> Iterator[str]:
    """Yield the lines of a mapping; ``given`` are the values that files and command line give for it."""
    indent = "  " * len(above)
    for name, value in values.items():
        key = _scalar(name)
        inside = given.get(name) if isinstance(given, Mapping) else None
        if isinstance(value, dict) and value:
            yield f"{indent}{key}:"
            yield from _lines(value, inside, layers, (*above, name))
            continue
        known = isinstance(given, Mapping) and name in given
        origin = _origin(layers, (*above, name)) if known else DEFAULT
        if value and name == "stages":
            yield f"{indent}{key}:  # {origin}"
            for stage in value:
                first, *others = (f"{_scalar(each)}: {_scalar(stage[each])}" for each in stage)
                yield from (f"  - {first}", *(f"    {other}" for other in others))
            continue
        yield f"{indent}{key}: {_scalar(value)}  # {origin}"


def _origin(layers: Layers, keys: tuple[str, ...]) -> str:
    """Return the name of the last layer that gives a value for ``keys``, which is the one that counts."""
    return next(
        (printable(name) for name, values in reversed(layers) for _ in value_at(values, keys)), DEFAULT
    )


def _scalar(value: Any) -> str:
    """Return a value in YAML's flow style, on one line."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=float("inf"))
    return text.removesuffix("\n...\n").removesuffix("\n")
