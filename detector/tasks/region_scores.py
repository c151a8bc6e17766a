"""Saves all scores of all regions of a split while it is evaluated, in one or several processes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from detector.core import distributed
from detector.core.structures import Batch, Detections, ImageRecord
from detector.engine.inference import RegionPredictor
from detector.evaluation.region_scores import BACKGROUND, RegionScoresFile, writing


@dataclass
class SavingPredictor:
    """A `RegionPredictor` that also sends what it computes to rank 0, which writes it to ``file``.

    The processes predict every ``world_size``-th image each. They all call this the same number of times, and
    in each round send one image each; memory does not grow with the number of images. ``left`` is the number
    of images whose regions are not written yet.
    """

    predictor: RegionPredictor
    classes: int
    left: int
    file: RegionScoresFile | None
    rounds: int = field(default=0, init=False)

    def __call__(self, views: Sequence[Batch]) -> Detections:
        """Return the detections of one image, and write all its regions."""
        detections, regions = self.predictor.with_regions(views)
        self._send(views[0].proposals[0].boxes, regions.scores, regions.boxes)
        return detections

    def finish(self) -> None:
        """Take part in the last round in a process that has one image less than others."""
        if self.left:
            columns = self.classes + 1
            self._send(torch.zeros(0, 4), torch.zeros(0, columns), torch.zeros(0, columns, 4))

    def _send(self, boxes: Tensor, scores: Tensor, refined: Tensor) -> None:
        distributed.barrier()  # one process may take much longer than another
        rows = torch.cat((boxes, scores, refined.flatten(1)), dim=1)
        for part in distributed.gather_rows(rows)[: self.left]:
            if self.file is not None:
                own, of_classes, moved = part.split((4, self.classes + 1, 4 * (self.classes + 1)), dim=1)
                self.file.add(own.numpy(), of_classes.numpy(), moved.unflatten(1, (-1, 4)).numpy())
            self.left -= 1


@contextmanager
def saving_regions(
    predictor: RegionPredictor, records: Sequence[ImageRecord], classes: Sequence[str], path: Path
) -> Iterator[SavingPredictor]:
    """Write the regions of all ``records`` to ``path`` while the block calls what this gives for each image.

    Where there are several processes, all of them enter this together, and rank 0 writes. Raises InputError
    if the file cannot be written.
    """
    with ExitStack() as opened:
        file = None
        if distributed.is_main():
            names = {
                "classes": [BACKGROUND, *classes],
                "images": [record.image_id for record in records],
                "keys": [record.key for record in records],
            }
            file = opened.enter_context(writing(path, names))
        saving = SavingPredictor(predictor, len(classes), len(records), file)
        yield saving
        saving.finish()
