"""Packages that are not always there: the networks of torchvision and timm, and those of the server."""

from __future__ import annotations

import importlib.util
from functools import lru_cache
from types import ModuleType

from detector.core.errors import InputError, nearest

LIBRARIES = ("torchvision", "timm")
"""What a network's name ``library:NAME`` may begin with; any other beginning is a module of the user."""
_SERVER = {"fastapi": "fastapi", "uvicorn": "uvicorn", "python-multipart": "python_multipart"}
"""The packages of the extra ``serve``, with their modules."""


@lru_cache
def timm_library() -> ModuleType:
    """Return the package timm.

    Raises:
        InputError: it is not installed; names the command.
    """
    try:
        return importlib.import_module("timm")
    except ImportError:
        raise InputError(
            "timm:NAME needs the package timm, which is not installed; install it with "
            "pip install 'region-detector[timm]', or with pip install timm"
        ) from None


def has_timm() -> bool:
    """Return whether timm is installed, without importing it."""
    return importlib.util.find_spec("timm") is not None


def check_network_name(name: str) -> None:
    """Raise InputError if ``library:NAME`` is no network of its library; other names are not checked."""
    library, _, own = name.partition(":")
    if library not in LIBRARIES:
        return
    if library == "torchvision":
        from torchvision import models  # takes a second to import

        known = models.list_models(module=models)
        listed = f"it has {', '.join(known)}"
    else:
        known = timm_library().list_models()
        listed = "timm.list_models() lists them"
    if own not in known:
        raise InputError(f"{library} has no classification network {own!r}{nearest(own, known)}; {listed}")


def require_server() -> None:
    """Raise InputError, with the command that installs it, if a package of the extra ``serve`` is missing."""
    missing = [package for package, module in _SERVER.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise InputError(
            f'the server needs {", ".join(missing)}: pip install "region-detector[serve]", or '
            f"pip install {' '.join(missing)}"
        )
