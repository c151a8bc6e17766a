"""The proposals that a config names: opened, converted or made, looked up and checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from detector.config import Config
from detector.config.schema import ProposalsConfig, ProposalsWithOptions, pools_by_masks
from detector.core.box_labels import labels_of_boxes
from detector.core.catalogue import how_to_get
from detector.core.distributed import local_place, main_first, world_size
from detector.core.errors import InputError
from detector.core.machine import available_cores
from detector.core.progress import note, progress_bar
from detector.core.records import Records
from detector.core.structures import ImageName, ImageRecord, Proposals
from detector.data.images import check_image, read_image
from detector.factory.data import all_names
from detector.models.box_coder import TargetSums
from detector.proposals.bulk import BulkObjects, content_digest, matches_of_all
from detector.proposals.convert import conversion_name, convert, record_digest, source_parameters
from detector.proposals.filtering import Limits, filter_proposals
from detector.proposals.generate import HOW_TO_LEAVE_OUT, generate_store
from detector.proposals.image_names import keys_of, match_store
from detector.proposals.kept import kept
from detector.proposals.methods import full_parameters, propose, store_name
from detector.proposals.recall import recall
from detector.proposals.recognition import guess_format
from detector.proposals.store import ProposalStore

PROPOSALS_FOLDER = Path("data/proposals")
LOW_RECALL = 0.5
"""Below this recall at IoU 0.5 something is wrong with the boxes more often than with the method."""
LOST_RECALL = 0.05
"""Using only the best proposals of each image costs a good ranking less recall than this."""
IN_PROCESS_PIXELS = 20_000_000
"""Up to this many pixels in all images, selective search takes less time than starting other processes."""
WAIT_SECONDS = 24 * 3600.0
"""Limit of the wait for another process that makes the same proposals, such as a second run."""
UNKNOWN_PIXELS = 500_000
"""The number of pixels that an image of unknown size counts as."""


@dataclass(frozen=True)
class StoredProposals:
    """Looks up the proposals of an image and filters them as the config says.

    An image that is not in the store has no proposals, or with ``full_image`` one box, the whole image;
    ``with_proposals`` has reported it. Evaluation leaves no image out.
    """

    store: ProposalStore
    top_k: int
    min_size: float
    full_image: bool = False

    def __call__(self, record: ImageRecord) -> Proposals:
        found = self.store.filtered(record.key, (record.height, record.width), self.limits)
        if found is None:
            whole = torch.tensor([[0.0, 0.0, record.width, record.height]])
            return Proposals(boxes=whole if self.full_image else torch.zeros(0, 4))
        return found

    @property
    def limits(self) -> Limits:
        return Limits(self.min_size, self.top_k)


def image_proposals(config: Config, image: np.ndarray, name: str) -> Proposals:
    """Return what the config's method proposes for ``image`` (H, W, 3) uint8 RGB, as for a test image.

    The method runs in this process, so that ``proposals.time_limit`` does not apply. ``name`` stands for the
    image in errors. Raises InputError where the method fails.
    """
    source = config.proposals
    if source.method is None:
        raise InputError("proposals.method is not set; name one to make proposals with")
    height, width = image.shape[:2]
    parameters = full_parameters(source.method, method_parameters(source))
    # The method may change its own copy.
    made = propose(source.method, parameters, Path(name), (height, width), lambda *_: image.copy())
    made = filter_proposals(made, (height, width))  # as before they are stored
    return filter_proposals(made, (height, width), min_size=source.min_size, top_k=source.top_k_test)


@contextmanager
def temporary_store(config: Config, records: Sequence[ImageRecord]) -> Iterator[ProposalStore]:
    """Provide the proposals of images that belong to no data set: made by the config's method, or read from
    its file, in a store that is deleted afterwards.
    """
    with TemporaryDirectory() as folder:
        yield open_proposals(config, records, target=Path(folder, "store"))


def file_override(path: Path) -> str:
    """Return the config override that takes proposals from ``path``, a store or a file of a known format."""
    given = {"file": str(path), "format": guess_format(path)}
    return f"proposals={json.dumps(given, ensure_ascii=False)}"


def check_complete(config: Config, store: ProposalStore, records: Sequence[ImageRecord]) -> None:
    """Raise InputError for an image without proposals, unless ``proposals.missing`` allows that."""
    missing = np.flatnonzero(store.find_all(keys_of(records)) < 0)
    if len(missing) and config.proposals.missing == "error":
        path = records[int(missing[0])].path
        raise InputError(
            f"{store.path}: no proposals for {path}; give proposals that include this image, or none, so "
            "that they are made"
        )


def stored_proposals(config: Config, store: ProposalStore, *, training: bool) -> StoredProposals:
    """Return the look-up with the config's limits for training or for testing."""
    source = config.proposals
    top_k = source.top_k_train if training else source.top_k_test
    return StoredProposals(store, top_k, source.min_size, source.missing == "full_image")


