"""The commands: their names, their scripts in ``tools/``, and how messages write them."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import NamedTuple

PROGRAM = "region-detector"
"""The console command that an installation provides."""


class Command(NamedTuple):
    """A command: ``region-detector NAME`` and ``tools/SCRIPT.py`` run the same code.

    ``together`` says whether it can share its work among the processes of ``torchrun``.
    """

    name: str
    script: str
    summary: str
    together: bool = False


COMMANDS = (
    Command("download", "download", "download data sets and weights, verified, to where the configs look"),
    Command(
        "train", "train", "train a detector or a classifier as a config says, and score it", together=True
    ),
    Command(
        "evaluate",
        "evaluate",
        "score a checkpoint on a split, or result files that exist already",
        together=True,
    ),
    Command("refit", "refit", "fit another head on stored features, for other labels, without any image"),
    Command("demo", "demo", "detect objects in your own images, videos or camera, or classify them"),
    Command("serve", "serve", "show a detector in the browser, and answer requests over HTTP"),
    Command(
        "export", "export", "write a network as ONNX, OpenVINO or torch.export, and check that it is equal"
    ),
    Command("compress", "compress", "make a checkpoint's fc6 and fc7 smaller and faster by truncated SVD"),
    Command("propose", "propose", "make, convert, merge or inspect region proposals", together=True),
    Command(
        "embed",
        "embed",
        "keep the features of a split's regions on the disk, for classifiers that train in seconds",
        together=True,
    ),
    Command("label", "pseudo_label", "write what a detector finds as annotations to train another on"),
    Command("check", "check_data", "look for faults in a data set before training"),
    Command("convert", "convert_data", "convert annotations of any format to VOC layout or COCO's format"),
    Command("recall", "recall", "measure how many objects the proposals can reach"),
    Command("draw", "draw_pooling", "draw how a region is pooled by each rule"),
    Command("samples", "draw_samples", "draw training samples as the network will see them"),
    Command("ablate", "ablate", "run the ablations of the papers and print their table"),
    Command("replay", "replay", "find the first value that was not finite in a training that failed"),
)
"""All commands, in the order in which people need them."""


def as_called(text: str) -> str:
    """Return ``text`` with its commands (``tools/SCRIPT.py``) in the form in which the user calls them.

    The console command works without the repository; its users see ``region-detector NAME``.
    """
    if Path(sys.argv[0]).name.split()[:1] != [PROGRAM]:
        return text
    for command in COMMANDS:
        text = re.sub(rf"(?:python )?tools/{command.script}\.py", f"{PROGRAM} {command.name}", text)
    return text
