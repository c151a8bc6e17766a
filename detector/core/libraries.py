"""The names of the networks of torchvision and timm, for checking a config without building a network."""

from __future__ import annotations

import importlib
from functools import lru_cache
from types import ModuleType

from detector.core.errors import InputError, nearest

LIBRARIES = ("torchvision", "timm")
"""What a network's name ``library:NAME`` may begin with; any other beginning is a module of the user."""


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
