"""The proposals of a config: opened, converted or made, looked up and checked."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from detector.config import Config
from detector.data.images import read_image
from detector.errors import InputError
from detector.progress import note, progress_bar
from detector.proposals.convert import convert, source_parameters
from detector.proposals.generate import generate_store, store_name
from detector.proposals.prepare import filter_proposals
from detector.proposals.recall import recall
from detector.proposals.store import ProposalStore
from detector.structures import ImageRecord, Proposals

PROPOSALS_FOLDER = Path("data/proposals")
LOW_RECALL = 0.5
"""Below this recall at IoU 0.5 something is wrong with the boxes more often than with the method."""


@dataclass(frozen=True)
class StoredProposals:
    """Looks an image's proposals up and filters them as the config says.

    An image without an entry has none: ``with_proposals`` has said so, and evaluation leaves no image out.
    """

    store: ProposalStore
    top_k: int
    min_size: float

    def __call__(self, record: ImageRecord) -> Proposals:
        if record.image_id not in self.store:
            return Proposals(boxes=torch.zeros(0, 4))
        size = (record.height, record.width)
        found = self.store[record.image_id]
        return filter_proposals(found, size, min_size=self.min_size, top_k=self.top_k)


def open_proposals(config: Config, records: Sequence[ImageRecord]) -> ProposalStore:
    """Open the proposals of ``records``, converting or making first what is not there yet."""
    source = config.proposals
    if source.method is not None:
        return make_proposals(config, records)
    assert source.file is not None  # the schema allows one of the two
    path = Path(source.file)
    if not path.exists():
        raise InputError(
            f"{path}: no such proposals; proposals.file names a file of format {source.format!r} with the "
            f"boxes of every image of {config.data.root}, or set proposals.method to make them"
        )
    if source.format == "store":
        return ProposalStore.open(path)
    key = source_parameters(path, source.format or "")["source_blake2b"][:8]
    target = PROPOSALS_FOLDER / f"{path.stem}_{key}"
    if not target.exists():
        note(f"converting {path} into the store {target}")
    return convert(path, source.format or "", target)


def make_proposals(
    config: Config, records: Sequence[ImageRecord], target: Path | None = None
) -> ProposalStore:
    """Make what the config's method has not made yet for ``records``; None is the usual folder."""
    method = config.proposals.method
    if method is None:
        raise InputError("proposals.method is not set; name one to make proposals with")
    parameters = method_parameters(config)
    with progress_bar(f"{method} proposals") as advance:
        return generate_store(
            records,
            target or proposals_folder(config) / store_name(method, parameters),
            method=method,
            read_image=read_image,
            parameters=parameters,
            progress=advance,
        )


def method_parameters(config: Config) -> dict[str, Any]:
    """Return the parameters that the config gives to ``proposals.method``."""
    source = config.proposals
    given = {"scales": source.scales, "aspects": source.aspects, "stride_fraction": source.stride_fraction}
    return {
        name: list(value) if isinstance(value, tuple) else value for name, value in given.items() if value
    }


def proposals_folder(config: Config) -> Path:
    """Return where stores that the tools make lie: by data set, the quick start's inside its own folder."""
    root = Path(config.data.root)
    if config.data.generate is not None:
        return root / "proposals"
    place = hashlib.blake2b(str(root.resolve()).encode(), digest_size=4).hexdigest()
    return PROPOSALS_FOLDER / f"{root.resolve().name}_{place}"  # two data sets may have one name


def with_proposals(config: Config, records: Sequence[ImageRecord], store: ProposalStore) -> list[ImageRecord]:
    """Return the ``records`` that have proposals; what happens to others is ``proposals.missing``."""
    missing = [record.image_id for record in records if record.image_id not in store]
    if missing and config.proposals.missing == "error":
        raise InputError(
            f"{store.path}: no proposals for {len(missing)} of {len(records)} images, the first is "
            f"{missing[0]!r}; add them, or set proposals.missing to skip"
        )
    if missing:
        note(
            f"{len(missing)} images have no proposals, such as {missing[0]!r}: not trained on, nothing found"
        )
    return [record for record in records if record.image_id in store]


def report_recall(records: Sequence[ImageRecord], store: ProposalStore, config: Config, split: str) -> None:
    """Print the line that says whether these proposals can work, and a warning if they cannot."""
    training = split == config.data.train_split
    limit = config.proposals.top_k_train if training else config.proposals.top_k_test
    figures = recall(records, store, limit=limit)
    note(
        f"proposals for {split}: {figures['proposals_per_image']:.0f} an image, recall "
        f"{figures['recall_0.5']:.3f} at IoU 0.5, {figures['recall_0.7']:.3f} at IoU 0.7"
    )
    if figures["objects"] and figures["recall_0.5"] < LOW_RECALL:
        note(
            f"warning: {store.path} covers only {figures['recall_0.5']:.0%} of the objects at IoU 0.5; are "
            "the boxes x1, y1, x2, y2 in pixels of these images?"
        )
