"""What differs between the folders of two finished runs, apart from times."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from detector.core.files import file_hash
from detector.engine.checkpoint import read_saved
from detector.proposals.segments import greatest_number
from detector.proposals.store import ProposalStore

_TIMES = re.compile(
    r"seconds|seconds_per_\w+|images_per_second|data_wait\w*|peak_\w+|loading|"
    r"(train|data|evaluate|test)/(images_per_second|seconds_per_step|data_wait|peak_\w+)"
)
_SEGMENT = re.compile(r"segment_\d+\.(boxes|scores)\.npy")


def differences(whole: Path, other: Path) -> list[str]:
    """Return what is different, in words: files that only one has, and files whose content differs."""
    found = [f"only {name} of the uninterrupted run" for name in sorted(_names(whole) - _names(other))]
    found += [f"orphan: {name}" for name in sorted(_names(other) - _names(whole))]
    for path in sorted(whole.rglob("*")):
        twin = other / path.relative_to(whole)
        if path.is_file() and twin.is_file() and _content(path) != _content(twin):
            found.append(f"{path.relative_to(whole)} differs")
    for store in sorted(path.parent for path in other.rglob("manifest.json")):
        found += _store_faults(whole / store.relative_to(other), store)
    for board in sorted(path for path in other.rglob("tensorboard") if path.is_dir()):
        found += _board_faults(whole / board.relative_to(other), board)
    return found


def _names(folder: Path) -> set[str]:
    """Return the files of a run; those whose names no two runs share are named by their kind."""
    return {_plain(path.relative_to(folder).as_posix()) for path in folder.rglob("*") if path.is_file()}


def _plain(name: str) -> str:
    name = re.sub(r"events\.out\.tfevents\..*", "events", name)
    return _SEGMENT.sub(r"segment.\1", name)


def _content(path: Path) -> object:
    """Return what two runs must have in common in a file; nothing for one that is compared elsewhere."""
    if path.name == "environment.json":
        return None  # one entry per start
    if path.suffix == ".pt":
        return _comparable(read_saved(path))
    if path.suffix == ".json" and path.parent.name not in ("results", "detections"):
        return _comparable(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [_comparable(json.loads(line)) for line in path.read_text().splitlines()]
    if path.name in ("run.png", "checked.bin", "index.npy") or _SEGMENT.fullmatch(path.name):
        return None  # pictures show times; marks have times; stores are compared image by image
    if path.name.startswith("events.out"):
        return None
    return file_hash(path)


def _comparable(value: Any) -> Any:
    """Return a value without times, with tensors as types, shapes and bytes."""
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if not _TIMES.fullmatch(str(key))}
        return {key: _comparable(item) for key, item in kept.items()}
    if isinstance(value, list | tuple):
        return [_comparable(item) for item in value]
    if isinstance(value, torch.Tensor):
        return value.dtype, tuple(value.shape), value.contiguous().numpy().tobytes()
    return value


def _store_faults(whole: Path, other: Path) -> Iterator[str]:
    before, after = ProposalStore.open(whole), ProposalStore.open(other)
    yield from (f"{other}: {damage.reason}" for damage in after.damaged())
    if before.ids() != after.ids():
        yield f"{other}: holds other images"
        return
    for image_id in before.ids():
        if before.fingerprint(image_id) != after.fingerprint(image_id):
            yield f"{other}: other proposals of {image_id}"
    on_disk = {int(path.name[8:14]) for path in other.glob("segment_*.npy")}
    if on_disk != set(after._index.segments()) or greatest_number(other) < len(on_disk):
        yield f"{other}: orphan segments {sorted(on_disk - set(after._index.segments()))}"


def _board_faults(whole: Path, other: Path) -> Iterator[str]:
    count = len(list(other.glob("events.out.tfevents.*")))
    if count != 1:
        yield f"{other}: {count} files"
    if _events(whole) != _events(other):
        yield f"{other}: other values"


def _events(folder: Path) -> dict[str, list[tuple[int, float | bytes]]]:
    every = EventAccumulator(str(folder), size_guidance={"scalars": 0, "images": 0}).Reload()
    tags = every.Tags()
    scalars = {tag: [(one.step, one.value) for one in every.Scalars(tag)] for tag in tags["scalars"]}
    images = {
        tag: [(one.step, one.encoded_image_string) for one in every.Images(tag)] for tag in tags["images"]
    }
    return {tag: values for tag, values in (scalars | images).items() if not _TIMES.fullmatch(tag)}
