"""ImageNet's weights for a backbone, found by its name: a file that is there, or torchvision's download."""

from __future__ import annotations

import hashlib
import http.client
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torchvision.models import (
    AlexNet_Weights,
    ResNet18_Weights,
    ResNet50_Weights,
    SqueezeNet1_0_Weights,
    VGG16_Weights,
)

from detector.core.errors import InputError

DEFAULT = "default"
"""The word of ``model.backbone.weights`` that asks for them."""
WEIGHTS_FOLDER = Path("data/weights")
TIMEOUT_SECONDS = 30.0
"""How long a server may be silent."""

_PUBLISHED = {
    "alexnet": AlexNet_Weights.IMAGENET1K_V1,
    "resnet18": ResNet18_Weights.IMAGENET1K_V1,
    "resnet50": ResNet50_Weights.IMAGENET1K_V1,
    "squeezenet1_0": SqueezeNet1_0_Weights.IMAGENET1K_V1,
    "vgg16": VGG16_Weights.IMAGENET1K_V1,
}
_OTHER_FILES = {"squeezenet1_0": ("squeezenet1_0-dc_tvnorm-fba6d0e6.pth",)}
# No network, no permission; another checksum; an answer that is not HTTP, or whose length is no number.
_NO_DOWNLOAD = (OSError, RuntimeError, http.client.HTTPException, ValueError)
_CHECKSUM = re.compile(r"-([0-9a-f]{8,64})\.pth$")  # torchvision's names end with the first digits of SHA-256


def default_file_names(backbone: str) -> list[str]:
    """Return the file names that stand for a backbone's default weights; the first is torchvision's.

    Raises InputError for a backbone that has none.
    """
    if backbone not in _PUBLISHED:
        raise InputError(f"{backbone} has no default weights; known: {', '.join(_PUBLISHED)}")
    return [_url(backbone).rpartition("/")[2], *_OTHER_FILES.get(backbone, ()), f"{backbone}.pth"]


def default_weights(backbone: str, folder: Path = WEIGHTS_FOLDER) -> Path:
    """Return the first of `default_file_names` in ``folder``, downloaded there where it has none of them.

    A file whose name holds a checksum is compared with it.

    Raises:
        InputError: the checksum differs, or there is no file and none can be downloaded.
    """
    names = default_file_names(backbone)
    for path in (folder / name for name in names):
        if path.is_file():
            _compare_checksum(path)
            return path
    target = folder / names[0]
    try:
        _download(_url(backbone), target)
    except _NO_DOWNLOAD as error:
        raise InputError(
            f"model.backbone.weights: default: none of {', '.join(names)} is in {folder}, and the download "
            f"of {_url(backbone)} failed: {str(error).strip() or type(error).__name__}. Put that file there, "
            "or set model.backbone.weights to a file of yours, or to null for random weights"
        ) from None
    return target


def _url(backbone: str) -> str:
    return str(_PUBLISHED[backbone].url)


def _download(url: str, target: Path) -> None:
    """Fetch ``url`` to ``target``, which appears whole and with the checksum of its name, or not at all."""
    checksum = _CHECKSUM.search(target.name)
    assert checksum is not None  # torchvision names all its files so
    target.parent.mkdir(parents=True, exist_ok=True)
    with _timeout(TIMEOUT_SECONDS):
        torch.hub.download_url_to_file(url, str(target), hash_prefix=checksum[1])


@contextmanager
def _timeout(seconds: float) -> Iterator[None]:
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _compare_checksum(path: Path) -> None:
    expected = _CHECKSUM.search(path.name)
    if expected is None:
        return
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot read the weights: {error.strerror}") from None
    if not found.startswith(expected[1]):
        raise InputError(
            f"{path}: the file is damaged: its SHA-256 begins with {found[: len(expected[1])]}, not with "
            f"{expected[1]} as its name says; remove it, and it is downloaded again, or put a sound one there"
        )
