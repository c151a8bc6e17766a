#!/usr/bin/env python3
"""Measure what proposals can reach: recall by their number, average recall, overlap by class and size.

The objects of a split of the config are compared with the proposals of one store or several, or with the
config's own. IoU is that of continuous half-open boxes; proposals are used as in training, best first.
Average recall is the mean over IoU 0.5 to 0.95 in steps of 0.05, MABO the mean over the classes of their mean
best overlap."""

import setup_check  # isort: skip  # noqa: F401

from detector.commands import cli, recall

if __name__ == "__main__":
    cli.run(recall.main)
