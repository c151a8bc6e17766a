"""What a proposal store says about itself: generator, parameters, box convention, format version."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detector.errors import InputError
from detector.proposals.durable import replace_durably

FORMAT = "detector proposal store"
VERSION = 1
BOX_CONVENTION = "x1, y1, x2, y2 float32 pixels half-open, original image"
IMAGE_SIZES = "index.npy: height and width of each image, in pixels; 0 if unknown"
CHECKSUM = "index.npy: CRC-32 of the bytes of each image's boxes, then of its scores"


def make_manifest(generator: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the manifest of a store by ``generator`` with ``parameters``, as it will read back."""
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "generator": generator,
        "parameters": dict(parameters),
        "boxes": BOX_CONVENTION,
        "image_sizes": IMAGE_SIZES,
        "checksum": CHECKSUM,
        "notes": [],
    }
    return json.loads(json.dumps(manifest))


def save_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Replace the manifest of the store ``folder`` in one durable step."""
    with replace_durably(folder / "manifest.json") as file:
        file.write(json.dumps(manifest, indent=2).encode() + b"\n")


def load_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of the store ``folder``; raises InputError if it is none of ours."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{folder} is no proposal store: it has no manifest.json") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); make the proposal store anew") from error
    known = isinstance(manifest, dict) and manifest.get("format") == FORMAT
    if (
        not known
        or not {"generator", "parameters"} <= manifest.keys()
        or type(manifest["parameters"]) is not dict
    ):
        raise InputError(f"{path} is not the manifest of a proposal store")
    if manifest.get("version") != VERSION or manifest.get("boxes") != BOX_CONVENTION:
        raise InputError(f"{path} is of another version than {VERSION}; make the proposal store anew")
    return manifest


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Say how the generator or the parameters of two manifests differ; "" if they do not."""
    if found["generator"] != wanted["generator"]:
        return f"generator {found['generator']!r} there, {wanted['generator']!r} wanted"
    there, here = found["parameters"], wanted["parameters"]
    names = [name for name in sorted({*there, *here}) if there.get(name) != here.get(name)]
    return ", ".join(f"{name} {there.get(name)!r} there, {here.get(name)!r} wanted" for name in names)