def open_proposals(
    config: Config, records: Sequence[ImageRecord], split: str | None = None, target: Path | None = None
) -> ProposalStore:
    """Open the proposals of ``records``; those that are missing are made, or converted from the file, first.

    ``split`` chooses the file where ``proposals.file`` names one per split. ``target`` is the folder of the
    store; None is the usual one. A file is converted and checked against ``records`` only once. Where there
    are several processes, all of them call this alike. Raises InputError for a file that cannot be read or
    does not fit ``records``.
    """
    if config.proposals.method is not None:
        return make_proposals(config, records, target)
    with main_first():
        return _open_file(config, records, split, target)


def _open_file(
    config: Config, records: Sequence[ImageRecord], split: str | None, target: Path | None
) -> ProposalStore:
    """Open the proposals that the config's file holds, which is converted first where it is no store."""
    source = config.proposals
    path = _file_of(config, split)
    if not path.exists():
        raise InputError(
            f"{path}: no such proposals; proposals.file names a file of format {source.format!r} with the "
            f"boxes of every image of {config.data.root}; proposals.method=selective_search makes them "
            f"instead{how_to_get(path)}"
        )
    # Where each split has a file of its own, and for images of no split, a file holds no other images.
    shared = split is not None and isinstance(source.file, str)
    everything: Callable[[], Sequence[ImageName]] = partial(all_names, config) if shared else tuple
    if source.format is None or source.format == "store":
        return match_store(ProposalStore.open(path), records, everything)
    options: dict[str, Any] = {"convention": source.convention, "faults": source.faults}
    options |= {"missing": source.missing, "keep_others": False}
    if target is None:
        contents = source_parameters(path, source.format) | options | {"images": record_digest(records)}
        target = PROPOSALS_FOLDER / conversion_name(contents)
    fresh = not target.exists()
    if fresh:
        note(f"converting {path} into the store {target}")
    one_split = not isinstance(source.file, str) or config.data.train_split == config.data.test_split
    options |= {"one_split": one_split, "everything": everything}
    store = convert(path, source.format, target, records=records, **options)
    for text in store.notes if fresh else []:
        note(text)
    return store


def make_proposals(
    config: Config, records: Sequence[ImageRecord], target: Path | None = None
) -> ProposalStore:
    """Make the proposals of ``records`` that the config's method has not made yet, and open the store.

    ``target`` is the folder of the store; None is `made_folder`. Raises InputError for images without
    proposals, unless ``proposals.missing`` allows them.
    """
    source = config.proposals
    made, failures = generate(
        source, records, target or made_folder(config), check_first=source.missing == "error"
    )
    store = match_store(made, records)
    if failures and source.missing == "error":
        first = next(iter(failures.values()))
        raise InputError(
            f"{len(failures)} of {len(records)} images got no proposals; the first: {first}. All others are "
            "done and kept; replace these files, or set proposals.missing to skip or full_image. "
            f"{HOW_TO_LEAVE_OUT}"
        )
    return store


