"""The jobs of tools/propose.py: they make, convert or merge proposals and return a report.

They have a module of their own because its imports take seconds, and each worker process imports the module
of the command line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from detector.config import Config
from detector.config.files import override
from detector.config.load import parse_proposals
from detector.config.schema import ProposalsConfig
from detector.core.errors import InputError
from detector.core.files import IMAGE_SUFFIXES
from detector.core.progress import note, progress_bar
from detector.core.structures import ImageRecord, Targets
from detector.data.paths import image_key
from detector.factory import data as data_parts
from detector.factory import proposals as proposal_parts
from detector.proposals.convert import convert
from detector.proposals.image_names import match_store
from detector.proposals.readers.raw_images import files_of
from detector.proposals.recall import recall
from detector.proposals.recognition import guess_format
from detector.proposals.store import ProposalStore, merge_stores

Splits = Mapping[str, Sequence[ImageRecord]]


@dataclass(frozen=True)
class Shard:
    """Part ``number`` of ``total``, counted from 1: every ``total``-th image from there."""

    number: int = 1
    total: int = 1

    def of(self, records: Sequence[ImageRecord]) -> list[ImageRecord]:
        return list(records[self.number - 1 :: self.total])

    def folder(self, folder: Path) -> Path:
        """Return the folder of this part's own store, so that no two machines write one store."""
        if self.total == 1:
            return folder
        return folder.with_name(f"{folder.name}_shard_{self.number}_of_{self.total}")


@dataclass
class Report:
    """The outcome of a job: the store, the images that it is for, and why images failed, by key.

    ``recall`` is the recall of each split, once it has been measured.
    """

    store: ProposalStore
    splits: Splits = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    recall: dict[str, dict[str, float]] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {
            "store": str(self.store.path),
            "images": len(self.store),
            "generator": self.store.generator,
            "parameters": self.store.parameters,
            "notes": self.store.notes,
            "failed": self.failed,
            "recall": self.recall,
        }


def parse_shard(text: str) -> Shard:
    """Read ``"2/8"``. Raises InputError for anything else."""
    number, slash, total = text.partition("/")
    if slash and number.isdecimal() and total.isdecimal() and 1 <= int(number) <= int(total):
        return Shard(int(number), int(total))
    raise InputError(f"--shard {text!r}: write it as i/n with i from 1 to n, for instance 2/8")


def all_records(splits: Splits) -> list[ImageRecord]:
    """Return every image of ``splits`` once."""
    return list({record.key: record for records in splits.values() for record in records}.values())


def folder_records(folder: Path) -> list[ImageRecord]:
    """Return the images in ``folder`` and below, without hidden ones; their keys are the paths inside it.

    Raises InputError where there is none.
    """
    return [
        # Size 0 x 0: that of the file once it is decoded.
        ImageRecord(
            image_id=image_id,
            key=image_key(path, folder),
            path=path,
            height=0,
            width=0,
            targets=Targets.empty(),
        )
        for image_id, path in files_of(folder, *IMAGE_SUFFIXES)
    ]


def folder_settings(overrides: Sequence[str]) -> ProposalsConfig:
    """Return the proposal settings of ``overrides``, ``proposals.key=value``, by default selective search."""
    start: dict[str, Any] = {"proposals": {"method": "selective_search"}}
    return parse_proposals(override(start, overrides), "the command line")


def generate_for_config(
    config: Config, splits: Splits, target: Path | None, shard: Shard, workers: int | None
) -> Report:
    """Make the proposals of one part of ``splits``.

    ``target`` is the folder of the store; None is where training looks, or a folder beside it for a part.
    """
    folder = target or shard.folder(proposal_parts.made_folder(config))
    records = all_records(splits)
    part = shard.of(records)
    if shard.total > 1:
        note(f"part {shard.number} of {shard.total}: {len(part)} of {len(records)} images")
    store, failed = proposal_parts.generate(config.proposals, part, folder, workers=workers)
    keys = {record.key for record in part}
    covered = {split: [one for one in every if one.key in keys] for split, every in splits.items()}
    return Report(match_store(store, part), covered, failed)


def generate_for_folder(
    images: str | None, overrides: Sequence[str], target: Path | None, shard: Shard, workers: int | None
) -> Report:
    """Make the proposals of a plain folder of images with the settings of `folder_settings`."""
    if images is None or target is None:
        raise InputError("give --config, --images FOLDER with --output STORE, --from, --inspect or --merge")
    part = shard.of(folder_records(Path(images)))
    store, failed = proposal_parts.generate(folder_settings(overrides), part, target, workers=workers)
    return Report(store, failed=failed)


def open_split(config: Config, split: str, records: Sequence[ImageRecord]) -> Report:
    """Open or convert the config's proposal file for a split, as training does."""
    return Report(proposal_parts.open_proposals(config, records, split), {split: records})


def convert_file(
    source: str,
    file_format: str | None,
    target: Path | None,
    config: Config | None,
    splits: Splits,
    options: dict[str, Any],
) -> Report:
    """Convert a file, checked against ``splits``.

    ``options`` are arguments of `convert`; the config gives those that are None.
    """
    if target is None:
        raise InputError("--from needs --output STORE")
    records = all_records(splits)
    settings = {"convention": None, "faults": "error", "missing": None}
    if config is not None:
        settings = {name: getattr(config.proposals, name, None) for name in settings}
    options = settings | {name: value for name, value in options.items() if value is not None}
    file_format = file_format or guess_format(Path(source))
    with progress_bar("converting") as advance:
        store = convert(
            source,
            file_format,
            target,
            records=records or None,
            one_split=len(splits) <= 1,
            everything=tuple if config is None else partial(data_parts.all_names, config),
            progress=lambda done: advance(done, max(done, len(records))),
            **options,
        )
    return Report(store, splits)


def merge(sources: Sequence[str], target: Path | None, config: Config | None, splits: Splits) -> Report:
    """Merge stores into ``target``, by default the folder in which training with the config looks."""
    if target is None:
        if config is None:
            raise InputError("--merge needs --output STORE, or --config to put it where training looks")
        target = proposal_parts.made_folder(config)
    with progress_bar("merging") as advance:
        return Report(merge_stores(sources, target, progress=advance), splits)


def print_report(report: Report) -> None:
    """Print the notes of the store and why images failed."""
    for text in report.store.notes:
        note(text)
    for key, reason in report.failed.items():
        note(f"no proposals for {key}: {reason}")
    failed = f", {len(report.failed)} failed" if report.failed else ""
    note(f"{report.store.path}: {len(report.store)} images{failed}")


def report_splits(report: Report, config: Config) -> None:
    """Measure and print the recall of each split's images that have proposals."""
    for split, records in report.splits.items():
        if not records:
            continue  # no image of this split is in the part that was made
        known = [record for record in records if record.key in report.store]
        proposal_parts.report_recall(known, report.store, config, split)
        report.recall[split] = recall(known, report.store)
        if len(known) < len(records):
            note(f"{len(records) - len(known)} of {len(records)} images of {split} have no proposals")
