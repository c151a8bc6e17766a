"""Functions and classes of the user, named ``module:name`` in a config.

Loading one imports its module, which runs code. Callers do so only for names that the command line, a config
file given there, or ``Detector.load(..., allow_code=...)`` has; see `detector.config.load.parse_stored`.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

from detector.core.errors import InputError


def load_object(name: str, key: str) -> Any:
    """Return what ``module:name`` names; the module may be a file in the working directory.

    Raises:
        InputError: it cannot be imported or called; ``key`` says in the message where the name is from.
    """
    module_name, _, object_name = name.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        loaded = getattr(importlib.import_module(module_name), object_name)
    except Exception as error:  # the module is the user's, and may fail in any way
        raise InputError(f"{key} {name!r} cannot be loaded: {type(error).__name__}: {error}") from error
    if not callable(loaded):
        raise InputError(f"{key} {name!r} is not a function")
    return loaded
