"""What tools/propose.py does: which images, which part of them, made or converted, and the report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from detector.config import Config
from detector.config.load import override, parse_proposals
from detector.config.sections.proposals import ProposalsConfig
from detector.core.errors import InputError
from detector.core.files import IMAGE_SUFFIXES, is_hidden
from detector.core.progress import note, progress_bar
from detector.core.structures import ImageRecord, Targets
from detector.data.keys import image_key
from detector.factory import data as data_parts
from detector.factory import proposals as proposal_parts
from detector.factory.splits import read_splits
from detector.proposals.convert import convert
from detector.proposals.image_names import match_store
from detector.proposals.inspection import guess_format
from detector.proposals.methods import store_name
from detector.proposals.recall import recall
from detector.proposals.store import ProposalStore, merge_stores

Splits = dict[str, list[ImageRecord]]


@dataclass(frozen=True)
class Shard:
    """Part ``number`` of ``total``, counted from 1: every ``total``-th image."""

    number: int = 1
    total: int = 1

    def of(self, records: Sequence[ImageRecord]) -> list[ImageRecord]:
        return list(records[self.number - 1 :: self.total])

    def folder(self, folder: Path) -> Path:
        """Return the folder of this part's own store; two machines never write one store."""
        if self.total == 1:
            return folder
        return folder.with_name(f"{folder.name}_shard_{self.number}_of_{self.total}")


@dataclass
class Report:
    """What came of a job: the store, the images without proposals and why, figures for each split."""

    store: ProposalStore
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


def split_records(config: Config, splits: Sequence[str] | None) -> Splits:
    """Read the images of ``splits``, by default of those that training reads."""
    data_parts.ensure_data(config)
    classes = data_parts.class_names(config)
    names = splits or read_splits(config)
    return {name: data_parts.load_split(config, name, classes, training=False).records for name in names}


def all_records(splits: Splits) -> list[ImageRecord]:
    """Return every image of ``splits`` once."""
    return list({record.key: record for found in splits.values() for record in found}.values())


def folder_records(folder: Path) -> list[ImageRecord]:
    """Return the images in ``folder`` and below but hidden ones; the key is the path inside it.

    Raises InputError where there is none.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of images")
    paths = [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() and not is_hidden(path, folder)
    ]
    if not paths:
        raise InputError(f"no image in {folder}; known: {', '.join(IMAGE_SUFFIXES)}")
    return [
        # Size 0 x 0: taken from the file when it is decoded.
        ImageRecord(
            image_id=path.relative_to(folder).with_suffix("").as_posix(),
            key=image_key(path, folder),
            path=path,
            height=0,
            width=0,
            targets=Targets.empty(),
        )
        for path in paths
    ]


def folder_settings(overrides: Sequence[str]) -> ProposalsConfig:
    """Return the proposal settings that ``proposals.key=value`` give, by default selective search."""
    start: dict[str, Any] = {"proposals": {"method": "selective_search"}}
    return parse_proposals(override(start, overrides), "the command line")


def default_folder(config: Config) -> Path:
    """Return where training with ``config`` looks for what its method makes."""
    source = config.proposals
    if source.method is None:
        raise InputError("the config's proposals are a file; name the store with --output, or give --method")
    folder = proposal_parts.proposals_folder(config)
    return folder / store_name(source.method, proposal_parts.method_parameters(source))


def generate_for_config(
    config: Config, splits: Splits, target: Path | None, shard: Shard, workers: int | None
) -> tuple[Report, Splits]:
    """Make the proposals of ``splits`` and return what came of it with the images of the part, by split.

    ``target`` None is where training looks, or a place for the part.
    """
    folder = target or shard.folder(default_folder(config))
    records = all_records(splits)
    part = shard.of(records)
    if shard.total > 1:
        note(f"part {shard.number} of {shard.total}: {len(part)} of {len(records)} images")
    store, failed = proposal_parts.generate(config.proposals, part, folder, workers=workers)
    keys = {record.key for record in part}
    covered = {split: [one for one in found if one.key in keys] for split, found in splits.items()}
    return Report(match_store(store, part), failed), covered


def generate_for_folder(
    images: str | None, overrides: Sequence[str], target: Path | None, shard: Shard, workers: int | None
) -> Report:
    """Make the proposals of a plain folder of images with the settings ``proposals.key=value``."""
    if images is None or target is None:
        raise InputError("give --config, --images FOLDER with --output STORE, --from, --inspect or --merge")
    part = shard.of(folder_records(Path(images)))
    return Report(*proposal_parts.generate(folder_settings(overrides), part, target, workers=workers))


def open_split(config: Config, split: str, records: list[ImageRecord]) -> tuple[Report, Splits]:
    """Open or convert what the config's file has for a split, as training does."""
    return Report(proposal_parts.open_proposals(config, records, split)), {split: records}


def convert_file(
    source: str,
    file_format: str | None,
    target: Path | None,
    config: Config | None,
    splits: Splits,
    options: dict[str, Any],
) -> Report:
    """Convert a file, checked against ``splits``; where an option of `convert` is None the config rules."""
    if target is None:
        raise InputError("--from needs --output STORE")
    records = all_records(splits)
    settings = {"convention": None, "faults": "error", "missing": None}
    if config is not None:
        settings = {name: getattr(config.proposals, name) for name in settings}
    options = settings | {name: value for name, value in options.items() if value is not None}
    file_format = file_format or guess_format(Path(source))
    with progress_bar("converting") as advance:
        return Report(
            convert(
                source,
                file_format,
                target,
                records=records or None,
                one_split=len(splits) <= 1,
                everything=tuple if config is None else partial(data_parts.all_names, config),
                progress=lambda done: advance(done, max(done, len(records))),
                **options,
            )
        )


def merge(sources: Sequence[str], target: Path | None, config: Config | None) -> Report:
    """Merge stores into ``target``, or where training with the config looks."""
    if target is None:
        if config is None:
            raise InputError("--merge needs --output STORE, or --config to put it where training looks")
        target = default_folder(config)
    with progress_bar("merging") as advance:
        return Report(merge_stores(sources, target, progress=advance))


def tell(report: Report) -> None:
    """Say what was found and what failed."""
    for text in report.store.notes:
        note(text)
    for key, reason in report.failed.items():
        note(f"no proposals for {key}: {reason}")
    failed = f", {len(report.failed)} failed" if report.failed else ""
    note(f"{report.store.path}: {len(report.store)} images{failed}")


def report_splits(report: Report, splits: Splits, config: Config) -> None:
    """Measure and print the recall of each split's images that have proposals."""
    for split, records in splits.items():
        if not records:
            continue  # none of this split is in the part that was made
        known = [record for record in records if record.key in report.store]
        proposal_parts.report_recall(known, report.store, config, split)
        report.recall[split] = recall(known, report.store)
        if len(known) < len(records):
            note(f"{len(records) - len(known)} of {len(records)} images of {split} have no proposals")
