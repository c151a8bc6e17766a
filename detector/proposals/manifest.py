"""What a proposal store says about itself: generator, parameters, box convention, format version."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from detector.core.errors import InputError
from detector.core.files import atomic_write, read_short_text, require_regular

FORMAT = "detector proposal store"
VERSION = 1
BOX_CONVENTION = "x1, y1, x2, y2 float32 pixels half-open, original image"
IMAGE_SIZES = "index.npy: height and width of each image, in pixels; 0 if unknown"
CHECKSUM = "index.npy: CRC-32 of the bytes of each image's boxes, then of its scores"
# The CRC-32 of the manifest's other entries as compact JSON with sorted keys; earlier versions wrote none.
_OWN_CHECKSUM = "crc32"
_TYPES = {"generator": str, "parameters": dict, "notes": list, "version": int}


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
    whole = {**manifest, _OWN_CHECKSUM: _checksum(manifest)}
    with atomic_write(folder / "manifest.json") as file:
        file.write(json.dumps(whole, indent=2).encode() + b"\n")


def load_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of the store ``folder``; raises InputError if it is damaged or none of ours."""
    path = folder / "manifest.json"
    if not path.exists():
        raise InputError(f"{folder} is no proposal store: it has no manifest.json")
    require_regular(path)
    try:
        manifest = json.loads(read_short_text(path, "the manifest of a proposal store"))
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}); make the proposal store again") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise InputError(f"{path} is not the manifest of a proposal store")
    checksum = manifest.pop(_OWN_CHECKSUM, None)
    if checksum is not None and checksum != _checksum(manifest):
        raise InputError(
            f"{path} is damaged or was edited (its checksum does not fit); put the old one back, or make the "
            "proposal store again"
        )
    manifest.setdefault("notes", [])
    for name, kind in _TYPES.items():
        if type(manifest.get(name)) is not kind:
            raise InputError(
                f"{path}: {name} is missing or of another type than {kind.__name__}; make the proposal store "
                "again"
            )
    if manifest["version"] != VERSION or manifest.get("boxes") != BOX_CONVENTION:
        raise InputError(f"{path} is of another version than {VERSION}; make the proposal store again")
    return manifest


def _checksum(manifest: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(manifest, sort_keys=True).encode())


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Say how the generator or the parameters of two manifests differ; "" if they do not."""
    if found["generator"] != wanted["generator"]:
        return f"generator {found['generator']!r} there, {wanted['generator']!r} wanted"
    there, here = found["parameters"], wanted["parameters"]
    names = [name for name in sorted({*there, *here}) if there.get(name) != here.get(name)]
    return ", ".join(f"{name} {there.get(name)!r} there, {here.get(name)!r} wanted" for name in names)