def generate(
    source: ProposalsConfig,
    records: Sequence[ImageRecord],
    folder: Path,
    *,
    workers: int | None = None,
    check_first: bool = False,
) -> tuple[ProposalStore, dict[str, str]]:
    """Bring the store ``folder`` up to date with ``records``; return it and why images failed, by key.

    With ``check_first``, images that cannot be read raise InputError before any work. ``workers`` None uses
    every core if the work is worth starting worker processes; where ``torchrun`` has started several
    processes, all of them call this alike, and those of one machine divide its cores among them.
    """
    if source.method is None:
        raise InputError("proposals.method is not set; name one to make proposals with")
    if workers is None:
        areas = Records.of(records).sizes.astype(np.int64).prod(axis=1)
        pixels = int(np.where(areas > 0, areas, UNKNOWN_PIXELS).sum())
        in_process = source.method == "dense" or pixels < IN_PROCESS_PIXELS * world_size()
        workers = 0 if in_process else max(available_cores() // local_place()[1], 1)
    failures: dict[str, str] = {}
    with progress_bar(f"{source.method} proposals") as advance:
        store = generate_store(
            records,
            folder,
            method=source.method,
            read_image=read_image,
            check_image=check_image if check_first else None,
            parameters=method_parameters(source),
            workers=workers,
            time_limit=source.time_limit if isinstance(source, ProposalsWithOptions) else None,
            progress=advance,
            on_failure=failures.__setitem__,
            on_damage=note,
            wait=WAIT_SECONDS,
            on_wait=lambda: note(f"waiting for another process that makes {folder}"),
        )
    return store, failures


def method_parameters(source: ProposalsConfig) -> dict[str, Any]:
    """Return the parameters that the config gives to ``proposals.method``."""
    others = {*ProposalsConfig.model_fields, "time_limit", "options"}
    given = {name: value for name, value in source if name not in others and value is not None}
    if isinstance(source, ProposalsWithOptions):
        given |= source.options
    return {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}


def made_folder(config: Config) -> Path:
    """Return the folder of the store in which training looks for the proposals of the config's method.

    For generated data it is inside the data set's own folder.
    """
    source, root = config.proposals, Path(config.data.root)
    if source.method is None:
        raise InputError("the config's proposals are a file; name the store with --output, or give --method")
    name = store_name(source.method, method_parameters(source))
    if config.data.generate is not None:
        return root / "proposals" / name
    place = hashlib.blake2b(str(root.resolve()).encode(errors="surrogatepass"), digest_size=4).hexdigest()
    return PROPOSALS_FOLDER / f"{root.resolve().name}_{place}" / name  # two data sets may have the same name


def with_proposals(config: Config, records: Sequence[ImageRecord], store: ProposalStore) -> Records:
    """Return the ``records`` to train on; ``proposals.missing`` says what to do with those without proposals.

    Raises InputError where it forbids them.
    """
    source, columns = config.proposals, Records.of(records)
    known = store.find_all(columns.keys) >= 0
    missing = np.flatnonzero(~known)
    if not len(missing):
        return columns
    first = columns.keys[int(missing[0])]
    if source.method is None and len(missing) == len(columns):
        raise InputError(
            f"{store.path}: {len(missing)} of {len(columns)} images are not in the store; is it of another "
            f"split, or of images that have changed since? The first is {first!r}, the store has "
            f"{next(iter(store.ids()), 'none')!r}"
        )
    # The user has allowed a conversion to leave images out because of faults, and it refuses missing ones.
    converted = source.format not in (None, "store")
    if source.missing == "error" and not (converted and source.faults == "skip"):
        raise InputError(
            f"{store.path}: no proposals for {len(missing)} of {len(columns)} images, the first is "
            f"{first!r}; add them, or set proposals.missing to skip or full_image"
        )
    which = f"{len(missing)} images have no proposals, such as {first!r}"
    if source.missing == "full_image":
        note(f"{which}: each is given one box, the whole image")
        return columns
    note(f"{which}: left out of training, and without detections in evaluation")
    return columns.take(np.flatnonzero(known))


def report_recall(records: Sequence[ImageRecord], store: ProposalStore, config: Config, split: str) -> None:
    """Print the recall of the proposals as training uses them, with a warning if they cannot work."""
    training = split == config.data.train_split
    key = "top_k_train" if training else "top_k_test"
    limit = getattr(config.proposals, key)
    columns = Records.of(records)
    counts = store.counts(columns.keys)
    known = columns if (counts >= 0).all() else columns.take(np.flatnonzero(counts >= 0))
    metrics = recall(known, store, limit=limit)
    reached = (
        f"recall {metrics['recall_0.5']:.3f} at IoU 0.5, {metrics['recall_0.7']:.3f} at IoU 0.7"
        if metrics["objects"]
        else "no annotated objects to measure recall with"
    )
    note(f"proposals for {split}: {metrics['proposals_per_image']:.0f} per image, {reached}")
    if pools_by_masks(config.model.pool) and not store.count_masked(known.keys):
        note(
            f"warning: model.pool.mask pools what masks cover, but {store.path} has no masks for {split}: "
            "every region is pooled as its box; give proposals with masks, or set model.pool.mask to none"
        )
    if counts.max(initial=0) > limit:
        whole, limited = recall(known, store)["recall_0.5"], metrics["recall_0.5"]
        if whole - limited > LOST_RECALL:  # as in files without any ranking
            note(
                f"warning: the first {limit} proposals of each image cover {limited:.0%} of the objects at "
                f"IoU 0.5, all of them {whole:.0%}; raise proposals.{key}, or give scores if their "
                "order is arbitrary"
            )
    if metrics["objects"] and metrics["recall_0.5"] < LOW_RECALL:
        note(
            f"warning: {store.path} covers only {metrics['recall_0.5']:.0%} of the objects at IoU 0.5; are "
            "the boxes x1, y1, x2, y2 in pixels of these images?"
        )


def target_sums(
    records: Sequence[ImageRecord],
    source: StoredProposals,
    num_classes: int,
    iou_threshold: float,
    *,
    use_difficult: bool,
    multi_label: bool = False,
) -> TargetSums:
    """Return the sums of the box targets of all training images, for `detector.models.box_coder`.

    Every proposal of ``source`` whose best IoU with an object of its image is ``iou_threshold`` or more
    counts, and so do the objects themselves; crowd regions, and difficult objects without ``use_difficult``,
    are no objects here. With ``multi_label``, objects with exactly the same box are one object, and its
    targets count for each of its labels. The result is kept with the store (`detector.proposals.kept`).
    """
    columns = Records.of(records)

    def compute() -> dict[str, Any]:
        every = columns.objects
        left_out = every.crowd if use_difficult else every.crowd | every.difficult
        keep, several = ~left_out, None
        if multi_label:
            several = labels_of_boxes(every, keep)
            keep = np.isin(np.arange(len(every)), several.rows)
        objects = BulkObjects.select(every, keep)
        boxes = torch.from_numpy(objects.boxes)
        labels = torch.from_numpy(np.asarray(every.labels)[objects.rows])
        sums = TargetSums.empty(num_classes)
        for found in matches_of_all(
            source.store, columns, objects, iou_threshold, source.limits, full_image=source.full_image
        ):
            if several is None:
                sums.add(found.boxes, boxes[found.rows], labels[found.rows])
            else:
                places, own = map(torch.from_numpy, several.repeated(found.rows.numpy()))
                sums.add(found.boxes[places], boxes[found.rows[places]], own)
        return {name: getattr(sums, name).tolist() for name in ("count", "total", "squares")}

    def depends_on() -> dict[str, Any]:
        return {
            "content": content_digest(source.store, columns),
            "limits": list(source.limits),
            "full_image": source.full_image,
            "num_classes": num_classes,
            "iou_threshold": iou_threshold,
            "use_difficult": use_difficult,
            **({"multi_label": True} if multi_label else {}),
        }

    read = partial(read_target_sums, num_classes=num_classes)
    return kept(source.store.path, "box_targets", depends_on, compute, read)


def read_target_sums(content: Any, num_classes: int) -> TargetSums:
    """Return the sums that JSON holds; ValueError, TypeError or KeyError for anything else."""
    shapes = {"count": (num_classes + 1,), "total": (num_classes + 1, 4), "squares": (num_classes + 1, 4)}
    values = {name: np.array(content[name], np.float64) for name in shapes}
    if any(one.shape != shapes[name] or not np.isfinite(one).all() for name, one in values.items()):
        raise ValueError(f"not the sums of {num_classes} classes")
    if min(values["count"].min(), values["squares"].min()) < 0:
        raise ValueError("a count or a sum of squares is negative")
    return TargetSums(**{name: torch.from_numpy(one) for name, one in values.items()})


def _file_of(config: Config, split: str | None) -> Path:
    file = config.proposals.file
    if file is None:
        raise InputError("the config names no proposals: set proposals.method, or proposals.file and format")
    if isinstance(file, str):
        return Path(file)
    if split is None or split not in file:
        raise InputError(f"proposals.file has no file for the split {split!r}; it has {', '.join(file)}")
    return Path(file[split])
