"""Recall and statistics of box targets: a whole data set at once, beside the same image by image in torch.

    python -m benchmarks.recall                  118,287 images and 844,004 objects, 2.3 GB on the disk
    python -m benchmarks.recall --images 2000    a quick run

The store holds dense proposals. Both ways run in turn on ``--part`` images, ``--rounds`` times, and must
agree; then the whole set is measured once, and again from what is kept with the store. The folder is removed
at the end.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import torch

from benchmarks.paired import compare, seconds
from detector.core import boxes as box_ops
from detector.core.records import Objects, Records, Texts
from detector.factory.proposals import StoredProposals, target_sums
from detector.models.box_coder import TargetSums
from detector.proposals.bulk import BulkObjects, best_overlaps_of_all, matches_of_all
from detector.proposals.dense import dense_proposals
from detector.proposals.recall import ALL_PROPOSALS, recall
from detector.proposals.store import Entry, ProposalStore

SIZES = ((480, 640), (427, 640), (640, 480), (375, 500))
OBJECTS_PER_IMAGE = 844_004 / 118_287  # of COCO's train2017
CLASSES, TOP_K, THRESHOLD = 80, 2000, 0.5


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=118_287)
    parser.add_argument("--part", type=int, default=1000, help="images in the comparison")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", default=None, help="where to write (default: the system's)")
    arguments = parser.parse_args()
    records = make_records(arguments.images)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        store = make_store(Path(folder) / "store", records)
        source = StoredProposals(store, TOP_K, 1.0)
        part = records[: arguments.part]
        print(f"{len(part)} images:")
        compare("recall", lambda: bulk_best(part, source), lambda: image_best(part, source), arguments.rounds)
        assert torch.equal(bulk_best(part, source), image_best(part, source))
        compare(
            "statistics of the box targets",
            lambda: bulk_sums(part, source),
            lambda: image_sums(part, source),
            arguments.rounds,
        )
        assert torch.equal(bulk_sums(part, source).count, image_sums(part, source).count)
        print(f"{len(records)} images, {len(records.objects)} objects, {torch.get_num_threads()} threads:")
        for name in ("first start", "later start"):
            opened = StoredProposals(ProposalStore.open(store.path), TOP_K, 1.0)
            found = seconds(lambda opened=opened: recall(records, opened.store, limit=TOP_K))  # type: ignore[misc]
            sums = seconds(lambda opened=opened: sums_of(records, opened))  # type: ignore[misc]
            print(f"  {name}: recall {found:.2f} s, statistics of the box targets {sums:.2f} s")


def make_records(images: int) -> Records:
    """Return images with random objects, about as many as COCO's have."""
    rng = np.random.default_rng(0)
    sizes = np.array(SIZES, np.int32)[rng.integers(0, len(SIZES), images)]
    counts = rng.poisson(OBJECTS_PER_IMAGE, images)
    offsets = np.concatenate((np.zeros(1, np.int64), np.cumsum(counts, dtype=np.int64)))
    extent = np.repeat(sizes[:, ::-1], counts, axis=0).astype(np.float32)
    corners = np.sort(rng.random((len(extent), 2, 2), np.float32), axis=1) * extent[:, None]
    objects = Objects(
        offsets=offsets,
        boxes=corners.reshape(-1, 4),
        labels=rng.integers(1, CLASSES + 1, len(extent)),
        difficult=np.zeros(len(extent), bool),
        crowd=np.zeros(len(extent), bool),
        area=np.ones(len(extent), np.float32),
    )
    keys = Texts.of(f"train2017/{number:012d}.jpg" for number in range(images))
    return Records(folder=Path(), files=keys, image_ids=keys, keys=keys, sizes=sizes, objects=objects)


def make_store(path: Path, records: Records) -> ProposalStore:
    store = ProposalStore.create(path, generator="dense", parameters={})
    dense = {size: Entry(dense_proposals(size)) for size in SIZES}
    sizes = map(tuple, records.sizes.tolist())
    store.append_all((key, dense[size]) for key, size in zip(records.keys, sizes, strict=True))
    store.compact()
    return store


def bulk_best(records: Records, source: StoredProposals) -> torch.Tensor:
    objects = BulkObjects.select(records.objects, ~records.objects.crowd)
    found = best_overlaps_of_all(source.store, records, objects, [ALL_PROPOSALS], source.limits)
    return torch.from_numpy(found.best[:, 0])


def image_best(records: Records, source: StoredProposals) -> torch.Tensor:
    found = (box_ops.iou(record.targets.boxes, source(record).boxes).amax(dim=1) for record in records)
    return torch.cat(list(found))


def bulk_sums(records: Records, source: StoredProposals) -> TargetSums:
    objects = BulkObjects.select(records.objects, ~records.objects.crowd)
    boxes, labels = torch.from_numpy(objects.boxes), torch.from_numpy(records.objects.labels[objects.rows])
    sums = TargetSums.empty(CLASSES)
    for found in matches_of_all(source.store, records, objects, THRESHOLD, source.limits):
        sums.add(found.boxes, boxes[found.rows], labels[found.rows])
    return sums


def image_sums(records: Records, source: StoredProposals) -> TargetSums:
    sums = TargetSums.empty(CLASSES)
    for record in records:
        targets = record.targets
        if len(targets):
            candidates = torch.cat((targets.boxes, source(record).boxes))
            overlap, match = box_ops.iou(candidates, targets.boxes).max(dim=1)
            keep = overlap >= THRESHOLD
            sums.add(candidates[keep], targets.boxes[match[keep]], targets.labels[match[keep]])
    return sums


def sums_of(records: Records, source: StoredProposals) -> TargetSums:
    return target_sums(records, source, CLASSES, THRESHOLD, use_difficult=True)


if __name__ == "__main__":
    main()
