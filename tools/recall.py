#!/usr/bin/env python3
"""Measure what proposals can reach: recall against their number, average recall, overlap by class and size.

Objects of the config's split are compared with one store or several, or with the config's own proposals.
IoU is that of continuous half-open boxes; proposals are taken as training takes them, best first. Average
recall is the mean over IoU 0.5 to 0.95 in steps of 0.05, MABO the mean over the classes of their mean best
overlap."""

import setup_check  # isort: skip  # noqa: F401

from detector.commands import cli, recall

if __name__ == "__main__":
    cli.run(recall.main)
